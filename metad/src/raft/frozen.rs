//! A snapshot file, read like the state that it holds.
//!
//! Its pairs are in the order of their keys. A few thousand places are remembered, with the key that begins there, so
//! any pair is close to one of them. Memory does not grow with the state, and the file does not change even if the node
//! takes another snapshot meanwhile.

use super::snapshot::{self, Pairs};
use super::types::SnapshotFile;
use crate::consensus::Frozen;
use crate::fs::keys::Key;
use crate::fs::view::Kv;
use parking_lot::Mutex;
use std::io;
use std::ops::Range;

/// Places that are remembered. With more, every second one is forgotten.
const PLACES_MAX: usize = 1 << 15;
/// Bytes read at once to look up a key.
const LOOK_BYTES: usize = 64 << 10;
/// Bytes read at once by a scan.
const SCAN_BYTES: usize = 1 << 20;

/// A snapshot file that was opened and verified.
pub(super) struct FrozenFile {
    snapshot: SnapshotFile,
    term: u64,
    applied: u64,
    pair_count: u64,
    /// Keys with which groups of pairs begin, and where these stand in the file.
    places: Vec<(Key, u64)>,
    failure: Mutex<Option<String>>,
}

impl FrozenFile {
    /// Verifies a snapshot, and remembers places in it. Reads all of it twice.
    pub(super) fn open(snapshot: SnapshotFile) -> io::Result<Self> {
        snapshot::verify(&snapshot)?;
        let last = snapshot::meta(&snapshot)?.last_log_id;
        let (term, applied) = last.map_or((0, 0), |at| (at.committed_leader_id().term, at.index));
        let (mut places, mut pair_count, mut stride, mut groups): (Vec<(Key, u64)>, _, _, _) =
            (Vec::new(), 0, 1, 0_u64);
        let mut walk = Pairs::of(&snapshot)?;
        let (mut key, mut value) = (Key::new(), Vec::new());
        let mut began = None;
        while walk.next(&mut key, &mut value, &mut |at| began = Some(at))? {
            pair_count += 1;
            let Some(at) = began.take() else { continue };
            if groups % stride == 0 {
                places.push((key.clone(), at));
            }
            groups += 1;
            if places.len() >= PLACES_MAX {
                let mut index = 0;
                places.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
                stride *= 2;
            }
        }
        Ok(Self { snapshot, term, applied, pair_count, places, failure: Mutex::default() })
    }

    fn walk_from(&self, key: &[u8], capacity: usize) -> Option<Pairs> {
        let behind = self.places.partition_point(|(first, _)| first.as_slice() <= key);
        let (_, at) = self.places.get(behind.saturating_sub(1))?;
        Some(Pairs::from(&self.snapshot, *at, capacity))
    }

    fn visit(
        &self,
        range: &Range<Key>,
        capacity: usize,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> io::Result<()> {
        let Some(mut walk) = self.walk_from(&range.start, capacity) else { return Ok(()) };
        let (mut key, mut value) = (Key::new(), Vec::new());
        while walk.next(&mut key, &mut value, &mut |_| {})? && key < range.end {
            if key >= range.start && !visit(&key, &value) {
                break;
            }
        }
        Ok(())
    }

    /// Pairs that cannot be read are left out; a caller that relies on them checks [`Frozen::failure`] at the end.
    fn look(&self, range: &Range<Key>, capacity: usize, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        if let Err(error) = self.visit(range, capacity, visit) {
            self.failure.lock().get_or_insert_with(|| format!("{}: {error}", self.snapshot.path.display()));
        }
    }
}

impl Kv for FrozenFile {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let mut found = None;
        let only = key.to_vec()..[key, &[0]].concat();
        self.look(&only, LOOK_BYTES, &mut |_, value| {
            found = Some(value.to_vec());
            false
        });
        found
    }

    fn scan(&self, range: Range<Key>, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        self.look(&range, SCAN_BYTES, visit);
    }

    fn last(&self, range: Range<Key>) -> Option<(Key, Vec<u8>)> {
        let mut found = None;
        // The last place before the end is tried first. All of the range is read only if it has no pair after that
        // place.
        let close = self.places.partition_point(|(first, _)| *first < range.end).checked_sub(1);
        let close = close.map(|index| self.places[index].0.clone().max(range.start.clone()));
        for start in close.into_iter().chain([range.start]) {
            self.look(&(start..range.end.clone()), LOOK_BYTES, &mut |key, value| {
                found = Some((key.to_vec(), value.to_vec()));
                true
            });
            if found.is_some() {
                break;
            }
        }
        found
    }
}

impl Frozen for FrozenFile {
    fn term(&self) -> u64 {
        self.term
    }

    fn applied(&self) -> u64 {
        self.applied
    }

    fn pair_count(&self) -> u64 {
        self.pair_count
    }

    fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::types::SnapshotMeta;
    use super::*;
    use crate::fs::view::{Changes, KvExt};
    use crate::store::Store;
    use std::fs;

    #[test]
    fn a_frozen_state_reads_as_the_store_did_and_reports_that_its_file_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state"), 8 << 20).unwrap();
        let pair = |n: u32| ([b"I", n.to_be_bytes().as_slice()].concat(), vec![n as u8; n as usize % 40]);
        store.load((0..3000).map(|n| pair(n * 2)).collect());
        store.apply(Changes::new(), b"position");
        let path = snapshot::path_in(dir.path());
        store.begin_snapshot();
        assert!(snapshot::write(&path, &SnapshotMeta::default(), &store).unwrap());
        let frozen = FrozenFile::open(snapshot::open(&path).unwrap().unwrap().1).unwrap();
        assert!(frozen.places.len() > 3, "{} places", frozen.places.len());
        assert_eq!(frozen.pair_count(), 3000);
        // A different state, which the frozen one does not see.
        store.clear();

        for n in [0, 1, 2, 1023, 1024, 1026, 5998, 5999, 7000] {
            let (key, value) = pair(n);
            assert_eq!(frozen.get(&key), (n % 2 == 0 && n < 6000).then_some(value), "{n}");
        }
        let all: Vec<_> = (0..3000).map(|n| pair(n * 2)).collect();
        assert_eq!(frozen.pairs(vec![1]..vec![255], usize::MAX), all);
        assert_eq!(frozen.pairs(pair(1001).0..pair(1005).0, 9), all[501..503]);
        assert_eq!(frozen.last(pair(1001).0..pair(1005).0), Some(all[502].clone()));
        assert_eq!(frozen.last(pair(1001).0..pair(1002).0), None);
        assert_eq!(frozen.failure(), None);

        let len = fs::metadata(&path).unwrap().len();
        fs::File::options().write(true).open(&path).unwrap().set_len(len / 2).unwrap();
        frozen.scan(vec![1]..vec![255], &mut |_, _| true);
        assert!(frozen.failure().unwrap().contains("snapshot"));
    }
}
