//! From written bytes to committed content: seal, upload, commit.
//!
//! *Sealing* cuts written bytes into blocks, which are uploaded at once in the background while the application writes
//! on. *Committing* makes everything that was sealed part of the file, in the order of sealing (I7), with the version it
//! is based on (I6). What fails stays, and is tried again by the next flush.
//!
//! A flush runs in a task of its own: a commit whose answer nobody takes in would look like another session's change, and
//! the next one would be in conflict with it.

use super::dirty::Packed;
use super::state::{FileState, Outcome, Sealed, Stored, writes_of};
use super::together::SHARED_BLOCK_PART;
use crate::meta::session::SpareIno;
use crate::writeback::Touched;
use crate::{Client, Notice, OnConflict};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use wire::FsError;
use wire::attr::Timestamp;
use wire::extent::ExtentWrite;
use wire::ids::{BlockHash, ChunkIndex, Ino, Version};
use wire::limits::{COMMIT_EXTENTS_MAX, INLINE_BYTES_MAX, UPLOAD_FRESH_MS};
use wire::op::{ConflictPolicy, JournaledFile, Name, Op, OpReply};

/// Blocks up to this size are remembered after writing: small files are often read soon.
const REMEMBER_BYTES: usize = 1 << 20;
/// Blocks up to this size are hashed where they are; larger ones on a thread for that.
const HASH_INLINE: usize = 64 << 10;
/// A flush waits so often for what others put into the queue while it did.
const QUEUED_ROUNDS: u32 = 4;
/// What is written to a file after a conflict goes where that did, unless nothing did for so long: whoever writes then
/// has seen what others wrote.
const DIVERTED: Duration = Duration::from_secs(5);
/// A chunk in more pieces than this is compacted.
const COMPACT_EXTENTS: u32 = 1024;

/// Whether an error says that there is no room, and there will be none until something is removed.
pub(crate) fn is_full(error: FsError) -> bool {
    matches!(error, FsError::NoSpace | FsError::QuotaExceeded)
}

/// What one commit carries.
pub(crate) struct Commit {
    writes: Vec<ExtentWrite>,
    base: Version,
    own: Vec<Version>,
    append_from: Option<u64>,
    mtime: Option<Timestamp>,
    clear_privileges: bool,
    /// The conflict copy that it goes into.
    diverted: Option<Ino>,
    /// Sealed blocks that it covers.
    count: usize,
}

impl Commit {
    /// Whether it has nothing to say.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many sealed blocks it covers.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// What the rest of the journal's content of this file follows, once this is committed.
    pub(crate) fn journaled(&self, ino: Ino) -> JournaledFile {
        JournaledFile { ino, base: self.base, committed: self.diverted.is_none() }
    }

    /// How many pieces it writes.
    pub(crate) fn writes(&self) -> usize {
        self.writes.len()
    }

    /// What it writes.
    pub(crate) fn clone_writes(&self) -> Vec<ExtentWrite> {
        self.writes.clone()
    }

    /// Whether it goes into the conflict copy that has what was written before.
    pub(crate) fn is_diverted(&self) -> bool {
        self.diverted.is_some()
    }

    pub(crate) fn op(&self, ino: Ino, policy: ConflictPolicy) -> Op {
        let commit = |ino, base, own, append_from, policy| Op::Commit {
            ino,
            base,
            own,
            writes: self.writes.clone(),
            append_from,
            mtime: self.mtime,
            clear_privileges: self.clear_privileges,
            policy,
        };
        match self.diverted {
            // Whatever is there.
            Some(copy) => commit(copy, Version(0), Vec::new(), None, ConflictPolicy::LastWriter),
            None => commit(ino, self.base, self.own.clone(), self.append_from, policy),
        }
    }
}

/// Where content goes when it is sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum To {
    /// Into metadata, with the commit.
    Metadata,
    /// Into a block of its own.
    OwnBlock,
    /// Into a block with content of other files: one upload for all of them.
    SharedBlock,
}

/// What became of content that is no longer ours to keep.
pub(crate) enum Landed {
    /// It is in the file.
    InPlace,
    /// It is in a conflict copy, or the file is gone: the application must hear of it.
    Elsewhere,
}

impl Client {
    /// Uploads what is written from end to end of a block: called after each write.
    pub(crate) fn seal_full(self: &Arc<Self>, file: &Arc<FileState>) {
        let mut inner = file.inner.lock();
        for packed in inner.dirty.take_full() {
            let sealed = self.seal(&mut inner.next_sealed, packed, To::OwnBlock);
            inner.sealed.push_back(sealed);
        }
    }

    pub(crate) fn seal(self: &Arc<Self>, next: &mut u64, packed: Packed, to: To) -> Sealed {
        *next += 1;
        let (report, outcome) = watch::channel(None);
        match to {
            To::Metadata => {
                let _ = report.send(Some(Ok(None)));
            }
            To::OwnBlock => self.spawn_upload(packed.clone(), report),
            To::SharedBlock => self.upload_together(packed.bytes.clone(), report),
        }
        Sealed { packed, outcome, at: SystemTime::now(), number: *next }
    }

    fn spawn_upload(self: &Arc<Self>, packed: Packed, report: watch::Sender<Outcome>) {
        let client = self.clone();
        let upload = async move {
            let stored = client.upload(packed.bytes.clone()).await;
            let _ = report.send(Some(stored.map(|hash| Some(Stored { hash, block: packed.bytes, base: 0 }))));
        };
        self.work.spawn_on(self.stop.clone().run_until_cancelled_owned(upload), &self.runtime);
    }

    pub(crate) async fn upload(&self, block: Bytes) -> Result<BlockHash, FsError> {
        let bytes = block.clone();
        let hash = if bytes.len() <= HASH_INLINE {
            BlockHash::of(&bytes)
        } else {
            tokio::task::spawn_blocking(move || BlockHash::of(&bytes)).await.map_err(|_| FsError::Io)?
        };
        if block.len() <= REMEMBER_BYTES {
            self.fetcher.remember(hash, block.clone());
        }
        self.putter.put(hash, block).await?;
        Ok(hash)
    }

    /// Commits what is written so far, all of it (`whole`) or only what was sealed already. On return it is durable (I7).
    /// Goes on to its end though the caller is dropped.
    ///
    /// # Errors
    /// `Stale` when others wrote the same bytes: the content is in a conflict copy, or still here under the policy
    /// `Fail`. `NoSpace` and `Io` as they say; the content is still here. What is returned is also left in `untold`.
    pub(crate) async fn flush_file(self: &Arc<Self>, file: &Arc<FileState>, whole: bool) -> Result<(), FsError> {
        let (client, file) = (self.clone(), file.clone());
        self.to_its_end(async move {
            if whole {
                // It goes along with what it depends on.
                client.defer_content(&file);
            }
            client.tell_all().await?;
            client.flush_here(&file, whole).await
        })
        .await
    }

    /// Does something that goes on to its end though the caller is dropped, or a soft mount's patience ends.
    pub(crate) async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, FsError>> + Send + 'static,
    ) -> Result<T, FsError> {
        self.patiently(self.work.spawn_on(work, &self.runtime)).await?.unwrap_or(Err(FsError::Io))
    }

    async fn flush_here(self: &Arc<Self>, file: &Arc<FileState>, whole: bool) -> Result<(), FsError> {
        let mut rounds = 0;
        let (_one, last) = loop {
            let one = self.patiently(file.flushing.lock()).await?;
            if whole {
                self.seal_rest(file, To::OwnBlock);
            }
            self.upload_gathered();
            let (first, last, queued) = {
                let inner = file.inner.lock();
                let number = |sealed: &Sealed| sealed.number;
                (inner.sealed.front().map(number), inner.sealed.back().map(number), inner.queued)
            };
            rounds += 1;
            if first.is_none_or(|first| first > queued) || rounds == QUEUED_ROUNDS {
                break (one, last);
            }
            // What got into the queue meanwhile goes by the queue, which the journal follows.
            drop(one);
            self.tell_all().await?;
        };
        file.inner.lock().committing = true;
        let committed = self.commit_upto(file, last).await;
        file.inner.lock().committing = false;
        committed
    }

    async fn commit_upto(self: &Arc<Self>, file: &Arc<FileState>, last: Option<u64>) -> Result<(), FsError> {
        let mut result = Ok(());
        while let Some(last) = last {
            if file.inner.lock().sealed.front().is_none_or(|sealed| sealed.number > last) {
                break;
            }
            match self.commit_next(file, last).await {
                Ok(Landed::InPlace) => {}
                // The rest is committed all the same.
                Ok(Landed::Elsewhere) => result = Err(FsError::Stale),
                // It was removed meanwhile, and is about to be dropped.
                Err(_) if file.is_unreadable() => return Ok(()),
                Err(error) => {
                    self.content_failed(file, error);
                    return Err(error);
                }
            }
        }
        file.inner.lock().note_committed(result);
        result
    }

    /// Content could not be committed: it stays with the file, whoever asks next is told, and the background tries again.
    pub(crate) fn content_failed(self: &Arc<Self>, file: &Arc<FileState>, error: FsError) {
        if is_full(error) {
            self.window.fail(error);
        }
        let mut inner = file.inner.lock();
        inner.untold = Some(error);
        inner.refused = error == FsError::Stale;
        (inner.queued, inner.kept) = (0, 0);
        // Others need not wait for what nobody tries to commit.
        let freed = if inner.refused { std::mem::take(&mut inner.counted) } else { 0 };
        let unheard = inner.refused && inner.opens == 0;
        drop(inner);
        if freed > 0 {
            self.window.release(freed);
        }
        if unheard {
            self.drop_refused(file);
        }
        // Servers that are away come back.
        if error != FsError::Io {
            let undone = self.writeback.undo_replacing(file.ino, error, &self.known);
            self.kernel_unlearns(undone);
        }
    }

    /// Drops what the policy refuses, and what nobody is left to be told of.
    fn drop_refused(self: &Arc<Self>, file: &Arc<FileState>) {
        tracing::warn!(ino = %file.ino, "content that was in conflict is dropped: its writer has closed the file");
        let (client, file) = (self.clone(), file.clone());
        let dropping = async move {
            client.discard(&file).await;
            client.forget_if_idle(&file);
        };
        self.work.spawn_on(dropping, &self.runtime);
    }

    /// What was done to these inodes and names was undone, and the kernel believes what it has seen.
    pub(crate) fn kernel_unlearns(&self, (inos, names): Touched) {
        let names = names.into_iter().map(|(parent, name)| Notice::Moved(parent, name));
        for notice in names.chain(inos.into_iter().map(Notice::Accessed)) {
            self.notify(notice);
        }
    }

    /// Seals everything that is written. What is small may share a block with others' content, if `to` says so. Returns
    /// the number of what was sealed last, whenever that was.
    pub(crate) fn seal_rest(self: &Arc<Self>, file: &FileState, to: To) -> Option<u64> {
        let mut inner = file.inner.lock();
        let alone = inner.sealed.is_empty();
        let packed = inner.dirty.take_all();
        let bytes: usize = packed.iter().map(|packed| packed.bytes.len()).sum();
        let inline = alone
            && bytes <= INLINE_BYTES_MAX
            && packed
                .iter()
                .flat_map(|packed| &packed.pieces)
                .all(|(at, _, _)| inner.has_inline_room(ChunkIndex::of(*at)));
        for packed in packed {
            let small = packed.bytes.len() <= SHARED_BLOCK_PART;
            let to = if inline {
                To::Metadata
            } else if small {
                to
            } else {
                To::OwnBlock
            };
            let sealed = self.seal(&mut inner.next_sealed, packed, to);
            inner.sealed.push_back(sealed);
        }
        inner.sealed.back().map(|sealed| sealed.number)
    }

    /// Waits for the uploads of the next blocks and commits them together.
    async fn commit_next(self: &Arc<Self>, file: &Arc<FileState>, last: u64) -> Result<Landed, FsError> {
        let commit = self.gather(file, last).await?;
        let (answer, copy) = loop {
            let session = self.session.id();
            let (policy, copy) = self.policy(file, false).await?;
            let mut ops = vec![commit.op(file.ino, policy)];
            ops.extend(self.journaled_content(file, &commit));
            match self.session.first_until_answered(ops).await {
                // I4: the session ended meanwhile, and with it the number for a copy.
                Err(FsError::Invalid) if self.session.id() != session => {}
                answer => break (answer, copy),
            }
        };
        match answer {
            Ok(reply) => self.committed(file, &commit, reply, copy),
            Err(FsError::NotFound) if commit.is_diverted() => {
                // The copy was removed: the rest gets one of its own.
                file.inner.lock().diverted = None;
                Ok(Landed::Elsewhere)
            }
            Err(FsError::NotFound) if file.attr().nlink == 0 => {
                tracing::warn!(ino = %file.ino, "the file has no name, and was given up with the session: the content is dropped");
                self.drop_sealed(file, commit.count);
                Ok(Landed::Elsewhere)
            }
            Err(FsError::NotFound) => {
                self.make_beside(file, &commit.writes, None).await?;
                self.drop_sealed(file, commit.count);
                Ok(Landed::Elsewhere)
            }
            Err(error) => Err(error),
        }
    }

    /// What metad is to remember of the journal with a commit that it knows nothing of, if the rest of the content may get
    /// there.
    fn journaled_content(&self, file: &FileState, commit: &Commit) -> Option<Op> {
        let journal = self.journal.as_ref()?;
        let more = {
            let inner = file.inner.lock();
            inner.sealed.len() > commit.count || !inner.dirty.is_empty()
        };
        more.then(|| {
            journal.note_content();
            Op::JournaledContent { journal: journal.id(), file: commit.journaled(file.ino) }
        })
    }

    /// What is appended to a name when others were first.
    pub(crate) fn conflict_suffix(&self) -> Name {
        format!(".conflict-{}-{}", self.host, Timestamp::now().secs).into_bytes()
    }

    /// What to do on a conflict, with a number for the copy. Of what is told `late` the writer may have been answered that
    /// all is well: that is never refused.
    pub(crate) async fn policy(
        &self,
        file: &FileState,
        late: bool,
    ) -> Result<(ConflictPolicy, Option<SpareIno>), FsError> {
        Ok(match self.config.on_conflict {
            OnConflict::Fail if !late => (ConflictPolicy::Fail, None),
            OnConflict::LastWriter => (ConflictPolicy::LastWriter, None),
            OnConflict::Copy | OnConflict::Fail => {
                let spare = self.session.spare_ino().await?;
                let suffix = self.conflict_suffix();
                debug_assert_ne!(spare.ino, file.ino, "numbers are never used twice");
                (ConflictPolicy::Copy { ino: spare.ino, suffix }, Some(spare))
            }
        })
    }

    /// The next blocks up to number `last`, once they are stored, as one commit.
    pub(crate) async fn gather(self: &Arc<Self>, file: &Arc<FileState>, last: u64) -> Result<Commit, FsError> {
        let mut writes: Vec<ExtentWrite> = Vec::new();
        // Ranges in `writes`: start to end.
        let mut taken: BTreeMap<u64, u64> = BTreeMap::new();
        let mut count = 0;
        loop {
            let next = {
                let inner = file.inner.lock();
                inner
                    .sealed
                    .get(count)
                    .filter(|sealed| sealed.number <= last)
                    .map(|sealed| (sealed.packed.clone(), sealed.outcome.clone(), sealed.at))
            };
            let Some((packed, mut outcome, sealed_at)) = next else { break };
            // A piece may cross a chunk's border, and becomes two writes then.
            let full = writes.len() + packed.pieces.len() * 2 > COMMIT_EXTENTS_MAX;
            // What was overwritten between two seals goes into a commit of its own: writes of one are disjoint.
            let overlaps = |(at, _, len): &(u64, usize, usize)| {
                taken.range(..at + *len as u64).next_back().is_some_and(|(_, end)| end > at)
            };
            if count > 0 && (full || packed.pieces.iter().any(overlaps)) {
                break;
            }
            let stored = outcome.wait_for(Option::is_some).await.map_err(|_| FsError::Io)?.clone();
            let stored = stored.unwrap_or(Err(FsError::Io));
            let stored = match stored {
                // I10: it may have been dropped since, when this machine slept or metad was away for long.
                Ok(Some(stored)) if is_stale(sealed_at) => {
                    self.putter.put(stored.hash, stored.block.clone()).await.map(|()| Some(stored))
                }
                stored => stored,
            };
            match stored {
                Ok(stored) => writes.extend(writes_of(&packed, stored.as_ref())),
                Err(error) => {
                    self.retry_upload(file, count, packed);
                    return Err(error);
                }
            }
            taken.extend(packed.pieces.iter().map(|(at, _, len)| (*at, at + *len as u64)));
            count += 1;
        }
        writes.sort_by_key(|write| write.file_off);
        let inner = file.inner.lock();
        Ok(Commit {
            writes,
            base: inner.base,
            own: inner.own.iter().copied().filter(|version| *version > inner.base).collect(),
            append_from: inner.appended_from,
            mtime: inner.mtime,
            clear_privileges: inner.clear_privileges,
            diverted: inner.diverted.filter(|(_, last)| last.elapsed() < DIVERTED).map(|(copy, _)| copy),
            count,
        })
    }

    /// The next flush finds a new attempt under way.
    fn retry_upload(self: &Arc<Self>, file: &FileState, index: usize, packed: Packed) {
        let (report, outcome) = watch::channel(None);
        if let Some(sealed) = file.inner.lock().sealed.get_mut(index) {
            sealed.outcome = outcome;
            sealed.at = SystemTime::now();
        }
        self.spawn_upload(packed, report);
    }

    pub(crate) fn drop_sealed(&self, file: &FileState, count: usize) {
        let mut inner = file.inner.lock();
        let mut gone: u64 = inner.sealed.drain(..count).map(|sealed| size(&sealed.packed)).sum();
        if inner.sealed.is_empty() && inner.dirty.is_empty() {
            gone = inner.held;
        }
        let gone = inner.lets_go(gone);
        drop(inner);
        self.window.release(gone);
    }

    /// Drops what is not committed: nobody can read it any more, or its writer was told that it is refused.
    pub(crate) async fn discard(&self, file: &FileState) {
        let _one = file.flushing.lock().await;
        let mut inner = file.inner.lock();
        inner.dirty.truncate(0);
        inner.sealed.clear();
        let held = inner.held;
        let gone = inner.lets_go(held);
        inner.size = inner.attr.size;
        inner.mtime = None;
        inner.appended_from = None;
        inner.refused = false;
        drop(inner);
        self.window.release(gone);
    }

    /// Takes in the answer to a commit.
    pub(crate) fn committed(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        commit: &Commit,
        reply: OpReply,
        copy: Option<SpareIno>,
    ) -> Result<Landed, FsError> {
        let OpReply::Committed { attr, appended_at, conflict, chunk_extents } = reply else { return Err(FsError::Io) };
        self.drop_sealed(file, commit.count);
        if commit.is_diverted() {
            self.notify(Notice::Changed(file.ino));
            let mut inner = file.inner.lock();
            inner.diverted = Some((attr.ino, Instant::now()));
            inner.follow_commit(None, None, 0, false);
            drop(inner);
            if let Some(unused) = copy {
                self.session.keep_spare(unused);
            }
            return Ok(Landed::Elsewhere);
        }
        let made = attr.version;
        let in_place = appended_at == commit.append_from;
        // I6: only then has nobody else changed the file since `base`.
        let only_ours = conflict.is_none() && attr.version == commit.base.next();
        if only_ours && in_place {
            self.kernel_follows(file.ino, commit.base, attr.version);
        } else {
            // What the kernel has cached is not the file's content.
            self.notify(Notice::Changed(file.ino));
        }
        let mut inner = file.inner.lock();
        if attr.version > inner.content {
            if only_ours && in_place && inner.content == commit.base {
                inner.apply(&commit.writes, attr.version);
                inner.content = attr.version;
            } else {
                inner.forget_content(attr.version);
            }
        }
        if attr.version >= inner.attr.version {
            inner.attr = attr;
        }
        if conflict.is_none() && !only_ours {
            inner.note_own(made);
        }
        inner.diverted = conflict.as_ref().map(|conflict| (conflict.ino, Instant::now()));
        inner.follow_commit(commit.append_from, appended_at, end_of(&commit.writes), only_ours);
        drop(inner);
        if chunk_extents > COMPACT_EXTENTS
            && let Some(write) = commit.writes.last()
        {
            self.compact_later(file.ino, ChunkIndex::of(write.file_off), chunk_extents);
        }
        if let Some(conflict) = conflict {
            tracing::warn!(
                ino = %file.ino,
                copy = %String::from_utf8_lossy(&conflict.name),
                "another session wrote the same bytes first; this content was kept as a conflict copy"
            );
            return Ok(Landed::Elsewhere);
        }
        if let Some(unused) = copy {
            self.session.keep_spare(unused);
        }
        Ok(Landed::InPlace)
    }
}

/// Whether an upload was so long ago that daemons may have given up the block.
fn is_stale(sealed_at: SystemTime) -> bool {
    // A clock that was set back tells nothing.
    sealed_at.elapsed().map_or(true, |age| age > Duration::from_millis(UPLOAD_FRESH_MS))
}

fn end_of(writes: &[ExtentWrite]) -> u64 {
    writes.last().map_or(0, |last| last.file_off + last.len)
}

fn size(packed: &Packed) -> u64 {
    packed.pieces.iter().map(|(_, _, len)| *len as u64).sum()
}
