//! `surf cert rotate-ca`: a new CA takes the place of the old one, while everybody works.

use super::access::Access;
use super::node::make_dir;
use crate::admin::Admin;
use crate::output::{self, say};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use wire::attr::Timestamp;
use wire::bundle::Bundle;
use wire::cert::AuthorityId;
use wire::ids::MetadId;
use wire::message::admin::{AdminReply, AdminRequest};
use wire::message::cert::{MetadIssuer, RotationStatus, Unmoved, UnmovedKind};
use wire::tls::{ClusterCa, Identity, Role, Subject};
use wire::trust::{SignedTrust, Trust};

/// The CA's file in the new directory.
const CA_FILE: &str = "ca.pem";
/// The operator's file there.
const BUNDLE_FILE: &str = "admin.bundle";

/// Put a new CA in the place of the old one, while everybody works. First --new; then a new issuer for each metad, by
/// `surf cluster issuer`, put in the place of the old one; then --status, until it says to finish; then --finish.
#[derive(Args)]
pub struct Rotate {
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    step: Step,
    /// Somebody else may have the old CA's key: move only identities that the cluster remembers to have issued.
    #[arg(long, requires = "new")]
    stolen: bool,
    /// Finish even if block daemons or clients have no certificate of the new CA yet: they need new tokens then.
    #[arg(long, requires = "finish")]
    force: bool,
    /// As JSON.
    #[arg(long, requires = "status")]
    json: bool,
}

/// What is to be done.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Step {
    /// Make a new CA in this directory, or take the one that is there, and have the cluster trust it beside the old one. Its key
    /// goes nowhere. An operator's bundle of the new CA is made there as well.
    #[arg(long, value_name = "DIR")]
    new: Option<PathBuf>,
    /// Show which CAs are trusted, and who has no certificate of the new one yet.
    #[arg(long)]
    status: bool,
    /// Trust the old CA no more. Needs an operator's bundle of the new one.
    #[arg(long)]
    finish: bool,
    /// Trust the new CA no more: everybody goes on with the old one.
    #[arg(long)]
    abort: bool,
}

/// Make a CA for a cluster of which no operator is left, nor ca.pem. Needs no cluster; all of its identities are made anew with
/// it, and put in the places of the old ones by hand.
#[derive(Args)]
pub struct MakeCa {
    /// The new file.
    file: PathBuf,
    /// An identity or a bundle of the cluster, such as a metad's identity.
    #[arg(long, value_name = "FILE")]
    like: PathBuf,
    /// The name of the cluster, for people.
    #[arg(long, default_value = "surf")]
    cluster: String,
}

impl MakeCa {
    /// Carries it out.
    pub fn run(&self) -> Result<()> {
        if self.file.exists() {
            bail!("{}: is there already; choose another name", self.file.display());
        }
        let id = identity_in(&self.like)?.cluster_id();
        ClusterCa::succeeding(&self.cluster, id)?.save(&self.file)?;
        say!("CA of cluster {id}: {}", self.file.display());
        Ok(())
    }
}

/// Reads an identity, alone or in a bundle.
pub fn identity_in(file: &Path) -> Result<Identity> {
    let text = fs::read_to_string(file).with_context(|| format!("{}: cannot be read", file.display()))?;
    Ok(if text.contains("format =") { Bundle::load(file)?.identity } else { Identity::from_pem(file, &text)? })
}

impl Rotate {
    /// Carries it out.
    pub async fn run(self) -> Result<ExitCode> {
        let (admin, limit) = self.access.enter()?;
        let done = self.run_as(&admin, limit).await;
        admin.close().await;
        done.map(|()| ExitCode::SUCCESS)
    }

    async fn run_as(&self, admin: &Admin, limit: Duration) -> Result<()> {
        let status = match admin.ask_admin(AdminRequest::Rotation, limit).await? {
            AdminReply::Rotation(status) => *status,
            other => bail!("metad answered {other:?} when asked for its CAs"),
        };
        if self.step.status {
            return show(&status, self.json);
        }
        let bundle = self.access.bundle()?;
        let (step, next) = match &self.step.new {
            Some(dir) => (begin(&bundle, dir, &status.trust, self.stolen)?, next_steps(dir)),
            None => (end(&bundle.identity, &status.trust, !self.step.abort)?, String::new()),
        };
        let Some(step) = step else {
            say!("it is so already");
            return Ok(());
        };
        // Metads look at who has moved, and wait for those who do not answer.
        let limit = limit.max(Duration::from_secs(30));
        match admin.ask_admin(AdminRequest::SetTrust { step, force: self.force }, limit).await? {
            AdminReply::Report(lines) => lines.iter().for_each(|line| say!("{line}")),
            other => bail!("metad answered {other:?} to a change of the CA"),
        }
        if !next.is_empty() {
            say!("{next}");
        }
        Ok(())
    }
}

/// Changes of the CA that an operator's bundle may have missed.
const VERSIONS_AHEAD_MAX: u64 = 1_000;

fn next_steps(dir: &Path) -> String {
    format!(
        "now make an issuer for each metad with {}/{CA_FILE} by `surf cluster issuer`, and put it in the place of the old one: \
         the metad takes it; use {}/{BUNDLE_FILE} from then on",
        dir.display(),
        dir.display()
    )
}

/// Makes the new CA, unless it is there, and the step by which it is trusted. Returns none if it is trusted already.
fn begin(bundle: &Bundle, dir: &Path, trust: &Trust, stolen: bool) -> Result<Option<SignedTrust>> {
    let (path, cluster) = (dir.join(CA_FILE), bundle.identity.cluster_id());
    let ca = if path.exists() {
        let ca = ClusterCa::load(&path)?;
        if ca.cluster_id()? != cluster {
            bail!("{}: is not of this cluster; choose another directory", path.display());
        }
        ca
    } else {
        make_dir(dir)?;
        let ca = ClusterCa::succeeding(&bundle.cluster, cluster)?;
        ca.save(&path)?;
        ca
    };
    let cert = ca.cert()?;
    let (Some(old), is_rotating) = (trust.authorities.first(), trust.is_rotating()) else {
        bail!("metad named no CA");
    };
    check_named(&bundle.identity, trust)?;
    if is_rotating && trust.remembered_only != stolen {
        let begun = if stolen { "without" } else { "with" };
        bail!("this change was begun {begun} --stolen: --abort it first, and begin anew in another directory");
    }
    if is_rotating && trust.authorities.last() != Some(&cert) {
        bail!("another CA is about to take the place of the old one: --finish or --abort that first");
    }
    if *old == cert {
        bail!("{}: is the CA in use; choose another directory", path.display());
    }
    let next = Trust {
        cluster,
        version: if is_rotating { trust.version } else { trust.version + 1 },
        authorities: vec![old.clone(), cert],
        remembered_only: stolen,
    };
    let file = dir.join(BUNDLE_FILE);
    let other = if file.exists() {
        Bundle::load(&file)?.identity
    } else {
        let subject = Subject::new(Role::Admin, &bundle.identity.subject().name);
        let identity = ca.issue(&subject)?.trusting(&next)?;
        let made = Bundle { identity, ..bundle.clone() };
        made.save(&file)?;
        made.identity
    };
    if is_rotating {
        return Ok(None);
    }
    Ok(Some(bundle.identity.sign_trust(&next, Some(&other))?))
}

/// Checks what a metad says before it is signed: a metad that lies would have its own CA, or an end of all changes, signed.
fn check_named(own: &Identity, trust: &Trust) -> Result<()> {
    if trust.authorities.first().is_none_or(|old| old.as_slice() != own.ca()) {
        bail!(
            "the metad names another CA than that of your bundle as the one in use: ask another metad, or use a newer bundle"
        );
    }
    check_version(own, trust)
}

/// Checks that a metad does not make up so many changes that there can be no further ones.
fn check_version(own: &Identity, trust: &Trust) -> Result<()> {
    let (said, known) = (trust.version, own.trust().version);
    // After a recovery, they are counted from its time, in seconds.
    let recovered = u64::try_from(Timestamp::now().secs).unwrap_or(0);
    if said > known.max(recovered).saturating_add(VERSIONS_AHEAD_MAX) {
        bail!(
            "the metad says that the CA was changed {said} times, and your bundle knows of {known}: ask another metad, or use a \
             newer bundle"
        );
    }
    Ok(())
}

/// Makes the step that leaves one CA. Returns none if there is no more than one.
fn end(own: &Identity, trust: &Trust, finish: bool) -> Result<Option<SignedTrust>> {
    let [old, new] = trust.authorities.as_slice() else {
        let is_own = trust.authorities.iter().any(|ca| ca == own.ca());
        if !is_own || (finish && trust.version == 0) {
            bail!("no new CA is about to take the place of the old one: begin with --new");
        }
        return Ok(None);
    };
    let (left, which) = if finish { (new, "new") } else { (old, "old") };
    if left.as_slice() != own.ca() {
        bail!("this needs an operator's bundle of the {which} CA, for the other one is refused afterwards");
    }
    check_version(own, trust)?;
    let next = Trust { version: trust.version + 1, authorities: vec![left.clone()], ..trust.clone() };
    Ok(Some(own.sign_trust(&next, None)?))
}

fn word(what: UnmovedKind) -> &'static str {
    match what {
        UnmovedKind::Metad => "member",
        UnmovedKind::Blockd => "in the layout",
        UnmovedKind::Session => "has a session",
        UnmovedKind::Issued => "not connected",
    }
}

/// What an issuer is for people, if it is not of the newest CA.
fn lacking(issuer: &MetadIssuer, newest: &AuthorityId) -> Option<&'static str> {
    match issuer {
        MetadIssuer::Of(authority) if authority == newest => None,
        MetadIssuer::Of(_) => Some("signs with an issuer of the old CA"),
        MetadIssuer::None => Some("signs with no issuer"),
        MetadIssuer::Unknown => Some("is not reached"),
    }
}

/// Returns what comes next when everybody has a certificate of the new CA. A metad without an issuer holds nothing up.
fn all_have_moved(issuers: &[(MetadId, MetadIssuer)], newest: &AuthorityId) -> &'static str {
    let is_awaited = |issuer: &MetadIssuer| *issuer != MetadIssuer::None && lacking(issuer, newest).is_some();
    if issuers.iter().any(|(_, issuer)| is_awaited(issuer)) {
        "all have certificates of the new CA; --finish waits for the issuers of these metads"
    } else {
        "all have certificates of the new CA: finish with --finish"
    }
}

fn show(status: &RotationStatus, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(&as_value(status));
    }
    let RotationStatus { trust, leader: _, issuers, unmoved, left_out } = status;
    let ids = trust.ids();
    let newest = ids.last().context("metad named no CA")?;
    if !trust.is_rotating() {
        say!("CA {newest} alone is trusted");
        return Ok(());
    }
    say!("CA {} is about to be replaced by CA {newest}", ids[0]);
    let behind = issuers.iter().filter_map(|(id, issuer)| Some((id, lacking(issuer, newest)?)));
    behind.clone().for_each(|(id, what)| say!("metad-{id} {what}"));
    if behind.count() == 0 {
        say!("all metads sign with issuers of the new CA");
    }
    let row = |one: &Unmoved| {
        let addr = one.addr.map_or_else(String::new, |addr| addr.to_string());
        let away = if one.is_away { "not seen" } else { "old CA" };
        vec![one.subject.role.to_string(), one.subject.name.clone(), word(one.what).to_owned(), away.to_owned(), addr]
    };
    if unmoved.is_empty() {
        say!("{}", all_have_moved(issuers, newest));
        return Ok(());
    }
    output::table(&["ROLE", "NAME", "IS", "SHOWS", "ADDRESS"], &unmoved.iter().map(row).collect::<Vec<_>>());
    if *left_out > 0 {
        say!("and {left_out} more");
    }
    Ok(())
}

fn as_value(status: &RotationStatus) -> serde_json::Value {
    let RotationStatus { trust, leader, issuers, unmoved, left_out } = status;
    let one = |one: &Unmoved| {
        json!({
            "role": one.subject.role.to_string(), "name": one.subject.name, "what": word(one.what),
            "address": one.addr, "away": one.is_away,
        })
    };
    let issuer = |(id, issuer): &(MetadId, MetadIssuer)| {
        let authority = match issuer {
            MetadIssuer::Of(authority) => Some(authority.to_string()),
            MetadIssuer::None | MetadIssuer::Unknown => None,
        };
        json!({ "metad": id, "authority": authority, "away": *issuer == MetadIssuer::Unknown })
    };
    json!({
        "version": trust.version, "authorities": trust.ids().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "rotating": trust.is_rotating(), "remembered_only": trust.remembered_only, "leader": leader,
        "issuers": issuers.iter().map(issuer).collect::<Vec<_>>(),
        "old": unmoved.iter().map(one).collect::<Vec<_>>(), "left_out": left_out,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_finish_is_recommended_only_when_no_issuer_holds_it_up() {
        let [old, newest] = [AuthorityId([1; 16]), AuthorityId([2; 16])];
        let says = |issuer| all_have_moved(&[(MetadId(1), MetadIssuer::Of(newest)), (MetadId(2), issuer)], &newest);
        for ready in [MetadIssuer::Of(newest), MetadIssuer::None] {
            assert!(says(ready).contains("finish with --finish"));
        }
        for awaited in [MetadIssuer::Of(old), MetadIssuer::Unknown] {
            assert!(says(awaited).contains("waits for the issuers"));
        }
    }

    #[test]
    fn nothing_is_signed_for_a_metad_that_makes_up_the_ca_in_use_or_the_number_of_changes() {
        let [ca, other] = ["a", "b"].map(|name| ClusterCa::create(name).unwrap());
        let own = ca.issue(&Subject::new(Role::Admin, "admin")).unwrap();
        let said = |version, of: &ClusterCa| Trust {
            version,
            authorities: vec![of.cert().unwrap()],
            ..Trust::original(own.cluster_id())
        };
        let bundle = Bundle { cluster: "a".to_owned(), metads: Vec::new(), identity: own.clone() };
        let dir = tempfile::tempdir().unwrap();
        let recovered = u64::try_from(Timestamp::now().secs).unwrap();
        let beyond = recovered + 2 * VERSIONS_AHEAD_MAX;
        for (number, trust) in [said(0, &other), said(beyond, &ca)].into_iter().enumerate() {
            let new = dir.path().join(number.to_string());
            assert!(begin(&bundle, &new, &trust, false).is_err());
        }
        for version in [0, recovered] {
            let new = dir.path().join(format!("new-{version}"));
            assert!(begin(&bundle, &new, &said(version, &ca), false).unwrap().is_some());
        }
        let both =
            |version| Trust { authorities: vec![other.cert().unwrap(), ca.cert().unwrap()], ..said(version, &ca) };
        assert!(end(&own, &both(beyond), true).is_err());
        assert!(end(&own, &both(1), true).unwrap().is_some());
    }
}
