//! Blocks that daemons said they had, and could not send.
//!
//! Owner: [`Claims`]. The repairing task notes how fetches ended, and audits believe no such claim again: a daemon that
//! says it has everything must not hide what is missing. Nor must one that says so and then sends nothing. It may
//! only be busy, so it is believed again once it has sent something.

use super::fetch::Fetched;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use wire::ids::{BlockHash, BlockdId};

/// False claims that are remembered per daemon. One with more is not believed at all.
const FALSE_MAX: usize = 1024;
/// A daemon that did not answer so often since it last sent a block is not believed at all.
const UNANSWERED_MAX: u32 = 2;
/// Blocks that are remembered because others have them and there is no room here.
const ELSEWHERE_MAX: usize = 65_536;

/// What is known of claims.
#[derive(Default)]
pub struct Claims {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    by_daemon: HashMap<BlockdId, Record>,
    elsewhere: HashSet<BlockHash>,
}

/// How often a daemon may have too much to do before that counts as silence.
const BUSY_MAX: u32 = 64;

/// The claims of one daemon.
#[derive(Default)]
struct Record {
    falsified: HashSet<BlockHash>,
    /// Blocks about which it did not answer once. The second time, the claim is false.
    unanswered: HashSet<BlockHash>,
    /// How often it did not answer since it last sent a block.
    silences: u32,
    /// How often it had too much to do since then.
    busy: u32,
}

impl Record {
    fn is_liar(&self) -> bool {
        self.falsified.len() >= FALSE_MAX || self.silences >= UNANSWERED_MAX
    }

    fn falsify(&mut self, hash: BlockHash) {
        self.unanswered.remove(&hash);
        if self.falsified.len() < FALSE_MAX {
            self.falsified.insert(hash);
        }
    }
}

impl Claims {
    /// Notes how a daemon answered when it was asked for a block that it said it had.
    pub fn note(&self, who: BlockdId, hash: BlockHash, answer: &Fetched) {
        let mut state = self.state.lock();
        let record = state.by_daemon.entry(who).or_default();
        match answer {
            Fetched::Sent(_) => {
                record.falsified.remove(&hash);
                record.unanswered.remove(&hash);
                (record.silences, record.busy) = (0, 0);
            }
            Fetched::Refused => record.falsify(hash),
            // It may have the block, and is well.
            Fetched::Busy if record.busy < BUSY_MAX => record.busy += 1,
            // One that never has time is as good as silent.
            Fetched::Busy | Fetched::Silent => {
                record.silences = record.silences.saturating_add(1);
                if record.unanswered.contains(&hash) || record.unanswered.len() >= FALSE_MAX {
                    record.falsify(hash);
                } else {
                    record.unanswered.insert(hash);
                }
            }
        }
    }

    /// Reports whether a daemon's word that it has a block is not believed.
    #[must_use]
    pub fn is_false(&self, who: &BlockdId, hash: &BlockHash) -> bool {
        let state = self.state.lock();
        state.by_daemon.get(who).is_some_and(|record| record.is_liar() || record.falsified.contains(hash))
    }

    /// Reports whether nothing that a daemon says is believed any more.
    #[must_use]
    pub fn is_liar(&self, who: &BlockdId) -> bool {
        self.state.lock().by_daemon.get(who).is_some_and(Record::is_liar)
    }

    /// Notes that another daemon has sent a block for which there is no room here: it is not missing.
    pub fn note_elsewhere(&self, hash: BlockHash) {
        let mut state = self.state.lock();
        if state.elsewhere.len() < ELSEWHERE_MAX {
            state.elsewhere.insert(hash);
        }
    }

    /// Reports whether that was noted.
    #[must_use]
    pub fn is_elsewhere(&self, hash: &BlockHash) -> bool {
        self.state.lock().elsewhere.contains(hash)
    }

    /// Forgets everything.
    pub fn clear(&self) {
        *self.state.lock() = State::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const WHO: BlockdId = BlockdId([1; 16]);
    const OTHER: BlockdId = BlockdId([2; 16]);

    fn sent() -> Fetched {
        Fetched::Sent(Bytes::new())
    }

    fn hash(number: u16) -> BlockHash {
        BlockHash([number.to_be_bytes(); 16].concat().try_into().unwrap())
    }

    #[test]
    fn a_false_claim_is_not_believed_again_until_the_block_was_sent() {
        let claims = Claims::default();
        claims.note(WHO, hash(7), &Fetched::Refused);
        assert!(claims.is_false(&WHO, &hash(7)) && !claims.is_false(&WHO, &hash(8)));
        assert!(!claims.is_false(&OTHER, &hash(7)));
        claims.note(WHO, hash(7), &sent());
        assert!(!claims.is_false(&WHO, &hash(7)));
        (0..2 * FALSE_MAX as u16).for_each(|number| claims.note(WHO, hash(number), &Fetched::Refused));
        assert!(claims.is_false(&WHO, &hash(u16::MAX)), "it lies about everything");
        assert_eq!(claims.state.lock().by_daemon[&WHO].falsified.len(), FALSE_MAX);
        claims.clear();
        assert!(!claims.is_false(&WHO, &hash(7)));
    }

    #[test]
    fn a_daemon_that_has_too_much_to_do_is_believed_for_a_while() {
        let claims = Claims::default();
        (0..BUSY_MAX).for_each(|_| claims.note(WHO, hash(1), &Fetched::Busy));
        assert!(!claims.is_false(&WHO, &hash(1)) && !claims.is_liar(&WHO));
        claims.note(WHO, hash(2), &sent());
        (0..BUSY_MAX).for_each(|_| claims.note(WHO, hash(1), &Fetched::Busy));
        assert!(!claims.is_false(&WHO, &hash(1)));
        (0..2).for_each(|_| claims.note(WHO, hash(1), &Fetched::Busy));
        assert!(claims.is_false(&WHO, &hash(1)), "it never sends what it says it has");
    }

    #[test]
    fn a_daemon_that_does_not_send_what_it_claims_is_believed_again_once_it_has_sent_something() {
        let claims = Claims::default();
        claims.note(WHO, hash(1), &Fetched::Silent);
        assert!(!claims.is_false(&WHO, &hash(1)), "once may be chance");
        claims.note(WHO, hash(2), &Fetched::Silent);
        assert!(claims.is_liar(&WHO) && !claims.is_liar(&OTHER));
        claims.note(WHO, hash(3), &sent());
        assert!(!claims.is_liar(&WHO) && !claims.is_false(&WHO, &hash(1)));
        claims.note(WHO, hash(1), &Fetched::Silent);
        claims.note(WHO, hash(3), &sent());
        assert!(claims.is_false(&WHO, &hash(1)), "what it sends of others does not prove this one");
        assert!(!claims.is_false(&WHO, &hash(2)));
    }
}
