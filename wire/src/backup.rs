//! Backup files: the metadata of a cluster at one position of its log, as a stream that is written and read once.
//!
//! | part | content |
//! |---|---|
//! | magic | `SURFBAK2`, the last digit being the version of this form |
//! | head | length (u32), coded [`Head`] |
//! | records | per record: length of the key (u32, not 0), key, length of the value (u32), value; keys ascend |
//! | end | 0 (u32) |
//! | counts | length (u32), coded [`Counts`] |
//! | checksum | BLAKE3 of everything before, 32 bytes; nothing follows |
//!
//! Numbers are little endian. Neither side holds more than one record. Only metad knows what the records mean.

use crate::attr::Timestamp;
use crate::codec;
use crate::ids::{ClusterId, RulesVersion};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use thiserror::Error;

const MAGIC: &[u8; 8] = b"SURFBAK2";
/// The beginning of the magic in every version.
const MAGIC_OF_ANY_VERSION: &[u8] = b"SURFBAK";
/// Longest key, value or head. A longer one counts as damage.
const PART_BYTES_MAX: u32 = 16 << 20;

/// Where a backup comes from: its cluster and its position in the log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Head {
    /// Name of the cluster.
    pub cluster: String,
    /// Id of the cluster.
    pub cluster_id: ClusterId,
    /// Raft term of the position.
    pub term: u64,
    /// Log index of the position: everything up to it is in the backup, nothing behind it.
    pub index: u64,
    /// When it was made, by the clock of the metad that did.
    pub at: Timestamp,
    /// The rules under which its state was made.
    pub rules: RulesVersion,
}

/// How much a backup holds.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Records by table: the first byte of their keys.
    pub tables: BTreeMap<u8, u64>,
    /// Bytes of keys and values.
    pub bytes: u64,
}

impl Counts {
    /// Records of one table.
    #[must_use]
    pub fn of(&self, table: u8) -> u64 {
        self.tables.get(&table).copied().unwrap_or(0)
    }

    /// All records.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.tables.values().sum()
    }

    fn count(&mut self, key: &[u8], value: &[u8]) {
        if let Some(table) = key.first() {
            *self.tables.entry(*table).or_default() += 1;
        }
        self.bytes += (key.len() + value.len()) as u64;
    }
}

/// Reason why a file is not a usable backup.
#[derive(Debug, Error)]
pub enum BackupError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It does not begin as a backup does.
    #[error("is no backup of Surf")]
    Foreign,
    /// It begins as a backup of another version does.
    #[error("is a backup of another version of Surf: use the release that wrote it")]
    OtherVersion,
    /// It ends too early.
    #[error("is cut off or damaged: it ends at byte {0}, before its checksum; use another backup")]
    Cut(u64),
    /// Its content is not what was written.
    #[error("is damaged ({what}, at byte {at}); use another backup")]
    Damaged {
        /// What is wrong.
        what: String,
        /// Where it was noticed.
        at: u64,
    },
}

/// Writes a backup.
pub struct Writer<W> {
    out: W,
    hash: blake3::Hasher,
    counts: Counts,
}

impl<W: Write> Writer<W> {
    /// Begins a backup.
    ///
    /// # Errors
    /// Errors of `out`.
    pub fn begin(out: W, head: &Head) -> io::Result<Self> {
        let mut writer = Self { out, hash: blake3::Hasher::new(), counts: Counts::default() };
        writer.write(MAGIC)?;
        writer.part(&codec::encode(head))?;
        Ok(writer)
    }

    /// Adds a record. Its key must not be empty, and must sort after all keys before it.
    ///
    /// # Errors
    /// Errors of `out`, or that the record is too long.
    pub fn record(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.counts.count(key, value);
        self.part(key)?;
        self.part(value)
    }

    /// Ends the backup. Does not flush `out`.
    ///
    /// # Errors
    /// Errors of `out`.
    pub fn finish(mut self) -> io::Result<W> {
        self.write(&0_u32.to_le_bytes())?;
        let counts = codec::encode(&self.counts);
        self.part(&counts)?;
        let sum = self.hash.finalize();
        self.out.write_all(sum.as_bytes())?;
        Ok(self.out)
    }

    fn part(&mut self, part: &[u8]) -> io::Result<()> {
        let len = u32::try_from(part.len()).ok().filter(|len| *len <= PART_BYTES_MAX);
        let len = len.ok_or_else(|| io::Error::other(format!("{} bytes are too many", part.len())))?;
        self.write(&len.to_le_bytes())?;
        self.write(part)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes)
    }
}

/// A record: key and value.
pub type Record = (Vec<u8>, Vec<u8>);

/// Reads a backup. The backup is whole only if [`Reader::next`] has returned `None`.
pub struct Reader<R> {
    from: R,
    hash: blake3::Hasher,
    at: u64,
    head: Head,
    counts: Counts,
    last_key: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Begins to read.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn open(mut from: R) -> Result<Self, BackupError> {
        let mut magic = [0; MAGIC.len()];
        from.read_exact(&mut magic).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => BackupError::Foreign,
            _ => error.into(),
        })?;
        if magic != *MAGIC {
            let is_other = magic.starts_with(MAGIC_OF_ANY_VERSION);
            return Err(if is_other { BackupError::OtherVersion } else { BackupError::Foreign });
        }
        let mut hash = blake3::Hasher::new();
        hash.update(&magic);
        let head = Head {
            cluster: String::new(),
            cluster_id: ClusterId([0; 16]),
            term: 0,
            index: 0,
            at: Timestamp::default(),
            rules: RulesVersion::default(),
        };
        let (at, counts) = (magic.len() as u64, Counts::default());
        let mut reader = Self { from, hash, at, head, counts, last_key: Vec::new() };
        reader.head = reader.coded()?;
        Ok(reader)
    }

    /// Head of the backup.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Counts of what has been read so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Number of bytes read so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.at
    }

    /// Returns the next record, or `None` after the last one when checksum and counts match.
    ///
    /// # Errors
    /// [`BackupError`].
    #[allow(clippy::should_implement_trait, reason = "it may fail")]
    pub fn next(&mut self) -> Result<Option<Record>, BackupError> {
        let key = self.part()?;
        if key.is_empty() {
            self.end()?;
            return Ok(None);
        }
        if key <= self.last_key {
            return Err(self.damaged("records in the wrong order"));
        }
        let value = self.part()?;
        self.counts.count(&key, &value);
        self.last_key.clone_from(&key);
        Ok(Some((key, value)))
    }

    fn end(&mut self) -> Result<(), BackupError> {
        let counts: Counts = self.coded()?;
        let expected = self.hash.finalize();
        let mut sum = [0; 32];
        self.read(&mut sum)?;
        if *expected.as_bytes() != sum {
            return Err(self.damaged("its checksum does not fit"));
        }
        if counts != self.counts {
            return Err(self.damaged("it does not hold what it says"));
        }
        match self.from.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(self.damaged("something follows its checksum")),
        }
    }

    fn coded<T: DeserializeOwned>(&mut self) -> Result<T, BackupError> {
        let part = self.part()?;
        codec::decode(&part).map_err(|error| self.damaged(&error.to_string()))
    }

    fn part(&mut self) -> Result<Vec<u8>, BackupError> {
        let mut len = [0; 4];
        self.read(&mut len)?;
        let len = u32::from_le_bytes(len);
        if len > PART_BYTES_MAX {
            return Err(self.damaged("a length that cannot be"));
        }
        let mut part = Vec::new();
        codec::read_part(&mut self.from, len, &mut part).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => BackupError::Cut(self.at + part.len() as u64),
            _ => error.into(),
        })?;
        self.hash.update(&part);
        self.at += u64::from(len);
        Ok(part)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), BackupError> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.from.read(&mut bytes[filled..]) {
                Ok(0) => return Err(BackupError::Cut(self.at + filled as u64)),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.hash.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn damaged(&self, what: &str) -> BackupError {
        BackupError::Damaged { what: what.to_owned(), at: self.at }
    }
}

/// Reads a backup to its end, and returns its head, its counts, and its length in bytes.
///
/// # Errors
/// [`BackupError`] when it is not whole.
pub fn verify(from: impl Read) -> Result<(Head, Counts, u64), BackupError> {
    let mut reader = Reader::open(from)?;
    while reader.next()?.is_some() {}
    Ok((reader.head, reader.counts, reader.at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        let at = Timestamp { secs: 1_700_000_000, nanos: 0 };
        Head { cluster: "c".to_owned(), cluster_id: ClusterId([7; 16]), term: 3, index: 42, at, rules: RulesVersion(1) }
    }

    /// A backup, and where each of its records begins.
    fn written() -> (Vec<u8>, Vec<usize>) {
        let mut writer = Writer::begin(Vec::new(), &head()).unwrap();
        let mut borders = Vec::new();
        for number in 0..20_u8 {
            borders.push(writer.out.len());
            let table = if number < 12 { b'D' } else { b'I' };
            writer.record(&[table, number], &vec![number; usize::from(number)]).unwrap();
        }
        borders.push(writer.out.len());
        let bytes = writer.finish().unwrap();
        borders.push(bytes.len() - 32);
        (bytes, borders)
    }

    #[test]
    fn what_was_written_is_read() {
        let (bytes, _) = written();
        let (found, counts, len) = verify(&bytes[..]).unwrap();
        assert_eq!((found, len), (head(), bytes.len() as u64));
        assert_eq!((counts.of(b'D'), counts.of(b'I'), counts.of(b'Z'), counts.records()), (12, 8, 0, 20));
        let mut reader = Reader::open(&bytes[..]).unwrap();
        assert_eq!(reader.next().unwrap().unwrap(), (vec![b'D', 0], Vec::new()));
        assert_eq!(reader.next().unwrap().unwrap(), (vec![b'D', 1], vec![1]));
    }

    #[test]
    fn a_backup_that_is_cut_anywhere_is_refused_in_one_line() {
        let (bytes, borders) = written();
        for at in borders.into_iter().chain(0..bytes.len()) {
            let error = verify(&bytes[..at]).unwrap_err();
            assert!(matches!(error, BackupError::Cut(_) | BackupError::Foreign), "cut at {at}: {error}");
            assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn a_backup_with_a_flipped_bit_is_refused() {
        let (bytes, _) = written();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(&flipped[..]).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_backup_of_another_version_is_refused_as_one() {
        let (mut bytes, _) = written();
        for version in [b'1', b'3'] {
            bytes[7] = version;
            assert!(matches!(verify(&bytes[..]), Err(BackupError::OtherVersion)));
        }
        bytes[0] = b'X';
        assert!(matches!(verify(&bytes[..]), Err(BackupError::Foreign)));
    }

    #[test]
    fn a_backup_with_bytes_behind_it_is_refused() {
        let (mut bytes, _) = written();
        bytes.push(0);
        assert!(matches!(verify(&bytes[..]), Err(BackupError::Damaged { .. })));
    }

    #[test]
    fn records_out_of_order_are_refused_though_the_checksum_fits() {
        let mut writer = Writer::begin(Vec::new(), &head()).unwrap();
        writer.record(b"I2", b"").unwrap();
        writer.record(b"I1", b"").unwrap();
        let bytes = writer.finish().unwrap();
        assert!(matches!(verify(&bytes[..]), Err(BackupError::Damaged { .. })));
    }
}
