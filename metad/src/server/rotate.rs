//! A new CA takes the place of the old one: operators add it, see who has no certificate of it yet, and take the old one out.

use super::Server;
use super::cert::asker;
use crate::Shared;
use crate::consensus::Member;
use crate::error::ProposeError;
use crate::fs::operator::Change;
use crate::fs::{CommandReply, cert, session, settings, trust};
use futures::future::join_all;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;
use wire::attr::Timestamp;
use wire::cert::{AuthorityId, Certificate, KeyId};
use wire::codec;
use wire::ids::MetadId;
use wire::limits::{METADS_MAX, TRUST_STEP_BYTES_MAX, UNMOVED_MAX};
use wire::message::admin::AdminReply;
use wire::message::cert::{AuditEvent, IssuedInfo, MetadIssuer, RotationStatus, Unmoved, UnmovedKind};
use wire::message::meta::{MetaReply, MetaRequest};
use wire::tls::{PeerIdentity, Role, Subject};
use wire::trust::{SignedTrust, Trust};

/// How long a daemon may take to show its certificate.
const MEET_LIMIT: Duration = Duration::from_secs(2);
/// Most of those that are named in a refusal.
const NAMED_MAX: usize = 6;

/// What a step does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Begin,
    Finish,
    Abort,
}

impl Step {
    fn event(self) -> AuditEvent {
        match self {
            Self::Begin => AuditEvent::CaAdded,
            Self::Finish => AuditEvent::CaReplaced,
            Self::Abort => AuditEvent::CaAborted,
        }
    }

    fn report(self, next: &Trust) -> Vec<String> {
        let ids: Vec<String> = next.ids().iter().map(ToString::to_string).collect();
        let newest = ids.last().cloned().unwrap_or_default();
        vec![match self {
            Self::Begin => format!("CA {newest} is trusted beside the one in use"),
            Self::Finish => format!("CA {newest} has taken the place of the older one, which is not trusted any more"),
            Self::Abort => format!("CA {newest} stays in use, and the new one is not trusted any more"),
        }]
    }
}

impl Server {
    /// Returns the signed steps to the CAs trusted now, or none if the asker's version is not older.
    pub(super) fn trust_steps(&self, version: u64) -> MetaReply {
        let is_news = self.shared.endpoint.identity().trust().version > version;
        let steps = if is_news { trust::steps(&**self.shared.consensus.state()) } else { Vec::new() };
        MetaReply::Trust { steps }
    }

    /// Has the cluster trust other CAs.
    pub(super) async fn set_trust(
        &self,
        peer: &PeerIdentity,
        step: SignedTrust,
        force: bool,
    ) -> Result<AdminReply, ProposeError> {
        let before = self.shared.trusted();
        let next = match step.trust() {
            Ok(next) => next,
            Err(error) => return Ok(AdminReply::Failed(error.to_string())),
        };
        if next == before {
            return Ok(AdminReply::Report(vec!["it is so already".to_owned()]));
        }
        let judged = match judge(&before, &next, &step, peer) {
            Ok(Step::Finish) => self.check_moved(force).await.map(|()| Step::Finish),
            judged => judged,
        };
        let what = match judged {
            Ok(what) => what,
            Err(reason) => return Ok(AdminReply::Failed(reason)),
        };
        let reply = self.shared.propose_by(None, &asker(peer), Change::SetTrust(step)).await?;
        // Wakes the task that spreads the change (`revocations::run`).
        self.shared.revoked_changed.notify_waiters();
        if reply != CommandReply::Done {
            return Ok(AdminReply::Failed("another operator was faster: see --status, and try again".to_owned()));
        }
        let who = next.newest().map_or_else(String::new, |newest| format!("CA {newest}"));
        self.shared.note(peer, what.event(), who).await;
        Ok(AdminReply::Report(what.report(&next)))
    }

    /// Checks that nobody is locked out when the older CA is not trusted any more.
    async fn check_moved(&self, force: bool) -> Result<(), String> {
        let status = self.rotation_status().await;
        let newest = status.trust.newest();
        let is_behind = |issuer: &MetadIssuer| match issuer {
            MetadIssuer::Of(authority) => Some(*authority) != newest,
            MetadIssuer::None => false,
            // It may have one of the older CA.
            MetadIssuer::Unknown => true,
        };
        let behind = status.issuers.iter().filter(|(_, issuer)| is_behind(issuer));
        let behind: Vec<String> = behind.map(|(id, _)| format!("metad-{id}")).collect();
        if !behind.is_empty() {
            // It would sign nothing any more.
            return Err(format!(
                "these metads are not reached, or have an issuer of the older CA: {}; make one of the new CA for each by `surf cluster issuer`, \
                 and put it in the place of the older one",
                behind.join(", ")
            ));
        }
        let may_go = |one: &&Unmoved| force && one.what != UnmovedKind::Metad;
        let left: Vec<&Unmoved> = status.unmoved.iter().filter(|one| !may_go(one)).collect();
        if left.is_empty() {
            return Ok(());
        }
        let named: Vec<String> = left.iter().take(NAMED_MAX).map(|one| shown(one)).collect();
        let more = left.len() - named.len() + usize::try_from(status.left_out).unwrap_or(usize::MAX);
        let more = if more == 0 { String::new() } else { format!(", and {more} more") };
        let force = if left.iter().any(|one| one.what == UnmovedKind::Metad) {
            "a metad that is gone is replaced or removed first"
        } else {
            "wait for them, or say --force: then they need new tokens"
        };
        Err(format!("not all have a certificate of the new CA: {}{more}; {force}", named.join(", ")))
    }

    /// Returns how far a change of the CA has come.
    pub(super) async fn rotation_status(&self) -> RotationStatus {
        let trust = self.shared.trusted();
        let unmoved = async {
            match trust.newest().filter(|_| trust.is_rotating()) {
                Some(newest) => self.shared.unmoved(newest).await,
                None => Vec::new(),
            }
        };
        let (mut unmoved, issuers) = tokio::join!(unmoved, self.shared.issuers());
        let left_out = unmoved.len().saturating_sub(UNMOVED_MAX) as u64;
        unmoved.truncate(UNMOVED_MAX);
        RotationStatus { trust, leader: self.shared.config.id, issuers, unmoved, left_out }
    }
}

fn shown(one: &Unmoved) -> String {
    let Unmoved { subject, is_away, .. } = one;
    let away = if *is_away { " (not reached)" } else { "" };
    format!("{} {}{away}", subject.role, subject.name)
}

/// Checks that a step may follow the present one and is signed by the right operators. Returns which step it is. Does not check
/// who has moved.
fn judge(before: &Trust, next: &Trust, step: &SignedTrust, peer: &PeerIdentity) -> Result<Step, String> {
    if next.cluster != before.cluster {
        return Err("these are CAs of another cluster".to_owned());
    }
    if next.version != before.version + 1 || codec::encoded_len(step) > TRUST_STEP_BYTES_MAX {
        return Err("the CAs have changed meanwhile, or are too large: see --status, and try again".to_owned());
    }
    let is_signed_below = |authorities: &[Vec<u8>]| {
        step.signers(authorities).iter().any(|(_, certificate)| certificate.key == peer.certificate.key)
    };
    match (before.authorities.as_slice(), next.authorities.as_slice()) {
        ([old], [first, new]) if old == first => {
            if !is_signed_below(std::slice::from_ref(old)) || step.signers(std::slice::from_ref(new)).is_empty() {
                return Err(
                    "this needs signatures of an operator of each CA: ask with an operator's bundle of the older CA"
                        .to_owned(),
                );
            }
            Ok(Step::Begin)
        }
        ([old, _], [left]) if left == old => {
            if !is_signed_below(next.authorities.as_slice()) {
                return Err("ask with an operator's bundle of the older CA: you would be locked out".to_owned());
            }
            Ok(Step::Abort)
        }
        ([_, new], [left]) if left == new => {
            if !is_signed_below(next.authorities.as_slice()) {
                return Err("ask with an operator's bundle of the new CA: you would be locked out".to_owned());
            }
            Ok(Step::Finish)
        }
        _ => Err("this does not follow from the CAs that are trusted: see --status".to_owned()),
    }
}

impl Shared {
    /// Returns the trusted CAs in the applied state, with the version that the next step follows; or those of this node's
    /// identity, if that was put here by hand and is of another CA.
    fn trusted(&self) -> Trust {
        let (own, state) = (self.endpoint.identity(), &**self.consensus.state());
        let known = trust::trust(state).unwrap_or_else(|| Trust::original(own.cluster_id()));
        let known = Trust { version: trust::version(state), ..known };
        if own.is_below_one_of(&known) { known } else { Trust { authorities: own.authorities(), ..known } }
    }

    /// Returns what each metad signs with.
    async fn issuers(&self) -> Vec<(MetadId, MetadIssuer)> {
        let of = |authority: Option<AuthorityId>| authority.map_or(MetadIssuer::None, MetadIssuer::Of);
        let ask = |member: Member| async move {
            if member.id == self.config.id {
                return (member.id, of(self.signing_issuer().map(|issuer| issuer.authority())));
            }
            let metad = self.endpoint.peer(member.addr, Role::Metad);
            let asked = metad.request::<_, MetaReply>(&MetaRequest::Issuer, &[], MEET_LIMIT).await;
            match asked {
                Ok((MetaReply::Issuer(authority), _)) => (member.id, of(authority)),
                _ => (member.id, MetadIssuer::Unknown),
            }
        };
        join_all(self.consensus.members().into_iter().take(METADS_MAX).map(ask)).await
    }

    /// Returns the nodes, sessions and issued identities without a certificate of this CA.
    async fn unmoved(&self, newest: AuthorityId) -> Vec<Unmoved> {
        let state = &**self.consensus.state();
        let meet = |addr: SocketAddr, role, what, usual: String| async move {
            let met = self.endpoint.peer(addr, role).certificate_below(newest, MEET_LIMIT).await;
            (what, addr, usual, role, met)
        };
        let metads = self.consensus.members().into_iter().filter(|member| member.id != self.config.id);
        let metads = metads.map(|it| meet(it.addr, Role::Metad, UnmovedKind::Metad, format!("metad-{}", it.id)));
        let blockds = settings::layout(state).members.into_iter();
        let blockds = blockds.map(|it| meet(it.addr, Role::Blockd, UnmovedKind::Blockd, it.name));
        let (metads, blockds) = tokio::join!(join_all(metads), join_all(blockds));
        let own = self.endpoint.identity();
        let mut keys: HashSet<KeyId> = HashSet::new();
        let mut unmoved = Vec::new();
        let mut judge = |what, addr, usual: Subject, shown: Option<(Subject, Certificate)>| match shown {
            Some((_, certificate)) if certificate.authority == newest => {
                keys.insert(certificate.key);
            }
            Some((subject, certificate)) => {
                keys.insert(certificate.key);
                unmoved.push(Unmoved { subject, what, addr, is_away: false });
            }
            None => unmoved.push(Unmoved { subject: usual, what, addr, is_away: true }),
        };
        let me = (own.subject().clone(), own.certificate().clone());
        judge(UnmovedKind::Metad, Some(self.endpoint.local_addr()), own.subject().clone(), Some(me));
        for (what, addr, usual, role, met) in metads.into_iter().chain(blockds) {
            judge(what, Some(addr), Subject::new(role, &usual), met);
        }
        let shown = self.liveness.shown();
        for (id, session) in session::all(state) {
            let client = Subject::new(Role::Client, &session.opening.client);
            judge(UnmovedKind::Session, None, client, shown.get(&id).cloned());
        }
        let now = self.clock.now();
        let is_valid = |ends: Option<Timestamp>| ends.is_none_or(|ends| ends > now);
        let issued = cert::list(state).issued.into_iter().filter(|info| {
            info.authority != newest && info.revoked.is_none() && is_valid(info.term.ends) && !keys.contains(&info.key)
        });
        let of_issued = |info: IssuedInfo| Unmoved {
            subject: info.subject,
            what: UnmovedKind::Issued,
            addr: Some(info.addr),
            is_away: true,
        };
        unmoved.extend(issued.map(of_issued));
        unmoved
    }
}
