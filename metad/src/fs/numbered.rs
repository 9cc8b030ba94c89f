//! Stored values that begin with the newest snapshot number at their writing, as those of entries, extents, inodes,
//! attributes and symlinks' targets do.
//!
//! The number says which snapshots show a value: those that were made after its writing. Inodes and extents have it as a
//! field of their own. Here are the values of the other tables: structured ones, and those that are plain bytes.

use super::keys::Key;
use super::view::{Kv, View};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wire::ids::SnapshotNumber;
use wire::{Error, codec};

#[derive(Serialize, Deserialize)]
struct Numbered<T> {
    written: SnapshotNumber,
    value: T,
}

/// Returns the bytes of a value.
#[must_use]
pub fn encode<T: Serialize>(written: SnapshotNumber, value: &T) -> Vec<u8> {
    codec::encode(&Numbered { written, value })
}

/// Returns the value.
///
/// # Errors
/// When the bytes are none.
pub fn decode<T: DeserializeOwned>(stored: &[u8]) -> Result<T, Error> {
    codec::decode::<Numbered<T>>(stored).map(|numbered| numbered.value)
}

/// Returns the bytes of a value that is plain bytes: they follow the number, without a length.
#[must_use]
pub fn encode_bytes(written: SnapshotNumber, bytes: &[u8]) -> Vec<u8> {
    let mut stored = codec::encode(&written);
    stored.extend_from_slice(bytes);
    stored
}

/// Returns the bytes of a value that is plain bytes.
///
/// # Errors
/// When no number precedes them.
pub fn decode_bytes(stored: &[u8]) -> Result<&[u8], Error> {
    let written = written(stored)?;
    stored.get(codec::encoded_len(&written)..).ok_or_else(|| Error::Malformed("it ends too early".to_owned()))
}

/// Returns the newest snapshot number when the value was written. It begins the values of all tables that have one.
///
/// # Errors
/// When the bytes do not begin with a number.
pub fn written(stored: &[u8]) -> Result<SnapshotNumber, Error> {
    codec::decode_start(stored)
}

/// Sets a key to a value.
pub(super) fn store<T: Serialize>(view: &mut View, key: Key, value: &T) {
    let written = view.newest_snapshot();
    view.store(key, &Numbered { written, value });
}

/// Returns the value of a key.
///
/// # Panics
/// As [`decode_stored`](super::view::decode_stored).
pub fn load<T: DeserializeOwned>(kv: &dyn Kv, key: &[u8]) -> Option<T> {
    kv.get(key).map(|stored| undamaged(key, decode(&stored)))
}

/// Sets a key to plain bytes.
pub(super) fn store_bytes(view: &mut View, key: Key, bytes: &[u8]) {
    let stored = encode_bytes(view.newest_snapshot(), bytes);
    view.put(key, stored);
}

/// Returns the plain bytes of a key.
///
/// # Panics
/// As [`decode_stored`](super::view::decode_stored).
pub fn load_bytes(kv: &dyn Kv, key: &[u8]) -> Option<Vec<u8>> {
    kv.get(key).map(|stored| undamaged(key, decode_bytes(&stored)).to_vec())
}

/// Returns the value that was stored under a key.
///
/// # Panics
/// As [`decode_stored`](super::view::decode_stored).
pub(super) fn undamaged<T>(key: &[u8], decoded: Result<T, Error>) -> T {
    decoded.unwrap_or_else(|error| panic!("stored value of key {key:?} is damaged: {error}"))
}

#[cfg(test)]
mod tests {
    use super::super::view::MemoryKv;
    use super::*;
    use crate::fs::keys;
    use proptest::prelude::*;
    use wire::ids::Ino;

    proptest! {
        #[test]
        fn a_value_comes_back_with_its_number(number: u64, value: (u64, u8), bytes: Vec<u8>) {
            let number = SnapshotNumber(number);
            let stored = encode(number, &value);
            prop_assert_eq!((written(&stored).unwrap(), decode::<(u64, u8)>(&stored).unwrap()), (number, value));
            let stored = encode_bytes(number, &bytes);
            prop_assert_eq!((written(&stored).unwrap(), decode_bytes(&stored).unwrap()), (number, bytes.as_slice()));
        }

        #[test]
        fn arbitrary_bytes_never_panic(stored: Vec<u8>) {
            let _ = (decode::<(u64, u8)>(&stored), decode_bytes(&stored).map(<[u8]>::len), written(&stored));
        }
    }

    #[test]
    fn what_is_written_after_a_snapshot_has_its_number() {
        let mut kv = MemoryKv::default();
        let key = keys::xattr(Ino(9), b"user.x");
        for number in [0, 7] {
            if number > 0 {
                kv.0.insert(keys::NEWEST_SNAPSHOT.to_vec(), codec::encode(&SnapshotNumber(number)));
            }
            let before = kv.clone();
            let mut view = View::new(&before);
            store_bytes(&mut view, key.clone(), b"value");
            kv.absorb(view.into_changes());
            assert_eq!(written(&kv.0[&key]).unwrap(), SnapshotNumber(number));
            assert_eq!(load_bytes(&kv, &key).unwrap(), b"value");
        }
    }
}
