//! Writing the journal: what has waited in the queue for too long.

use super::Journal;
use super::record::{Change, Record, pieces_of};
use crate::file::state::FileState;
use crate::writeback::{Entry, Work, WriteBack};
use crate::{CLOSE_LIMIT, Client};
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};
use wire::FsError;
use wire::ids::{Ino, SessionId, Version};
use wire::op::{Name, Op};

/// What is not told after this time goes into the journal.
const AFTER: Duration = Duration::from_millis(400);
/// And with it what would follow soon: one write for all of it.
const SOON: Duration = Duration::from_millis(300);
/// Content that is written at once; more follows at once.
const APPEND_BYTES: usize = 16 << 20;
/// While something is in the journal, it is looked this often what of it is told and can go.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// A write that takes longer is on a disk that hangs.
const DISK_LIMIT: Duration = Duration::from_secs(10);
/// After an error of the disk.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// With servers that are away, the end of a mount is not held up for longer.
const LEAVE_AFTER: Duration = Duration::from_secs(5);
/// Between looks whether anything moves.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Of what is not told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// What has waited for too long, if anything has.
    Overdue,
    /// Everything.
    All,
}

/// Entries on their way into the journal.
#[derive(Default)]
struct Keeping {
    last: u64,
    records: Vec<(Record, Bytes)>,
    /// Files, and up to which piece their content goes along.
    files: HashMap<Ino, (Arc<FileState>, u64)>,
}

/// Writes what waits for too long, until the client is gone.
async fn run(weak: Weak<Client>, queue: Arc<WriteBack>, journal: Arc<Journal>) {
    loop {
        let overdue = queue.wait_overdue(AFTER);
        if journal.last() > 0 {
            // Either way it is looked at.
            let _ = timeout(TIDY_EVERY, overdue).await;
        } else {
            overdue.await;
        }
        let Some(client) = weak.upgrade() else { return };
        let done = client.keep(&journal, Which::Overdue).await;
        drop(client);
        queue.note_keeping(done.is_ok());
        if let Err(error) = done {
            tracing::error!(
                dir = %journal.dir().display(), %error,
                "the journal cannot be written: what is done now and not told yet would not survive this process"
            );
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }
}

impl Journal {
    /// Changes the files, in a thread: one change at a time, each to its end though the caller is dropped.
    ///
    /// # Errors
    /// What the disk refuses, or that it hangs.
    pub(super) async fn change(
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

    /// Works on the files where that may block. What has begun runs to its end though the caller is dropped.
    ///
    /// # Errors
    /// When the work panics.
    pub(super) async fn in_thread<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> io::Result<T> {
        if self.disk.is_instant() {
            return Ok(work(self));
        }
        let journal = self.clone();
        spawn_blocking(move || work(&journal)).await.map_err(io::Error::other)
    }

    /// From now on this session works with it.
    ///
    /// # Errors
    /// As [`Journal::change`].
    pub(crate) async fn note_session(self: &Arc<Self>, session: SessionId) -> io::Result<()> {
        self.append_for(session, Vec::new(), 0, || ()).await
    }

    /// Appends records, on behalf of this session. `appended` is called when they are there, though that took too long to
    /// be waited for: they must not be written again and again.
    ///
    /// # Errors
    /// As [`Journal::change`].
    pub(super) async fn append_for(
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

impl Client {
    /// From now on what waits for too long is written.
    pub(crate) fn start_journal(&self, journal: &Arc<Journal>) {
        self.writeback.note_keeping(true);
        self.tasks.lock().spawn(run(self.me.clone(), self.writeback.clone(), journal.clone()));
    }

    /// Writes what is not told into the journal, and drops what is told.
    async fn keep(&self, journal: &Arc<Journal>, which: Which) -> io::Result<()> {
        let one = timeout(DISK_LIMIT, journal.keeping.lock()).await;
        let _one = one.map_err(|_| io::Error::from(ErrorKind::TimedOut))?;
        let told = self.writeback.told();
        if journal.has_told(told) {
            journal.change(move |journal| journal.drop_told(told)).await?;
        }
        self.note_undone(journal).await?;
        loop {
            let Keeping { last, records, files } = self.to_keep(which);
            if last == 0 {
                break;
            }
            let queue = self.writeback.clone();
            let appended = move || {
                for (file, upto) in files.into_values() {
                    file.note_journaled(upto);
                }
                queue.kept(last);
            };
            journal.append_for(self.session.id(), records, last, appended).await?;
        }
        if journal.last() > 0 && journal.session() != Some(self.session.id()) {
            journal.note_session(self.session.id()).await?;
        }
        Ok(())
    }

    /// Entries that were undone must not be done by whoever finds the journal.
    async fn note_undone(&self, journal: &Arc<Journal>) -> io::Result<()> {
        let (queue, undone) = (self.writeback.clone(), self.writeback.undone());
        let Some(last) = undone.iter().max().copied() else { return Ok(()) };
        let records = undone.iter().map(|number| (Record::Undone { number: *number }, Bytes::new())).collect();
        journal.append_for(self.session.id(), records, last, move || queue.undone_kept(&undone)).await
    }

    /// Writes at once what was undone, before metad is told of it.
    pub(crate) async fn keep_undone(&self) {
        let Some(journal) = &self.journal else { return };
        if let Err(error) = self.note_undone(journal).await {
            tracing::error!(%error, "the journal cannot be written: it says that something was done which was undone");
        }
    }

    /// Commits everything that is uncommitted in any file; or leaves it in the journal, if there is one, when for some time
    /// nothing of it could be.
    ///
    /// # Errors
    /// The first failure; the others are tried all the same.
    pub async fn store_all(&self) -> Result<(), FsError> {
        match &self.journal {
            None => self.sync_all().await,
            Some(_) if self.left.load(Ordering::Relaxed) => Ok(()),
            Some(journal) => tokio::select! {
                biased;
                stored = self.sync_all() => stored,
                () = self.all_kept(journal) => {
                    tracing::warn!(
                        journal = %journal.dir().display(),
                        "the servers are away: what they do not know is in the journal, and the next mount tells it"
                    );
                    Ok(())
                }
            },
        }
    }

    /// Returns once nothing has moved for a while, and everything is in the journal.
    async fn all_kept(&self, journal: &Arc<Journal>) {
        let (mut seen, mut since) = (None, Instant::now());
        loop {
            let now = (self.writeback.told(), self.window.held());
            if seen != Some(now) {
                (seen, since) = (Some(now), Instant::now());
            } else if since.elapsed() >= LEAVE_AFTER {
                let left = self.unqueued_files().iter().filter(|file| !self.leave_content(file)).count();
                if left == 0 && self.keep(journal, Which::All).await.is_ok() {
                    self.left.store(true, Ordering::Relaxed);
                    return;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The last thing that is told: nobody will ask for the journal. What is not told stays in it.
    pub(crate) async fn end_journal(&self) {
        let Some(journal) = &self.journal else { return };
        if self.left.load(Ordering::Relaxed) {
            // What was written after everything else was left there.
            for file in self.unqueued_files() {
                self.leave_content(&file);
            }
        }
        let told = self.writeback.told();
        if !self.writeback.is_empty() {
            let kept = self.keep(journal, Which::All).await;
            // What it shows went into the queue, if it was left.
            let left = self.left.load(Ordering::Relaxed);
            let kept = if kept.is_ok() && left { self.drop_shared(journal).await } else { kept };
            if let Err(error) = kept {
                tracing::error!(%error, "what the cluster does not know could not be kept in the journal");
            }
            return;
        }
        // In this order: metad must not forget what is told of something that is still there.
        let dropped = journal.change(move |journal| journal.remove_shared().and_then(|()| journal.drop_told(told)));
        if let Err(error) = dropped.await {
            tracing::warn!(%error, "files of the journal of which nothing is needed stay behind");
            return;
        }
        if told > 0 || journal.content_noted.load(Ordering::Relaxed) {
            let forget = self.session.one(Op::Journaled { journal: journal.id(), position: None });
            if !matches!(timeout(CLOSE_LIMIT, forget).await, Ok(Ok(_))) {
                tracing::debug!("metad remembers a journal for nothing");
            }
        }
    }

    /// What is to be written next; of no entry when there is nothing.
    fn to_keep(&self, which: Which) -> Keeping {
        let mut keeping = Keeping::default();
        let mut bytes = 0;
        self.writeback.for_each_unkept(|entry| {
            let age = if keeping.last == 0 { AFTER } else { SOON };
            if (which == Which::Overdue && entry.queued.elapsed() < age) || bytes >= APPEND_BYTES {
                return false;
            }
            keeping.last = entry.number;
            match &entry.work {
                Work::Change { op, expect } => {
                    let change = Change { number: entry.number, at: entry.at, expect: expect.clone(), op: op.clone() };
                    keeping.records.push((Record::Change(change), Bytes::new()));
                }
                Work::Content { file, upto } => {
                    let (_, kept) = keeping.files.entry(file.ino()).or_insert_with(|| (file.clone(), 0));
                    let from = keeping.records.len();
                    entry.kept_base = Some(take_pieces(entry, file, (*kept, *upto), &mut keeping.records));
                    *kept = *upto;
                    bytes += keeping.records[from..].iter().map(|(_, content)| content.len()).sum::<usize>();
                }
                Work::Undone => {}
            }
            true
        });
        self.name_pieces(&mut keeping.records);
        keeping
    }

    /// Names of the files, as far as they are known.
    pub(super) fn name_pieces(&self, records: &mut [(Record, Bytes)]) {
        let pieces = records.iter().filter_map(|(record, _)| match record {
            Record::Piece(piece) => Some(piece.ino),
            _ => None,
        });
        let wanted: HashSet<Ino> = pieces.collect();
        if wanted.is_empty() {
            return;
        }
        let known = self.names.lock();
        let places: HashMap<Ino, (Ino, Name)> = known
            .iter()
            .filter(|(_, ino)| wanted.contains(ino))
            .map(|((parent, name), ino)| (*ino, (*parent, name.clone())))
            .collect();
        drop(known);
        for (record, _) in records {
            if let Record::Piece(piece) = record {
                piece.place = places.get(&piece.ino).cloned();
            }
        }
    }
}

/// Adds the pieces of a content entry that are not kept. Returns what the file's content is based on now.
fn take_pieces(
    entry: &Entry,
    file: &FileState,
    (kept, upto): (u64, u64),
    records: &mut Vec<(Record, Bytes)>,
) -> Version {
    let snapshot = file.unjournaled(kept, upto);
    records.extend(pieces_of(&snapshot, entry.number, entry.at));
    snapshot.base
}
