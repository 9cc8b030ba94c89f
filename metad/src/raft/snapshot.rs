//! Snapshot files: the whole state at one log position, checksummed and synced.
//!
//! | part | content |
//! |---|---|
//! | magic | `SURFSNP2` |
//! | head | length (u32), encoded: the version of the rules, [`SnapshotMeta`] |
//! | pairs | per group: count (u32, not 0), then per pair key length (u32), key, value length (u32), value |
//! | end | count 0 (u32) |
//! | checksum | BLAKE3 of everything before, 32 bytes |
//!
//! Numbers are little endian. A file without a matching checksum is no snapshot, even if it can be read.

use super::types::{SnapshotFile, SnapshotMeta};
use crate::fs::keys::Key;
use crate::fs::rules;
use crate::fs::view::Changes;
use crate::store::Store;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wire::ids::RulesVersion;
use wire::{codec, durable};

const MAGIC: &[u8; 8] = b"SURFSNP2";
/// The beginning of the magic in every version.
const MAGIC_OF_ANY_VERSION: &[u8] = b"SURFSNP";
/// Pairs per group: a scan holds up writers for this many pairs at a time.
const GROUP_PAIRS: usize = 512;
/// Larger keys, values or heads are damage.
const PART_BYTES_MAX: u32 = 16 << 20;

/// Returns the path of the node's snapshot.
pub(super) fn path_in(dir: &Path) -> PathBuf {
    dir.join("snapshot")
}

/// Returns the path of a snapshot that is being built.
pub(super) fn building_in(dir: &Path) -> PathBuf {
    path_in(dir).with_extension("building")
}

struct Hashing<W> {
    inner: W,
    hash: blake3::Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn write_part(out: &mut impl Write, part: &[u8]) -> io::Result<()> {
    let len = u32::try_from(part.len()).map_err(io::Error::other)?;
    out.write_all(&len.to_le_bytes())?;
    out.write_all(part)
}

/// Writes the state as it was when `Store::begin_snapshot` was called, to be published. Blocks; writers go on
/// meanwhile. Returns false when the scan was given up, because another state replaces this one.
pub(super) fn write(path: &Path, meta: &SnapshotMeta, store: &Store) -> io::Result<bool> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut out = Hashing { inner: BufWriter::with_capacity(1 << 20, file), hash: blake3::Hasher::new() };
    out.write_all(MAGIC)?;
    // Rules that were raised since the scan began are no harm: who does not know them needs no such snapshot.
    write_part(&mut out, &codec::encode(&(rules::of(store), meta)))?;
    loop {
        let Some(pairs) = store.next_of_snapshot(GROUP_PAIRS) else { return Ok(false) };
        out.write_all(&(pairs.len() as u32).to_le_bytes())?;
        if pairs.is_empty() {
            break;
        }
        for (key, value) in &pairs {
            write_part(&mut out, key)?;
            write_part(&mut out, value)?;
        }
    }
    let sum = out.hash.finalize();
    out.inner.write_all(sum.as_bytes())?;
    out.inner.flush()?;
    out.inner.get_ref().sync_all()?;
    Ok(true)
}

/// Gives a complete, synced file its name.
pub(super) fn publish(from: &Path, to: &Path) -> io::Result<()> {
    durable::rename(from, to)
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("snapshot is damaged: {what}"))
}

fn read_u32(from: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn read_part(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut part = Vec::new();
    read_part_into(from, &mut part)?;
    Ok(part)
}

/// Reads a key or a value into `part`.
fn read_part_into(from: &mut impl Read, part: &mut Vec<u8>) -> io::Result<()> {
    let len = read_u32(from)?;
    if len > PART_BYTES_MAX {
        return Err(damaged("a part is too long"));
    }
    codec::read_part(from, len, part)
}

/// Reads a file from its beginning, independently of other readers.
struct Reading {
    file: Arc<File>,
    offset: u64,
}

impl Read for Reading {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(bytes, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

fn reading(snapshot: &SnapshotFile) -> BufReader<Reading> {
    reading_from(snapshot, 0, 1 << 20)
}

/// Reads from an offset on, `capacity` bytes at a time.
fn reading_from(snapshot: &SnapshotFile, offset: u64, capacity: usize) -> BufReader<Reading> {
    BufReader::with_capacity(capacity, Reading { file: snapshot.file.clone(), offset })
}

/// Checks that the file's content is what was written. Reads all of it.
pub(super) fn verify(snapshot: &SnapshotFile) -> io::Result<()> {
    let mut file = reading(snapshot);
    let len = snapshot.file.metadata()?.len();
    let body = len.checked_sub(32).ok_or_else(|| damaged("it is too short"))?;
    let mut hash = blake3::Hasher::new();
    io::copy(&mut (&mut file).take(body), &mut hash)?;
    let mut sum = [0; 32];
    file.read_exact(&mut sum)?;
    if *hash.finalize().as_bytes() == sum { Ok(()) } else { Err(damaged("its checksum does not fit")) }
}

/// Reads what stands before the pairs. A snapshot of newer rules is refused here, before it replaces anything.
fn read_head(file: &mut impl Read) -> io::Result<SnapshotMeta> {
    let mut magic = [0; 8];
    file.read_exact(&mut magic)?;
    if magic != *MAGIC {
        let is_other = magic.starts_with(MAGIC_OF_ANY_VERSION);
        let other = || other_release("the snapshot is of another version of Surf: use the release that wrote it");
        return Err(if is_other { other() } else { damaged("it begins wrong") });
    }
    let head = read_part(file)?;
    // The rules come first: they are read whatever newer ones put behind them.
    let rules: RulesVersion = codec::decode_start(&head).map_err(undecodable)?;
    rules::check(rules).map_err(other_release)?;
    codec::decode::<(RulesVersion, SnapshotMeta)>(&head).map(|(_, meta)| meta).map_err(undecodable)
}

fn undecodable(error: wire::Error) -> io::Error {
    damaged(&error.to_string())
}

/// A file that is good, and that another release can read.
fn other_release(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, error)
}

/// Opens a snapshot, and reads from the same file what it is of; `None` when there is none.
pub(super) fn open(path: &Path) -> io::Result<Option<(SnapshotMeta, SnapshotFile)>> {
    let file = match File::open(path) {
        Ok(file) => Arc::new(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let snapshot = SnapshotFile { path: path.to_owned(), file };
    Ok(Some((meta(&snapshot)?, snapshot)))
}

/// Opens a snapshot, and checks all of it. Reads all of it.
pub(super) fn open_verified(path: &Path) -> io::Result<Option<(SnapshotMeta, SnapshotFile)>> {
    let opened = open(path)?;
    opened.map(|(meta, file)| verify(&file).map(|()| (meta, file))).transpose()
}

/// Returns which position and members a snapshot is of.
pub(super) fn meta(snapshot: &SnapshotFile) -> io::Result<SnapshotMeta> {
    read_head(&mut reading(snapshot))
}

/// Reads the pairs of a verified snapshot, in the order of their keys, from some place on.
pub(super) struct Pairs {
    file: BufReader<Reading>,
    /// Where the next byte is in the file.
    at: u64,
    /// Pairs of this group that are yet to come.
    left: u32,
}

impl Pairs {
    /// Reads all pairs.
    pub(super) fn of(snapshot: &SnapshotFile) -> io::Result<Self> {
        let head = MAGIC.len() as u64;
        let len = u64::from(read_u32(&mut reading_from(snapshot, head, 4 << 10))?);
        Ok(Self::from(snapshot, head + 4 + len, 1 << 20))
    }

    /// Reads the pairs from this place on, at which a group begins, `capacity` bytes at a time.
    pub(super) fn from(snapshot: &SnapshotFile, at: u64, capacity: usize) -> Self {
        Self { file: reading_from(snapshot, at, capacity), at, left: 0 }
    }

    /// Reads the next pair. Returns false at the end. Calls `begins` with the place of each group that it reaches.
    pub(super) fn next(&mut self, key: &mut Key, value: &mut Vec<u8>, begins: &mut dyn FnMut(u64)) -> io::Result<bool> {
        if self.left == 0 {
            begins(self.at);
            self.left = read_u32(&mut self.file)?;
            self.at += 4;
            if self.left == 0 {
                return Ok(false);
            }
        }
        self.left -= 1;
        read_part_into(&mut self.file, key)?;
        read_part_into(&mut self.file, value)?;
        self.at += 8 + (key.len() + value.len()) as u64;
        Ok(true)
    }
}

/// Replaces the store's state with that of a verified snapshot, and `position`.
pub(super) fn load(snapshot: &SnapshotFile, store: &Store, position: &[u8]) -> io::Result<()> {
    let mut read = Pairs::of(snapshot)?;
    store.clear();
    let (mut pairs, mut key, mut value) = (Vec::new(), Key::new(), Vec::new());
    while read.next(&mut key, &mut value, &mut |_| {})? {
        pairs.push((std::mem::take(&mut key), std::mem::take(&mut value)));
        if pairs.len() >= GROUP_PAIRS {
            store.load(std::mem::take(&mut pairs));
        }
    }
    store.load(pairs);
    store.apply(Changes::new(), position);
    Ok(())
}

/// Says that a snapshot of this node cannot be used, and that another one follows.
pub(super) fn log_damage(path: &Path, error: &io::Error) {
    tracing::error!(%error, path = %path.display(), "the snapshot is damaged on this disk: taking another one");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::view::Kv;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_snapshot_of_newer_rules_or_of_another_version_is_refused_with_one_clear_line() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("a"), 8 << 20).unwrap();
        let path = path_in(dir.path());
        for (rules, is_known) in [(rules::KNOWN, true), (rules::KNOWN.next(), false)] {
            let pair = (crate::fs::keys::RULES.to_vec(), Some(codec::encode(&rules)));
            store.apply(Changes::from([pair]), b"position");
            store.begin_snapshot();
            assert!(write(&path, &SnapshotMeta::default(), &store).unwrap());
            let opened = open(&path).map(|_| ());
            assert_eq!(opened.is_ok(), is_known);
            if let Err(error) = opened {
                let said = error.to_string();
                assert!(said.contains("a newer release") && !said.contains('\n'), "{said}");
            }
        }
        let mut bytes = fs::read(&path).unwrap();
        bytes[7] = b'1';
        fs::write(&path, bytes).unwrap();
        let error = open(&path).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("another version of Surf"), "{error}");
    }

    #[test]
    fn a_snapshot_restores_the_state_and_one_flipped_bit_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("a"), 8 << 20).unwrap();
        store.load((0..2000_u32).map(|n| (n.to_be_bytes().to_vec(), vec![7; 10])).filter(|(k, _)| k[3] != 0).collect());
        store.apply(Changes::new(), b"position");
        let path = path_in(dir.path());
        store.begin_snapshot();
        assert!(write(&path, &SnapshotMeta::default(), &store).unwrap());
        let (_, written) = open(&path).unwrap().unwrap();
        verify(&written).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let other = Store::open(&dir.path().join("b"), 8 << 20).unwrap();
        load(&written, &other, b"there").unwrap();
        assert_eq!(other.get(&5_u32.to_be_bytes()), Some(vec![7; 10]));
        assert_eq!(other.position().unwrap(), b"there");

        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(verify(&open(&path).unwrap().unwrap().1).is_err());
    }
}
