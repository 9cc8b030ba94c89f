//! A mount's journal, and its cache of blocks.

use crate::memory::{self, MemoryDisk};
use client::block::disk::fuzzing as cache;
use client::fuzzing::{self, Content};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use wire::ids::BlockHash;
use wire::limits::BLOCK_BYTES_MAX;
use wire::sections::SECTION_BYTES;

/// Reads a journal as the next mount does. Returns the number of its records; `None` when it is damaged.
fn read(disk: &MemoryDisk) -> Option<usize> {
    let before = disk.files();
    let found = Content::read(Arc::new(disk.clone()));
    assert_eq!(disk.files(), before, "reading changes nothing");
    let found = match found {
        Ok(found) => found,
        Err(client::Error::JournalDamaged { .. }) => return None,
        Err(other) => panic!("{other}"),
    };
    // Without an id, the journal has a new number each time that it is opened.
    if before.contains_key(Path::new("id")) {
        let copy = MemoryDisk::default();
        found.write(Arc::new(copy.clone())).expect("memory takes all");
        let again = Content::read(Arc::new(copy)).expect("what was written can be read");
        assert_eq!(again, found);
    }
    Some(found.count())
}

fn journal(bytes: &[u8], is_picture: bool) -> bool {
    let disk = MemoryDisk::default();
    fuzzing::put_segment(&disk, bytes, is_picture).expect("memory takes all");
    read(&disk).is_some_and(|count| count > 0)
}

/// A segment of a journal; also with the bytes as records of a good group.
pub fn journal_segment(data: &[u8]) -> bool {
    journal(&fuzzing::sealed(data, false), false);
    journal(data, false)
}

/// The picture of a journal; also with the bytes as records of a good group.
pub fn journal_picture(data: &[u8]) -> bool {
    journal(&fuzzing::sealed(data, true), true);
    journal(data, true)
}

/// The file that says whose journal it is.
pub fn journal_id(data: &[u8]) -> bool {
    let disk = MemoryDisk::default();
    disk.put(Path::new("id"), data);
    read(&disk).is_some()
}

/// Bytes of the longest block of [`cached_block`]: four sections, so that parts of it can be read.
const CACHED_BYTES_MAX: usize = 4 * SECTION_BYTES;

/// The file of a cached block. The first four bytes are the length of a block; then come changes of its file: offset
/// (u32), what to do (u8), and a byte to do it with. The input is also taken for such a file itself.
pub fn cached_block(data: &[u8]) -> bool {
    let path = memory::dir().join("block");
    fs::write(&path, data).expect("a file can be written");
    let whole = cache::read(&path, &BlockHash::of(data), None).expect("the file can be read");
    let is_block = (1..=SECTION_BYTES.min(BLOCK_BYTES_MAX)).contains(&data.len());
    assert_eq!(whole.is_some(), is_block);
    let Some((len, changes)) = data.split_first_chunk::<4>() else { return is_block };

    let len = u32::from_le_bytes(*len) as usize % CACHED_BYTES_MAX + 1;
    let block: Vec<u8> = (0..len).map(|at| (at / 7) as u8 ^ (at >> 13) as u8).collect();
    let hash = cache::write(&path, &block).expect("a file can be written");
    change(&path, changes);
    let middle = len / 2..len.div_ceil(2).max(len / 2 + 1);
    for part in [None, Some(0..1), Some(middle), Some(len - 1..len), Some(0..len), Some(len..len + 1), Some(1..1)] {
        let found = cache::read(&path, &hash, part.clone()).expect("the file can be read");
        if let Some(found) = found {
            assert_eq!(found[..], block[part.unwrap_or(0..len)], "what is read is the block's");
        }
    }
    is_block
}

fn change(path: &Path, changes: &[u8]) {
    let mut file = fs::read(path).expect("the file can be read");
    for change in changes.chunks_exact(6).take(16) {
        let at = u32::from_le_bytes([change[0], change[1], change[2], change[3]]) as usize;
        match change[4] % 3 {
            0 if !file.is_empty() => {
                let at = at % file.len();
                file[at] ^= change[5];
            }
            1 => file.truncate(at % (file.len() + 1)),
            _ => file.resize((file.len() + at % 8192).min(2 * CACHED_BYTES_MAX), change[5]),
        }
    }
    fs::write(path, file).expect("a file can be written");
}

/// Good inputs.
pub mod samples {
    use crate::Samples;
    use client::fuzzing;

    /// A segment as it is on the disk, and the records of one.
    #[must_use]
    pub fn journal_segment() -> Samples {
        vec![("whole", fuzzing::sealed(&fuzzing::samples(), false))]
    }

    /// As [`journal_segment`].
    #[must_use]
    pub fn journal_picture() -> Samples {
        vec![("whole", fuzzing::sealed(&fuzzing::samples(), true))]
    }

    /// The numbers of a journal and a session.
    #[must_use]
    pub fn journal_id() -> Samples {
        vec![("id", fuzzing::sample_id())]
    }

    /// Lengths of blocks of one section and of several, with changes.
    #[must_use]
    pub fn cached_block() -> Samples {
        let input = |len: u32, changes: &[u8]| [&(len - 1).to_le_bytes()[..], changes].concat();
        vec![
            ("small", input(100, &[])),
            ("large", input(200_000, &[])),
            ("flipped", input(200_000, &[0, 0, 1, 0, 0, 4])),
            ("cut", input(65_537, &[0, 0, 1, 0, 1, 0])),
            ("longer", input(65_536, &[32, 0, 0, 0, 2, 0])),
        ]
    }
}
