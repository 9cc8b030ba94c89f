//! Turns for work of which a peer gets one at a time, and all peers together only a few.

use parking_lot::Mutex;
use std::collections::BTreeSet;

/// Who has a turn.
pub struct Turns {
    taken: Mutex<BTreeSet<String>>,
    max: usize,
}

/// A peer's turn, which ends when this is dropped.
pub struct Turn<'a> {
    turns: &'a Turns,
    peer: String,
}

impl Turns {
    /// Gives up to `max` turns at a time.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { taken: Mutex::default(), max }
    }

    /// Takes a turn. Returns `None` if the peer of this name has one already, or all are taken.
    pub fn take(&self, peer: &str) -> Option<Turn<'_>> {
        let mut taken = self.taken.lock();
        let is_free = taken.len() < self.max && taken.insert(peer.to_owned());
        is_free.then(|| Turn { turns: self, peer: peer.to_owned() })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.taken.lock().remove(&self.peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_one_turn_at_a_time_and_all_together_have_few() {
        let turns = Turns::new(2);
        let one = turns.take("one").unwrap();
        assert!(turns.take("one").is_none(), "it has one");
        let two = turns.take("two").unwrap();
        assert!(turns.take("three").is_none(), "all are taken");
        drop(one);
        assert!(turns.take("two").is_none());
        let _three = turns.take("three").unwrap();
        drop(two);
        let _two = turns.take("two").unwrap();
    }
}
