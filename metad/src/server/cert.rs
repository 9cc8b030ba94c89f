//! Certificates: operators list them, revoke them and let them in again; nodes have theirs renewed.

use super::Server;
use crate::Shared;
use crate::error::ProposeError;
use crate::fs::cert::{self, Asker, FOR_EVER, Outcome, Revoking};
use crate::fs::{Command, CommandReply, session, settings};
use crate::refused::log;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use wire::attr::Timestamp;
use wire::cert::{Certificate, KeyId, Term};
use wire::ids::MetadId;
use wire::issuer::IssuerKey;
use wire::limits::{CERT_LIFE_MAX_MS, CERT_LIFE_MIN_MS, CERT_TEXT_BYTES_MAX};
use wire::message::admin::AdminReply;
use wire::message::cert::{
    AuditEvent, AuditRecord, CertList, CertTarget, IssuedInfo, RenewRefusal, RenewReply, Renewal,
};
use wire::message::meta::{MetaReply, MetaRequest};
use wire::revoked::{Refusals, Revocations, Revoked};
use wire::tls::{PeerIdentity, Role, Subject};

/// Fewest digits that name a key.
const DIGITS_MIN: usize = 8;
/// How long the leader may take to note a renewal.
const NOTE_TIMEOUT: Duration = Duration::from_secs(3);

impl Server {
    /// Revokes what an operator names.
    pub(super) async fn revoke_cert(
        &self,
        peer: &PeerIdentity,
        target: CertTarget,
        force: bool,
        reason: String,
    ) -> Result<AdminReply, ProposeError> {
        if target.text.len().max(reason.len()) > CERT_TEXT_BYTES_MAX {
            return Ok(AdminReply::Failed(format!("names and reasons have at most {CERT_TEXT_BYTES_MAX} bytes")));
        }
        let known = cert::list(&**self.shared.consensus.state());
        let list = match self.targets(&known, &target) {
            Ok(list) => list,
            Err(reason) => return Ok(AdminReply::Failed(reason)),
        };
        if !force && let Err(reason) = self.check_harmless(peer, &known, &list).await {
            return Ok(AdminReply::Failed(reason));
        }
        let has_name = list.iter().any(|revoked| matches!(revoked, Revoked::Name { .. }));
        let lines = list.iter().flat_map(|revoked| report_lines(&known, revoked, has_name)).collect();
        Ok(match self.shared.revoke(asker(peer), list, reason).await? {
            Ok(()) => AdminReply::Report(lines),
            Err(reason) => AdminReply::Failed(reason),
        })
    }

    /// Finds what an operator means.
    fn targets(&self, known: &CertList, target: &CertTarget) -> Result<Vec<Revoked>, String> {
        let CertTarget { text, role, issuer } = target;
        let is_role = |info: &&IssuedInfo| role.is_none_or(|role| role == info.subject.role);
        if *issuer {
            let (me, own) = (self.shared.config.id, self.shared.issuer.get().map(|issuer| issuer.key()));
            return Ok(issuers(known, text, (me, own))?.into_iter().map(Revoked::Issuer).collect());
        }
        let named: Vec<&IssuedInfo> =
            known.issued.iter().filter(is_role).filter(|info| info.subject.name == *text).collect();
        if named.is_empty()
            && let Some(key) = full_or_known_key(known, text)?
        {
            return Ok(vec![Revoked::Key(key)]);
        }
        let role = match (*role, named.first()) {
            (Some(role), _) => role,
            (None, Some(first)) if named.iter().all(|info| info.subject.role == first.subject.role) => {
                first.subject.role
            }
            (None, Some(_)) => return Err(format!("several roles have the name {text:?}: name one with --role")),
            (None, None) => self.role_of(text)?,
        };
        // What was issued with ca.pem is not known, but those that have sessions have shown it.
        let shown = self.shared.liveness.certificates(&Subject::new(role, text));
        let keys = named.iter().map(|info| info.key).chain(shown.iter().map(|shown| shown.key));
        let until = shown
            .iter()
            .map(|shown| shown.issued)
            .fold(cert::named_until(self.shared.clock.now(), role), Timestamp::max);
        Ok(all_of(Subject::new(role, text), until, keys))
    }

    /// Returns the role of a name of which no token is known.
    fn role_of(&self, name: &str) -> Result<Role, String> {
        let state = &**self.shared.consensus.state();
        if settings::layout(state).members.iter().any(|member| member.name == name) {
            return Ok(Role::Blockd);
        }
        if session::all(state).iter().any(|(_, session)| session.opening.client == name) {
            return Ok(Role::Client);
        }
        Err(format!(
            "no certificate, block daemon or session has the name {name:?}: name its role with --role, or the first \
             {DIGITS_MIN} digits or more of its key; `surf cert list` shows both"
        ))
    }

    /// Checks that the operator who asks, and the metads, can go on.
    async fn check_harmless(&self, peer: &PeerIdentity, known: &CertList, list: &[Revoked]) -> Result<(), String> {
        let refusals = Refusals::default();
        refusals.learn(&Revocations { version: 1, list: list.to_vec() });
        if refusals.refuse(&peer.subject, &peer.certificate) {
            return Err(
                "this would lock you out, and you may be the last operator: have another operator do it, or say \
                 --force"
                    .to_owned(),
            );
        }
        // Names of metads and of others may be the same, and keys of other roles are no metads'.
        let is_about_metads = |revoked: &Revoked| match revoked {
            Revoked::Name { role, .. } => *role == Role::Metad,
            Revoked::Key(key) => known.issued.iter().all(|info| info.key != *key || info.subject.role == Role::Metad),
            Revoked::Issuer(_) => true,
        };
        if !list.iter().any(is_about_metads) {
            return Ok(());
        }
        for member in self.shared.members_met().await {
            let what = match member.would_be_refused(known, &refusals) {
                Some(false) => continue,
                Some(true) => "would be refused",
                None => "is not reached, and may be refused",
            };
            return Err(format!(
                "metad-{}, which is a member, {what}: `surf cluster remove` or `surf metad replace` it first, or say \
                 --force",
                member.id
            ));
        }
        Ok(())
    }

    /// Lets in again what an operator names.
    pub(super) async fn allow_cert(&self, peer: &PeerIdentity, target: CertTarget) -> Result<AdminReply, ProposeError> {
        let CertTarget { text, role, issuer } = &target;
        let known = cert::list(&**self.shared.consensus.state());
        let is_of_name =
            |info: &IssuedInfo| info.subject.name == *text && role.is_none_or(|it| it == info.subject.role);
        let keys: Vec<KeyId> = known.issued.iter().filter(|info| is_of_name(info)).map(|info| info.key).collect();
        let (me, own) = (self.shared.config.id, self.shared.issuer.get().map(|issuer| issuer.key()));
        let meant = issuers(&known, text, (me, own)).unwrap_or_default();
        let is_meant = |revoked: &Revoked| match revoked {
            Revoked::Name { role: of, name, .. } => !issuer && name == text && role.is_none_or(|role| role == *of),
            Revoked::Key(key) => !issuer && (is_prefix(text, key) || keys.contains(key)),
            Revoked::Issuer(key) => *issuer && (is_prefix(text, key) || meant.contains(key)),
        };
        let list: Vec<Revoked> =
            known.revoked.into_iter().map(|info| info.revoked).filter(|revoked| is_meant(revoked)).collect();
        if list.is_empty() {
            return Ok(AdminReply::Failed(format!("{text:?} is not revoked: `surf cert list` shows what is")));
        }
        let lines = list.iter().map(|revoked| format!("{revoked} is not refused any more")).collect();
        let asker = asker(peer);
        let records: Vec<_> =
            list.iter().map(|revoked| note(&asker, AuditEvent::Allowed, revoked.to_string(), "")).collect();
        let reply = self.shared.propose(Command::Allow { list, asker }).await?;
        self.shared.revoked_changed.notify_waiters();
        Ok(match outcome(reply)? {
            Ok(()) => {
                records.iter().for_each(log);
                AdminReply::Report(lines)
            }
            Err(reason) => AdminReply::Failed(reason),
        })
    }

    pub(super) async fn set_cert_life(&self, peer: &PeerIdentity, ms: u64) -> Result<AdminReply, ProposeError> {
        if !(CERT_LIFE_MIN_MS..=CERT_LIFE_MAX_MS).contains(&ms) {
            let (least, most) = (CERT_LIFE_MIN_MS / 1_000, CERT_LIFE_MAX_MS / 86_400_000);
            return Ok(AdminReply::Failed(format!("certificates live for {least} s to {most} days")));
        }
        let asker = asker(peer);
        let record = note(&asker, AuditEvent::LifeSet, format!("{} s", ms / 1_000), "");
        Ok(match outcome(self.shared.propose(Command::SetCertLife { ms, asker }).await?)? {
            Ok(()) => {
                log(&record);
                AdminReply::Done
            }
            Err(reason) => AdminReply::Failed(reason),
        })
    }

    /// Renews the certificate that a peer has shown.
    pub(super) async fn renew(&self, peer: &PeerIdentity) -> RenewReply {
        let renewed = self.shared.renew(peer).await;
        renewed.unwrap_or_else(|why| {
            if !matches!(why, RenewRefusal::NoIssuer(_) | RenewRefusal::Later) {
                let who = format!("{} {}", peer.subject.role, peer.subject.name);
                self.shared.refused.add(self.shared.clock.now(), &who, peer.addr, &why.to_string());
            }
            RenewReply::Refused(why)
        })
    }

    /// Notes a renewal that another metad is about to sign.
    pub(super) async fn note_renewal(&self, renewal: Renewal) -> Result<MetaReply, ProposeError> {
        Ok(MetaReply::Noted(self.shared.note_renewal(renewal).await?))
    }
}

impl Shared {
    /// Signs a renewal of the certificate that a peer, or this node itself, has shown.
    pub(crate) async fn renew(&self, peer: &PeerIdentity) -> Result<RenewReply, RenewRefusal> {
        let PeerIdentity { subject, certificate, addr, .. } = peer;
        let me = self.config.id;
        let newest = self.endpoint.identity().trust().newest();
        let is_to_move = newest.is_some_and(|newest| newest != certificate.authority);
        if certificate.is_lasting() && !is_to_move {
            return Err(RenewRefusal::Lasting);
        }
        let issuer = self.signing_issuer().filter(|issuer| issuer.roles().contains(&subject.role));
        let issuer = issuer.ok_or(RenewRefusal::NoIssuer(me))?;
        let moves = is_to_move && newest == Some(issuer.authority());
        if certificate.is_lasting() && !moves {
            return Err(RenewRefusal::NoIssuer(me));
        }
        // A peer that asks without end has one request under way.
        let _turn = self.renewals.take(&certificate.key.to_hex()).ok_or(RenewRefusal::Later)?;
        let Certificate { key, issued, ends, issuer: shown, .. } = certificate;
        let renewal = Renewal {
            subject: subject.clone(),
            key: *key,
            issued: *issued,
            ends: *ends,
            shown: *shown,
            issuer: issuer.key(),
            authority: issuer.authority(),
            moves,
            by: me,
            addr: *addr,
        };
        let term = self.noted(renewal).await.map_err(|why| match why {
            // Another metad may have an issuer of the new CA.
            RenewRefusal::TooEarly if is_to_move => RenewRefusal::NoIssuer(me),
            why => why,
        })?;
        match issuer.renew(certificate, subject, &term) {
            Ok(certificate) => Ok(RenewReply::Renewed { certificate, issuer: issuer.cert().to_vec() }),
            Err(error) => {
                tracing::error!(%error, "a renewal cannot be signed");
                Err(RenewRefusal::Later)
            }
        }
    }

    /// Has a renewal noted by the leader, wherever it is.
    async fn noted(&self, renewal: Renewal) -> Result<Term, RenewRefusal> {
        if self.consensus.leads() {
            match self.note_renewal(renewal.clone()).await {
                Ok(noted) => return noted,
                Err(error) => tracing::debug!(%error, "a renewal is not noted here"),
            }
        }
        let leader = self.consensus.leader().await.filter(|leader| *leader != self.config.id);
        let (_, nodes) = self.consensus.settled_members();
        if let Some((_, addr)) = leader.and_then(|leader| nodes.into_iter().find(|(id, _)| *id == leader)) {
            let request = MetaRequest::NoteRenewal(renewal.clone());
            let peer = self.endpoint.peer(addr, Role::Metad);
            match peer.request::<_, MetaReply>(&request, &[], NOTE_TIMEOUT).await {
                Ok((MetaReply::Noted(noted), _)) => return noted,
                Ok((other, _)) => tracing::debug!(reply = other.kind_name(), "a renewal is not noted"),
                Err(error) => tracing::debug!(%error, "a renewal is not noted"),
            }
        }
        // Without metads that can talk to each other there will be no leader.
        cert::renewed_unwritten(&**self.consensus.state(), self.clock.now(), &renewal)
    }

    /// Notes a renewal while this node leads.
    async fn note_renewal(&self, renewal: Renewal) -> Result<Result<Term, RenewRefusal>, ProposeError> {
        self.consensus.read_barrier().await?;
        match cert::renewable(&**self.consensus.state(), self.clock.now(), &renewal) {
            Ok(None) => {}
            Ok(Some(term)) => return Ok(Ok(term)),
            Err(why) => return Ok(Err(why)),
        }
        let who = format!("{} {}", renewal.subject.role, renewal.subject.name);
        let detail = format!("key {}, signed by metad-{}", renewal.key, renewal.by);
        let addr = Some(renewal.addr);
        match self.propose(Command::Renew(renewal)).await? {
            CommandReply::Renewed(renewed) => {
                if renewed.is_ok() {
                    log(&AuditRecord { at: self.clock.now(), event: AuditEvent::Renewed, who, addr, detail });
                }
                Ok(renewed)
            }
            _ => Err(ProposeError::Unknown),
        }
    }

    /// Revokes certificates. Returns why it could not be done.
    pub(crate) async fn revoke(
        &self,
        asker: Asker,
        list: Vec<Revoked>,
        reason: String,
    ) -> Result<Result<(), String>, ProposeError> {
        let records: Vec<AuditRecord> =
            list.iter().map(|revoked| note(&asker, AuditEvent::Revoked, revoked.to_string(), &reason)).collect();
        let reply = self.propose(Command::Revoke(Revoking { asker, list, reason })).await?;
        // Whoever spreads the list need not wait for its next look.
        self.revoked_changed.notify_waiters();
        let done = outcome(reply)?;
        if done.is_ok() {
            records.iter().for_each(log);
        }
        Ok(done)
    }

    /// Refuses a daemon that was removed, with the key that it has shown, if that is known. Failures are for the operator:
    /// the removal is done.
    pub(crate) async fn revoke_removed(
        &self,
        peer: &PeerIdentity,
        subject: Subject,
        shown: Option<KeyId>,
    ) -> Result<Result<(), String>, ProposeError> {
        // The number of a metad is never given to another one; the name of a block daemon may be.
        let until =
            if subject.role == Role::Metad { FOR_EVER } else { cert::named_until(self.clock.now(), subject.role) };
        let known = cert::list(&**self.consensus.state()).issued;
        let of_it = known.iter().filter(|info| info.subject.role == subject.role && info.subject.name == subject.name);
        let list = all_of(subject.clone(), until, of_it.map(|info| info.key).chain(shown));
        self.revoke(asker(peer), list, "it was removed".to_owned()).await
    }

    /// Returns with what this metad signs, unless that is revoked, or of a CA that is not trusted any more.
    pub(crate) fn signing_issuer(&self) -> Option<Arc<IssuerKey>> {
        let refusals = self.endpoint.refusals();
        let may_sign =
            |issuer: &Arc<IssuerKey>| !refusals.refuse_issuer(&issuer.key()) && !refusals.distrust(&issuer.authority());
        self.issuer.get().filter(may_sign)
    }

    /// Records something in the audit, here and in the state. It is not worth failing for.
    pub(crate) async fn note(&self, peer: &PeerIdentity, event: AuditEvent, who: String) {
        let record = AuditRecord { at: self.clock.now(), ..note(&asker(peer), event, who, "") };
        log(&record);
        if let Err(error) = self.propose(Command::Note(record)).await {
            tracing::warn!(%error, "a line of the audit is in this log alone");
        }
    }
}

/// Returns what is to be revoked of a name: it, and each of its keys, which renewals keep, and which are refused whatever a
/// clock says.
fn all_of(subject: Subject, until: Timestamp, keys: impl Iterator<Item = KeyId>) -> Vec<Revoked> {
    let keys: BTreeSet<KeyId> = keys.collect();
    let by_name = Revoked::Name { role: subject.role, name: subject.name, until };
    std::iter::once(by_name).chain(keys.into_iter().map(Revoked::Key)).collect()
}

/// Returns an operator as entries name it.
pub(super) fn asker(peer: &PeerIdentity) -> Asker {
    let Certificate { key, issued, .. } = peer.certificate;
    Asker { name: peer.subject.name.clone(), key, issued, addr: peer.addr }
}

fn note(asker: &Asker, event: AuditEvent, who: String, why: &str) -> AuditRecord {
    let detail = if why.is_empty() { format!("by {}", asker.name) } else { format!("by {}: {why}", asker.name) };
    AuditRecord { at: Timestamp::default(), event, who, addr: Some(asker.addr), detail }
}

fn outcome(reply: CommandReply) -> Result<Result<(), String>, ProposeError> {
    match reply {
        CommandReply::Revoked(Outcome::Done) => Ok(Ok(())),
        CommandReply::Revoked(Outcome::AskerRevoked) => Ok(Err("you were revoked yourself meanwhile".to_owned())),
        CommandReply::Revoked(Outcome::Full) => {
            Ok(Err("as much is revoked as can be listed: let in again what does not \
             exist any more with `surf cert allow`"
                .to_owned()))
        }
        _ => Err(ProposeError::Unknown),
    }
}

fn is_prefix(text: &str, key: &KeyId) -> bool {
    text.len() >= DIGITS_MIN && key.to_hex().starts_with(&text.to_ascii_lowercase())
}

/// Returns the key that this text names: one that is known by its first digits, or any by all of them.
fn full_or_known_key(known: &CertList, text: &str) -> Result<Option<KeyId>, String> {
    let mut found: Vec<KeyId> = known.issued.iter().map(|info| info.key).filter(|key| is_prefix(text, key)).collect();
    found.dedup();
    match (found.as_slice(), text.to_ascii_lowercase().parse()) {
        ([one], _) => Ok(Some(*one)),
        ([], Ok(key)) => Ok(Some(key)),
        ([], Err(())) => Ok(None),
        _ => Err(format!("several keys begin with {text}: give more digits")),
    }
}

/// Returns the issuers' keys that this text names: by digits, or by the metad that has signed with them.
fn issuers(known: &CertList, text: &str, (me, own): (MetadId, Option<KeyId>)) -> Result<Vec<KeyId>, String> {
    let metad = text.strip_prefix("metad-").and_then(|number| number.parse().ok()).map(MetadId);
    let is_last = |info: &&IssuedInfo| metad == Some(info.by);
    let last = known.issued.iter().filter(is_last).filter_map(|info| info.issuers.last().copied());
    let by_digits = known.issued.iter().flat_map(|info| &info.issuers).filter(|key| is_prefix(text, key)).copied();
    let own = own.filter(|key| metad == Some(me) || is_prefix(text, key));
    let keys: BTreeSet<KeyId> = last.chain(by_digits).chain(own).collect();
    let keys: Vec<KeyId> = keys.into_iter().collect();
    match (keys.is_empty(), text.to_ascii_lowercase().parse()) {
        (false, _) => Ok(keys),
        (true, Ok(key)) => Ok(vec![key]),
        (true, Err(())) => Err(format!(
            "no certificate was signed by an issuer {text:?}: name the metad, or all digits of the key, which `surf cert show \
             issuer.pem` prints"
        )),
    }
}

/// Says what is revoked. With a name, its keys are of the same role.
fn report_lines(known: &CertList, revoked: &Revoked, has_name: bool) -> Vec<String> {
    let tokens = || "join tokens are revoked, too, for an operator may have made them".to_owned();
    match revoked {
        Revoked::Name { role, name, .. } => {
            let line = if *role == Role::Admin {
                format!("{role} {name}: all certificates are refused, for ever")
            } else {
                format!(
                    "{role} {name}: all certificates up to now are refused, and those made with ca.pem within a day"
                )
            };
            if *role == Role::Admin { vec![line, tokens()] } else { vec![line] }
        }
        Revoked::Key(key) => {
            let line = format!("key {key}: refused");
            if has_name || known.issued.iter().any(|info| info.key == *key) { vec![line] } else { vec![line, tokens()] }
        }
        Revoked::Issuer(key) => {
            let last = known.issued.iter().filter(|info| info.issuers.last() == Some(key));
            let mut of_role: BTreeMap<String, usize> = BTreeMap::new();
            last.for_each(|info| *of_role.entry(info.subject.role.to_string()).or_default() += 1);
            let counts: Vec<String> = of_role.iter().map(|(role, count)| format!("{count} of role {role}")).collect();
            let counts = if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
            vec![format!("issuer {key}: whatever it signs is refused; of the identities that are known: {counts}")]
        }
    }
}
