//! Caches that forget what was used least recently.

use lru::LruCache;
use std::hash::Hash;
use std::num::NonZeroUsize;

/// Returns a cache of at most `count` entries (at least one). Its memory grows with its entries; [`LruCache::new`] would reserve
/// memory for all `count` at once.
pub(crate) fn lru<K: Hash + Eq, V>(count: usize) -> LruCache<K, V> {
    let mut cache = LruCache::unbounded();
    cache.resize(NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN));
    cache
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recent_entry_goes_when_there_are_too_many_and_there_is_room_for_one_at_least() {
        let mut cache = lru(2);
        for number in [1, 2, 1, 3] {
            cache.put(number, ());
        }
        assert_eq!((cache.len(), cache.contains(&1), cache.contains(&2)), (2, true, false));
        assert_eq!(lru::<u32, ()>(0).cap().get(), 1);
    }
}
