//! `surf cert`: the certificates of a cluster: list them, revoke them, let them in again.

use super::access::Access;
use super::rotate::{MakeCa, Rotate, identity_in};
use super::token::issuable;
use crate::output::{self, say};
use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use wire::attr::Timestamp;
use wire::bundle::Bundle;
use wire::cert::Term;
use wire::issuer::IssuerKey;
use wire::message::admin::{AdminReply, AdminRequest};
use wire::message::cert::{CertList, CertTarget, IssuedInfo, RevokedInfo};
use wire::revoked::Revoked;
use wire::tls::{ClusterCa, Role, Subject};

/// Certificates: list them, refuse some from now on, let them in again.
#[derive(Args)]
pub struct Cert {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Those that the cluster has issued, by token or by renewal, and what is revoked. An identity made with ca.pem is listed
    /// once the cluster has renewed it.
    List {
        #[command(flatten)]
        access: Access,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Refuse certificates from now on: all of a name, or those of one key. Their connections end within a second, and the
    /// sessions of a client with them. They are refused until somebody lets them in again.
    Revoke {
        #[command(flatten)]
        access: Access,
        #[command(flatten)]
        which: Which,
        /// Even if that may lock out the operator who asks, or a metad.
        #[arg(long)]
        force: bool,
        /// Why, for the audit.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Refuse them no more, if they were revoked by mistake, or to make room on the list. All keys of a name are let in; those
    /// whose certificates have ended meanwhile need new tokens.
    Allow {
        #[command(flatten)]
        access: Access,
        #[command(flatten)]
        which: Which,
    },
    /// Make an identity with the cluster's ca.pem: for another operator, or where no metad signs. It lasts, unless --days says
    /// otherwise. Needs no cluster.
    Issue(Issue),
    /// Put a new CA in the place of the old one, while everybody works.
    RotateCa(Rotate),
    /// Make a CA for a cluster of which no operator is left, nor ca.pem. Needs no cluster.
    MakeCa(MakeCa),
    /// What a file says: an identity, a bundle, or an issuer. Needs no cluster.
    Show {
        /// The file.
        file: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Make an identity.
#[derive(Args)]
struct Issue {
    /// The new file: a bundle for a client or an operator, the identity alone for a daemon.
    file: PathBuf,
    /// The cluster's ca.pem.
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// What it is for: client, blockd, metad or admin.
    #[arg(long, value_parser = any_role)]
    role: Role,
    /// The name in it.
    #[arg(long)]
    name: String,
    /// It ends after so many days. All but operators' are renewed before that, if the metads have issuers.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3_650))]
    days: Option<u32>,
    /// For a bundle: the address of a metad, several times or separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS")]
    metad: Vec<SocketAddr>,
    /// For a bundle: the name of the cluster, for people.
    #[arg(long, default_value = "surf")]
    cluster: String,
}

impl Issue {
    fn run(self) -> Result<()> {
        if self.file.exists() {
            bail!("{}: is there already; choose another name", self.file.display());
        }
        let is_bundle = matches!(self.role, Role::Client | Role::Admin);
        if is_bundle && self.metad.is_empty() {
            bail!("a bundle leads to the cluster: name a metad with --metad");
        }
        let issued = Timestamp::now();
        let life = |days: u32| issued.shifted(i128::from(days) * 86_400 * 1_000_000_000);
        let term = Term { issued, ends: self.days.map(life) };
        let identity = ClusterCa::load(&self.ca)?.issue_for(&Subject::new(self.role, &self.name), &term)?;
        if is_bundle {
            Bundle { cluster: self.cluster, metads: self.metad, identity }.save(&self.file)?;
        } else {
            identity.save(&self.file)?;
        }
        say!("{} {}: {}", self.role, self.name, self.file.display());
        Ok(())
    }
}

/// Which certificates are meant.
#[derive(Args)]
struct Which {
    /// The name in them, or the key, of which the first 8 digits are enough.
    #[arg(value_name = "NAME|KEY")]
    what: String,
    /// The role of the name, if several have it, or the cluster does not know it: client, blockd, metad or admin.
    #[arg(long, value_parser = any_role)]
    role: Option<Role>,
    /// All that an issuer has signed and will sign: name its key, or the metad that has it, such as metad-3.
    #[arg(long)]
    issuer: bool,
}

fn any_role(text: &str) -> Result<Role, String> {
    if text == "admin" { Ok(Role::Admin) } else { issuable(text) }
}

impl Which {
    fn target(self) -> CertTarget {
        CertTarget { text: self.what, role: self.role, issuer: self.issuer }
    }
}

impl Cert {
    /// Carries it out.
    pub async fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::List { access, json } => match access.ask(AdminRequest::Certs).await? {
                AdminReply::Certs(certs) => show(&certs, json)?,
                other => bail!("metad answered {other:?} when asked for its certificates"),
            },
            Command::Revoke { access, which, force, reason } => {
                print_report(access.ask(AdminRequest::RevokeCert { target: which.target(), force, reason }).await?)?;
            }
            Command::Allow { access, which } => {
                print_report(access.ask(AdminRequest::AllowCert { target: which.target() }).await?)?;
            }
            Command::Issue(issue) => issue.run()?,
            Command::MakeCa(make) => make.run()?,
            Command::RotateCa(rotate) => return rotate.run().await,
            Command::Show { file, json } => show_file(&file, json)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print_report(reply: AdminReply) -> Result<()> {
    match reply {
        AdminReply::Report(lines) => lines.iter().for_each(|line| say!("{line}")),
        other => bail!("metad answered {other:?} to a revocation"),
    }
    Ok(())
}

/// The words for what becomes of an identity.
fn state(info: &IssuedInfo, now: Timestamp) -> &'static str {
    match (info.revoked.is_some(), info.term.ends.is_some_and(|ends| ends <= now)) {
        (true, _) => "revoked",
        (false, true) => "ended",
        (false, false) => "valid",
    }
}

fn show(certs: &CertList, as_json: bool) -> Result<()> {
    let now = Timestamp::now();
    if as_json {
        let issued = |info: &IssuedInfo| {
            json!({
                "role": info.subject.role.to_string(), "name": info.subject.name, "key": info.key.to_hex(),
                "state": state(info, now), "read_only": info.subject.grant.read_only,
                "issued": output::time(info.term.issued), "ends": info.term.ends.map(output::time),
                "signed_by": format!("metad-{}", info.by),
                "authority": info.authority.to_string(),
                "issuers": info.issuers.iter().map(|issuer| issuer.to_hex()).collect::<Vec<_>>(),
                "address": info.addr, "revoked": info.revoked.map(output::time),
            })
        };
        let revoked = |info: &RevokedInfo| {
            let (role, name, key, issuer) = match &info.revoked {
                Revoked::Name { role, name, .. } => (Some(role.to_string()), Some(name.clone()), None, None),
                Revoked::Key(key) => (None, None, Some(key.to_hex()), None),
                Revoked::Issuer(key) => (None, None, None, Some(key.to_hex())),
            };
            json!({
                "role": role, "name": name, "key": key, "issuer": issuer, "at": output::time(info.at),
                "by": info.by, "reason": info.reason,
            })
        };
        return output::json(&json!({
            "issued": certs.issued.iter().map(issued).collect::<Vec<_>>(),
            "revoked": certs.revoked.iter().map(revoked).collect::<Vec<_>>(),
            "life_s": certs.life_ms / 1_000, "left_out": certs.left_out,
        }));
    }
    let left = |ends: Option<Timestamp>| match ends {
        None => "for ever".to_owned(),
        Some(ends) => output::duration(Duration::from_nanos(u64::try_from(ends.nanos_since(now)).unwrap_or(0))),
    };
    let issued = |info: &IssuedInfo| {
        vec![
            info.subject.role.to_string(),
            info.subject.name.clone(),
            info.key.to_string(),
            state(info, now).to_owned(),
            left(info.term.ends),
            format!("metad-{}", info.by),
            info.addr.to_string(),
        ]
    };
    output::table(
        &["ROLE", "NAME", "KEY", "STATE", "LEFT", "SIGNED BY", "FROM"],
        &certs.issued.iter().map(issued).collect::<Vec<_>>(),
    );
    let revoked = |info: &RevokedInfo| {
        let (at, by) = (output::time(info.at), info.by.clone());
        vec![info.revoked.to_string(), at, by, info.reason.clone()]
    };
    if !certs.revoked.is_empty() {
        output::table(&["REVOKED", "SINCE", "BY", "REASON"], &certs.revoked.iter().map(revoked).collect::<Vec<_>>());
    }
    if certs.left_out > 0 {
        say!("{} more identities have no room in this list, those that are revoked first", certs.left_out);
    }
    say!("certificates live for {}", output::duration(Duration::from_millis(certs.life_ms)));
    Ok(())
}

/// Shows what is in a file.
fn show_file(file: &Path, as_json: bool) -> Result<()> {
    if let Ok(issuer) = IssuerKey::load(file) {
        let roles: Vec<String> = issuer.roles().iter().map(ToString::to_string).collect();
        if as_json {
            return output::json(&json!({ "issuer": issuer.key().to_hex(), "signs": roles }));
        }
        say!("issuer of {}, key {}", roles.join(", "), issuer.key().to_hex());
        return Ok(());
    }
    let identity = identity_in(file)?;
    let (subject, certificate) = (identity.subject(), identity.certificate());
    let ends = (!certificate.is_lasting()).then_some(certificate.ends);
    if as_json {
        return output::json(&json!({
            "role": subject.role.to_string(), "name": subject.name, "key": certificate.key.to_hex(),
            "issuer": certificate.issuer.map(|key| key.to_hex()), "authority": certificate.authority.to_string(),
            "cluster": identity.cluster_id().to_string(), "issued": output::time(certificate.issued),
            "ends": ends.map(output::time),
        }));
    }
    let ends = ends.map_or_else(|| "and lasts".to_owned(), |ends| format!("ends {}", output::time(ends)));
    let signed = certificate.issuer.map_or_else(|| "the CA".to_owned(), |key| format!("issuer {key}"));
    say!(
        "{} {}, key {}, signed by {signed}, issued {}, {ends}",
        subject.role,
        subject.name,
        certificate.key.to_hex(),
        output::time(certificate.issued)
    );
    Ok(())
}
