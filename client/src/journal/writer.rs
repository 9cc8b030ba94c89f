//! Writing the journal: entries that have waited in the write-back queue for too long.

use super::Journal;
use super::record::{Change, Record, pieces_of};
use crate::file::state::FileState;
use crate::known::leased::LeasedSession;
use crate::known::{Known, Place};
use crate::writeback::{Entry, Work, WriteBack};
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use wire::ids::{Ino, SessionId, Version};

/// An entry that is not acknowledged after this time goes into the journal.
const OVERDUE_AFTER: Duration = Duration::from_millis(400);
/// Entries of this age go along, because they would follow soon: one write for all of them.
const GOES_ALONG_AFTER: Duration = Duration::from_millis(300);
/// Content that is written in one step; more follows at once.
const APPEND_BYTES_MAX: usize = 16 << 20;
/// While something is in the journal, acknowledged parts are dropped this often.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// A write that takes longer means that the disk hangs.
const DISK_LIMIT: Duration = Duration::from_secs(10);
/// Pause after an error of the disk.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Which of the unacknowledged entries to write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WhichEntries {
    /// Those that have waited for too long, and those that go along with them.
    Overdue,
    /// All of them.
    All,
}

/// Entries on their way into the journal.
#[derive(Default)]
struct Unwritten {
    last: u64,
    records: Vec<(Record, Bytes)>,
    /// Files, and the last piece of each whose content goes along.
    files: HashMap<Ino, (Arc<FileState>, u64)>,
}

/// Writes entries that wait for too long.
pub(crate) async fn run(writer: Arc<Writer>) {
    let (queue, journal) = (&writer.queue, &writer.journal);
    loop {
        let overdue = queue.wait_overdue(OVERDUE_AFTER);
        if journal.last() > 0 {
            // The queue is looked at in either case.
            let _ = timeout(TIDY_EVERY, overdue).await;
        } else {
            overdue.await;
        }
        let done = writer.write(WhichEntries::Overdue).await;
        queue.note_journal_works(done.is_ok());
        if let Err(error) = done {
            tracing::error!(
                dir = %journal.dir().display(), %error,
                "the journal cannot be written: what is done now and not sent yet would not survive this process"
            );
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }
}

impl Journal {
    /// Changes the files, in a thread. There is one change at a time, and each runs to its end though the caller is
    /// dropped.
    ///
    /// # Errors
    /// Fails when the disk does, or when it hangs.
    pub(crate) async fn change(
        self: &Arc<Self>,
        change: impl FnOnce(&Self) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let hangs = |_| io::Error::from(ErrorKind::TimedOut);
        let one = timeout(DISK_LIMIT, self.changing.clone().lock_owned()).await.map_err(hangs)?;
        let changing = self.in_thread(move |journal| {
            let _one = one;
            change(journal)
        });
        timeout(DISK_LIMIT, changing).await.map_err(hangs)??
    }

    /// Works on the files where blocking is allowed. The work runs to its end though the caller is dropped.
    ///
    /// # Errors
    /// Fails when the work panics.
    pub(crate) async fn in_thread<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> io::Result<T> {
        if self.disk.is_instant() {
            return Ok(work(self));
        }
        let journal = self.clone();
        spawn_blocking(move || work(&journal)).await.map_err(io::Error::other)
    }

    /// Notes that this session works with the journal from now on.
    ///
    /// # Errors
    /// As [`Journal::change`].
    pub(crate) async fn note_session(self: &Arc<Self>, session: SessionId) -> io::Result<()> {
        self.append_for(session, Vec::new(), 0, || ()).await
    }

    /// Appends records, on behalf of this session. `appended` is called when they are written, even after the time
    /// limit: they must not be written again and again.
    ///
    /// # Errors
    /// As [`Journal::change`].
    pub(crate) async fn append_for(
        self: &Arc<Self>,
        session: SessionId,
        records: Vec<(Record, Bytes)>,
        last: u64,
        appended: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let append = move |journal: &Self| {
            if journal.session() != Some(session) {
                journal.write_session(session)?;
            }
            if !records.is_empty() {
                journal.append(&records, last)?;
            }
            appended();
            Ok(())
        };
        self.change(append).await
    }
}

/// Writes unacknowledged entries into the journal.
pub(crate) struct Writer {
    journal: Arc<Journal>,
    session: Arc<LeasedSession>,
    queue: Arc<WriteBack>,
    /// Where names led when they were last looked up.
    known: Arc<Known>,
}

impl Writer {
    /// Creates a writer for the entries of the queue, on behalf of the present session.
    pub(crate) fn new(
        journal: Arc<Journal>,
        session: Arc<LeasedSession>,
        queue: Arc<WriteBack>,
        known: Arc<Known>,
    ) -> Self {
        Self { journal, session, queue, known }
    }

    /// Returns the journal.
    pub(crate) fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Returns the present session.
    pub(super) fn session(&self) -> &Arc<LeasedSession> {
        &self.session
    }

    /// Writes unacknowledged entries into the journal, and drops acknowledged ones.
    ///
    /// # Errors
    /// As [`Journal::change`].
    pub(crate) async fn write(&self, which: WhichEntries) -> io::Result<()> {
        let journal = &self.journal;
        let one = timeout(DISK_LIMIT, journal.writing.lock()).await;
        let _one = one.map_err(|_| io::Error::from(ErrorKind::TimedOut))?;
        let acknowledged = self.queue.acknowledged();
        if journal.has_acknowledged(acknowledged) {
            journal.change(move |journal| journal.drop_acknowledged(acknowledged)).await?;
        }
        self.note_undone().await?;
        loop {
            let Unwritten { last, records, files } = self.unwritten(which);
            if last == 0 {
                break;
            }
            let queue = self.queue.clone();
            let appended = move || {
                for (file, upto) in files.into_values() {
                    file.note_journaled(upto);
                }
                queue.note_journaled(last);
            };
            journal.append_for(self.session.id(), records, last, appended).await?;
        }
        if journal.last() > 0 && journal.session() != Some(self.session.id()) {
            journal.note_session(self.session.id()).await?;
        }
        Ok(())
    }

    /// Notes undone entries: the next client that finds the journal must not do them.
    async fn note_undone(&self) -> io::Result<()> {
        let (queue, undone) = (self.queue.clone(), self.queue.with(|core| core.undone()));
        let Some(last) = undone.iter().max().copied() else { return Ok(()) };
        let records = undone.iter().map(|number| (Record::Undone { number: *number }, Bytes::new())).collect();
        let noted = move || queue.with(|core| core.note_undone_journaled(&undone));
        self.journal.append_for(self.session.id(), records, last, noted).await
    }

    /// Writes at once what was undone, before metad learns of it.
    pub(crate) async fn write_undone(&self) {
        if let Err(error) = self.note_undone().await {
            tracing::error!(%error, "the journal cannot be written: it says that something was done which was undone");
        }
    }

    /// Returns what is to be written next, possibly no entries.
    fn unwritten(&self, which: WhichEntries) -> Unwritten {
        let mut unwritten = Unwritten::default();
        let mut bytes = 0;
        self.queue.with(|core| {
            for entry in core.unjournaled() {
                let age = if unwritten.last == 0 { OVERDUE_AFTER } else { GOES_ALONG_AFTER };
                if (which == WhichEntries::Overdue && entry.queued.elapsed() < age) || bytes >= APPEND_BYTES_MAX {
                    break;
                }
                unwritten.last = entry.number;
                match &entry.work {
                    Work::Change { op, expect } => {
                        let change =
                            Change { number: entry.number, at: entry.at, expect: expect.clone(), op: op.clone() };
                        unwritten.records.push((Record::Change(change), Bytes::new()));
                    }
                    Work::Content { file, upto } => {
                        let (_, written) = unwritten.files.entry(file.ino()).or_insert_with(|| (file.clone(), 0));
                        let from = unwritten.records.len();
                        entry.journal_base = Some(take_pieces(entry, file, (*written, *upto), &mut unwritten.records));
                        *written = *upto;
                        bytes += unwritten.records[from..].iter().map(|(_, content)| content.len()).sum::<usize>();
                    }
                    Work::Undone => {}
                }
            }
        });
        self.name_pieces(&mut unwritten.records);
        unwritten
    }

    /// Adds the names of the files that are known.
    pub(super) fn name_pieces(&self, records: &mut [(Record, Bytes)]) {
        let pieces = records.iter().filter_map(|(record, _)| match record {
            Record::Piece(piece) => Some(piece.ino),
            _ => None,
        });
        let wanted: HashSet<Ino> = pieces.collect();
        if wanted.is_empty() {
            return;
        }
        let places: HashMap<Ino, Place> =
            wanted.into_iter().filter_map(|ino| Some((ino, self.known.place_of(ino)?))).collect();
        for (record, _) in records {
            if let Record::Piece(piece) = record {
                piece.place = places.get(&piece.ino).cloned();
            }
        }
    }
}

/// Adds the pieces of a content entry that are not in the journal. Returns what the file's content is based on now.
fn take_pieces(
    entry: &Entry,
    file: &FileState,
    (written, upto): (u64, u64),
    records: &mut Vec<(Record, Bytes)>,
) -> Version {
    let snapshot = file.unjournaled(written, upto);
    records.extend(pieces_of(&snapshot, entry.number, entry.at));
    snapshot.base
}
