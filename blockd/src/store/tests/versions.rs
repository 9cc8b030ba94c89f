//! Segments that another version of Surf has written.

use super::{DIR, SEGMENT_BYTES, block, open, runtime};
use crate::store::record::HEADER_BYTES;
use crate::store::tests::disk::{Content, TestDisk};
use crate::store::{Error, Store, StoreOptions};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn reopen(disk: &TestDisk) -> Result<Store, Error> {
    let options = StoreOptions { segment_bytes: SEGMENT_BYTES, reserve_bytes: 0 };
    Store::open_on(Path::new(DIR), options, Arc::new(disk.clone()))
}

/// A disk with a store of a few blocks.
fn filled() -> TestDisk {
    let disk = TestDisk::new();
    let store = open(&disk);
    for number in 0..4 {
        let (hash, content) = block(number);
        runtime().block_on(store.put(hash, content)).unwrap();
    }
    store.close();
    disk
}

/// Changes a byte of the header that begins at `header`, so that its checksum fits. There is no hint any more, as after a
/// crash.
fn change(disk: &TestDisk, header: usize, at: usize, value: u8) {
    let mut files = disk.0.files.lock();
    files.retain(|path, _| path.extension().is_none_or(|end| end != "hint"));
    let segment = files.values_mut().next().unwrap();
    let bytes = &mut segment.stable[header..header + HEADER_BYTES];
    bytes[at] = value;
    let sum = crc32fast::hash(&bytes[..60]);
    bytes[60..].copy_from_slice(&sum.to_le_bytes());
}

fn content(disk: &TestDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    let files: &BTreeMap<PathBuf, Content> = &disk.0.files.lock();
    files.iter().map(|(path, content)| (path.clone(), content.stable.clone())).collect()
}

/// Where the second record begins: each put that was waited for is a group of its own.
fn second_record(disk: &TestDisk) -> usize {
    let files = content(disk);
    let bytes = &files[&disk.segments()[0]];
    (4096..bytes.len()).step_by(4096).find(|at| bytes[*at..].starts_with(b"SBLK")).unwrap()
}

#[test]
fn a_store_of_an_earlier_version_is_refused_with_what_to_do_and_stays_as_it_is() {
    let disk = filled();
    change(&disk, 0, 4, 2);
    let before = content(&disk);
    let error = reopen(&disk).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Earlier { .. }), "{error}");
    let said = error.to_string();
    assert!(said.contains("use the release that wrote it") && said.contains("anew") && !said.contains('\n'), "{said}");
    assert_eq!(content(&disk), before);
}

#[test]
fn a_record_of_a_newer_release_is_no_damage_and_nothing_is_dropped_for_it() {
    // Version, kind, policy, size of sections, and the room for shards.
    for (at, value) in [(4, 4), (5, 3), (6, 1), (52, 12), (53, 1), (59, 1)] {
        for later in [false, true] {
            let disk = filled();
            let header = if later { second_record(&disk) } else { 0 };
            change(&disk, header, at, value);
            let before = content(&disk);
            let error = reopen(&disk).map(|_| ()).unwrap_err();
            assert!(matches!(error, Error::Newer { .. }), "byte {at} of {header}: {error}");
            assert_eq!(content(&disk), before, "byte {at} of {header}");
        }
    }
}

#[test]
fn what_looks_like_a_newer_record_within_damage_is_damage() {
    let disk = filled();
    let header = second_record(&disk);
    change(&disk, header, 4, 4);
    disk.flip(&disk.segments()[0], 20);
    let store = reopen(&disk).expect("the inside of a payload could look like this");
    assert!(!store.contains(&block(1).0));
}
