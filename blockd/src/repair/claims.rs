//! Blocks that daemons said they had, and could not send.
//!
//! Owner: [`Claims`]. The repairing task notes how fetches ended, and audits believe no such claim again: a daemon that
//! says it has everything must not hide what is missing.

use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use wire::ids::{BlockHash, BlockdId};

/// False claims that are remembered per daemon. One with more is not believed at all.
const FALSE_MAX: usize = 1024;

/// False claims, by daemon.
#[derive(Default)]
pub struct Claims {
    falsified: Mutex<HashMap<BlockdId, HashSet<BlockHash>>>,
}

impl Claims {
    /// Notes whether a daemon could send a block that it said it had.
    pub fn note(&self, who: BlockdId, hash: BlockHash, was_sent: bool) {
        let mut falsified = self.falsified.lock();
        if was_sent {
            if let Some(hashes) = falsified.get_mut(&who) {
                hashes.remove(&hash);
            }
            return;
        }
        let hashes = falsified.entry(who).or_default();
        if hashes.len() < FALSE_MAX {
            hashes.insert(hash);
        }
    }

    /// Reports whether a daemon's word that it has a block is not believed.
    #[must_use]
    pub fn is_false(&self, who: &BlockdId, hash: &BlockHash) -> bool {
        self.falsified.lock().get(who).is_some_and(|hashes| hashes.len() >= FALSE_MAX || hashes.contains(hash))
    }

    /// Reports whether nothing that a daemon says is believed any more.
    #[must_use]
    pub fn is_liar(&self, who: &BlockdId) -> bool {
        self.falsified.lock().get(who).is_some_and(|hashes| hashes.len() >= FALSE_MAX)
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.falsified.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_false_claim_is_not_believed_again_until_the_block_was_sent() {
        let (who, other) = (BlockdId([1; 16]), BlockdId([2; 16]));
        let hash = |number: u16| BlockHash([number.to_be_bytes(); 16].concat().try_into().unwrap());
        let claims = Claims::default();
        claims.note(who, hash(7), false);
        assert!(claims.is_false(&who, &hash(7)) && !claims.is_false(&who, &hash(8)));
        assert!(!claims.is_false(&other, &hash(7)));
        claims.note(who, hash(7), true);
        assert!(!claims.is_false(&who, &hash(7)));
        (0..2 * FALSE_MAX as u16).for_each(|number| claims.note(who, hash(number), false));
        assert!(claims.is_false(&who, &hash(u16::MAX)), "it lies about everything");
        assert_eq!(claims.falsified.lock()[&who].len(), FALSE_MAX);
        claims.clear();
        assert!(!claims.is_false(&who, &hash(7)));
    }
}
