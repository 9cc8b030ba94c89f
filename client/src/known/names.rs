//! Where names lead: [`Names`] as metad answered under leases, [`Places`] as they were last seen. `Places` also leads
//! from an inode to a name. Pure.

use super::{INODES_MAX, Mark};
use crate::recent::lru;
use lru::LruCache;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use wire::ids::Ino;
use wire::op::Name;

/// The most directories of which all names are known, and the most names of one.
const COMPLETE_DIRS_MAX: usize = 4096;
const COMPLETE_NAMES_MAX: usize = 4096;

/// A name in a directory.
pub type Place = (Ino, Name);

/// Names that were answered.
pub struct Names {
    /// Where a name leads, and the mark of that answer.
    leads: LruCache<Place, (Option<Ino>, Mark)>,
    /// Directories that were made here, with all their names.
    complete: LruCache<Ino, HashSet<Name>>,
}

impl Default for Names {
    fn default() -> Self {
        Self { leads: lru(INODES_MAX), complete: lru(COMPLETE_DIRS_MAX) }
    }
}

impl Names {
    /// Returns where a name leads, and the mark of that answer.
    pub fn get(&mut self, place: &Place) -> Option<(Option<Ino>, Mark)> {
        self.leads.get(place).copied()
    }

    /// Notes that a name leads there, or nowhere.
    pub fn put(&mut self, place: Place, ino: Option<Ino>, since: Mark) {
        self.leads.put(place, (ino, since));
    }

    /// Forgets where a name leads. Returns where it led.
    pub fn forget(&mut self, place: &Place) -> Option<Ino> {
        self.leads.pop(place).and_then(|(ino, _)| ino)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.leads.clear();
        self.complete.clear();
    }

    /// Returns whether a name is known to be absent because all names of its directory are known.
    pub fn is_missing(&mut self, parent: Ino, name: &[u8]) -> bool {
        self.complete.get(&parent).is_some_and(|names| !names.contains(name))
    }

    /// Notes that a directory is made here: it has no names.
    pub fn begin_complete(&mut self, dir: Ino) {
        self.complete.put(dir, HashSet::new());
    }

    /// Notes that not all names of a directory are known any more.
    pub fn end_complete(&mut self, dir: Ino) {
        self.complete.pop(&dir);
    }

    /// Adds or removes a name of a directory. If all its names were known, they still are.
    pub fn complete_with(&mut self, parent: Ino, name: &[u8], present: bool) {
        let Some(names) = self.complete.get_mut(&parent) else { return };
        if !present {
            names.remove(name);
        } else if names.len() < COMPLETE_NAMES_MAX {
            names.insert(name.to_vec());
        } else {
            self.complete.pop(&parent);
        }
    }
}

/// Where names led when they were last seen: a hint, never an answer.
pub struct Places {
    by_place: LruCache<Arc<Place>, Ino>,
    /// From inodes to names. Of several names of an inode, the last one is the one that was seen last.
    by_ino: HashMap<Ino, Vec<Arc<Place>>>,
}

impl Default for Places {
    fn default() -> Self {
        Self { by_place: lru(INODES_MAX), by_ino: HashMap::new() }
    }
}

impl Places {
    /// Returns where a name led.
    pub fn get(&mut self, place: &Place) -> Option<Ino> {
        self.by_place.get(place).copied()
    }

    /// Returns a name of an inode, the one that was seen last.
    pub fn of(&self, ino: Ino) -> Option<Place> {
        self.by_ino.get(&ino)?.last().map(|place| Place::clone(place))
    }

    /// Notes that a name leads there.
    pub fn put(&mut self, place: Place, ino: Ino) {
        if self.by_ino.get(&ino).and_then(|places| places.last()).is_some_and(|last| **last == place) {
            self.by_place.promote(&place);
            return;
        }
        self.forget(&place);
        let place = Arc::new(place);
        if let Some((oldest, led_to)) = self.by_place.push(place.clone(), ino) {
            self.unlink(&oldest, led_to);
        }
        self.by_ino.entry(ino).or_default().push(place);
    }

    /// Notes that a name leads nowhere, or that it is unknown where. Returns where it led.
    pub fn forget(&mut self, place: &Place) -> Option<Ino> {
        let ino = self.by_place.pop(place)?;
        self.unlink(place, ino);
        Some(ino)
    }

    fn unlink(&mut self, place: &Place, ino: Ino) {
        if let Some(places) = self.by_ino.get_mut(&ino) {
            places.retain(|other| **other != *place);
            if places.is_empty() {
                self.by_ino.remove(&ino);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn of_several_names_the_one_that_was_seen_last_leads_back() {
        let mut places = Places::default();
        places.put((Ino(1), b"a".to_vec()), Ino(7));
        places.put((Ino(1), b"b".to_vec()), Ino(7));
        assert_eq!(places.of(Ino(7)), Some((Ino(1), b"b".to_vec())));
        places.put((Ino(1), b"a".to_vec()), Ino(7));
        assert_eq!(places.of(Ino(7)), Some((Ino(1), b"a".to_vec())));
        places.put((Ino(1), b"a".to_vec()), Ino(8));
        assert_eq!(places.of(Ino(7)), Some((Ino(1), b"b".to_vec())), "the other name leads elsewhere now");
        assert_eq!(places.forget(&(Ino(1), b"b".to_vec())), Some(Ino(7)));
        assert_eq!(places.of(Ino(7)), None);
    }

    proptest! {
        #[test]
        fn the_way_back_agrees_with_the_way_there(steps in prop::collection::vec((0_u8..6, 0_u64..4, any::<bool>()), 0..60)) {
            let mut places = Places { by_place: lru(4), by_ino: HashMap::new() };
            for (name, ino, put) in steps {
                let place = (Ino(1), vec![name]);
                if put { places.put(place, Ino(ino)) } else { places.forget(&place); }
                let back: usize = places.by_ino.values().map(Vec::len).sum();
                prop_assert_eq!(back, places.by_place.len());
                for (place, ino) in &places.by_place {
                    prop_assert!(places.by_ino[ino].contains(place));
                }
            }
        }
    }
}
