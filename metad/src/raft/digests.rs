//! Digests of this node's state at marks in the log, for comparing metads with each other.
//!
//! All metads apply the same log, so at one position their states are equal byte by byte. `surf fsck` asks each metad to
//! wait for a mark, and then has the mark proposed: each metad reads its state as it is right there, while later entries
//! are applied. A metad that was not asked takes no notice of a mark, and one digest is made at a time.

use crate::store::{ScanOf, Store};
use parking_lot::Mutex;
use std::sync::Arc;
use wire::message::check::{CheckId, DigestState, StateDigest};

/// Pairs read at a time: writers wait meanwhile.
const GROUP_PAIRS: usize = 512;

/// The digests of a node: the one that was asked for last.
#[derive(Default)]
pub(super) struct Digests {
    last: Arc<Mutex<Option<(CheckId, DigestState)>>>,
}

impl Digests {
    /// Returns how far a digest is. Waits for its mark from now on, if it is a new one.
    pub(super) fn ask(&self, check: CheckId) -> DigestState {
        let mut last = self.last.lock();
        match &*last {
            Some((known, state)) if *known == check => state.clone(),
            Some((_, DigestState::Reading { .. })) => {
                DigestState::GivenUp("it is being compared for another check: wait until that has ended".to_owned())
            }
            _ => {
                *last = Some((check, DigestState::Awaited));
                DigestState::Awaited
            }
        }
    }

    /// Begins to read the state, which is that of the mark, if somebody waits for it.
    pub(super) fn begin(&self, check: CheckId, applied: u64, store: &Arc<Store>) {
        let mut last = self.last.lock();
        if !matches!(&*last, Some((known, DigestState::Awaited)) if *known == check) {
            return;
        }
        store.begin_scan(ScanOf::Digest);
        let (shared, store) = (self.last.clone(), store.clone());
        let reading = move || {
            let state = read(&store, applied, |pairs| {
                *shared.lock() = Some((check, DigestState::Reading { pairs }));
            });
            *shared.lock() = Some((check, state));
        };
        let begun = std::thread::Builder::new().name("digest".to_owned()).spawn(reading);
        let state = match begun {
            Ok(_) => DigestState::Reading { pairs: 0 },
            Err(error) => DigestState::GivenUp(error.to_string()),
        };
        *last = Some((check, state));
    }
}

fn read(store: &Store, applied: u64, mut progress: impl FnMut(u64)) -> DigestState {
    let (mut hash, mut pairs) = (blake3::Hasher::new(), 0);
    let part = |hash: &mut blake3::Hasher, part: &[u8]| {
        hash.update(&(part.len() as u64).to_le_bytes()).update(part);
    };
    loop {
        let Some(group) = store.next_of_scan(ScanOf::Digest, GROUP_PAIRS) else {
            return DigestState::GivenUp(
                "its state was replaced meanwhile, or changed too much: check again when less is written".to_owned(),
            );
        };
        if group.is_empty() {
            return DigestState::Done(StateDigest { applied, pairs, hash: *hash.finalize().as_bytes() });
        }
        for (key, value) in &group {
            part(&mut hash, key);
            part(&mut hash, value);
        }
        pairs += group.len() as u64;
        progress(pairs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::view::Changes;
    use std::path::Path;
    use std::time::{Duration, Instant};

    fn store(dir: &Path, name: &str) -> Arc<Store> {
        Arc::new(Store::open(&dir.join(name), 8 << 20).unwrap())
    }

    fn set(store: &Store, key: u16, value: u8) {
        let change: Changes = [([b"I", key.to_be_bytes().as_slice()].concat(), Some(vec![value]))].into();
        store.apply(change, b"position");
    }

    fn digest(digests: &Digests, check: CheckId) -> StateDigest {
        let begun = Instant::now();
        loop {
            match digests.ask(check) {
                DigestState::Done(digest) => return digest,
                DigestState::GivenUp(reason) => panic!("{reason}"),
                _ => assert!(begun.elapsed() < Duration::from_secs(30)),
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn equal_states_have_one_digest_whatever_is_written_later_and_one_changed_byte_shows() {
        let dir = tempfile::tempdir().unwrap();
        let mut found = Vec::new();
        for (name, odd) in [("a", 7), ("b", 7), ("c", 8)] {
            let (store, digests) = (store(dir.path(), name), Digests::default());
            (0..3_000).for_each(|key| set(&store, key, 7));
            set(&store, 1_234, odd);
            assert_eq!(digests.ask(CheckId(1)), DigestState::Awaited);
            digests.begin(CheckId(1), 5, &store);
            (0..3_000).for_each(|key| set(&store, key, 9));
            found.push(digest(&digests, CheckId(1)));
        }
        assert_eq!((found[0].applied, found[0].pairs), (5, 3_000));
        assert_eq!(found[0], found[1]);
        assert_ne!(found[0], found[2]);
    }

    #[test]
    fn a_mark_that_nobody_waits_for_costs_nothing_and_a_snapshot_goes_on_beside_a_digest() {
        let dir = tempfile::tempdir().unwrap();
        let (store, digests) = (store(dir.path(), "a"), Digests::default());
        (0..3_000).for_each(|key| set(&store, key, 7));
        digests.begin(CheckId(1), 5, &store);
        assert_eq!(digests.ask(CheckId(1)), DigestState::Awaited, "it was not read");
        store.begin_snapshot();
        assert_eq!(store.next_of_snapshot(10).unwrap().len(), 10);
        digests.begin(CheckId(1), 6, &store);
        assert_eq!(digest(&digests, CheckId(1)).applied, 6);
        assert_eq!(store.next_of_snapshot(usize::MAX).unwrap().len(), 2_990);
    }
}
