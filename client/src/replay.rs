//! Sending what an earlier client has left in the journal, before anything else is done.
//!
//! It goes through the same queue as operations under delegations, and is judged in the same way: what others did
//! meanwhile stays, and what was done here goes beside it. Only inodes that metad does not know get numbers of this
//! session.

use crate::Error;
use crate::buffers::Buffers;
use crate::commit::committer::{Committer, is_full};
use crate::error::unexpected_reply;
use crate::file::dirty::Packed;
use crate::file::pending::{Restored, SHARED_BLOCK_PART_MAX};
use crate::file::sealed::To;
use crate::file::state::FileState;
use crate::journal::Journal;
use crate::journal::record::{Change, Piece, Record};
use crate::known::Known;
use crate::known::leased::LeasedSession;
use crate::local_dir::set_aside;
use crate::queue::Touched;
use crate::writeback::{Work, WriteBack};
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use wire::FsError;
use wire::attr::{Creator, FileKind, InodeAttr, Timestamp};
use wire::ids::{Ino, Version};
use wire::op::{Expect, JournalPosition, Op, Read, ReadReply};

/// When nothing is acknowledged for this long, the mount fails, so that a person or the boot gets the error.
const REPLAY_PATIENCE: Duration = Duration::from_secs(60);

/// The queue entries that the records are turned into.
#[derive(Default)]
struct Replayed {
    /// New numbers of inodes that metad did not know.
    numbers: HashMap<Ino, Ino>,
    files: HashMap<Ino, Arc<FileState>>,
    entries: Vec<(u64, Timestamp, Touched, Work)>,
    /// Files with mapped pages that came late, and what these are based on.
    late: HashMap<Ino, Version>,
}

/// Why a replay fails.
enum Failed {
    Refused(FsError),
    Disk(io::Error),
    Journal(Error),
    Hangs,
}

impl From<FsError> for Failed {
    fn from(error: FsError) -> Self {
        Self::Refused(error)
    }
}

/// Sends what is left in a journal.
pub(crate) struct Replayer {
    pub journal: Arc<Journal>,
    pub session: Arc<LeasedSession>,
    pub known: Arc<Known>,
    pub writeback: Arc<WriteBack>,
    pub committer: Arc<Committer>,
    pub buffers: Arc<Buffers>,
    /// Size of the blocks that files are cut into.
    pub block_bytes: u64,
}

impl Replayer {
    /// Sends what is left in the journal. Everything is acknowledged on return.
    ///
    /// # Errors
    /// [`Error::Replay`] and [`Error::ReplayFull`]: nothing is lost, and the next mount tries again. As
    /// [`Journal::open`].
    pub async fn run(&self) -> Result<(), Error> {
        let dir = self.journal.dir().to_owned();
        let reason = match self.replay_all().await {
            Ok(()) => return Ok(()),
            Err(Failed::Journal(error)) => return Err(error),
            Err(Failed::Disk(source)) => return Err(Error::Local { path: dir, source }),
            Err(Failed::Refused(error)) if is_full(error) => return Err(Error::ReplayFull { dir }),
            Err(Failed::Refused(error)) => error.to_string(),
            Err(Failed::Hangs) => format!("servers that it needs have been away for {REPLAY_PATIENCE:?}"),
        };
        Err(Error::Replay { dir, reason })
    }

    async fn replay_all(&self) -> Result<(), Failed> {
        let journal = &self.journal;
        let asked = self.session.read(Read::Journaled { journal: journal.id() });
        let ReadReply::Journaled(position) = within_patience(asked).await? else {
            return Err(unexpected_reply().into());
        };
        let position = position.unwrap_or_default();
        let (acknowledged, behind) = (position.acknowledged, journal.last().max(position.acknowledged));
        let read = journal.in_thread(move |left| {
            let mut records = left.unacknowledged(acknowledged)?;
            let (shared, last) = left.read_shared(behind)?;
            records.extend(shared);
            Ok((records, last))
        });
        let read = read.await.map_err(Failed::Disk)?;
        let (mut records, last) = read.map_err(Failed::Journal)?;
        self.writeback.with(|core| core.start_behind(acknowledged, last));
        if records.is_empty() {
            if let Err(error) = journal.append_for(self.session.id(), Vec::new(), last, || ()).await {
                tracing::warn!(dir = %journal.dir().display(), %error, "the journal cannot be written yet");
            }
        } else {
            tracing::warn!(
                changes = records.len(), journal = %journal.dir().display(),
                "an earlier mount ended before it had sent these changes to the cluster: they are sent now"
            );
            let mut replayed = Replayed::default();
            within_patience(self.renumber(&mut replayed, &records)).await?;
            let mut inos: Vec<(Ino, Ino)> = replayed.numbers.iter().map(|(old, new)| (*old, *new)).collect();
            inos.sort_unstable();
            // This is noted before the first of them is sent: the next mount after a crash must know the new numbers.
            let numbered = vec![(Record::Renumbered { number: last, inos }, Bytes::new())];
            journal.append_for(self.session.id(), numbered, last, || ()).await.map_err(Failed::Disk)?;
            journal.change(Journal::drop_earlier_numbers).await.map_err(Failed::Disk)?;
            if set_aside::is_set_aside(journal.dir()) {
                spare_what_is_newer(&mut records);
            }
            self.take_records(&mut replayed, records, &position);
            if replayed.entries.last().is_none_or(|(number, ..)| *number < last) {
                replayed.entries.push((last, self.session.stamp(), Touched::default(), Work::Undone));
            }
            self.writeback.with(|core| core.be_strict(true));
            self.writeback.enter_again(replayed.entries);
            if let Err(failed) = self.wait_replayed(last).await {
                if matches!(failed, Failed::Refused(error) if is_full(error)) {
                    number_shared(journal, behind).await;
                }
                return Err(failed);
            }
            self.writeback.with(|core| core.be_strict(false));
            tracing::warn!("everything that was in the journal is sent");
        }
        let dropped =
            journal.change(move |journal| journal.remove_shared().and_then(|()| journal.drop_acknowledged(last)));
        dropped.await.map_err(Failed::Disk)
    }

    async fn wait_replayed(&self, last: u64) -> Result<(), Failed> {
        loop {
            let acknowledged_before = self.writeback.acknowledged();
            match tokio::time::timeout(REPLAY_PATIENCE, self.writeback.wait_acknowledged(last)).await {
                Ok(outcome) => return Ok(outcome?),
                Err(_) if acknowledged_before == self.writeback.acknowledged() => return Err(Failed::Hangs),
                Err(_) => {}
            }
        }
    }

    /// Gives inodes that metad does not know numbers of this session.
    async fn renumber(&self, replayed: &mut Replayed, records: &[(Record, Bytes)]) -> Result<(), FsError> {
        let mut fresh = Vec::new();
        for (record, _) in records {
            match record {
                // Inodes that were sent since have the numbers that they got last.
                Record::Renumbered { inos, .. } => replayed.numbers.extend(inos.iter().copied()),
                Record::Change(Change { op: Op::Create { ino, .. }, .. }) => {
                    fresh.push((*ino, self.session.next_ino().await?));
                }
                _ => {}
            }
        }
        replayed.numbers.extend(fresh);
        Ok(())
    }

    fn take_records(&self, replayed: &mut Replayed, records: Vec<(Record, Bytes)>, position: &JournalPosition) {
        let undone: HashSet<u64> = records
            .iter()
            .filter_map(|(record, _)| if let Record::Undone { number } = record { Some(*number) } else { None })
            .collect();
        let of_next = |(record, _): &&(Record, Bytes)| matches!(record, Record::Piece(piece) if piece.number == position.acknowledged + 1);
        // Of content that is acknowledged in part, the last pieces are left.
        let pieces = records.iter().filter(of_next).count();
        let mut skip = if position.left > 0 { pieces.saturating_sub(position.left as usize) } else { 0 };
        replayed.late = late_files(&records, position.acknowledged);
        let mut records = records.into_iter().filter(|(record, _)| record.place().is_some()).peekable();
        while let Some((record, content)) = records.next() {
            match record {
                Record::Change(Change { number, .. }) if undone.contains(&number) => {}
                Record::Change(Change { number, at, mut expect, mut op }) => {
                    replayed.put_numbers(&mut op, &mut expect);
                    let touched = touched(&op, &expect);
                    replayed.entries.push((number, at, touched, Work::Change { op, expect }));
                }
                Record::Piece(piece) if piece.number == position.acknowledged + 1 && skip > 0 => skip -= 1,
                Record::Piece(piece) => {
                    let (number, at) = (piece.number, piece.at);
                    let more = records.peek().is_some_and(|(record, _)| record.number() == number);
                    // The acknowledged part may have been appended at the end: the rest goes to the offset at which it
                    // was written.
                    let rest = position.left > 0 && number == position.acknowledged + 1;
                    let Some((file, upto)) = self.take_piece(replayed, piece, content, (position, rest)) else {
                        continue;
                    };
                    if !more {
                        let touched = (vec![file.ino()], Vec::new());
                        replayed.entries.push((number, at, touched, Work::Content { file, upto }));
                    }
                }
                Record::Undone { .. } | Record::Renumbered { .. } | Record::Late { .. } => {}
            }
        }
    }

    /// Adds content to the state of its file. Returns the file, and the number that the piece has there.
    fn take_piece(
        &self,
        replayed: &mut Replayed,
        piece: Piece,
        bytes: Bytes,
        (position, rest): (&JournalPosition, bool),
    ) -> Option<(Arc<FileState>, u64)> {
        let ino = replayed.number(piece.ino);
        if let Some((parent, name)) = piece.place.clone() {
            self.known.note_places([((replayed.number(parent), name), ino)]);
        }
        let pieces: Vec<_> = piece.parts.iter().map(|(at, from, len)| (*at, *from as usize, *len as usize)).collect();
        let small = bytes.len() <= SHARED_BLOCK_PART_MAX;
        pieces.first()?;
        let held: usize = pieces.iter().map(|(_, _, len)| len).sum();
        let late = replayed.late.get(&piece.ino).copied();
        let file = replayed.files.entry(ino).or_insert_with(|| {
            let base = base_of(ino, piece.base, late, position);
            // The attributes that are known: enough to make a new file for the content, if the file is gone.
            let (mode, uid, gid) = piece.owner;
            let made = InodeAttr::new(ino, FileKind::Regular, Creator { mode, uid, gid }, piece.at);
            let attr = InodeAttr { version: base, ..made };
            let file = FileState::new(attr, None, self.buffers.clone(), self.block_bytes);
            if late.is_some() {
                file.restore_late();
            }
            file
        });
        let restored = Restored {
            packed: Packed { bytes, pieces },
            appended: piece.append_from.is_some() && !rest,
            mtime: piece.mtime,
            clear_privileges: piece.clear_privileges,
        };
        let uploading =
            self.committer.uploader().begin(&restored.packed, if small { To::SharedBlock } else { To::OwnBlock });
        let number = file.restore(restored, uploading);
        self.committer.window().add(held as u64);
        Some((file.clone(), number))
    }
}

/// Turns the shared part of a journal that is to be set aside into entries, with the numbers by which they have been
/// sent so far: the next mount would otherwise number them anew, and send all of them again.
async fn number_shared(journal: &Arc<Journal>, behind: u64) {
    let numbered = journal.change(move |journal| {
        let (shared, last) = journal.read_shared(behind).map_err(io::Error::other)?;
        if !shared.is_empty() {
            journal.append(&shared, last)?;
        }
        journal.remove_shared()
    });
    if let Err(error) = numbered.await {
        tracing::warn!(%error, "the journal cannot be written: some of it may be sent twice");
    }
}

/// Adjusts a journal that was set aside, and is sent after later mounts have worked. An entry that removes or replaces
/// a file for good must spare what was written since, but named no version while the file's own content was
/// uncommitted. Each content entry is one commit and makes one version: if the file has a later one, it stays.
fn spare_what_is_newer(records: &mut [(Record, Bytes)]) {
    let mut made: HashSet<Ino> = HashSet::new();
    // The newest version of a file if this journal alone has written to it, and the entry that made it.
    let mut own: HashMap<Ino, (Version, u64)> = HashMap::new();
    for (record, _) in records {
        match record {
            Record::Piece(Piece { ino, base, number, .. }) => {
                let (version, last) = own.entry(*ino).or_insert((*base, 0));
                if *last != *number {
                    (version.0, *last) = (version.0 + 1, *number);
                }
            }
            Record::Change(Change { op: Op::Create { ino, .. }, .. }) => {
                made.insert(*ino);
            }
            Record::Change(Change {
                expect,
                op: Op::Unlink { released: Some(lost), .. } | Op::Rename { released: Some(lost), .. },
                ..
            }) if !made.contains(lost) => {
                let is_lost = |expect: &&mut Expect| expect.ino == Some(*lost) && expect.version.is_none();
                for expect in expect.iter_mut().filter(is_lost) {
                    expect.version = Some(own.get(lost).map(|(version, _)| *version).unwrap_or_default());
                }
            }
            _ => {}
        }
    }
}

/// Returns the files with mapped pages that came late among what is not acknowledged, and what these are based on.
fn late_files(records: &[(Record, Bytes)], acknowledged: u64) -> HashMap<Ino, Version> {
    let mut late = HashMap::new();
    for (record, _) in records {
        if let Record::Late { number, ino, base } = record
            && *number > acknowledged
        {
            let oldest = late.entry(*ino).or_insert(*base);
            *oldest = (*oldest).min(*base);
        }
    }
    late
}

/// Returns what content in the journal is based on. metad may remember a newer version than the journal has, if commits of
/// the same journal have made it. With mapped pages that came late, that says nothing (I6).
fn base_of(ino: Ino, base: Version, late: Option<Version>, position: &JournalPosition) -> Version {
    let known = position.files.iter().find(|file| file.ino == ino);
    late.map_or_else(|| known.map_or(base, |file| file.base.max(base)), |late| late.min(base))
}

async fn within_patience<T>(work: impl Future<Output = Result<T, FsError>>) -> Result<T, Failed> {
    tokio::time::timeout(REPLAY_PATIENCE, work).await.map_err(|_| Failed::Hangs)?.map_err(Failed::Refused)
}

impl Replayed {
    fn number(&self, ino: Ino) -> Ino {
        self.numbers.get(&ino).copied().unwrap_or(ino)
    }

    fn put_numbers(&self, op: &mut Op, expect: &mut [Expect]) {
        let to_new = |ino: &mut Ino| *ino = self.number(*ino);
        for expect in expect {
            to_new(&mut expect.parent);
            expect.ino.iter_mut().for_each(to_new);
        }
        match op {
            Op::Create { parent, ino, .. } => [parent, ino].into_iter().for_each(to_new),
            Op::Unlink { parent, released, .. } => std::iter::once(parent).chain(released).for_each(to_new),
            Op::Rmdir { parent, .. } => to_new(parent),
            Op::Rename { parent, new_parent, released, .. } => {
                [parent, new_parent].into_iter().chain(released).for_each(to_new);
            }
            Op::SetAttr { ino, .. } => to_new(ino),
            other => tracing::error!(op = ?other, "the journal has an operation that is never put into it"),
        }
    }
}

/// Returns the inodes and names of an entry: of a rename, the moved inode comes last, and the name that it is moved
/// from first.
fn touched(op: &Op, expect: &[Expect]) -> Touched {
    let mut inos: Vec<Ino> = op.attrs_changed().collect();
    if let (Op::Rename { .. }, Some(source)) = (op, expect.first()) {
        inos.extend(source.ino);
    }
    (inos, op.names_changed().map(|(parent, name)| (parent, name.clone())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::disk::{FOLDER, LocalDisk};
    use crate::journal::picture::SHARED;
    use crate::journal::record::Group;
    use crate::testing::Place;
    use wire::op::JournaledFile;

    fn piece(ino: u64, base: u64, number: u64) -> (Record, Bytes) {
        let piece = Piece {
            number,
            at: Timestamp::default(),
            ino: Ino(ino),
            place: None,
            owner: (0o600, 0, 0),
            sealed: 1,
            parts: vec![(0, 0, 1)],
            base: Version(base),
            append_from: None,
            mtime: None,
            clear_privileges: false,
        };
        (Record::Piece(piece), Bytes::from_static(b"x"))
    }

    fn unlink(ino: u64, version: Option<u64>, is_last: bool) -> (Record, Bytes) {
        let name = b"name".to_vec();
        let expect = Expect { parent: Ino(1), name: name.clone(), ino: Some(Ino(ino)), version: version.map(Version) };
        let op = Op::Unlink { parent: Ino(1), name, released: is_last.then_some(Ino(ino)) };
        (Record::Change(Change { number: 2, at: Timestamp::default(), expect: vec![expect], op }), Bytes::new())
    }

    /// Guards I6.
    #[test]
    fn content_with_mapped_pages_that_came_late_is_judged_by_the_version_that_was_seen_in_them() {
        let file = JournaledFile { ino: Ino(7), base: Version(9), committed: false };
        let position = JournalPosition { files: vec![file], ..JournalPosition::default() };
        let base = |ino, late| base_of(Ino(ino), Version(5), late, &position);
        assert_eq!((base(7, None), base(8, None)), (Version(9), Version(5)));
        assert_eq!((base(7, Some(Version(3))), base(7, Some(Version(6)))), (Version(3), Version(5)));
    }

    #[test]
    fn pages_that_came_late_and_are_committed_do_not_make_later_content_older() {
        let late = |number, ino, base| (Record::Late { number, ino: Ino(ino), base: Version(base) }, Bytes::new());
        let records = [late(4, 7, 1), late(5, 7, 6), late(6, 7, 5), late(4, 8, 2)];
        assert_eq!(late_files(&records, 4), HashMap::from([(Ino(7), Version(5))]));
        assert_eq!(late_files(&records, 3), HashMap::from([(Ino(7), Version(1)), (Ino(8), Version(2))]));
    }

    #[test]
    fn a_journal_set_aside_removes_nothing_that_was_written_since() {
        let mut records = vec![piece(7, 3, 1), piece(7, 3, 1), piece(7, 3, 2)];
        records.extend([unlink(7, None, true), unlink(8, None, true)]);
        records.extend([unlink(9, Some(5), true), unlink(10, None, false)]);
        spare_what_is_newer(&mut records);
        let versions: Vec<_> = records
            .iter()
            .filter_map(
                |(record, _)| if let Record::Change(change) = record { Some(change.expect[0].version) } else { None },
            )
            .collect();
        assert_eq!(versions, [Some(Version(5)), Some(Version(0)), Some(Version(5)), None]);
    }

    #[tokio::test]
    async fn the_shared_part_of_a_journal_keeps_the_numbers_that_it_was_sent_by() {
        let place = Place::new();
        let disk = Arc::new(LocalDisk::open(place.local(), FOLDER).unwrap());
        let journal = Arc::new(Journal::open(disk.clone()).unwrap());
        journal.append_for(wire::ids::SessionId(1), Vec::new(), 0, || ()).await.unwrap();
        let mut shared = Group::default();
        [piece(7, 1, 1), piece(8, 1, 1)].iter().for_each(|(record, content)| shared.add(record, content));
        std::fs::write(journal.dir().join("shared"), shared.finish(journal.segment_id(SHARED), 0)).unwrap();
        number_shared(&journal, 10).await;
        assert!(!journal.dir().join("shared").exists());
        // The first of them was sent as number 11: the next mount sends the other one.
        let left = Journal::open(disk).unwrap();
        let numbers = |acknowledged| {
            left.unacknowledged(acknowledged).unwrap().iter().map(|(record, _)| record.number()).collect::<Vec<_>>()
        };
        assert_eq!((numbers(10), numbers(11), left.last()), (vec![11, 12], vec![12], 12));
    }
}
