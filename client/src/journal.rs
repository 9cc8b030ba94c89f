//! The journal on the local disk: operations under delegations that metad has not acknowledged yet, for the case that
//! this process is killed before it can send them (I8).
//!
//! Nothing waits for it. Operations usually reach metad in a tenth of a second, and only those that are still
//! unacknowledged after 0.4 s, because the servers are slow or away, are written here, and synced. The next mount of
//! the same mount point sends them then, before anything else is done. With each batch, metad remembers how much of the
//! journal it has acknowledged, so that nothing is applied twice, and judges the batch like any late one.
//!
//! ```text
//! DIR/journal/id        number of the journal, and of the session that works with it, as text with a checksum
//! DIR/journal/NUMBER    segments, in the order in which they were begun
//! DIR/journal/shared    content of files that others use too, as it was when commits last stalled
//! ```
//! - this file manages the files, on the disk that `disk` defines;
//! - `record` is what is in the segments;
//! - `writer` writes them while the client lives, `picture` writes content that cannot wait in the queue;
//!
//! `replay`, a layer above, sends what an earlier client has left. What a full cluster could not take then is set aside
//! (`local_dir/set_aside`).

pub mod disk;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub(crate) mod picture;
pub(crate) mod record;
pub(crate) mod writer;

pub(crate) use picture::Picture;

use crate::Error;
use crate::ordered::{Ordered, Rank};
use bytes::Bytes;
use disk::{Disk, DiskFile, remove_if_there};
use record::{Group, Record, SegmentId};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use wire::chance;
use wire::ids::{Ino, JournalId, SessionId};

/// Digits of a segment's name.
const NAME_DIGITS: usize = 20;
/// When a segment has reached this size, another one is begun. A segment is removed when all of it is acknowledged.
const SEGMENT_BYTES: u64 = 32 << 20;

/// The file that says whose journal it is.
const ID: &str = "id";
/// Digits of the checksum in that file.
const SUM_DIGITS: usize = 32;

/// A journal.
pub(crate) struct Journal {
    id: JournalId,
    /// The last session that worked with it.
    session: Ordered<Option<SessionId>>,
    disk: Arc<dyn Disk>,
    /// The oldest first.
    segments: Ordered<VecDeque<Segment>>,
    /// The last segment, if more may be appended to it. Held while something is written or removed: not for a runtime
    /// thread.
    current: Ordered<Option<Box<dyn DiskFile>>>,
    /// metad was sent a note about content that is in the journal and was committed apart from it.
    content_noted: AtomicBool,
    /// Held while the unwritten entries are determined and written.
    writing: tokio::sync::Mutex<()>,
    /// Held by the thread that changes the files.
    changing: Arc<tokio::sync::Mutex<()>>,
}

struct Segment {
    number: u64,
    bytes: u64,
    /// Number of its last entry.
    last: u64,
    /// An earlier client has left it, and all that it says is which new numbers inodes got.
    only_renumbers: bool,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Local { path, source }
}

/// Methods that do not block.
impl Journal {
    /// Returns the journal's number.
    pub(crate) fn id(&self) -> JournalId {
        self.id
    }

    /// Returns the folder.
    pub(crate) fn dir(&self) -> &Path {
        self.disk.path()
    }

    /// Returns the last session that worked with the journal, if it is known.
    pub(crate) fn session(&self) -> Option<SessionId> {
        *self.session.lock()
    }

    /// Notes that metad is about to be sent a note about content that was committed apart from the journal. metad has
    /// to forget it when the journal ends.
    pub(crate) fn note_content(&self) {
        self.content_noted.store(true, Ordering::Relaxed);
    }

    /// Returns the number of the last entry in the journal; 0 when there is none.
    pub(crate) fn last(&self) -> u64 {
        self.segments.lock().iter().map(|segment| segment.last).max().unwrap_or(0)
    }

    /// Waits until nothing is being written or removed.
    pub(crate) async fn wait_idle(&self) {
        drop(self.changing.lock().await);
    }

    /// Returns whether a segment is acknowledged and can go.
    fn has_acknowledged(&self, acknowledged: u64) -> bool {
        self.segments.lock().front().is_some_and(|oldest| oldest.last <= acknowledged)
    }
}

/// Methods that block: not for a runtime thread.
impl Journal {
    /// Opens the journal on this disk, which an earlier client may have left.
    ///
    /// # Errors
    /// [`Error::Local`], or [`Error::JournalDamaged`].
    pub(crate) fn open(disk: Arc<dyn Disk>) -> Result<Self, Error> {
        let known = read_id(&*disk)?;
        let journal = Self {
            id: known.map_or_else(|| JournalId(chance::number()), |(id, _)| id),
            session: Ordered::new(Rank::Leaf, known.map(|(_, session)| session)),
            disk,
            segments: Ordered::new(Rank::Leaf, VecDeque::new()),
            current: Ordered::new(Rank::JournalFile, None),
            content_noted: AtomicBool::new(false),
            writing: tokio::sync::Mutex::default(),
            changing: Arc::default(),
        };
        let numbers = segment_numbers(&*journal.disk)?;
        if known.is_none() && (!numbers.is_empty() || journal.has_shared()?) {
            // Without its number, nothing in it can be verified, and metad cannot say what of it is acknowledged.
            return Err(Error::JournalDamaged { path: journal.path_of(ID), at: 0 });
        }
        for number in numbers {
            let (records, bytes) = journal.read(number)?;
            let last = records.iter().map(|(record, _)| record.number()).max().unwrap_or(0);
            let only_renumbers = records.iter().all(|(record, _)| matches!(record, Record::Renumbered { .. }));
            journal.segments.lock().push_back(Segment { number, bytes, last, only_renumbers });
        }
        Ok(journal)
    }

    fn path_of(&self, name: &str) -> PathBuf {
        self.disk.path().join(name)
    }

    /// Returns what a segment of this number is called in its groups.
    pub(crate) fn segment_id(&self, number: u64) -> SegmentId {
        SegmentId { journal: self.id, number }
    }

    /// Returns the records of a segment, and its length in bytes.
    fn read(&self, segment: u64) -> Result<(Vec<(Record, Bytes)>, u64), Error> {
        let path = self.path_of(&segment_name(segment));
        let bytes = Bytes::from(self.disk.read(&segment_name(segment)).map_err(failed(&path))?);
        let parsed = record::parse(&bytes, self.segment_id(segment))
            .map_err(|at| Error::JournalDamaged { path: path.clone(), at })?;
        if parsed.torn > 0 {
            tracing::warn!(
                path = %path.display(), bytes = parsed.torn,
                "the end of this part of the journal was being written when its mount ended"
            );
        }
        Ok((parsed.records, bytes.len() as u64))
    }

    /// Returns the records of entries behind `acknowledged`, in order, each once, and behind them one with the last new
    /// numbers of inodes. They take twice the memory of the content that they have at most, besides one segment at a
    /// time.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub(crate) fn unacknowledged(&self, acknowledged: u64) -> Result<Vec<(Record, Bytes)>, Error> {
        let numbers: Vec<u64> = self.segments.lock().iter().map(|segment| segment.number).collect();
        let (mut unacknowledged, mut seen) = (Vec::new(), (acknowledged, u64::MAX));
        // Each client that could not send the journal has left new numbers for all inodes in it: only the last ones
        // count.
        let mut renumbered: Option<(u64, BTreeMap<Ino, Ino>)> = None;
        for number in numbers {
            let (records, bytes) = self.read(number)?;
            let from = unacknowledged.len();
            for (record, content) in records {
                match record.place() {
                    // It was written twice, because it was not known whether the first attempt had succeeded.
                    Some(place) if place <= seen => continue,
                    Some(place) => seen = place,
                    None if record.number() <= acknowledged => continue,
                    None => {}
                }
                if let Record::Renumbered { number, inos } = record {
                    let (last, numbers) = renumbered.get_or_insert_default();
                    *last = number.max(*last);
                    numbers.extend(inos);
                    continue;
                }
                unacknowledged.push((record, content));
            }
            release_rest(&mut unacknowledged[from..], bytes);
        }
        if let Some((number, inos)) = renumbered {
            let inos = inos.into_iter().collect();
            unacknowledged.push((Record::Renumbered { number, inos }, Bytes::new()));
        }
        Ok(unacknowledged)
    }

    /// Removes the segments of earlier clients that say nothing but new numbers of inodes. The caller has appended all
    /// of the last ones: the journal does not grow with each mount that fails.
    ///
    /// # Errors
    /// Fails when the disk does.
    pub(crate) fn drop_earlier_numbers(&self) -> io::Result<()> {
        let _current = self.current.lock();
        let segments = self.segments.lock();
        let superseded: Vec<u64> =
            segments.iter().filter(|segment| segment.only_renumbers).map(|segment| segment.number).collect();
        drop(segments);
        for number in &superseded {
            remove_if_there(&*self.disk, &segment_name(*number))?;
            self.segments.lock().retain(|segment| segment.number != *number);
        }
        if superseded.is_empty() { Ok(()) } else { self.disk.sync() }
    }

    /// Notes which session works with the journal. The next client ends that session first, so that none of its
    /// requests is still under way.
    ///
    /// # Errors
    /// Fails when the disk does.
    fn write_session(&self, session: SessionId) -> io::Result<()> {
        self.replace(ID, id_text(self.id, session).as_bytes())?;
        *self.session.lock() = Some(session);
        Ok(())
    }

    /// Replaces a file, atomically. Like `wire::durable::replace`, but on the journal's disk, which tests let fail.
    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let partial = format!("{name}.partial");
        let file = self.disk.create(&partial)?;
        if let Err(error) = file.write_at(content, 0).and_then(|()| file.sync()) {
            self.disk.remove(&partial)?;
            return Err(error);
        }
        self.disk.rename(&partial, name)?;
        self.disk.sync()
    }

    /// Appends records. They are on stable storage on return. `last` is the number of the last entry among them.
    ///
    /// # Errors
    /// Fails when the disk does; nothing is appended then.
    pub(crate) fn append(&self, records: &[(Record, Bytes)], last: u64) -> io::Result<()> {
        let mut current = self.current.lock();
        let mut group = Group::default();
        records.iter().for_each(|(record, content)| group.add(record, content));
        // I8: on return the records are on the disk, and so is the name of their file.
        let (newest, len) = self.segments.lock().back().map_or((0, 0), |newest| (newest.number, newest.bytes));
        if let Some(file) = current.as_mut().filter(|_| len < SEGMENT_BYTES) {
            let bytes = group.finish(self.segment_id(newest), len);
            if let Err(error) = file.write_at(&bytes, len).and_then(|()| file.sync()) {
                // The next group must not stand behind a torn one.
                if file.set_len(len).is_err() {
                    *current = None;
                }
                return Err(error);
            }
            if let Some(newest) = self.segments.lock().back_mut() {
                (newest.bytes, newest.last) = (len + bytes.len() as u64, newest.last.max(last));
            }
            return Ok(());
        }
        let number = newest + 1;
        let name = segment_name(number);
        let bytes = group.finish(self.segment_id(number), 0);
        // A file of that name is one that could not be removed after an error.
        let file = self.disk.create(&name)?;
        let begun = file.write_at(&bytes, 0).and_then(|()| file.sync()).and_then(|()| self.disk.sync());
        if let Err(error) = begun {
            self.disk.remove(&name)?;
            return Err(error);
        }
        self.segments.lock().push_back(Segment { number, bytes: bytes.len() as u64, last, only_renumbers: false });
        *current = Some(file);
        Ok(())
    }

    /// Removes the segments that are acknowledged.
    ///
    /// # Errors
    /// Fails when the disk does.
    pub(crate) fn drop_acknowledged(&self, acknowledged: u64) -> io::Result<()> {
        let mut current = self.current.lock();
        let mut dropped = false;
        let oldest = || {
            let segments = self.segments.lock();
            // I8: a segment is removed when metad has acknowledged all that is in it, never before.
            segments.front().filter(|oldest| oldest.last <= acknowledged).map(|oldest| oldest.number)
        };
        while let Some(number) = oldest() {
            remove_if_there(&*self.disk, &segment_name(number))?;
            dropped = true;
            let mut segments = self.segments.lock();
            segments.pop_front();
            if segments.is_empty() {
                *current = None;
            }
        }
        if dropped { self.disk.sync() } else { Ok(()) }
    }
}

/// Copies the content of these records of a segment that has so many bytes if they are less than half of it: the whole
/// segment would stay in memory until the last of them is sent.
fn release_rest(records: &mut [(Record, Bytes)], segment_bytes: u64) {
    let kept: u64 = records.iter().map(|(_, content)| content.len() as u64).sum();
    if kept < segment_bytes / 2 {
        records.iter_mut().for_each(|(_, content)| *content = Bytes::copy_from_slice(content));
    }
}

/// Returns the content of the file [`ID`]. With a wrong number of the journal, its segments would seem to be torn, and
/// metad would be asked about another journal.
fn id_text(id: JournalId, session: SessionId) -> String {
    let text = format!("journal {id}\nsession {session}\n");
    let sum = blake3::hash(text.as_bytes()).to_hex();
    format!("{text}sum {}\n", &sum[..SUM_DIGITS])
}

/// Reads the numbers of the journal and its last session.
fn read_id(disk: &dyn Disk) -> Result<Option<(JournalId, SessionId)>, Error> {
    let path = disk.path().join(ID);
    let bytes = match disk.read(ID) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&path)(error)),
    };
    let text = String::from_utf8_lossy(&bytes);
    let number = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.parse().ok());
    let numbers = number("journal ").zip(number("session "));
    let numbers = numbers.map(|(id, session)| (JournalId(id), SessionId(session)));
    // The file is as it was written, to the last byte, or damaged.
    match numbers.filter(|(id, session)| id_text(*id, *session).as_bytes() == bytes) {
        Some(numbers) => Ok(Some(numbers)),
        None => Err(Error::JournalDamaged { path, at: 0 }),
    }
}

fn segment_name(number: u64) -> String {
    format!("{number:0NAME_DIGITS$}")
}

/// Returns the numbers of the segments in the order in which they were begun.
fn segment_numbers(disk: &dyn Disk) -> Result<Vec<u64>, Error> {
    let names = disk.list().map_err(failed(disk.path()))?;
    let is_segment = |name: &&String| name.len() == NAME_DIGITS && name.bytes().all(|byte| byte.is_ascii_digit());
    let mut numbers: Vec<u64> = names.iter().filter(is_segment).filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    match numbers.last() {
        // Nobody has begun so many, and none could follow.
        Some(&u64::MAX) => Err(Error::JournalDamaged { path: disk.path().join(segment_name(u64::MAX)), at: 0 }),
        _ => Ok(numbers),
    }
}

#[cfg(test)]
mod tests {
    use super::disk::LocalDisk;
    use super::*;
    use crate::testing::Place;
    use record::Change;
    use std::fs;
    use wire::attr::Timestamp;
    use wire::ids::Ino;
    use wire::op::Op;

    fn disk(place: &Place) -> Arc<dyn Disk> {
        Arc::new(LocalDisk::open(place.local(), disk::FOLDER).unwrap())
    }

    fn open(place: &Place) -> Journal {
        Journal::open(disk(place)).unwrap()
    }

    /// Creates a journal with three entries.
    fn begun(place: &Place) -> Journal {
        let journal = open(place);
        journal.write_session(SessionId(5)).unwrap();
        journal.append(&changes(1..4), 3).unwrap();
        journal
    }

    fn changes(numbers: impl IntoIterator<Item = u64>) -> Vec<(Record, Bytes)> {
        let change = |number| {
            let op = Op::Rmdir { parent: Ino(1), name: b"name".to_vec(), seen: None };
            (Record::Change(Change { number, at: Timestamp::default(), expect: Vec::new(), op }), Bytes::new())
        };
        numbers.into_iter().map(change).collect()
    }

    fn numbers(journal: &Journal, acknowledged: u64) -> Vec<u64> {
        journal.unacknowledged(acknowledged).unwrap().iter().map(|(record, _)| record.number()).collect()
    }

    #[test]
    fn appended_records_are_found_again_and_acknowledged_ones_are_dropped() {
        let place = Place::new();
        let journal = begun(&place);
        let id = journal.id();
        journal.append(&changes(4..6), 5).unwrap();
        // The writer did not know that it had been written.
        journal.append(&changes(4..8), 7).unwrap();
        assert!(!journal.has_acknowledged(6));
        drop(journal);
        let journal = open(&place);
        assert_eq!((journal.id(), journal.session(), journal.last()), (id, Some(SessionId(5)), 7));
        assert_eq!(numbers(&journal, 2), [3, 4, 5, 6, 7]);
        journal.append(&changes(8..10), 9).unwrap();
        journal.drop_acknowledged(7).unwrap();
        assert_eq!((numbers(&journal, 7), journal.last()), (vec![8, 9], 9));
        journal.drop_acknowledged(9).unwrap();
        assert_eq!((numbers(&journal, 0), journal.last()), (Vec::new(), 0));
        drop(journal);
        assert_eq!(open(&place).id(), id, "metad remembers one position for each place");
    }

    #[test]
    fn the_acknowledged_part_of_a_segment_is_not_kept_in_memory() {
        let place = Place::new();
        let journal = begun(&place);
        let piece = |number: u64, len: u32| {
            let piece = record::tests::piece((0, 0, len));
            (Record::Piece(record::Piece { number, ..piece }), Bytes::from(vec![number as u8; len as usize]))
        };
        journal.append(&[piece(4, 50_000), piece(5, 1000), piece(6, 1000)], 6).unwrap();
        let shares = |acknowledged| {
            let left = journal.unacknowledged(acknowledged).unwrap();
            assert!(
                left.iter().all(|(record, content)| content.iter().all(|byte| u64::from(*byte) == record.number()))
            );
            let shares = |content: &Bytes| !content.is_empty() && !content.is_unique();
            left.iter().filter(|(_, content)| shares(content)).count()
        };
        assert_eq!(shares(0), 3, "nothing is copied that is needed anyway");
        assert_eq!(shares(4), 0);
    }

    #[test]
    fn mounts_that_fail_one_after_the_other_leave_the_last_numbers_of_inodes_alone() {
        let place = Place::new();
        let dir = begun(&place).dir().to_owned();
        let to = |number: u64| vec![(Ino(10), Ino(number)), (Ino(11), Ino(number + 1))];
        let files = || fs::read_dir(&dir).unwrap().filter(|entry| entry.as_ref().unwrap().file_name() != ID).count();
        for mount in 1..=20 {
            let journal = open(&place);
            let inos = to(100 * mount);
            journal.append(&[(Record::Renumbered { number: 3, inos }, Bytes::new())], 3).unwrap();
            if mount > 2 {
                journal.drop_earlier_numbers().unwrap();
            }
            assert_eq!(files(), if mount == 2 { 3 } else { 2 }, "the changes, and numbers");
            let left = journal.unacknowledged(0).unwrap();
            assert_eq!(left.len(), 4);
            assert_eq!(left[3].0, Record::Renumbered { number: 3, inos: to(100 * mount) });
            assert_eq!(journal.last(), 3);
        }
        let journal = open(&place);
        journal.drop_acknowledged(3).unwrap();
        assert_eq!(files(), 0);
    }

    #[test]
    fn an_append_that_was_torn_is_not_there_and_the_next_ones_are() {
        let place = Place::new();
        let journal = begun(&place);
        let path = journal.path_of(&segment_name(1));
        drop(journal);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole[..], &whole[..whole.len() - 1]].concat()).unwrap();
        let journal = open(&place);
        journal.append(&changes(4..5), 4).unwrap();
        drop(journal);
        assert_eq!(numbers(&open(&place), 0), [1, 2, 3, 4]);
    }

    #[test]
    fn an_append_after_one_that_failed_takes_its_place() {
        let place = Place::new();
        let journal = begun(&place);
        {
            // This is what an append leaves for which the disk had no room.
            let current = journal.current.lock();
            let file = current.as_ref().unwrap();
            let len = fs::metadata(journal.path_of(&segment_name(1))).unwrap().len();
            file.write_at(b"half of a group", len).unwrap();
            file.set_len(len).unwrap();
        }
        journal.append(&changes(4..6), 5).unwrap();
        drop(journal);
        assert_eq!(numbers(&open(&place), 0), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_changed_byte_of_the_journals_number_or_session_is_one_clear_error_and_nothing_is_lost() {
        let place = Place::new();
        let path = begun(&place).path_of(ID);
        let good = fs::read(&path).unwrap();
        let mut damages: Vec<Vec<u8>> = (0..good.len()).map(|at| good[..at].to_vec()).collect();
        damages.extend((0..good.len()).map(|at| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            bytes
        }));
        damages.push([&good[..], b"journal 1\n"].concat());
        for damaged in damages {
            fs::write(&path, &damaged).unwrap();
            let error = Journal::open(disk(&place)).map(|_| ()).unwrap_err();
            assert!(matches!(error, Error::JournalDamaged { .. }), "{error}");
            assert!(error.to_string().contains("journal/id: this journal is damaged"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), damaged);
        }
        fs::write(&path, &good).unwrap();
        assert_eq!(numbers(&open(&place), 0), [1, 2, 3]);
    }

    #[test]
    fn numbers_behind_which_none_can_follow_are_damage() {
        let place = Place::new();
        let journal = begun(&place);
        let last = journal.path_of(&segment_name(u64::MAX));
        let piece = Record::Piece(record::tests::piece((0, 0, 3)));
        journal.write_shared(&[(piece, Bytes::from_static(b"abc"))]).unwrap();
        assert_eq!(journal.read_shared(3).unwrap().1, 4);
        assert!(matches!(journal.read_shared(u64::MAX), Err(Error::JournalDamaged { .. })));
        drop(journal);
        fs::write(&last, "").unwrap();
        assert!(matches!(Journal::open(disk(&place)), Err(Error::JournalDamaged { path, .. }) if path == last));
    }

    #[test]
    fn a_picture_that_was_emptied_is_damage() {
        let place = Place::new();
        let journal = begun(&place);
        fs::write(journal.path_of("shared"), "").unwrap();
        let error = journal.read_shared(3).unwrap_err();
        assert!(matches!(error, Error::JournalDamaged { .. }), "{error}");
    }

    #[test]
    fn segments_without_their_number_are_refused() {
        let place = Place::new();
        let journal = begun(&place);
        fs::remove_file(journal.dir().join("id")).unwrap();
        drop(journal);
        assert!(matches!(Journal::open(disk(&place)), Err(Error::JournalDamaged { .. })));
    }
}
