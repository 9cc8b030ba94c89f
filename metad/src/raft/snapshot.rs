//! Snapshot files: the whole state at one log position, checksummed and synced.
//!
//! | part | content |
//! |---|---|
//! | magic | `SURFSNP1` |
//! | meta | length (u32), encoded [`SnapshotMeta`] |
//! | pairs | per group: count (u32, not 0), then per pair key length (u32), key, value length (u32), value |
//! | end | count 0 (u32) |
//! | checksum | BLAKE3 of everything before, 32 bytes |
//!
//! Numbers are little endian. A file without a fitting checksum is no snapshot, however far it reads.

use super::types::SnapshotMeta;
use crate::fs::keys::Key;
use crate::fs::view::Changes;
use crate::store::Store;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use wire::codec;

const MAGIC: &[u8; 8] = b"SURFSNP1";
/// Pairs per group: how long a scan holds up writers at a time.
const GROUP_PAIRS: usize = 512;
/// Larger keys, values or metas are damage.
const PART_BYTES_MAX: u32 = 16 << 20;

/// Path of the node's snapshot.
pub(super) fn path_in(dir: &Path) -> PathBuf {
    dir.join("snapshot")
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

/// Writes the state as it was when `Store::begin_snapshot` was called. Blocks; writers go on meanwhile.
pub(super) fn write(path: &Path, meta: &SnapshotMeta, store: &Store) -> io::Result<()> {
    let partial = path.with_extension("building");
    let file = File::create(&partial)?;
    let mut out = Hashing { inner: BufWriter::with_capacity(1 << 20, file), hash: blake3::Hasher::new() };
    out.write_all(MAGIC)?;
    write_part(&mut out, &codec::encode(meta))?;
    loop {
        let pairs = store
            .next_of_snapshot(GROUP_PAIRS)
            .ok_or_else(|| io::Error::other("the scan was given up for a newer one"))?;
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
    publish(&partial, path)
}

/// Gives a complete, synced file its name.
pub(super) fn publish(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    crate::files::sync_dir(to)
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
    let len = read_u32(from)?;
    if len > PART_BYTES_MAX {
        return Err(damaged("a part is too long"));
    }
    let mut part = vec![0; len as usize];
    from.read_exact(&mut part)?;
    Ok(part)
}

/// Whether the file's content is what was written. Reads all of it.
pub(super) fn verify(path: &Path) -> io::Result<()> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    let len = file.get_ref().metadata()?.len();
    let body = len.checked_sub(32).ok_or_else(|| damaged("it is too short"))?;
    let mut hash = blake3::Hasher::new();
    io::copy(&mut (&mut file).take(body), &mut hash)?;
    let mut sum = [0; 32];
    file.read_exact(&mut sum)?;
    if *hash.finalize().as_bytes() == sum { Ok(()) } else { Err(damaged("its checksum does not fit")) }
}

fn open(path: &Path) -> io::Result<(BufReader<File>, SnapshotMeta)> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut magic = [0; 8];
    file.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(damaged("it begins wrong"));
    }
    let meta = codec::decode(&read_part(&mut file)?).map_err(io::Error::other)?;
    Ok((file, meta))
}

/// What a snapshot is of; `None` when there is none.
pub(super) fn meta(path: &Path) -> io::Result<Option<SnapshotMeta>> {
    match open(path) {
        Ok((_, meta)) => Ok(Some(meta)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts the state of a verified snapshot in place of the store's, with `position`.
pub(super) fn load(path: &Path, store: &Store, position: &[u8]) -> io::Result<()> {
    let (mut file, _) = open(path)?;
    store.clear();
    loop {
        let count = read_u32(&mut file)?;
        if count == 0 {
            break;
        }
        let mut pairs: Vec<(Key, Vec<u8>)> = Vec::with_capacity(count.min(4096) as usize);
        for _ in 0..count {
            pairs.push((read_part(&mut file)?, read_part(&mut file)?));
        }
        store.load(pairs);
    }
    store.apply(Changes::new(), position);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::view::Kv;

    #[test]
    fn a_snapshot_restores_the_state_and_one_flipped_bit_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("a"), 8 << 20).unwrap();
        store.load((0..2000_u32).map(|n| (n.to_be_bytes().to_vec(), vec![7; 10])).filter(|(k, _)| k[3] != 0).collect());
        store.apply(Changes::new(), b"position");
        let path = path_in(dir.path());
        store.begin_snapshot();
        write(&path, &SnapshotMeta::default(), &store).unwrap();
        verify(&path).unwrap();

        let other = Store::open(&dir.path().join("b"), 8 << 20).unwrap();
        load(&path, &other, b"there").unwrap();
        assert_eq!(other.get(&5_u32.to_be_bytes()), Some(vec![7; 10]));
        assert_eq!(other.position().unwrap(), b"there");

        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(verify(&path).is_err());
    }
}
