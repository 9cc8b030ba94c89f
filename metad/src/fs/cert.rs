//! Identities that the cluster has issued, and those that are revoked.
//!
//! Each identity is remembered by its key, which it retains through all renewals. So one that has ended can be renewed, and
//! one that was revoked cannot. A revocation is listed until the certificates that it is about have ended; then an identity
//! that was revoked is forgotten, and what the cluster does not remember is not renewed once it has ended.

use super::view::{Kv, KvExt, View, decode_stored};
use super::{audit, cert_keys, keys, token};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use wire::attr::Timestamp;
use wire::cert::{KeyId, Term};
use wire::ids::{MetadId, TokenId};
use wire::limits::{CERT_LIFE_MS, ISSUED_MAX, REVOKED_MAX};
use wire::message::cert::{AuditEvent, AuditRecord, CertList, IssuedInfo, RenewRefusal, Renewal, RevokedInfo};
use wire::message::enroll::EnrollRefusal;
use wire::revoked::{Revocations, Revoked};
use wire::tls::{Role, Subject};

const NANOS_PER_MS: i128 = 1_000_000;
const NANOS_PER_SEC: i128 = 1_000_000_000;
/// Counter of changes to what is revoked.
pub(super) const VERSION: &str = "revocations";
/// Setting: life of certificates, in milliseconds.
const LIFE: &str = "cert life";
/// Who comes again within this part of a life gets the certificate of the last time: nothing is written for it.
const AGAIN_PART: i128 = 10;
/// An identity that ended so long ago is forgotten: a year.
const FORGOTTEN_AFTER_MS: i128 = 366 * 86_400_000;
/// The time of a revocation that also holds for certificates that are issued later.
pub const FOR_EVER: Timestamp = Timestamp { secs: i64::MAX, nanos: 0 };

/// The stored record of an identity that was issued.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Issued {
    subject: Subject,
    /// The token by which it came; `None` for one of which only a renewal is known.
    token: Option<TokenId>,
    issuer: KeyId,
    by: MetadId,
    issued: Timestamp,
    ends: Timestamp,
    addr: SocketAddr,
    revoked: Option<Timestamp>,
}

impl Issued {
    fn term(&self) -> Term {
        Term { issued: self.issued, ends: Some(self.ends) }
    }

    fn is_covered(&self, key: &KeyId, revoked: &Revoked) -> bool {
        match revoked {
            Revoked::Name { role, name, until } => {
                self.subject.role == *role && self.subject.name == *name && self.issued <= *until
            }
            Revoked::Key(of) => of == key,
            Revoked::Issuer(of) => *of == self.issuer,
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
    /// What, and when the last certificate of it ends; `None` if that is not known.
    pub list: Vec<(Revoked, Option<Timestamp>)>,
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
pub(super) fn set_life(view: &mut View, now: Timestamp, ms: u64, asker: &Asker) {
    view.store(keys::setting(LIFE), &ms);
    let who = format!("{} s", ms / 1_000);
    audit::add(view, &by_operator(now, AuditEvent::LifeSet, who, asker, ""));
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

/// Returns what is revoked, and when the first of it leaves the list.
pub fn revocations(kv: &dyn Kv) -> (Revocations, Option<Timestamp>) {
    let _unchanged = kv.hold();
    let all = all_revoked(kv);
    let first = all.iter().filter_map(|one| one.ends).min();
    (Revocations { version: version(kv), list: all.into_iter().map(|one| one.revoked).collect() }, first)
}

/// Returns all that is known of certificates.
pub fn list(kv: &dyn Kv) -> CertList {
    let info = |(key, one): (KeyId, Issued)| IssuedInfo {
        term: one.term(),
        subject: one.subject,
        key,
        issuer: one.issuer,
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
    CertList { issued, revoked, life_ms: life_ms(kv) }
}

/// Returns up to when certificates of a name are revoked.
fn name_revoked_until(kv: &dyn Kv, role: Role, name: &str) -> Option<Timestamp> {
    let named = Revoked::Name { role, name: name.to_owned(), until: Timestamp::default() };
    match kv.load::<RevokedInfo>(&cert_keys::revocation(&named))?.revoked {
        Revoked::Name { until, .. } => Some(until),
        _ => None,
    }
}

fn is_revoked(kv: &dyn Kv, role: Role, name: &str, (key, issued): (KeyId, Timestamp)) -> bool {
    name_revoked_until(kv, role, name).is_some_and(|until| issued <= until)
        || kv.get(&cert_keys::revocation(&Revoked::Key(key))).is_some()
}

/// Returns the term of a certificate that is issued now. It begins after the revocation of an earlier one of its name, by
/// whatever clock that has its time. Returns `None` when the name is revoked for ever.
fn new_term(kv: &dyn Kv, now: Timestamp, subject: &Subject) -> Option<Term> {
    let revoked = name_revoked_until(kv, subject.role, &subject.name);
    if revoked == Some(FOR_EVER) {
        return None;
    }
    let issued = revoked.map_or(now, |until| now.max(until.shifted(1)));
    // In whole seconds, rounded up: certificates have no others.
    let ends = issued.shifted(i128::from(life_ms(kv)) * NANOS_PER_MS + NANOS_PER_SEC - 1);
    Some(Term { issued, ends: Some(Timestamp { nanos: 0, ..ends }) })
}

/// Makes room for one more identity, if needed at the cost of the one that ended first.
fn has_room(view: &mut View, now: Timestamp) -> bool {
    if view.pairs(cert_keys::all_issued(), ISSUED_MAX).len() < ISSUED_MAX {
        return true;
    }
    let ended = all_issued(view).into_iter().filter(|(_, one)| one.ends <= now);
    let Some((key, _)) = ended.min_by_key(|(key, one)| (one.ends, *key)) else { return false };
    view.delete(cert_keys::issued(&key));
    true
}

/// Returns the certificate that a newcomer gets who has used its token before, if nothing is to be written for it.
///
/// # Errors
/// Why it gets none.
pub fn earlier(kv: &dyn Kv, now: Timestamp, newcomer: &token::Use) -> Result<Option<(Subject, Term)>, EnrollRefusal> {
    let (subject, is_again) = token::judge(kv, now, newcomer)?;
    if !is_again {
        return Ok(None);
    }
    let known = record(kv, &KeyId(newcomer.key)).filter(|known| known.revoked.is_none());
    let known = known.ok_or(EnrollRefusal::Gone)?;
    Ok((known.ends > now).then(|| (subject, known.term())))
}

/// Applies `Command::Enroll`. Returns whom the certificate is for, and for how long.
pub(super) fn enroll(view: &mut View, now: Timestamp, enrolling: &Enrolling) -> Result<(Subject, Term), EnrollRefusal> {
    let Enrolling { newcomer, issuer, by, addr } = enrolling;
    let key = KeyId(newcomer.key);
    token::expire(view, now);
    let (subject, is_again) = token::judge(view, now, newcomer)?;
    let known = record(view, &key);
    match &known {
        Some(known) if known.revoked.is_some() => return Err(EnrollRefusal::Gone),
        // A key stands for one holder, so that it can be revoked.
        Some(known) if known.subject != subject => return Err(EnrollRefusal::BadRequest),
        Some(known) if known.ends > now && is_again => return Ok((subject, known.term())),
        // Its revocation may be over, and so may be the memory of it.
        None if is_again => return Err(EnrollRefusal::Gone),
        _ => {}
    }
    let term = new_term(view, now, &subject).ok_or(EnrollRefusal::Gone)?;
    if known.is_none() && !has_room(view, now) {
        return Err(EnrollRefusal::Full);
    }
    token::count(view, now, newcomer, &subject);
    let token = Some(newcomer.token);
    let (issuer, by, addr, ends) = (*issuer, *by, *addr, term.ends.unwrap_or(term.issued));
    let who = format!("{} {}", subject.role, subject.name);
    let detail = format!("key {key}, token {:016x}, signed by metad-{by}", newcomer.token.0);
    audit::add(view, &AuditRecord { at: now, event: AuditEvent::Enrolled, who, addr: Some(addr), detail });
    let issued = Issued { subject: subject.clone(), token, issuer, by, issued: term.issued, ends, addr, revoked: None };
    view.store(cert_keys::issued(&key), &issued);
    Ok((subject, term))
}

/// Returns the term of a renewal for which nothing is to be written, because there was one a moment ago.
///
/// # Errors
/// Why the certificate is not renewed.
pub fn renewable(kv: &dyn Kv, now: Timestamp, renewal: &Renewal) -> Result<Option<Term>, RenewRefusal> {
    let Renewal { subject, key, issued, ends, .. } = renewal;
    if is_revoked(kv, subject.role, &subject.name, (*key, *issued)) {
        return Err(RenewRefusal::Revoked);
    }
    match record(kv, key) {
        Some(known) if known.revoked.is_some() || known.subject != *subject => Err(RenewRefusal::Revoked),
        None if *ends <= now => Err(RenewRefusal::Unknown),
        None => Ok(None),
        Some(known) => {
            let is_fresh = now.nanos_since(known.issued) * AGAIN_PART < known.ends.nanos_since(known.issued);
            Ok((is_fresh && known.ends > now).then(|| known.term()))
        }
    }
}

/// Returns the term of a renewal that nobody can write down because there is no leader: metads alone get such ones, for
/// without them there will be none.
///
/// # Errors
/// Why the certificate is not renewed.
pub fn renewed_unwritten(kv: &dyn Kv, now: Timestamp, renewal: &Renewal) -> Result<Term, RenewRefusal> {
    if renewal.subject.role != Role::Metad {
        return Err(RenewRefusal::Later);
    }
    match renewable(kv, now, renewal)? {
        Some(term) => Ok(term),
        None => new_term(kv, now, &renewal.subject).ok_or(RenewRefusal::Revoked),
    }
}

/// Applies `Command::Renew`. Returns for how long the certificate is valid.
pub(super) fn renew(view: &mut View, now: Timestamp, renewal: &Renewal) -> Result<Term, RenewRefusal> {
    if let Some(term) = renewable(view, now, renewal)? {
        return Ok(term);
    }
    let Renewal { subject, key, issuer, by, addr, .. } = renewal;
    let known = record(view, key);
    if known.is_none() && !has_room(view, now) {
        return Err(RenewRefusal::Full);
    }
    let term = new_term(view, now, subject).ok_or(RenewRefusal::Revoked)?;
    let token = known.and_then(|known| known.token);
    let (issuer, by, addr, ends) = (*issuer, *by, *addr, term.ends.unwrap_or(term.issued));
    let who = format!("{} {}", subject.role, subject.name);
    let detail = format!("key {key}, signed by metad-{by}");
    audit::add(view, &AuditRecord { at: now, event: AuditEvent::Renewed, who, addr: Some(addr), detail });
    let issued = Issued { subject: subject.clone(), token, issuer, by, issued: term.issued, ends, addr, revoked: None };
    view.store(cert_keys::issued(key), &issued);
    Ok(term)
}

fn changed(view: &mut View) {
    let next = version(view) + 1;
    view.store(keys::setting(VERSION), &next);
}

fn asker_is_revoked(kv: &dyn Kv, asker: &Asker) -> bool {
    is_revoked(kv, Role::Admin, &asker.name, (asker.key, asker.issued))
}

/// Applies `Command::Revoke`. The tokens by which those have come that are revoked are revoked, too: whoever knows a token
/// could come again.
pub(super) fn revoke(view: &mut View, now: Timestamp, revoking: &Revoking) -> Outcome {
    let Revoking { asker, list, reason } = revoking;
    if asker_is_revoked(view, asker) {
        return Outcome::AskerRevoked;
    }
    let listed = view.pairs(cert_keys::all_revocations(), REVOKED_MAX).len();
    let new = list.iter().filter(|(revoked, _)| view.get(&cert_keys::revocation(revoked)).is_none()).count();
    if listed + new > REVOKED_MAX {
        return Outcome::Full;
    }
    for (revoked, ends) in list {
        let key = cert_keys::revocation(revoked);
        let (mut revoked, mut ends) = (revoked.clone(), *ends);
        if let Some(known) = view.load::<RevokedInfo>(&key) {
            ends = known.ends.zip(ends).map(|(one, other)| one.max(other));
            if let (Revoked::Name { until, .. }, Revoked::Name { until: known, .. }) = (&mut revoked, known.revoked) {
                *until = known.max(*until);
            }
        }
        audit::add(view, &by_operator(now, AuditEvent::Revoked, revoked.to_string(), asker, reason));
        let (by, reason) = (asker.name.clone(), reason.clone());
        view.store(key, &RevokedInfo { revoked, at: now, ends, by, reason });
    }
    for (key, one) in all_issued(view) {
        if one.revoked.is_none() && list.iter().any(|(revoked, _)| one.is_covered(&key, revoked)) {
            if let Some(token) = one.token {
                token::revoke(view, token);
            }
            view.store(cert_keys::issued(&key), &Issued { revoked: Some(now), ..one });
        }
    }
    changed(view);
    Outcome::Done
}

/// Applies `Command::Allow`: these are not revoked any more.
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
        if one.revoked.is_some() && !left.iter().any(|left| one.is_covered(&key, &left.revoked)) {
            view.store(cert_keys::issued(&key), &Issued { revoked: None, ..one });
        }
    }
    changed(view);
    Outcome::Done
}

/// Returns whether an identity ended so long ago that it is forgotten.
#[must_use]
pub fn any_forgotten(kv: &dyn Kv, now: Timestamp) -> bool {
    all_issued(kv).iter().any(|(_, one)| is_forgotten(one, now))
}

fn is_forgotten(one: &Issued, now: Timestamp) -> bool {
    let kept_ms = if one.revoked.is_some() { 0 } else { FORGOTTEN_AFTER_MS };
    one.ends.shifted(kept_ms * NANOS_PER_MS) <= now
}

/// Applies `Command::ForgetCerts`: revocations leave the list with the end of what they are about.
pub(super) fn forget(view: &mut View, now: Timestamp) {
    let over = all_revoked(view).into_iter().filter(|one| one.ends.is_some_and(|ends| ends <= now));
    let over: Vec<RevokedInfo> = over.collect();
    // A revoked identity goes first: what has left the list must not be renewed.
    for (key, one) in all_issued(view) {
        if is_forgotten(&one, now) {
            view.delete(cert_keys::issued(&key));
        }
    }
    for one in &over {
        view.delete(cert_keys::revocation(&one.revoked));
    }
    if !over.is_empty() {
        changed(view);
    }
}

#[cfg(test)]
mod tests {
    use super::super::view::MemoryKv;
    use super::super::{Command, CommandReply, Stamped, apply, check};
    use super::*;
    use wire::tls::ClientGrant;
    use wire::token::{NewToken, Secret};

    const LIFE: u64 = 1_000_000;

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
            let hash = Secret([7; 32]).hash();
            let newcomer = token::Use { token: TokenId(token), hash, key: [key; 32], host: "h".to_owned() };
            let (issuer, addr) = (KeyId([9; 32]), ([10, 0, 0, 2], 2).into());
            match self.apply(ms, Command::Enroll(Enrolling { newcomer, issuer, by: MetadId(1), addr })) {
                CommandReply::Issued(issued) => issued,
                other => panic!("{other:?}"),
            }
        }

        fn renew(&mut self, ms: u64, subject: &Subject, key: u8, term: Term) -> Result<Term, RenewRefusal> {
            let renewal = Renewal {
                subject: subject.clone(),
                key: KeyId([key; 32]),
                issued: term.issued,
                ends: term.ends.unwrap(),
                issuer: KeyId([9; 32]),
                by: MetadId(1),
                addr: ([10, 0, 0, 2], 2).into(),
            };
            match self.apply(ms, Command::Renew(renewal)) {
                CommandReply::Renewed(renewed) => renewed,
                other => panic!("{other:?}"),
            }
        }

        fn revoke(&mut self, ms: u64, by: &str, revoked: Revoked, ends: Option<Timestamp>) -> Outcome {
            let revoking = Revoking { asker: asker(by), list: vec![(revoked, ends)], reason: String::new() };
            match self.apply(ms, Command::Revoke(revoking)) {
                CommandReply::Revoked(outcome) => outcome,
                other => panic!("{other:?}"),
            }
        }
    }

    fn named(name: &str, until: Timestamp) -> Revoked {
        Revoked::Name { role: Role::Client, name: name.to_owned(), until }
    }

    #[test]
    fn an_identity_is_renewed_as_often_as_it_asks_and_written_once_for_a_part_of_its_life() {
        let mut state = State::founded();
        state.token(0, 1, 1, None);
        let (subject, first) = state.enroll(1_000, 1, 1).unwrap();
        assert_eq!(first.ends, Some(at(1_000 + LIFE)));
        assert_eq!(state.renew(1_000 + LIFE / 10 - 1, &subject, 1, first), Ok(first), "it was issued a moment ago");
        let second = state.renew(500_000, &subject, 1, first).unwrap();
        assert_eq!(second.ends, Some(at(500_000 + LIFE)));
        // With the older certificate: the answer may have been lost.
        assert_eq!(state.renew(500_001, &subject, 1, first), Ok(second));
        let other = Subject { name: "other".to_owned(), ..subject.clone() };
        assert_eq!(state.renew(900_000, &other, 1, second), Err(RenewRefusal::Revoked), "the key is another's");
        // It was off for three lives.
        let third = state.renew(500_000 + 4 * LIFE, &subject, 1, second).unwrap();
        assert_eq!(third.issued, at(500_000 + 4 * LIFE));
        // One that the cluster did not issue is renewed while it is valid, and from then on remembered.
        let offline = Term { issued: at(0), ends: Some(at(5_000_000)) };
        assert_eq!(state.renew(5_000_000, &other, 2, offline), Err(RenewRefusal::Unknown));
        let known = state.renew(4_999_999, &other, 2, offline).unwrap();
        assert!(state.renew(9_000_000, &other, 2, known).is_ok());
        assert_eq!(check::check(&state.0), Vec::<String>::new());
    }

    #[test]
    fn who_is_revoked_is_neither_renewed_nor_enrolled_again_and_its_token_is_revoked() {
        let mut state = State::founded();
        state.token(0, 1, 5, None);
        let (subject, term) = state.enroll(1_000, 1, 1).unwrap();
        let (other, of_other) = state.enroll(1_000, 1, 2).unwrap();
        assert_eq!(state.revoke(2_000, "a", Revoked::Key(KeyId([1; 32])), term.ends), Outcome::Done);
        assert_eq!(state.renew(600_000, &subject, 1, term), Err(RenewRefusal::Revoked));
        assert!(state.enroll(3_000, 1, 1).is_err() && state.enroll(3_000, 1, 3).is_err(), "the token is known to it");
        assert!(state.renew(600_000, &other, 2, of_other).is_ok());
        // Over, and forgotten.
        state.apply(1_000 + LIFE, Command::ForgetCerts);
        assert!(revocations(&state.0).0.list.is_empty());
        assert_eq!(state.renew(1_001 + LIFE, &subject, 1, term), Err(RenewRefusal::Unknown));
        assert!(state.enroll(1_001 + LIFE, 1, 1).is_err());
    }

    #[test]
    fn a_name_that_was_revoked_can_be_given_again_even_by_a_leader_whose_clock_is_behind() {
        let mut state = State::founded();
        for id in 1..=3 {
            state.token(0, id, 1, Some("laptop"));
        }
        let (subject, first) = state.enroll(5_000, 1, 1).unwrap();
        state.revoke(9_000, "a", named("laptop", at(9_000)), first.ends);
        assert_eq!(state.renew(600_000, &subject, 1, first), Err(RenewRefusal::Revoked));
        let (_, second) = state.enroll(8_000, 2, 2).unwrap();
        assert!(second.issued > at(9_000));
        // A removed metad's name is not given again.
        state.revoke(10_000, "a", named("laptop", FOR_EVER), None);
        assert_eq!(state.enroll(11_000, 3, 3), Err(EnrollRefusal::Gone));
        assert_eq!(revocations(&state.0).0.list, [named("laptop", FOR_EVER)], "one entry for one name");
        assert_eq!(revocations(&state.0).1, None, "it stays");
    }

    #[test]
    fn of_two_operators_who_revoke_each_other_the_first_one_stays() {
        let mut state = State::founded();
        let admin = |name: &str| Revoked::Name { role: Role::Admin, name: name.to_owned(), until: at(5) };
        assert_eq!(state.revoke(5, "a", admin("b"), None), Outcome::Done);
        assert_eq!(state.revoke(5, "b", admin("a"), None), Outcome::AskerRevoked);
        let allow = Command::Allow { list: vec![admin("b")], asker: asker("b") };
        assert_eq!(state.apply(6, allow), CommandReply::Revoked(Outcome::AskerRevoked));
        let version = revocations(&state.0).0.version;
        let allow = Command::Allow { list: vec![admin("b")], asker: asker("a") };
        assert_eq!(state.apply(6, allow), CommandReply::Revoked(Outcome::Done));
        assert!(version > 0 && revocations(&state.0).0.version > version);
        assert_eq!(state.revoke(7, "b", admin("c"), None), Outcome::Done);
    }

    #[test]
    fn the_list_is_bounded_and_what_does_not_fit_changes_nothing() {
        let mut state = State::founded();
        let key = |number: u32| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&number.to_be_bytes());
            Revoked::Key(KeyId(key))
        };
        let many = (0..REVOKED_MAX as u32).map(|number| (key(number), None)).collect();
        let revoking = Revoking { asker: asker("a"), list: many, reason: String::new() };
        assert_eq!(state.apply(1, Command::Revoke(revoking)), CommandReply::Revoked(Outcome::Done));
        let before = state.0.clone();
        assert_eq!(state.revoke(2, "a", key(u32::MAX), None), Outcome::Full);
        assert_eq!(state.0, before);
        assert_eq!(state.revoke(2, "a", key(0), None), Outcome::Done, "it is listed already");
        assert_eq!(audit::since(&state.0, at(0)).len(), wire::limits::AUDIT_MAX, "and so is the audit");
    }
}
