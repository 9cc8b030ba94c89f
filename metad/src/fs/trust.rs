//! Which CAs the cluster trusts: the steps by which operators have changed that, as they have signed them. The last one says
//! what holds.

use super::keys;
use super::token;
use super::view::{Kv, KvExt, View};
use wire::limits::TRUST_STEPS_MAX;
use wire::trust::{SignedTrust, Trust};

/// Setting: the steps since the last time at which one CA alone was trusted.
const STEPS: &str = "trusted CAs";
/// Setting: versions up to this one may have been given out, though no step here has them.
const TAKEN: &str = "taken versions of trust";

/// Returns the steps.
pub fn steps(kv: &dyn Kv) -> Vec<SignedTrust> {
    kv.load(&keys::setting(STEPS)).unwrap_or_default()
}

/// Returns what holds, if another CA was ever brought in.
pub fn trust(kv: &dyn Kv) -> Option<Trust> {
    steps(kv).last()?.trust().ok()
}

/// Returns the version that the next step follows.
pub fn version(kv: &dyn Kv) -> u64 {
    let taken = kv.load(&keys::setting(TAKEN)).unwrap_or(0);
    trust(kv).map_or(taken, |last| last.version.max(taken))
}

/// Gives out no version up to this one any more: nodes that have heard of steps in a time that is lost follow later ones alone.
pub(super) fn go_on_after(view: &mut View, taken: u64) {
    view.store(keys::setting(TAKEN), &taken);
}

/// Writes a step down, if it follows the last one. Returns whether it holds now.
pub(super) fn add(view: &mut View, step: &SignedTrust) -> bool {
    let Ok(next) = step.trust() else { return false };
    let mut steps = steps(view);
    let last = steps.last().and_then(|last| last.trust().ok());
    if last.as_ref() == Some(&next) {
        // It may have been asked for before, of a leader that was lost before it could answer.
        return true;
    }
    if Some(next.version) != version(view).checked_add(1) {
        return false;
    }
    // Whoever had the old CA may have made some.
    let is_finish = last.is_some_and(|last| last.is_rotating() && last.authorities.last() == next.authorities.last());
    if is_finish && !next.is_rotating() {
        token::revoke_all(view);
    }
    if next.is_rotating() {
        steps.clear();
    }
    steps.push(step.clone());
    if steps.len() > TRUST_STEPS_MAX {
        steps.remove(0);
    }
    view.store(keys::setting(STEPS), &steps);
    true
}

#[cfg(test)]
mod tests {
    use super::super::view::MemoryKv;
    use super::super::{Command, CommandReply, Stamped, apply, cert};
    use super::*;
    use wire::attr::Timestamp;
    use wire::cert::{AuthorityId, KeyId, Term};
    use wire::ids::{MetadId, TokenId};
    use wire::message::cert::{RenewRefusal, Renewal};
    use wire::tls::{ClientGrant, ClusterCa, Identity, Role, Subject};
    use wire::token::{NewToken, Secret, TokenState};

    fn at(secs: i64) -> Timestamp {
        Timestamp { secs, nanos: 0 }
    }

    struct State {
        kv: MemoryKv,
        cas: [ClusterCa; 2],
        operator: Identity,
    }

    impl State {
        fn founded() -> Self {
            let old = ClusterCa::create("c").unwrap();
            let new = ClusterCa::succeeding("c", old.cluster_id().unwrap()).unwrap();
            let operator = old.issue(&Subject::new(Role::Admin, "a")).unwrap();
            let mut state = Self { kv: MemoryKv::default(), cas: [old, new], operator };
            state.apply(Command::Init { cluster: "c".to_owned(), replicas: 1, min_sync: 1 });
            state
        }

        fn apply(&mut self, command: Command) -> CommandReply {
            let base = self.kv.clone();
            let mut view = View::new(&base);
            let reply = apply(&mut view, &Stamped { now: at(1_000), command });
            self.kv.absorb(view.into_changes());
            reply
        }

        fn step(&self, version: u64, of: &[usize], remembered_only: bool) -> SignedTrust {
            let authorities = of.iter().map(|ca| self.cas[*ca].cert().unwrap()).collect();
            let original = Trust::original(self.operator.cluster_id());
            self.operator.sign_trust(&Trust { version, authorities, remembered_only, ..original }, None).unwrap()
        }

        fn set(&mut self, step: SignedTrust) -> CommandReply {
            self.apply(Command::SetTrust(step))
        }

        /// Renews a lasting certificate that the CA itself has signed.
        fn moved(&mut self, moves: bool) -> Result<Term, RenewRefusal> {
            let renewal = Renewal {
                subject: Subject::new(Role::Client, "c"),
                key: KeyId([1; 32]),
                issued: at(1),
                ends: at(4_102_444_800),
                shown: None,
                issuer: KeyId([2; 32]),
                authority: AuthorityId([3; 16]),
                moves,
                by: MetadId(1),
                addr: ([10, 0, 0, 1], 1).into(),
            };
            match self.apply(Command::Renew(renewal)) {
                CommandReply::Renewed(renewed) => renewed,
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn steps_follow_each_other_and_one_that_is_repeated_changes_nothing() {
        let mut state = State::founded();
        assert_eq!(trust(&state.kv), None);
        assert_eq!(state.set(state.step(2, &[0, 1], false)), CommandReply::Stale);
        let begun = state.step(1, &[0, 1], false);
        assert_eq!(state.set(begun.clone()), CommandReply::Done);
        let version = cert::version(&state.kv);
        assert!(version > 0, "block daemons hear of it");
        assert_eq!(state.set(begun), CommandReply::Done);
        // Another operator was slower.
        assert_eq!(state.set(state.step(1, &[0], false)), CommandReply::Stale);
        let (id, hash, grant) = (TokenId(1), Secret([1; 32]).hash(), ClientGrant::default());
        let token = NewToken { id, hash, role: Role::Client, name: None, grant, uses: 9, valid_ms: 9_000_000 };
        assert_eq!(state.apply(Command::CreateToken(token)), CommandReply::Done);
        let state_of = |kv: &MemoryKv| crate::fs::token::list(kv, at(1_000))[0].state;
        assert_eq!(state_of(&state.kv), TokenState::Valid);
        assert_eq!(state.set(state.step(2, &[1], false)), CommandReply::Done);
        assert_eq!(state_of(&state.kv), TokenState::Revoked, "a thief of the old CA may have made it");
        assert_eq!((steps(&state.kv).len(), trust(&state.kv).unwrap().version), (2, 2));
        assert_eq!(state.set(state.step(3, &[1, 0], false)), CommandReply::Done);
        assert_eq!((steps(&state.kv).len(), trust(&state.kv).unwrap().version), (1, 3));
    }

    #[test]
    fn after_a_recovery_no_version_is_given_out_that_nodes_may_have_heard_of() {
        let mut state = State::founded();
        assert_eq!(state.set(state.step(1, &[0, 1], false)), CommandReply::Done);
        let base = state.kv.clone();
        let mut view = View::new(&base);
        go_on_after(&mut view, 9);
        state.kv.absorb(view.into_changes());
        assert_eq!((trust(&state.kv).unwrap().version, version(&state.kv)), (1, 9), "what is trusted stays");
        for taken in [2, 9, 11] {
            assert_eq!(state.set(state.step(taken, &[1], false)), CommandReply::Stale, "{taken}");
        }
        let finished = state.step(10, &[1], false);
        assert_eq!(state.set(finished.clone()), CommandReply::Done);
        assert_eq!(state.set(finished), CommandReply::Done, "it is repeated");
        assert_eq!((trust(&state.kv).unwrap().version, version(&state.kv)), (10, 10));
        assert_eq!(state.set(state.step(11, &[1, 0], false)), CommandReply::Done);
    }

    #[test]
    fn a_lasting_certificate_moves_to_the_new_ca_unless_only_those_do_that_are_remembered() {
        let mut state = State::founded();
        state.set(state.step(1, &[0, 1], false));
        assert_eq!(state.moved(false), Err(RenewRefusal::TooEarly));
        let term = state.moved(true).unwrap();
        assert!(term.ends.is_some_and(|ends| ends < at(4_102_444_800)));
        assert_eq!(cert::list(&state.kv).issued[0].authority, AuthorityId([3; 16]));
        let mut state = State::founded();
        state.set(state.step(1, &[0, 1], true));
        assert_eq!(state.moved(true), Err(RenewRefusal::Unknown));
    }
}
