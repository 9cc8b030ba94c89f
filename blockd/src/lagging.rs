//! Which blocks may lag behind the answer to their put: those that slow daemons of the chain are still storing. Beyond
//! that daemons miss blocks, which they find when they compare with others. So nobody may lag so much that others get no
//! third copy.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use wire::ids::PartyId;

/// Most blocks that may lag.
const LAGGING_MAX: usize = 32;
/// Most of them that one party has sent.
const LAGGING_OF_PARTY_MAX: usize = 24;

/// The blocks that lag, by who sent them first. Nothing is kept of a party of which none does.
#[derive(Default)]
pub struct Lagging(Mutex<HashMap<PartyId, usize>>);

/// A block's place among those that lag, until this is dropped.
pub struct Lag {
    lagging: Arc<Lagging>,
    origin: PartyId,
}

impl Lagging {
    /// Reserves a place for a block of this party; `None` when too many lag.
    #[must_use]
    pub fn begin(self: &Arc<Self>, origin: PartyId) -> Option<Lag> {
        let mut by_origin = self.0.lock();
        let of_origin = by_origin.get(&origin).copied().unwrap_or(0);
        if of_origin >= LAGGING_OF_PARTY_MAX || by_origin.values().sum::<usize>() >= LAGGING_MAX {
            return None;
        }
        by_origin.insert(origin, of_origin + 1);
        Some(Lag { lagging: self.clone(), origin })
    }
}

impl Drop for Lag {
    fn drop(&mut self) {
        let mut by_origin = self.lagging.0.lock();
        if let Some(count) = by_origin.get_mut(&self.origin) {
            *count -= 1;
            if *count == 0 {
                by_origin.remove(&self.origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_party_whose_blocks_lag_leaves_others_their_places() {
        let lagging = Arc::<Lagging>::default();
        let begin =
            |party: u8, count| -> Vec<Lag> { (0..count).map_while(|_| lagging.begin(PartyId([party; 16]))).collect() };
        let mut greedy = begin(1, 100);
        assert_eq!(greedy.len(), LAGGING_OF_PARTY_MAX);
        let others: Vec<Vec<Lag>> = (2..10).map(|party| begin(party, 5)).collect();
        assert_eq!(others.iter().map(Vec::len).sum::<usize>(), LAGGING_MAX - LAGGING_OF_PARTY_MAX);
        assert_eq!(others[0].len(), 5);
        assert!(begin(10, 1).is_empty(), "there are enough");
        greedy.pop();
        assert_eq!(begin(1, 2).len(), 1);
        drop((greedy, others));
        assert!(lagging.0.lock().is_empty());
    }
}
