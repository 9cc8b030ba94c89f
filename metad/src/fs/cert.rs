//! Identities that the cluster has issued, and those that are revoked.
//!
//! Each identity is remembered by its key, which it retains through all renewals. So one that has ended can be renewed, and
//! one that was revoked cannot. Nothing leaves the list of what is revoked by itself, whatever a clock says: operators take
//! entries off. Then identities whose certificates have ended are forgotten, and what the cluster does not remember is not
//! renewed once it has ended, nor if an issuer has signed it: somebody may have its key who has no say any more.

use super::view::{Kv, KvExt, View, decode_stored};
use super::{audit, cert_keys, keys, tickets, token, trust};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use wire::attr::Timestamp;
use wire::cert::{AuthorityId, KeyId, Term};
use wire::ids::MetadId;
use wire::limits::{CERT_LIFE_MS, ISSUED_MAX, ISSUERS_MAX, REVOKED_MAX};
use wire::message::cert::{AuditEvent, AuditRecord, CertList, IssuedInfo, RenewRefusal, Renewal, RevokedInfo};
use wire::message::enroll::EnrollRefusal;
use wire::revoked::{Revocations, Revoked};
use wire::tls::{Role, Subject};

const NANOS_PER_MS: i128 = 1_000_000;
const NANOS_PER_SEC: i128 = 1_000_000_000;
/// A name is revoked up to so long after the stamp of the entry: certificates of `ca.pem`, of which nobody tells the cluster,
/// are issued by other clocks, some of which are ahead.
const AHEAD_MS: i128 = 86_400_000;
/// Entries of the list that nothing but names of operators takes: one that is to be revoked must not have filled the list.
const FOR_OPERATORS: usize = 64;
/// Counter of changes to what is revoked.
pub(super) const VERSION: &str = "revocations";
/// Setting: life of certificates, in milliseconds.
const LIFE: &str = "cert life";
/// Who comes again within this part of a life gets the certificate of the last time: nothing is written for it.
const AGAIN_PART: i128 = 10;
/// The time of a revocation that also holds for certificates that are issued later.
pub const FOR_EVER: Timestamp = Timestamp { secs: i64::MAX, nanos: 0 };

/// The stored record of an identity that was issued.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Issued {
    subject: Subject,
    /// Those that have signed for it, the last one at the end.
    issuers: Vec<KeyId>,
    /// The CA of the last one.
    authority: AuthorityId,
    by: MetadId,
    issued: Timestamp,
    /// No certificate for it that a metad has signed ends later.
    ends: Timestamp,
    addr: SocketAddr,
    revoked: Option<Timestamp>,
}

impl Issued {
    fn term(&self) -> Term {
        Term { issued: self.issued, ends: Some(self.ends) }
    }

    /// Returns whether its last certificate is among what is revoked.
    fn is_covered(&self, key: &KeyId, revoked: &Revoked) -> bool {
        match revoked {
            Revoked::Name { role, name, until } => {
                self.subject.role == *role && self.subject.name == *name && self.issued <= *until
            }
            Revoked::Key(of) => of == key,
            Revoked::Issuer(of) => self.issuers.last() == Some(of),
        }
    }
}

/// A newcomer with a token, and who is to sign for it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Enrolling {
    /// The newcomer.
    pub newcomer: token::Use,
    /// The key of the issuer.
    pub issuer: KeyId,
    /// The CA that has signed the issuer.
    pub authority: AuthorityId,
    /// The metad that signs.
    pub by: MetadId,
    /// Whence the newcomer asks.
    pub addr: SocketAddr,
}

/// An operator who changes what is revoked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Asker {
    /// Name in the certificate.
    pub name: String,
    /// Its key.
    pub key: KeyId,
    /// When it was issued.
    pub issued: Timestamp,
    /// Whence the operator asks.
    pub addr: SocketAddr,
}

/// What is to be revoked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Revoking {
    /// Who asks. Of two operators who revoke each other, the first one prevails.
    pub asker: Asker,
    /// What. Names of operators are revoked for ever, others up to a day after the stamp of the entry, or to a later time
    /// that is given.
    pub list: Vec<Revoked>,
    /// Why.
    pub reason: String,
}

/// What has become of a change to what is revoked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// It was made.
    Done,
    /// The operator who asked is revoked.
    AskerRevoked,
    /// There is no room.
    Full,
}

/// Returns the life of certificates, in milliseconds.
pub fn life_ms(kv: &dyn Kv) -> u64 {
    kv.load(&keys::setting(LIFE)).unwrap_or(CERT_LIFE_MS)
}

/// Applies `Command::SetCertLife`.
pub(super) fn set_life(view: &mut View, now: Timestamp, ms: u64, asker: &Asker) -> Outcome {
    if asker_is_revoked(view, asker) {
        return Outcome::AskerRevoked;
    }
    view.store(keys::setting(LIFE), &ms);
    let who = format!("{} s", ms / 1_000);
    audit::add(view, &by_operator(now, AuditEvent::LifeSet, who, asker, ""));
    Outcome::Done
}

fn by_operator(at: Timestamp, event: AuditEvent, who: String, asker: &Asker, why: &str) -> AuditRecord {
    let detail = if why.is_empty() { format!("by {}", asker.name) } else { format!("by {}: {why}", asker.name) };
    AuditRecord { at, event, who, addr: Some(asker.addr), detail }
}

fn record(kv: &dyn Kv, key: &KeyId) -> Option<Issued> {
    kv.load(&cert_keys::issued(key))
}

fn all_issued(kv: &dyn Kv) -> Vec<(KeyId, Issued)> {
    let pairs = kv.pairs(cert_keys::all_issued(), ISSUED_MAX);
    let one = |(key, value): &(Vec<u8>, Vec<u8>)| {
        let mut of = [0; 32];
        of.copy_from_slice(&key[1..33]);
        (KeyId(of), decode_stored(key, value))
    };
    pairs.iter().map(one).collect()
}

fn all_revoked(kv: &dyn Kv) -> Vec<RevokedInfo> {
    let pairs = kv.pairs(cert_keys::all_revocations(), REVOKED_MAX);
    pairs.iter().map(|(key, value)| decode_stored(key, value)).collect()
}

/// Returns the version of what is revoked.
pub fn version(kv: &dyn Kv) -> u64 {
    kv.load(&keys::setting(VERSION)).unwrap_or(0)
}

/// Returns what is revoked.
pub fn revocations(kv: &dyn Kv) -> Revocations {
    let _unchanged = kv.hold();
    let list = all_revoked(kv).into_iter().map(|one| one.revoked).collect();
    Revocations { version: version(kv), list }
}

/// Returns all that is known of certificates.
pub fn list(kv: &dyn Kv) -> CertList {
    let info = |(key, one): (KeyId, Issued)| IssuedInfo {
        term: one.term(),
        subject: one.subject,
        key,
        issuers: one.issuers,
        authority: one.authority,
        by: one.by,
        addr: one.addr,
        revoked: one.revoked,
    };
    let mut issued: Vec<IssuedInfo> = all_issued(kv).into_iter().map(info).collect();
    issued.sort_by(|one, other| {
        let order = |info: &IssuedInfo| (info.subject.role.to_string(), info.subject.name.clone(), info.key);
        order(one).cmp(&order(other))
    });
    let mut revoked = all_revoked(kv);
    revoked.sort_by_key(|one| one.at);
    CertList { issued, revoked, life_ms: life_ms(kv), left_out: 0 }
}

/// Returns up to when certificates of a name are revoked.
fn name_revoked_until(kv: &dyn Kv, role: Role, name: &str) -> Option<Timestamp> {
    let named = Revoked::Name { role, name: name.to_owned(), until: Timestamp::default() };
    match kv.load::<RevokedInfo>(&cert_keys::revocation(&named))?.revoked {
        Revoked::Name { until, .. } => Some(until),
        _ => None,
    }
}

fn is_listed(kv: &dyn Kv, revoked: &Revoked) -> bool {
    kv.get(&cert_keys::revocation(revoked)).is_some()
}

fn is_revoked(kv: &dyn Kv, role: Role, name: &str, (key, issued): (KeyId, Timestamp)) -> bool {
    name_revoked_until(kv, role, name).is_some_and(|until| issued <= until) || is_listed(kv, &Revoked::Key(key))
}

/// Returns the term of a certificate that is issued now. It begins after the revocation of an earlier one of its name, by
/// whatever clock that has its time, and ends no earlier than what was issued before. Returns `None` when the name is revoked
/// for ever.
fn new_term(kv: &dyn Kv, now: Timestamp, subject: &Subject, known: Option<&Issued>) -> Option<Term> {
    let revoked = name_revoked_until(kv, subject.role, &subject.name);
    if revoked == Some(FOR_EVER) {
        return None;
    }
    let issued = revoked.map_or(now, |until| now.max(until.shifted(1)));
    // In whole seconds, rounded up: certificates have no others.
    let ends = issued.shifted(i128::from(life_ms(kv)) * NANOS_PER_MS + NANOS_PER_SEC - 1);
    let ends = known.map_or(ends, |known| ends.max(known.ends));
    Some(Term { issued, ends: Some(Timestamp { nanos: 0, ..ends }) })
}

/// Returns the identity that goes when there is one more than there may be: one whose key is on the list of what is revoked,
/// which is never renewed, or else one that has ended; of several, the one that ended first.
///
/// # Errors
/// There is no room, and none of those.
fn in_the_way(kv: &dyn Kv, now: Timestamp) -> Result<Option<KeyId>, ()> {
    if kv.pairs(cert_keys::all_issued(), ISSUED_MAX).len() < ISSUED_MAX {
        return Ok(None);
    }
    let order = |(key, one): (KeyId, Issued)| (!is_listed(kv, &Revoked::Key(key)), one.ends, key);
    let may_go =
        all_issued(kv).into_iter().map(order).filter(|(is_not_listed, ends, _)| !is_not_listed || *ends <= now);
    may_go.min().map(|(.., key)| Some(key)).ok_or(())
}

/// Writes down what an issuer signs.
fn write(view: &mut View, key: &KeyId, known: Option<Issued>, (issuer, issued): (KeyId, Issued)) {
    let mut issuers = known.map(|known| known.issuers).unwrap_or_default();
    issuers.retain(|one| *one != issuer);
    if issuers.len() >= ISSUERS_MAX {
        issuers.remove(0);
    }
    issuers.push(issuer);
    view.store(cert_keys::issued(key), &Issued { issuers, ..issued });
}

/// Returns the certificate that a newcomer gets who has used its token before, if nothing is to be written for it.
///
/// # Errors
/// Why it gets none.
pub fn earlier(
    kv: &dyn Kv,
    now: Timestamp,
    newcomer: &token::Use,
    issuer: &KeyId,
) -> Result<Option<(Subject, Term)>, EnrollRefusal> {
    let (subject, is_again) = token::judge(kv, now, newcomer)?;
    let key = KeyId(newcomer.key);
    if is_listed(kv, &Revoked::Key(key)) {
        return Err(EnrollRefusal::Gone);
    }
    if !is_again {
        return Ok(None);
    }
    let known = record(kv, &key).filter(|known| known.revoked.is_none()).ok_or(EnrollRefusal::Gone)?;
    Ok((known.ends > now && known.issuers.contains(issuer)).then(|| (subject, known.term())))
}

/// Applies `Command::Enroll`. Returns whom the certificate is for, and for how long.
pub(super) fn enroll(view: &mut View, now: Timestamp, enrolling: &Enrolling) -> Result<(Subject, Term), EnrollRefusal> {
    let Enrolling { newcomer, issuer, authority, by, addr } = enrolling;
    let key = KeyId(newcomer.key);
    token::expire(view, now);
    let (subject, is_again) = token::judge(view, now, newcomer)?;
    if is_listed(view, &Revoked::Issuer(*issuer)) {
        return Err(EnrollRefusal::NoIssuer(*by));
    }
    let known = record(view, &key);
    match &known {
        _ if is_listed(view, &Revoked::Key(key)) => return Err(EnrollRefusal::Gone),
        Some(known) if known.revoked.is_some() => return Err(EnrollRefusal::Gone),
        // A key stands for one holder, so that it can be revoked.
        Some(known) if known.subject != subject => return Err(EnrollRefusal::BadRequest),
        // It may have been forgotten because it was revoked.
        None if is_again => return Err(EnrollRefusal::Gone),
        _ => {}
    }
    let term = match &known {
        Some(known) if is_again && known.ends > now => known.term(),
        known => new_term(view, now, &subject, known.as_ref()).ok_or(EnrollRefusal::Gone)?,
    };
    if known.is_none() {
        let gone = in_the_way(view, now).map_err(|()| EnrollRefusal::Full)?;
        gone.into_iter().for_each(|gone| view.delete(cert_keys::issued(&gone)));
    }
    token::count(view, now, newcomer, &subject);
    let (issuer, authority, by, addr, ends) = (*issuer, *authority, *by, *addr, term.ends.unwrap_or(term.issued));
    let who = format!("{} {}", subject.role, subject.name);
    let detail = format!("key {key}, token {:016x}, signed by metad-{by}", newcomer.token.0);
    audit::add(view, &AuditRecord { at: now, event: AuditEvent::Enrolled, who, addr: Some(addr), detail });
    let (issuers, revoked) = (Vec::new(), None);
    let issued = Issued { subject: subject.clone(), issuers, authority, by, issued: term.issued, ends, addr, revoked };
    write(view, &key, known, (issuer, issued));
    Ok((subject, term))
}

/// Returns the term of a renewal, and whether it is written down already.
fn decide(kv: &dyn Kv, now: Timestamp, renewal: &Renewal) -> Result<(Term, bool), RenewRefusal> {
    let Renewal { subject, key, issued, ends, shown, issuer, by, moves, .. } = renewal;
    let is_issuer_revoked = |issuer: &KeyId| is_listed(kv, &Revoked::Issuer(*issuer));
    if is_revoked(kv, subject.role, &subject.name, (*key, *issued)) || shown.as_ref().is_some_and(is_issuer_revoked) {
        return Err(RenewRefusal::Revoked);
    }
    if is_issuer_revoked(issuer) {
        return Err(RenewRefusal::NoIssuer(*by));
    }
    let known = record(kv, key);
    match &known {
        Some(known) if known.revoked.is_some() || known.subject != *subject => return Err(RenewRefusal::Revoked),
        Some(known) => {
            let is_fresh = now.nanos_since(known.issued) * AGAIN_PART < known.ends.nanos_since(known.issued);
            if is_fresh && known.ends > now {
                if known.ends <= *ends && !moves {
                    return Err(RenewRefusal::TooEarly);
                }
                if known.issuers.contains(issuer) {
                    return Ok((known.term(), true));
                }
            }
        }
        // Whoever had an issuer's key that was revoked since may have signed it.
        None if shown.is_some() || *ends <= now => return Err(RenewRefusal::Unknown),
        // So may whoever has had the CA's key.
        None if *moves && trust::trust(kv).is_some_and(|trust| trust.remembered_only) => {
            return Err(RenewRefusal::Unknown);
        }
        None => {}
    }
    let term = new_term(kv, now, subject, known.as_ref()).ok_or(RenewRefusal::Revoked)?;
    // A lasting one of an older CA gets one that ends.
    if !moves && term.ends.is_some_and(|new| new <= *ends) {
        return Err(RenewRefusal::TooEarly);
    }
    if known.is_none() {
        in_the_way(kv, now).map_err(|()| RenewRefusal::Full)?;
    }
    Ok((term, false))
}

/// Returns the term of a renewal for which nothing is to be written, because there was one a moment ago.
///
/// # Errors
/// Why the certificate is not renewed.
pub fn renewable(kv: &dyn Kv, now: Timestamp, renewal: &Renewal) -> Result<Option<Term>, RenewRefusal> {
    decide(kv, now, renewal).map(|(term, is_written)| is_written.then_some(term))
}

/// Returns the term of a renewal that nobody can write down because there is no leader: metads that are remembered get such
/// ones, for without them there will be none.
///
/// # Errors
/// Why the certificate is not renewed.
pub fn renewed_unwritten(kv: &dyn Kv, now: Timestamp, renewal: &Renewal) -> Result<Term, RenewRefusal> {
    if renewal.subject.role != Role::Metad || record(kv, &renewal.key).is_none() {
        return Err(RenewRefusal::Later);
    }
    decide(kv, now, renewal).map(|(term, _)| term)
}

/// Applies `Command::Renew`. Returns for how long the certificate is valid.
pub(super) fn renew(view: &mut View, now: Timestamp, renewal: &Renewal) -> Result<Term, RenewRefusal> {
    let (term, is_written) = decide(view, now, renewal)?;
    if is_written {
        return Ok(term);
    }
    let Renewal { subject, key, issuer, authority, by, addr, .. } = renewal;
    let known = record(view, key);
    if known.is_none() {
        let gone = in_the_way(view, now).map_err(|()| RenewRefusal::Full)?;
        gone.into_iter().for_each(|gone| view.delete(cert_keys::issued(&gone)));
    }
    let (issuer, authority, by, addr, ends) = (*issuer, *authority, *by, *addr, term.ends.unwrap_or(term.issued));
    let who = format!("{} {}", subject.role, subject.name);
    let detail = format!("key {key}, signed by metad-{by}");
    audit::add(view, &AuditRecord { at: now, event: AuditEvent::Renewed, who, addr: Some(addr), detail });
    let (issuers, revoked) = (Vec::new(), None);
    let issued = Issued { subject: subject.clone(), issuers, authority, by, issued: term.issued, ends, addr, revoked };
    write(view, key, known, (issuer, issued));
    Ok(term)
}

/// Raises the version of what is revoked, by which block daemons hear of a change.
pub(super) fn changed(view: &mut View) {
    let next = version(view) + 1;
    view.store(keys::setting(VERSION), &next);
}

/// Returns whether the operator who asks is revoked.
pub fn asker_is_revoked(kv: &dyn Kv, asker: &Asker) -> bool {
    is_revoked(kv, Role::Admin, &asker.name, (asker.key, asker.issued))
}

/// Returns up to when a name is revoked at this time, at least. That of an operator is for ever: nobody comes again under it
/// with a certificate that its `ca.pem` has issued by a wrong clock.
#[must_use]
pub fn named_until(now: Timestamp, role: Role) -> Timestamp {
    if role == Role::Admin { FOR_EVER } else { now.shifted(AHEAD_MS * NANOS_PER_MS) }
}

/// Returns whether a revocation may be about an operator. The keys of operators are not remembered. Those that are revoked
/// along with a name are what its holder has shown, so they are of its role.
fn may_be_operator(list: &[Revoked], issued: &[(KeyId, Issued)]) -> bool {
    let mut roles = list.iter().filter_map(|revoked| match revoked {
        Revoked::Name { role, .. } => Some(*role),
        Revoked::Key(_) | Revoked::Issuer(_) => None,
    });
    let is_unknown = |revoked: &Revoked| matches!(revoked, Revoked::Key(of) if issued.iter().all(|(key, _)| key != of));
    match roles.next() {
        Some(first) => first == Role::Admin || roles.any(|role| role == Role::Admin),
        None => list.iter().any(is_unknown),
    }
}

/// Applies `Command::Revoke`. The tokens by which those have come that are revoked are revoked, too: whoever knows a token
/// could come again. If an operator is revoked, all tokens are: it may have made them.
pub(super) fn revoke(view: &mut View, now: Timestamp, revoking: &Revoking) -> Outcome {
    let Revoking { asker, list, reason } = revoking;
    if asker_is_revoked(view, asker) {
        return Outcome::AskerRevoked;
    }
    let listed = view.pairs(cert_keys::all_revocations(), REVOKED_MAX).len();
    let new = list.iter().filter(|revoked| !is_listed(view, revoked)).count();
    let is_operator = |revoked: &Revoked| matches!(revoked, Revoked::Name { role: Role::Admin, .. });
    let room = if list.iter().all(is_operator) { REVOKED_MAX } else { REVOKED_MAX - FOR_OPERATORS };
    if new > 0 && listed + new > room {
        return Outcome::Full;
    }
    let issued = all_issued(view);
    let mut revoked = list.clone();
    for one in &mut revoked {
        if let Revoked::Name { role, name, until } = one {
            // Whatever was issued since this was asked for, and by whatever clock.
            let is_of_name = |one: &&Issued| one.subject.role == *role && one.subject.name == *name;
            let last = issued.iter().map(|(_, one)| one).filter(is_of_name).map(|one| one.issued).max();
            let known = name_revoked_until(view, *role, name);
            *until = [Some(named_until(now, *role)), last, known].into_iter().flatten().fold(*until, Timestamp::max);
        }
        audit::add(view, &by_operator(now, AuditEvent::Revoked, one.to_string(), asker, reason));
        let (by, reason) = (asker.name.clone(), reason.clone());
        view.store(cert_keys::revocation(one), &RevokedInfo { revoked: one.clone(), at: now, by, reason });
    }
    if may_be_operator(&revoked, &issued) {
        token::revoke_all(view);
    }
    // A client knows none. Whose a key or an issuer is, is not looked up.
    let is_client = |revoked: &Revoked| matches!(revoked, Revoked::Name { role: Role::Client | Role::Admin, .. });
    if !revoked.iter().all(is_client) {
        tickets::forget(view);
    }
    for (key, one) in issued {
        if one.revoked.is_none() && revoked.iter().any(|revoked| one.is_covered(&key, revoked)) {
            token::revoke_used_by(view, &key.0);
            view.store(cert_keys::issued(&key), &Issued { revoked: Some(now), ..one });
        }
    }
    changed(view);
    Outcome::Done
}

/// Applies `Command::Allow`: these are not revoked any more. Identities that have ended meanwhile are forgotten: an entry that
/// is taken off to make room lets nobody in.
pub(super) fn allow(view: &mut View, now: Timestamp, list: &[Revoked], asker: &Asker) -> Outcome {
    if asker_is_revoked(view, asker) {
        return Outcome::AskerRevoked;
    }
    for revoked in list {
        view.delete(cert_keys::revocation(revoked));
        audit::add(view, &by_operator(now, AuditEvent::Allowed, revoked.to_string(), asker, ""));
    }
    let left = all_revoked(view);
    for (key, one) in all_issued(view) {
        if one.revoked.is_none() || left.iter().any(|left| one.is_covered(&key, &left.revoked)) {
            continue;
        }
        if one.ends <= now {
            view.delete(cert_keys::issued(&key));
        } else {
            view.store(cert_keys::issued(&key), &Issued { revoked: None, ..one });
        }
    }
    changed(view);
    Outcome::Done
}

#[cfg(test)]
mod tests {
    use super::super::operator::Change;
    use super::super::view::MemoryKv;
    use super::super::{Command, CommandReply, Stamped, apply, check};
    use super::*;
    use wire::ids::{BlockHash, TokenId};
    use wire::ticket::TicketKey;
    use wire::tls::ClientGrant;
    use wire::token::{NewToken, Secret, TokenState};

    const LIFE: u64 = 1_000_000;
    const DAY: u64 = 86_400_000;

    fn at(ms: u64) -> Timestamp {
        Timestamp::default().shifted(i128::from(ms) * NANOS_PER_MS)
    }

    fn asker(name: &str) -> Asker {
        Asker { name: name.to_owned(), key: KeyId([7; 32]), issued: at(0), addr: ([10, 0, 0, 1], 1).into() }
    }

    struct State(MemoryKv);

    impl State {
        fn founded() -> Self {
            let mut state = Self(MemoryKv::default());
            state.apply(0, Command::Init { cluster: "c".to_owned(), replicas: 1, min_sync: 1 });
            state.apply(0, Command::SetCertLife { ms: LIFE, asker: asker("a") });
            state
        }

        fn apply(&mut self, ms: u64, command: Command) -> CommandReply {
            let base = self.0.clone();
            let mut view = View::new(&base);
            let reply = apply(&mut view, &Stamped { now: at(ms), command });
            self.0.absorb(view.into_changes());
            reply
        }

        fn token(&mut self, ms: u64, id: u64, uses: u32, name: Option<&str>) {
            let (hash, grant) = (Secret([7; 32]).hash(), ClientGrant::default());
            let name = name.map(str::to_owned);
            let new = NewToken { id: TokenId(id), hash, role: Role::Client, name, grant, uses, valid_ms: 100_000_000 };
            assert_eq!(self.apply(ms, Command::CreateToken(new)), CommandReply::Done);
        }

        fn enroll(&mut self, ms: u64, token: u64, key: u8) -> Result<(Subject, Term), EnrollRefusal> {
            self.enroll_by(ISSUER, ms, token, key)
        }

        fn enroll_by(&mut self, issuer: KeyId, ms: u64, token: u64, key: u8) -> Result<(Subject, Term), EnrollRefusal> {
            let hash = Secret([7; 32]).hash();
            let newcomer = token::Use { token: TokenId(token), hash, key: [key; 32], host: "h".to_owned() };
            let addr = ([10, 0, 0, 2], 2).into();
            match self.apply(ms, Command::Enroll(Enrolling { newcomer, issuer, authority: CA, by: MetadId(1), addr })) {
                CommandReply::Issued(issued) => issued,
                other => panic!("{other:?}"),
            }
        }

        /// Renews a certificate that this issuer has signed, if any, by another one.
        fn renew_by(
            &mut self,
            (shown, issuer): (Option<KeyId>, KeyId),
            ms: u64,
            subject: &Subject,
            key: u8,
            term: Term,
        ) -> Result<Term, RenewRefusal> {
            let renewal = renewal((shown, issuer), subject, key, term);
            match self.apply(ms, Command::Renew(renewal)) {
                CommandReply::Renewed(renewed) => renewed,
                other => panic!("{other:?}"),
            }
        }

        fn renew(&mut self, ms: u64, subject: &Subject, key: u8, term: Term) -> Result<Term, RenewRefusal> {
            self.renew_by((Some(ISSUER), ISSUER), ms, subject, key, term)
        }

        fn revoke(&mut self, ms: u64, by: &str, revoked: Revoked) -> Outcome {
            let revoking = Revoking { asker: asker(by), list: vec![revoked], reason: String::new() };
            match self.apply(ms, Command::Revoke(revoking)) {
                CommandReply::Revoked(outcome) => outcome,
                other => panic!("{other:?}"),
            }
        }

        fn allow(&mut self, ms: u64, revoked: Revoked) {
            let allow = Command::Allow { list: vec![revoked], asker: asker("a") };
            assert_eq!(self.apply(ms, allow), CommandReply::Revoked(Outcome::Done));
        }

        fn is_valid(&self, token: u64, ms: u64) -> bool {
            let listed = token::list(&self.0, at(ms));
            listed.iter().any(|info| info.id == TokenId(token) && info.state == TokenState::Valid)
        }
    }

    const ISSUER: KeyId = KeyId([9; 32]);
    const OTHER: KeyId = KeyId([8; 32]);
    const CA: AuthorityId = AuthorityId([6; 16]);

    fn renewal((shown, issuer): (Option<KeyId>, KeyId), subject: &Subject, key: u8, term: Term) -> Renewal {
        Renewal {
            subject: subject.clone(),
            key: KeyId([key; 32]),
            issued: term.issued,
            ends: term.ends.unwrap(),
            shown,
            issuer,
            authority: CA,
            moves: false,
            by: MetadId(1),
            addr: ([10, 0, 0, 2], 2).into(),
        }
    }

    fn named(name: &str, until: Timestamp) -> Revoked {
        Revoked::Name { role: Role::Client, name: name.to_owned(), until }
    }

    fn of_key(key: u8) -> Revoked {
        Revoked::Key(KeyId([key; 32]))
    }

    #[test]
    fn an_identity_is_renewed_as_often_as_it_asks_and_written_once_for_a_part_of_its_life() {
        let mut state = State::founded();
        state.token(0, 1, 1, None);
        let (subject, first) = state.enroll(1_000, 1, 1).unwrap();
        assert_eq!(first.ends, Some(at(1_000 + LIFE)));
        let early = state.renew(1_000 + LIFE / 10 - 1, &subject, 1, first);
        assert_eq!(early, Err(RenewRefusal::TooEarly), "it was issued a moment ago");
        let second = state.renew(500_000, &subject, 1, first).unwrap();
        assert_eq!(second.ends, Some(at(500_000 + LIFE)));
        // With the older certificate: the answer may have been lost.
        let before = state.0.clone();
        assert_eq!(state.renew(500_001, &subject, 1, first), Ok(second));
        assert_eq!(state.renew(500_001, &subject, 1, second), Err(RenewRefusal::TooEarly));
        assert_eq!(state.0, before, "nothing is written");
        // Another issuer is written down, and the term stays.
        assert_eq!(state.renew_by((Some(ISSUER), OTHER), 500_000, &subject, 1, first), Ok(second));
        assert_eq!(list(&state.0).issued[0].issuers, [ISSUER, OTHER]);
        let other = Subject { name: "other".to_owned(), ..subject.clone() };
        assert_eq!(state.renew(900_000, &other, 1, second), Err(RenewRefusal::Revoked), "the key is another's");
        // It was off for three lives.
        let third = state.renew(500_000 + 4 * LIFE, &subject, 1, second).unwrap();
        assert_eq!(third.issued, at(500_000 + 4 * LIFE));
        // One that was made with the CA is renewed while it is valid, and from then on remembered.
        let offline = Term { issued: at(0), ends: Some(at(5_000_000)) };
        let by_ca = (None, ISSUER);
        assert_eq!(state.renew_by(by_ca, 5_000_000, &other, 2, offline), Err(RenewRefusal::Unknown));
        let known = state.renew_by(by_ca, 4_999_999, &other, 2, offline).unwrap();
        assert!(state.renew(9_000_000, &other, 2, known).is_ok());
        assert_eq!(check::check(&state.0), Vec::<String>::new());
    }

    #[test]
    fn no_certificate_ends_before_the_one_that_it_renews_whatever_lives_are_set() {
        let mut state = State::founded();
        state.token(0, 1, 2, None);
        let (subject, first) = state.enroll(0, 1, 1).unwrap();
        state.apply(0, Command::SetCertLife { ms: LIFE / 10, asker: asker("a") });
        assert_eq!(state.renew(LIFE / 2, &subject, 1, first), Err(RenewRefusal::TooEarly));
        let second = state.renew(LIFE - 1_000, &subject, 1, first).unwrap();
        assert!(second.ends > first.ends);
        // Nor one that was made with the CA, for a year.
        let (other, year) = (Subject::new(Role::Client, "other"), Term { issued: at(0), ends: Some(at(50 * LIFE)) });
        assert_eq!(state.renew_by((None, ISSUER), LIFE, &other, 2, year), Err(RenewRefusal::TooEarly));
        assert!(state.renew_by((None, ISSUER), 50 * LIFE - 1_000, &other, 2, year).is_ok());
        // Who comes again by token gets no less than it had.
        state.token(0, 2, 1, None);
        let before = list(&state.0).issued.iter().find(|info| info.subject == subject).unwrap().term;
        let (again, term) = state.enroll_by(OTHER, LIFE - 500, 1, 1).unwrap();
        assert_eq!((again, term), (subject, before));
    }

    #[test]
    fn who_is_revoked_is_neither_renewed_nor_enrolled_again_and_its_token_is_revoked() {
        let mut state = State::founded();
        state.token(0, 1, 5, None);
        let (subject, term) = state.enroll(1_000, 1, 1).unwrap();
        let (other, of_other) = state.enroll(1_000, 1, 2).unwrap();
        assert_eq!(state.revoke(2_000, "a", of_key(1)), Outcome::Done);
        assert_eq!(state.renew(600_000, &subject, 1, term), Err(RenewRefusal::Revoked));
        assert!(state.enroll(3_000, 1, 1).is_err() && state.enroll(3_000, 1, 3).is_err(), "the token is known to it");
        assert!(state.renew(600_000, &other, 2, of_other).is_ok());
        // Nor by another token.
        state.token(3_000, 2, 5, None);
        assert_eq!(state.enroll(3_001, 2, 1), Err(EnrollRefusal::Gone));
        assert!(state.enroll(3_001, 2, 4).is_ok());
    }

    #[test]
    fn a_revocation_stays_whatever_the_clock_says_and_whatever_other_certificates_the_holder_has() {
        let mut state = State::founded();
        state.token(0, 1, 5, None);
        let (subject, first) = state.enroll(1_000, 1, 1).unwrap();
        // An older certificate for the key, made by hand, ends long after all others.
        let by_hand = Term { issued: at(0), ends: Some(at(100 * LIFE)) };
        state.revoke(2_000, "a", of_key(1));
        state.revoke(2_000, "a", named("lasting", at(2_000)));
        let far = 50 * LIFE;
        for ms in [far, 2_001] {
            state.token(ms, 2 + ms, 1, None);
            assert_eq!(state.renew(ms, &subject, 1, first), Err(RenewRefusal::Revoked));
            assert_eq!(state.renew_by((None, ISSUER), ms, &subject, 1, by_hand), Err(RenewRefusal::Revoked));
            assert_eq!(revocations(&state.0).list.len(), 2, "at {ms}");
        }
        // Taken off by an operator when all that is known has ended, it lets nobody in.
        state.allow(far, of_key(1));
        assert_eq!(state.renew(far, &subject, 1, first), Err(RenewRefusal::Unknown));
        assert!(state.enroll(far, 1, 1).is_err());
        // Taken off before, it was a mistake.
        let (again, term) = state.enroll(3_000, 2 + 2_001, 6).unwrap();
        state.revoke(3_001, "a", of_key(6));
        state.allow(3_002, of_key(6));
        assert!(state.renew(3_002 + LIFE / 2, &again, 6, term).is_ok());
    }

    #[test]
    fn a_revoked_issuer_signs_for_nobody_and_what_it_has_signed_is_not_renewed() {
        let mut state = State::founded();
        state.token(0, 1, 9, None);
        let (subject, term) = state.enroll(1_000, 1, 1).unwrap();
        let (moved, of_moved) = state.enroll(1_000, 1, 2).unwrap();
        let later = state.renew_by((Some(ISSUER), OTHER), 500_000, &moved, 2, of_moved).unwrap();
        // Somebody who has the issuer's key makes identities that nobody knows, and comes to another metad with them.
        let forged = Term { issued: at(1_000), ends: Some(at(2 * LIFE)) };
        let nobody = Subject::new(Role::Client, "nobody");
        let attempt = state.renew_by((Some(ISSUER), OTHER), 1_500_000, &nobody, 66, forged);
        assert_eq!(attempt, Err(RenewRefusal::Unknown), "before anybody has noticed");
        let metad = Subject::new(Role::Metad, "metad-2");
        let alone = renewed_unwritten(&state.0, at(500_000), &renewal((Some(ISSUER), OTHER), &metad, 67, forged));
        assert_eq!(alone, Err(RenewRefusal::Later), "nor without a leader");
        assert_eq!(state.revoke(500_001, "a", Revoked::Issuer(ISSUER)), Outcome::Done);
        for (subject, key, term) in [(&subject, 1, term), (&moved, 2, of_moved), (&nobody, 66, forged)] {
            let renewed = state.renew_by((Some(ISSUER), OTHER), 600_000, subject, key, term);
            assert_eq!(renewed, Err(RenewRefusal::Revoked), "{subject:?}");
        }
        // It signs neither renewals nor for newcomers; another one does.
        let by_it = state.renew(900_000, &moved, 2, later);
        assert_eq!(by_it, Err(RenewRefusal::Revoked), "the certificate that it shows is the issuer's");
        let by_it = state.renew_by((Some(OTHER), ISSUER), 1_200_000, &moved, 2, later);
        assert_eq!(by_it, Err(RenewRefusal::NoIssuer(MetadId(1))));
        assert!(state.renew_by((Some(OTHER), OTHER), 1_200_000, &moved, 2, later).is_ok());
        state.token(600_000, 2, 9, None);
        assert_eq!(state.enroll(600_001, 2, 3), Err(EnrollRefusal::NoIssuer(MetadId(1))));
        assert!(state.enroll_by(OTHER, 600_001, 2, 3).is_ok());
    }

    #[test]
    fn tokens_that_a_revoked_operator_may_have_made_let_nobody_in() {
        let admin = || Revoked::Name { role: Role::Admin, name: "b".to_owned(), until: at(5) };
        for (revoked, is_operator) in
            [(admin(), true), (of_key(77), true), (of_key(1), false), (named("x", at(1)), false)]
        {
            let mut state = State::founded();
            state.token(0, 1, 1, None);
            state.token(0, 2, 1, None);
            state.enroll(1, 1, 1).unwrap();
            assert!(state.is_valid(2, 2));
            state.revoke(2, "a", revoked.clone());
            assert_eq!(state.is_valid(2, 3), !is_operator, "{revoked}");
        }
    }

    #[test]
    fn a_key_that_is_revoked_along_with_a_name_is_of_its_role_and_takes_no_tokens_along() {
        let admin = Revoked::Name { role: Role::Admin, name: "b".to_owned(), until: at(5) };
        let metad = Revoked::Name { role: Role::Metad, name: "metad-2".to_owned(), until: FOR_EVER };
        for (list, is_operator) in [
            (vec![metad.clone(), of_key(77)], false),
            (vec![named("x", at(1)), of_key(77), of_key(78)], false),
            (vec![metad, admin.clone(), of_key(77)], true),
            (vec![admin, of_key(77)], true),
            (vec![of_key(77)], true),
        ] {
            let mut state = State::founded();
            state.token(0, 1, 1, None);
            let revoking = Revoking { asker: asker("a"), list: list.clone(), reason: String::new() };
            assert_eq!(state.apply(2, Command::Revoke(revoking)), CommandReply::Revoked(Outcome::Done));
            assert_eq!(state.is_valid(1, 3), !is_operator, "{list:?}");
        }
    }

    #[test]
    fn what_was_signed_with_a_key_of_tickets_is_good_for_nothing_once_somebody_who_may_know_it_is_revoked() {
        let of_role = |role| Revoked::Name { role, name: "x".to_owned(), until: at(1) };
        let (holder, hash) = (KeyId([1; 32]), BlockHash([2; 32]));
        for (revoked, is_good) in [
            (of_role(Role::Metad), false),
            (of_role(Role::Blockd), false),
            (of_key(1), false),
            (Revoked::Issuer(ISSUER), false),
            (of_role(Role::Client), true),
            (of_role(Role::Admin), true),
        ] {
            let mut state = State::founded();
            let make = |state: &mut State| {
                let number = tickets::keys(&state.0).next_number(at(1_000));
                let made = state.apply(1_000, Command::AddTicketKey(TicketKey::make(number, at(1_000))));
                assert_eq!(made, CommandReply::Done);
            };
            make(&mut state);
            let first = tickets::keys(&state.0).newest().unwrap().clone();
            let (ticket, receipt) = (first.ticket(&holder, &hash, (0, 1), at(1_000)), first.receipt(&holder, &hash));
            assert_eq!(state.revoke(1_000, "a", revoked.clone()), Outcome::Done);
            let left = tickets::keys(&state.0);
            assert_eq!(left.is_due(at(1_000)), !is_good, "{revoked}: the leader makes another one at once");
            // It may have the same number.
            make(&mut state);
            for keys in [left, tickets::keys(&state.0)] {
                assert_eq!(keys.admits(&ticket, &holder, &hash, at(1_000)), is_good, "{revoked}");
                assert_eq!(keys.confirms(&receipt, &holder), is_good, "{revoked}");
            }
        }
    }

    #[test]
    fn a_key_that_came_by_several_tokens_takes_all_of_them_along() {
        let mut state = State::founded();
        for id in 1..=3 {
            state.token(0, id, 9, Some("laptop"));
        }
        for id in 1..=2 {
            state.enroll(1, id, 1).unwrap();
        }
        state.revoke(2, "a", of_key(1));
        assert!(!state.is_valid(1, 3) && !state.is_valid(2, 3) && state.is_valid(3, 3));
    }

    #[test]
    fn what_was_issued_for_a_name_before_its_revocation_is_applied_is_revoked_by_whatever_clock() {
        let mut state = State::founded();
        for id in 1..=2 {
            state.token(0, id, 1, Some("laptop"));
        }
        let (subject, ahead) = state.enroll(90_000, 1, 1).unwrap();
        // Asked for at 8,000, and applied by a leader whose clock is at 9,000.
        state.revoke(9_000, "a", named("laptop", at(8_000)));
        assert_eq!(revocations(&state.0).list, [named("laptop", at(9_000 + DAY))]);
        assert_eq!(state.renew(600_000, &subject, 1, ahead), Err(RenewRefusal::Revoked));
        let (_, later) = state.enroll(9_500, 2, 2).unwrap();
        assert!(later.issued > at(9_000 + DAY));
    }

    #[test]
    fn a_name_is_revoked_with_what_ca_pem_has_issued_by_a_clock_that_is_ahead_and_that_of_an_operator_for_ever() {
        let mut state = State::founded();
        state.revoke(9_000, "a", named("laptop", at(8_000)));
        // Nothing is known of it: it was made by hand, on a machine whose clock is some hours ahead.
        let (subject, ahead) =
            (Subject::new(Role::Client, "laptop"), Term { issued: at(DAY / 2), ends: Some(at(9 * DAY)) });
        let renewed = state.renew_by((None, ISSUER), 9 * DAY - 1_000, &subject, 1, ahead);
        assert_eq!(renewed, Err(RenewRefusal::Revoked));
        let admin = |until| Revoked::Name { role: Role::Admin, name: "b".to_owned(), until };
        state.revoke(9_000, "a", admin(at(9_000)));
        assert!(revocations(&state.0).list.contains(&admin(FOR_EVER)));
        let years_later = Asker { issued: at(5_000 * DAY), ..asker("b") };
        assert!(asker_is_revoked(&state.0, &years_later));
    }

    #[test]
    fn a_name_that_was_revoked_can_be_given_again_even_by_a_leader_whose_clock_is_behind() {
        let mut state = State::founded();
        for id in 1..=3 {
            state.token(0, id, 1, Some("laptop"));
        }
        let (subject, first) = state.enroll(5_000, 1, 1).unwrap();
        state.revoke(9_000, "a", named("laptop", at(9_000)));
        assert_eq!(state.renew(600_000, &subject, 1, first), Err(RenewRefusal::Revoked));
        let (_, second) = state.enroll(8_000, 2, 2).unwrap();
        assert!(second.issued > at(9_000 + DAY));
        // A removed metad's name is not given again.
        state.revoke(10_000, "a", named("laptop", FOR_EVER));
        assert_eq!(state.enroll(11_000, 3, 3), Err(EnrollRefusal::Gone));
        assert_eq!(revocations(&state.0).list, [named("laptop", FOR_EVER)], "one entry for one name");
    }

    #[test]
    fn of_two_operators_who_revoke_each_other_the_first_one_stays() {
        let mut state = State::founded();
        let admin = |name: &str| Revoked::Name { role: Role::Admin, name: name.to_owned(), until: at(5) };
        assert_eq!(state.revoke(5, "a", admin("b")), Outcome::Done);
        assert_eq!(state.revoke(5, "b", admin("a")), Outcome::AskerRevoked);
        let allow = Command::Allow { list: vec![admin("b")], asker: asker("b") };
        assert_eq!(state.apply(6, allow), CommandReply::Revoked(Outcome::AskerRevoked));
        let version = revocations(&state.0).version;
        let allow = Command::Allow { list: vec![admin("b")], asker: asker("a") };
        assert_eq!(state.apply(6, allow), CommandReply::Revoked(Outcome::Done));
        assert!(version > 0 && revocations(&state.0).version > version);
        assert_eq!(state.revoke(7, "b", admin("c")), Outcome::Done);
    }

    #[test]
    fn a_full_list_of_identities_has_room_for_others_once_some_are_revoked_by_their_keys() {
        let mut state = State::founded();
        state.token(0, 1, 9, None);
        let (subject, term) = state.enroll(1_000, 1, 1).unwrap();
        let base = state.0.clone();
        let mut view = View::new(&base);
        for number in 1..ISSUED_MAX as u32 {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&number.to_be_bytes());
            let one = record(&view, &KeyId([1; 32])).unwrap();
            view.store(cert_keys::issued(&KeyId(key)), &one);
        }
        state.0.absorb(view.into_changes());
        assert_eq!(state.enroll(2_000, 1, 2), Err(EnrollRefusal::Full), "all are valid");
        state.revoke(2_001, "a", of_key(1));
        state.token(2_002, 2, 9, None);
        assert!(state.enroll(2_003, 2, 2).is_ok());
        // It is refused all the same, and so it is once it is let in again: nobody remembers it.
        assert_eq!(state.renew(600_000, &subject, 1, term), Err(RenewRefusal::Revoked));
        state.allow(600_001, of_key(1));
        assert_eq!(state.renew(600_002, &subject, 1, term), Err(RenewRefusal::Unknown));
        assert_eq!(state.enroll(2_004, 2, 3), Err(EnrollRefusal::Full), "one has made room for one");
    }

    #[test]
    fn an_operator_who_was_revoked_changes_nothing_by_requests_that_were_under_way() {
        let mut state = State::founded();
        state.token(0, 1, 1, None);
        assert_eq!(
            state.revoke(5, "a", Revoked::Name { role: Role::Admin, name: "b".to_owned(), until: at(5) }),
            Outcome::Done
        );
        let before = state.0.clone();
        let (hash, grant) = (Secret([7; 32]).hash(), ClientGrant::default());
        let new = NewToken { id: TokenId(2), hash, role: Role::Client, name: None, grant, uses: 1, valid_ms: 1_000 };
        let name = || "pin".to_owned();
        for change in [
            Change::CreateToken(new.clone()),
            Change::RevokeToken(TokenId(1)),
            Change::PinBlocks { name: name(), keep_ms: 1_000 },
            Change::ReleasePin { name: name() },
            Change::ResumeDeletion,
            Change::CloseSessions(Vec::new()),
            Change::SetLayout(wire::layout::Layout::default()),
        ] {
            let reply = state.apply(6, Command::ByOperator { asker: asker("b"), change: change.clone() });
            assert_eq!(reply, CommandReply::Revoked(Outcome::AskerRevoked), "{change:?}");
        }
        let reply = state.apply(6, Command::SetCertLife { ms: 5_000, asker: asker("b") });
        assert_eq!(reply, CommandReply::Revoked(Outcome::AskerRevoked));
        assert_eq!(state.0, before);
        let by_another = Command::ByOperator { asker: asker("a"), change: Change::CreateToken(new) };
        assert_eq!(state.apply(6, by_another), CommandReply::Done);
        assert!(state.is_valid(2, 7));
    }

    #[test]
    fn the_list_is_bounded_and_what_does_not_fit_changes_nothing() {
        let mut state = State::founded();
        let key = |number: u32| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&number.to_be_bytes());
            Revoked::Key(KeyId(key))
        };
        let many = (0..(REVOKED_MAX - FOR_OPERATORS) as u32).map(key).collect();
        let revoking = Revoking { asker: asker("a"), list: many, reason: String::new() };
        assert_eq!(state.apply(1, Command::Revoke(revoking)), CommandReply::Revoked(Outcome::Done));
        let before = state.0.clone();
        assert_eq!(state.revoke(2, "a", key(u32::MAX)), Outcome::Full);
        assert_eq!(state.0, before);
        assert_eq!(state.revoke(2, "a", key(0)), Outcome::Done, "it is listed already");
        // Whoever has filled it can be revoked.
        let admin = |number: usize| Revoked::Name { role: Role::Admin, name: format!("admin-{number}"), until: at(2) };
        for number in 0..FOR_OPERATORS {
            assert_eq!(state.revoke(2, "a", admin(number)), Outcome::Done, "{number}");
        }
        assert_eq!(state.revoke(2, "a", admin(FOR_OPERATORS)), Outcome::Full);
        assert_eq!(revocations(&state.0).list.len(), REVOKED_MAX);
        assert_eq!(audit::since(&state.0, at(0)).len(), wire::limits::AUDIT_MAX, "and so is the audit");
    }
}
