//! Segments and hints of a block daemon's store.

use crate::memory::MemoryDisk;
use blockd::store::fuzzing::{self, Recovered, Recovery};
use std::path::{Path, PathBuf};

/// Bytes of a record's header that its checksum covers.
const HEADER_BODY: usize = 60;

thread_local! {
    static RECOVERY: Recovery = Recovery::default();
}

/// Gives each header in a segment the checksum that fits.
fn resealed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for at in (0..bytes.len()).step_by(8) {
        let header = bytes.get_mut(at..at + HEADER_BODY + 4).filter(|header| header.starts_with(b"SBLK"));
        if let Some((body, sum)) = header.and_then(|header| header.split_last_chunk_mut::<4>()) {
            *sum = crc32fast::hash(body).to_le_bytes();
        }
    }
    bytes
}

/// The header of a record.
pub fn block_record(data: &[u8]) -> bool {
    let again = |bytes: &[u8]| {
        let header = fuzzing::header(bytes);
        if let Some(header) = header {
            assert_eq!(header[..], bytes[..header.len()], "a header has one form");
        }
        header.is_some()
    };
    again(&resealed(data));
    again(data)
}

fn recovered(disk: &MemoryDisk) -> Option<Vec<Recovered>> {
    let before = disk.files();
    let found = RECOVERY.with(|recovery| recovery.run(dir(), disk));
    if let Err(error) = &found {
        assert_eq!(disk.files(), before, "a store that is not opened stays as it is: {error}");
    }
    found.ok()
}

fn dir() -> &'static Path {
    Path::new("blocks")
}

fn paths() -> (PathBuf, PathBuf) {
    fuzzing::paths(dir())
}

/// A segment without a hint.
pub fn block_segment(data: &[u8]) -> bool {
    open_segment(&resealed(data));
    open_segment(data)
}

fn open_segment(bytes: &[u8]) -> bool {
    let (disk, (segment, hint)) = (MemoryDisk::default(), paths());
    disk.put(&segment, bytes);
    let Some(found) = recovered(&disk) else { return false };
    assert_eq!(recovered(&disk).as_ref(), Some(&found), "by the hint that was written");
    disk.forget(&hint);
    assert_eq!(recovered(&disk).as_ref(), Some(&found), "by the segment that was cut");
    found.iter().any(|(_, _, _, is_good)| *is_good)
}

/// A hint, beside a good segment.
pub fn block_hint(data: &[u8]) -> bool {
    let mut sealed = data.to_vec();
    if let Some((body, sum)) = sealed.split_last_chunk_mut::<32>() {
        *sum = *blake3::hash(body).as_bytes();
    }
    open_hint(&sealed);
    open_hint(data)
}

fn open_hint(bytes: &[u8]) -> bool {
    let (good, _) = samples::made();
    let len = good.len() as u64;
    let again = fuzzing::hint(bytes, len);
    if let Some(again) = &again {
        assert_eq!(again, bytes, "a hint has one form");
    }
    let (disk, (segment, hint)) = (MemoryDisk::default(), paths());
    disk.put(&segment, &good);
    disk.put(&hint, bytes);
    let found = recovered(&disk).expect("a hint keeps no store from being opened");
    if again.is_none() {
        assert_eq!(found.iter().filter(|(_, _, _, is_good)| *is_good).count(), 1, "the segment was read");
    }
    assert_eq!(recovered(&disk).as_ref(), Some(&found));
    again.is_some()
}

/// Good inputs.
pub mod samples {
    use crate::Samples;
    use blockd::store::fuzzing;

    /// Returns a segment with a block, a block that was dropped, and its tombstone; and its hint.
    #[must_use]
    pub fn made() -> (Vec<u8>, Vec<u8>) {
        fuzzing::samples(&[&[7; 100], b"dropped", b""])
    }

    /// The headers of a block and of a tombstone.
    #[must_use]
    pub fn record() -> Samples {
        let (segment, _) = made();
        let tombstone = segment[segment.len() - 64..].to_vec();
        vec![("put", segment[..64].to_vec()), ("tombstone", tombstone)]
    }

    /// Segments.
    #[must_use]
    pub fn segment() -> Samples {
        let (whole, _) = made();
        let mut torn = whole.clone();
        torn.extend_from_slice(&fuzzing::samples(&[&[9; 300]]).0[..200]);
        let one = fuzzing::samples(&[b"x"]).0;
        vec![("whole", whole), ("torn", torn), ("one", one)]
    }

    /// Hints of the segment that [`made`] returns.
    #[must_use]
    pub fn hint() -> Samples {
        let (_, all) = made();
        let (_, first) = fuzzing::samples(&[&[7; 100]]);
        vec![("all", all), ("first", first)]
    }
}
