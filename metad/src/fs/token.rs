//! Join tokens: made and revoked by operators, used by newcomers.
//!
//! A use is counted when it is applied, so two metads never count one twice, and each key counts once however often its
//! owner asks. Times are those of entries. A token that one entry has found to be over stays over, whatever the clock of
//! the next leader says. The state holds hashes of secrets, not secrets.

use super::CommandReply;
use super::token_keys;
use super::view::{Kv, KvExt, View, decode_stored};
use serde::{Deserialize, Serialize};
use wire::attr::Timestamp;
use wire::ids::TokenId;
use wire::limits::{TOKEN_USES_MAX, TOKENS_MAX};
use wire::message::enroll::EnrollRefusal;
use wire::tls::Subject;
use wire::token::{NewToken, SecretHash, TokenInfo, TokenState};

const NANOS_PER_MS: i128 = 1_000_000;
/// A leader whose clock shows a time so long before a token was made cannot tell whether it has ended: clocks that are set
/// differ by less.
const BEHIND_MAX_MS: i128 = 5 * 60_000;
/// Characters of a host's name in a certificate.
const HOST_CHARS_MAX: usize = 32;
/// Bytes of the key's hash in the name of a machine: nobody finds a key for a name that another machine has.
const KEY_BYTES: usize = 10;

/// The stored record of a token.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Token {
    new: NewToken,
    made: Timestamp,
    until: Timestamp,
    /// An entry was stamped later than that.
    expired: bool,
    revoked: bool,
}

/// The stored record of a use.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Enrolled {
    /// Name in the certificate.
    name: String,
    at: Timestamp,
}

/// A newcomer with a token.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Use {
    /// The token.
    pub token: TokenId,
    /// Hash of the secret that the newcomer has shown.
    pub hash: SecretHash,
    /// Hash of its key.
    pub key: [u8; 32],
    /// Its host's name.
    pub host: String,
}

fn used(kv: &dyn Kv, id: TokenId) -> Vec<Enrolled> {
    let pairs = kv.pairs(token_keys::uses_of(id), TOKEN_USES_MAX as usize);
    pairs.iter().map(|(key, value)| decode_stored(key, value)).collect()
}

fn all(kv: &dyn Kv) -> Vec<Token> {
    let pairs = kv.pairs(token_keys::join_tokens(), TOKENS_MAX);
    pairs.iter().map(|(key, value)| decode_stored(key, value)).collect()
}

fn state(token: &Token, used: usize, now: Timestamp) -> TokenState {
    if token.revoked {
        TokenState::Revoked
    } else if token.expired || token.until <= now {
        TokenState::Expired
    } else if used >= token.new.uses as usize {
        TokenState::UsedUp
    } else {
        TokenState::Valid
    }
}

/// Returns the tokens as operators see them, in the order of their ends.
#[must_use]
pub fn list(kv: &dyn Kv, now: Timestamp) -> Vec<TokenInfo> {
    let info = |token: Token| {
        let used = used(kv, token.new.id);
        let state = state(&token, used.len(), now);
        let Token { new, made, until, .. } = token;
        let used_by = used.into_iter().map(|one| one.name).collect();
        let NewToken { id, role, name, grant, uses, .. } = new;
        TokenInfo { id, role, name, grant, uses, used_by, made, until, state }
    };
    let mut tokens: Vec<TokenInfo> = all(kv).into_iter().map(info).collect();
    tokens.sort_by_key(|token| (token.until, token.id));
    tokens
}

/// Returns the role that a token gives to somebody who knows its secret.
///
/// # Errors
/// [`EnrollRefusal::Unknown`] when there is no such token, or it has another secret. Both take the same time.
pub fn known(kv: &dyn Kv, id: TokenId, hash: &SecretHash) -> Result<NewToken, EnrollRefusal> {
    let token: Option<Token> = kv.load(&token_keys::join_token(id));
    let actual = token.as_ref().map_or(SecretHash([0; 32]), |token| token.new.hash);
    let is_right = actual == *hash;
    token.filter(|_| is_right).map(|token| token.new).ok_or(EnrollRefusal::Unknown)
}

/// Returns whether a token is over by this time, and no entry says so yet.
#[must_use]
pub fn any_passed(kv: &dyn Kv, now: Timestamp) -> bool {
    all(kv).iter().any(|token| !token.expired && token.until <= now)
}

/// Applies `Command::ExpireTokens`, and is part of making tokens and of enrolling.
pub(super) fn expire(view: &mut View, now: Timestamp) {
    for token in all(view) {
        if !token.expired && token.until <= now {
            view.store(token_keys::join_token(token.new.id), &Token { expired: true, ..token });
        }
    }
}

/// Returns whom the certificate of a newcomer is for, and whether its key has used the token before.
///
/// # Errors
/// Why there is none, as [`known`] does for somebody who does not know the secret.
pub fn judge(kv: &dyn Kv, now: Timestamp, newcomer: &Use) -> Result<(Subject, bool), EnrollRefusal> {
    let new = known(kv, newcomer.token, &newcomer.hash)?;
    let token: Token = kv.load(&token_keys::join_token(new.id)).ok_or(EnrollRefusal::Unknown)?;
    let earlier: Option<Enrolled> = kv.load(&token_keys::enrolled(new.id, &newcomer.key));
    match state(&token, used(kv, new.id).len(), now) {
        TokenState::Revoked => return Err(EnrollRefusal::Revoked),
        TokenState::Expired => return Err(EnrollRefusal::Expired { at: token.until }),
        TokenState::UsedUp if earlier.is_none() => return Err(EnrollRefusal::UsedUp),
        TokenState::UsedUp | TokenState::Valid => {}
    }
    if now < token.made.shifted(-BEHIND_MAX_MS * NANOS_PER_MS) {
        return Err(EnrollRefusal::ClockBehind { made: token.made });
    }
    let is_again = earlier.is_some();
    let name = earlier.map(|earlier| earlier.name).or(new.name).unwrap_or_else(|| name_of(newcomer));
    Ok((Subject { role: new.role, name, grant: new.grant }, is_again))
}

/// Applies `Command::CreateToken`. A token that has ended makes room if there are too many. Returns `Stale` when there
/// is another token of this number, or no room.
pub(super) fn create(view: &mut View, now: Timestamp, new: &NewToken) -> CommandReply {
    let key = token_keys::join_token(new.id);
    if let Some(token) = view.load::<Token>(&key) {
        return if token.new == *new { CommandReply::Done } else { CommandReply::Stale };
    }
    expire(view, now);
    let tokens = list(view, now);
    if tokens.len() >= TOKENS_MAX {
        let Some(ended) = tokens.iter().find(|token| token.state != TokenState::Valid) else {
            return CommandReply::Stale;
        };
        view.delete(token_keys::join_token(ended.id));
        let uses = view.pairs(token_keys::uses_of(ended.id), TOKEN_USES_MAX as usize);
        uses.into_iter().for_each(|(key, _)| view.delete(key));
    }
    let until = now.shifted(i128::from(new.valid_ms) * NANOS_PER_MS);
    view.store(key, &Token { new: new.clone(), made: now, until, expired: false, revoked: false });
    CommandReply::Done
}

/// Applies `Command::RevokeToken`. Returns `Stale` when there is no such token.
pub(super) fn revoke(view: &mut View, id: TokenId) -> CommandReply {
    let key = token_keys::join_token(id);
    let Some(token) = view.load::<Token>(&key) else { return CommandReply::Stale };
    view.store(key, &Token { revoked: true, ..token });
    CommandReply::Done
}

/// Revokes the tokens that were used with this key.
pub(super) fn revoke_used_by(view: &mut View, key: &[u8; 32]) {
    for token in all(view) {
        if view.get(&token_keys::enrolled(token.new.id, key)).is_some() {
            revoke(view, token.new.id);
        }
    }
}

/// Revokes all tokens.
pub(super) fn revoke_all(view: &mut View) {
    for token in all(view) {
        revoke(view, token.new.id);
    }
}

/// Counts the use of a token that was judged.
pub(super) fn count(view: &mut View, now: Timestamp, newcomer: &Use, subject: &Subject) {
    let enrolled = Enrolled { name: subject.name.clone(), at: now };
    view.store(token_keys::enrolled(newcomer.token, &newcomer.key), &enrolled);
}

/// Applies `Command::UseToken`, which logs of earlier releases have. Returns whom the certificate is for.
pub(super) fn enroll(view: &mut View, now: Timestamp, newcomer: &Use) -> Result<Subject, EnrollRefusal> {
    expire(view, now);
    let (subject, is_again) = judge(view, now, newcomer)?;
    if !is_again {
        count(view, now, newcomer, &subject);
    }
    Ok(subject)
}

/// Makes a name that no other machine has: names in certificates stand for their holders, so a newcomer must not choose
/// one.
fn name_of(newcomer: &Use) -> String {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    let host: String = newcomer.host.chars().filter(is_plain).take(HOST_CHARS_MAX).collect();
    let key: String = newcomer.key[..KEY_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{key}", if host.is_empty() { "machine" } else { &host })
}

#[cfg(test)]
mod tests {
    use super::super::view::MemoryKv;
    use super::super::{Command, Stamped, apply, check, recovery};
    use super::*;
    use wire::message::admin::DeletionStop;
    use wire::tls::{ClientGrant, Role};
    use wire::token::Secret;

    fn at(ms: u64) -> Timestamp {
        Timestamp::default().shifted(i128::from(ms) * NANOS_PER_MS)
    }

    fn token(id: u64, uses: u32) -> NewToken {
        let grant = ClientGrant { read_only: true, ..ClientGrant::default() };
        let hash = Secret([7; 32]).hash();
        NewToken { id: TokenId(id), hash, role: Role::Client, name: None, grant, uses, valid_ms: 1_000 }
    }

    fn newcomer(id: u64, key: u8) -> Use {
        Use { token: TokenId(id), hash: Secret([7; 32]).hash(), key: [key; 32], host: "lap top\n/x".to_owned() }
    }

    struct State(MemoryKv);

    impl State {
        fn founded() -> Self {
            let mut state = Self(MemoryKv::default());
            state.apply(0, Command::Init { cluster: "c".to_owned(), replicas: 1, min_sync: 1 });
            state
        }

        fn apply(&mut self, ms: u64, command: Command) -> CommandReply {
            let base = self.0.clone();
            let mut view = View::new(&base);
            let reply = apply(&mut view, &Stamped { now: at(ms), command });
            self.0.absorb(view.into_changes());
            reply
        }

        fn enroll(&mut self, ms: u64, newcomer: Use) -> Result<Subject, EnrollRefusal> {
            match self.apply(ms, Command::UseToken(newcomer)) {
                CommandReply::Enrolled(outcome) => outcome,
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_use_counts_once_for_each_key_and_never_beyond_what_was_allowed() {
        let mut state = State::founded();
        assert_eq!(state.apply(0, Command::CreateToken(token(1, 2))), CommandReply::Done);
        let one = state.enroll(1, newcomer(1, 1)).unwrap();
        assert_eq!(one.name, format!("laptopx-{}", "01".repeat(KEY_BYTES)));
        assert!(one.grant.read_only && one.role == Role::Client);
        assert_eq!(state.enroll(2, newcomer(1, 1)).unwrap(), one, "it asks again");
        let two = state.enroll(3, newcomer(1, 2)).unwrap();
        assert_ne!(one.name, two.name);
        assert_eq!(state.enroll(4, newcomer(1, 3)), Err(EnrollRefusal::UsedUp));
        assert_eq!(state.enroll(5, newcomer(1, 2)).unwrap(), two, "what is used up still answers those who used it");
        let listed = list(&state.0, at(6));
        assert_eq!((listed[0].state, &listed[0].used_by), (TokenState::UsedUp, &vec![one.name, two.name]));
        assert_eq!(check::check(&state.0), Vec::<String>::new());
    }

    #[test]
    fn a_token_ends_by_the_time_of_entries_or_when_it_is_revoked() {
        let mut state = State::founded();
        state.apply(5, Command::CreateToken(token(1, 9)));
        state.apply(5, Command::CreateToken(NewToken { valid_ms: 9_000, ..token(2, 9) }));
        state.enroll(1_004, newcomer(1, 1)).unwrap();
        assert_eq!(state.enroll(1_005, newcomer(1, 1)), Err(EnrollRefusal::Expired { at: at(1_005) }));
        state.enroll(6, newcomer(2, 1)).unwrap();
        assert_eq!(state.apply(7, Command::RevokeToken(TokenId(2))), CommandReply::Done);
        assert_eq!(state.enroll(8, newcomer(2, 1)), Err(EnrollRefusal::Revoked));
        assert_eq!(state.apply(9, Command::RevokeToken(TokenId(3))), CommandReply::Stale);
    }

    #[test]
    fn a_token_that_was_over_once_stays_over_for_a_leader_whose_clock_is_behind() {
        let mut state = State::founded();
        for id in 1..=3 {
            state.apply(5, Command::CreateToken(token(id, 9)));
        }
        assert!(!any_passed(&state.0, at(1_004)) && any_passed(&state.0, at(1_005)));
        assert_eq!(state.apply(1_005, Command::ExpireTokens), CommandReply::Done);
        assert!(!any_passed(&state.0, at(1_005)), "once is enough");
        assert_eq!(state.enroll(6, newcomer(1, 1)), Err(EnrollRefusal::Expired { at: at(1_005) }));
        assert_eq!(list(&state.0, at(6))[0].state, TokenState::Expired);
        // Whatever tells the time ends tokens.
        state.apply(10, Command::CreateToken(token(4, 9)));
        state.apply(2_000, Command::CreateToken(NewToken { valid_ms: 9_000, ..token(5, 9) }));
        assert_eq!(state.enroll(11, newcomer(4, 1)), Err(EnrollRefusal::Expired { at: at(1_010) }));
        state.apply(2_000, Command::CreateToken(token(6, 9)));
        state.enroll(4_000, newcomer(5, 1)).unwrap();
        assert_eq!(state.enroll(2_001, newcomer(6, 1)), Err(EnrollRefusal::Expired { at: at(3_000) }));
    }

    #[test]
    fn a_leader_whose_clock_is_far_behind_lets_nobody_in() {
        let mut state = State::founded();
        let made = 10 * 60_000;
        state.apply(made, Command::CreateToken(token(1, 9)));
        let refused = Err(EnrollRefusal::ClockBehind { made: at(made) });
        assert_eq!(state.enroll(5 * 60_000 - 1, newcomer(1, 1)), refused);
        // As much as clocks may differ.
        state.enroll(5 * 60_000, newcomer(1, 1)).unwrap();
        assert_eq!(state.enroll(1, newcomer(1, 1)), refused);
    }

    #[test]
    fn a_wrong_secret_is_answered_like_an_unknown_token_and_changes_nothing() {
        let mut state = State::founded();
        state.apply(0, Command::CreateToken(token(1, 1)));
        let wrong = Use { hash: Secret([8; 32]).hash(), ..newcomer(1, 1) };
        assert_eq!(state.enroll(1, wrong), Err(EnrollRefusal::Unknown));
        assert_eq!(state.enroll(1, newcomer(2, 1)), Err(EnrollRefusal::Unknown));
        let nobody = Use { hash: SecretHash([0; 32]), ..newcomer(2, 1) };
        assert_eq!(state.enroll(1, nobody), Err(EnrollRefusal::Unknown));
        state.enroll(2, newcomer(1, 1)).unwrap();
    }

    #[test]
    fn tokens_are_bounded_and_only_ended_ones_make_room() {
        let mut state = State::founded();
        for id in 0..TOKENS_MAX as u64 {
            assert_eq!(state.apply(id, Command::CreateToken(token(id, 1))), CommandReply::Done);
        }
        assert_eq!(state.apply(64, Command::CreateToken(token(3, 1))), CommandReply::Done, "a retry");
        assert_eq!(state.apply(64, Command::CreateToken(token(3, 2))), CommandReply::Stale, "another one");
        assert_eq!(state.apply(64, Command::CreateToken(token(100, 1))), CommandReply::Stale);
        state.enroll(65, newcomer(5, 1)).unwrap();
        assert_eq!(state.apply(66, Command::CreateToken(token(100, 1))), CommandReply::Done);
        assert_eq!(state.enroll(67, newcomer(5, 1)), Err(EnrollRefusal::Unknown), "it is forgotten");
        assert!(!state.0.any(token_keys::all_enrolled()), "and so are its uses");
        assert_eq!(list(&state.0, at(67)).len(), TOKENS_MAX);
    }

    #[test]
    fn a_name_that_a_token_gives_is_the_one_in_the_certificate() {
        let mut state = State::founded();
        let named = NewToken { name: Some("blockd-4".to_owned()), role: Role::Blockd, ..token(1, 1) };
        state.apply(0, Command::CreateToken(named));
        let subject = state.enroll(1, newcomer(1, 1)).unwrap();
        assert_eq!((subject.role, subject.name.as_str()), (Role::Blockd, "blockd-4"));
    }

    #[test]
    fn tokens_do_not_outlive_a_recovery_nor_get_into_backups() {
        let mut state = State::founded();
        state.apply(0, Command::CreateToken(token(1, 1)));
        state.enroll(1, newcomer(1, 1)).unwrap();
        for (key, value) in
            state.0.pairs(token_keys::join_tokens(), 9).into_iter().chain(state.0.pairs(token_keys::all_enrolled(), 9))
        {
            assert_eq!(recovery::exported(&key, value), None);
        }
        let base = state.0.clone();
        let mut view = View::new(&base);
        let stop = DeletionStop { reason: String::new(), since: at(2) };
        recovery::begin_anew(&mut view, recovery::Jump::at(Timestamp { secs: 9, nanos: 0 }).unwrap(), &stop).unwrap();
        state.0.absorb(view.into_changes());
        assert_eq!(state.enroll(3, newcomer(1, 1)), Err(EnrollRefusal::Revoked));
    }

    #[test]
    fn a_use_without_its_token_is_found_and_removed() {
        let mut state = State::founded();
        let key = token_keys::enrolled(TokenId(9), &[1; 32]);
        let base = state.0.clone();
        let mut view = View::new(&base);
        view.store(key, &Enrolled { name: "m".to_owned(), at: at(0) });
        state.0.absorb(view.into_changes());
        let found = check::check(&state.0);
        assert!(found.len() == 1 && found[0].contains("'H'"), "{found:?}");
    }
}
