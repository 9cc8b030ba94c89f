//! Replacing damaged copies.

use super::{TestDisk, block, open, runtime};
use crate::store::Error;

/// Guards I10.
#[test]
fn a_block_replaces_a_damaged_copy_and_nothing_else() {
    let disk = TestDisk::new();
    let runtime = runtime();
    let store = open(&disk);
    let (hash, content) = block(5);
    let replace = || runtime.block_on(store.replace(hash, content.clone()));
    assert!(!replace().unwrap() && !store.contains(&hash), "what is not here is not brought here");
    runtime.block_on(store.put(hash, content.clone())).unwrap();
    assert!(!replace().unwrap(), "the copy is good");
    disk.flip(&disk.segments()[0], 100);
    assert!(matches!(runtime.block_on(store.get(hash)), Err(Error::Corrupt { .. })));
    assert!(replace().unwrap());
    assert_eq!(runtime.block_on(store.get(hash)).unwrap(), Some(content.clone()));
    assert!(!replace().unwrap(), "it was replaced");
    runtime.block_on(store.drop_block(hash)).unwrap();
    assert!(!replace().unwrap());
    drop(store);
    assert!(!open(&disk).contains(&hash), "it does not come back");
}
