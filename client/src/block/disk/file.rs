//! One block as a file: `XX/HASH`, where `XX` are the hash's first two hex digits.
//!
//! | bytes | meaning |
//! |---|---|
//! | length of the block | the block |
//! | 32 per section | if it is longer than 64 KiB: the chaining values of its sections |
//!
//! That is all: the length of a block follows from the length of its file, and its checksum is its name.

use bytes::Bytes;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use wire::ids::BlockHash;
use wire::limits::BLOCK_BYTES_MAX;
use wire::sections::{SECTION_BYTES, Sections, covering};

/// Bytes of a section's chaining value.
const VALUE: usize = Sections::stored_len(BLOCK_BYTES_MAX as u32) / (BLOCK_BYTES_MAX / SECTION_BYTES);

/// The result of reading a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// These bytes, verified.
    Good(Bytes),
    /// There is no such file.
    Absent,
    /// The file does not hold the block.
    Damaged,
}

/// Returns where a block lies below `dir`.
pub(super) fn path(dir: &Path, hash: &BlockHash) -> PathBuf {
    let name = hash.to_string();
    dir.join(&name[..2]).join(name)
}

/// Returns the length of the file of a block of this length.
pub(super) fn len_of(block_len: usize) -> u64 {
    (block_len + Sections::stored_len(block_len as u32)) as u64
}

/// Returns the length of the block in a file of this length, if there is one.
fn block_len(file_len: u64) -> Option<usize> {
    let file_len = usize::try_from(file_len).ok()?;
    // Count as many sections as fit with a value each; the last one may be shorter.
    let count = file_len.div_ceil(SECTION_BYTES + VALUE);
    let len = if file_len <= SECTION_BYTES { file_len } else { file_len.checked_sub(count * VALUE)? };
    (len > 0 && len <= BLOCK_BYTES_MAX && len_of(len) == file_len as u64).then_some(len)
}

/// Writes a block, in place of any file of its name. A reader that comes meanwhile finds it damaged, so nobody must
/// know of it yet.
pub(super) fn write(path: &Path, block: &[u8], sections: &Sections) -> io::Result<()> {
    let mut file = match create(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if let Some(dir) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            }
            create(path)?
        }
        created => created?,
    };
    file.write_all(block)?;
    file.write_all(sections.as_bytes())
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(path)
}

/// Opens a regular file and returns it with its length. Anything else of that name is not a block.
fn open(path: &Path) -> io::Result<Result<(File, u64), Found>> {
    // Opening a pipe of that name must not block.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Err(Found::Absent)),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return Ok(Err(Found::Damaged)),
        Err(error) => return Err(error),
    };
    let found = file.metadata()?;
    Ok(if found.is_file() { Ok((file, found.len())) } else { Err(Found::Damaged) })
}

/// Reads a whole block.
pub(super) fn read(path: &Path, hash: &BlockHash) -> io::Result<Found> {
    let (mut file, file_len) = match open(path)? {
        Ok(opened) => opened,
        Err(other) => return Ok(other),
    };
    let Some(len) = block_len(file_len) else { return Ok(Found::Damaged) };
    let mut block = vec![0; len];
    match file.read_exact(&mut block) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(Found::Damaged),
        outcome => outcome?,
    }
    Ok(if BlockHash::of(&block) == *hash { Found::Good(block.into()) } else { Found::Damaged })
}

/// Reads a part of a block: of the file, only the sections that hold the part, and the list of all sections.
pub(super) fn read_part(path: &Path, hash: &BlockHash, part: Range<usize>) -> io::Result<Found> {
    let (file, file_len) = match open(path)? {
        Ok(opened) => opened,
        Err(other) => return Ok(other),
    };
    let Some(len) = block_len(file_len).filter(|len| part.start < part.end && part.end <= *len) else {
        return Ok(Found::Damaged);
    };
    if len <= SECTION_BYTES {
        return Ok(match read(path, hash)? {
            Found::Good(block) => Found::Good(block.slice(part)),
            other => other,
        });
    }
    let cover = covering(&part, len);
    let (mut values, mut content) = (vec![0; Sections::stored_len(len as u32)], vec![0; cover.len()]);
    let read = file.read_exact_at(&mut values, len as u64);
    match read.and_then(|()| file.read_exact_at(&mut content, cover.start as u64)) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(Found::Damaged),
        outcome => outcome?,
    }
    Ok(match Sections::decode(&values, hash) {
        Some(sections) if sections.fit(cover.start, &content) => {
            Found::Good(Bytes::from(content).slice(part.start - cover.start..part.end - cover.start))
        }
        _ => Found::Damaged,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_block_follows_from_that_of_its_file_and_no_other_file_has_one() {
        let lens: Vec<usize> = (1..70)
            .flat_map(|count| [count * SECTION_BYTES - 1, count * SECTION_BYTES, count * SECTION_BYTES + 1])
            .chain([1, 4096, 65_537, 65_568, 65_569, BLOCK_BYTES_MAX - 1])
            .filter(|len| *len <= BLOCK_BYTES_MAX)
            .collect();
        for len in &lens {
            assert_eq!(block_len(len_of(*len)), Some(*len));
        }
        let longest = len_of(BLOCK_BYTES_MAX);
        for file_len in [0, SECTION_BYTES as u64 + 1, SECTION_BYTES as u64 + 64, longest + 1, longest * 2, u64::MAX] {
            assert_eq!(block_len(file_len), None, "{file_len}");
        }
    }
}
