//! From written bytes to committed content: seal, upload, commit.
//!
//! *Sealing* cuts written bytes into blocks, which are uploaded at once in the background while the application writes
//! on. *Committing* makes everything that was sealed part of the file, in the order of sealing (I7), with the version it
//! is based on (I6). What fails stays, and is tried again by the next flush.

use super::dirty::Packed;
use super::state::{FileState, Outcome, Sealed, writes_of};
use crate::{Client, OnConflict};
use std::sync::Arc;
use tokio::sync::watch;
use wire::FsError;
use wire::attr::Timestamp;
use wire::extent::ExtentWrite;
use wire::ids::{BlockHash, Ino, Version};
use wire::limits::{COMMIT_EXTENTS_MAX, INLINE_BYTES_MAX};
use wire::op::{ConflictPolicy, Op, OpReply};

/// Blocks up to this size are remembered after writing: small files are often read soon.
const REMEMBER_BYTES: usize = 256 << 10;
/// Inline extents that a file may gather before its small writes go to blocks.
const INLINE_EXTENTS: usize = 64;
/// Blocks up to this size are hashed where they are; larger ones on a thread for that.
const HASH_INLINE: usize = 64 << 10;

/// What one commit carries.
struct Commit {
    writes: Vec<ExtentWrite>,
    base: Version,
    append_from: Option<u64>,
    mtime: Option<Timestamp>,
    clear_privileges: bool,
    /// Sealed blocks that it covers.
    count: usize,
}

impl Client {
    /// Uploads what is written from end to end of a block: called after each write.
    pub(crate) fn seal_full(self: &Arc<Self>, file: &Arc<FileState>) {
        let mut inner = file.inner.lock();
        for packed in inner.dirty.take_full() {
            let sealed = self.seal(&mut inner.next_sealed, packed, false);
            inner.sealed.push_back(sealed);
        }
    }

    fn seal(self: &Arc<Self>, next: &mut u64, packed: Packed, inline: bool) -> Sealed {
        *next += 1;
        let (report, outcome) = watch::channel(None);
        if inline {
            let _ = report.send(Some(Ok(None)));
        } else {
            self.spawn_upload(packed.clone(), report);
        }
        Sealed { packed, outcome, number: *next }
    }

    fn spawn_upload(self: &Arc<Self>, packed: Packed, report: watch::Sender<Outcome>) {
        let client = self.clone();
        self.runtime.spawn(async move {
            let stored = client.upload(packed).await;
            let _ = report.send(Some(stored.map(Some)));
        });
    }

    async fn upload(&self, packed: Packed) -> Result<BlockHash, FsError> {
        let bytes = packed.bytes.clone();
        let hash = if bytes.len() <= HASH_INLINE {
            BlockHash::of(&bytes)
        } else {
            tokio::task::spawn_blocking(move || BlockHash::of(&bytes)).await.map_err(|_| FsError::Io)?
        };
        if packed.bytes.len() <= REMEMBER_BYTES {
            self.fetcher.remember(hash, packed.bytes.clone());
        }
        self.putter.put(hash, packed.bytes).await?;
        Ok(hash)
    }

    /// Commits what is written so far, all of it (`whole`) or only what was sealed already. On return it is durable (I7).
    ///
    /// # Errors
    /// `Stale` when others wrote the same bytes: the content is in a conflict copy, or still here under the policy
    /// `Fail`. `NoSpace` and `Io` as they say; the content is still here.
    pub(crate) async fn flush_file(self: &Arc<Self>, file: &Arc<FileState>, whole: bool) -> Result<(), FsError> {
        let _one = file.flushing.lock().await;
        if whole {
            self.seal_rest(file);
        }
        let last = file.inner.lock().sealed.back().map(|sealed| sealed.number);
        let mut result = Ok(());
        while let Some(last) = last {
            if file.inner.lock().sealed.front().is_none_or(|sealed| sealed.number > last) {
                break;
            }
            match self.commit_next(file, last).await {
                Ok(()) => {}
                // The content is safe in a conflict copy; the rest is committed all the same.
                Err(FsError::Stale) if self.config.on_conflict == OnConflict::Copy => result = Err(FsError::Stale),
                Err(error) => {
                    file.inner.lock().error = Some(error);
                    return Err(error);
                }
            }
        }
        file.inner.lock().error = None;
        result
    }

    /// Seals everything that is written.
    fn seal_rest(self: &Arc<Self>, file: &FileState) {
        let mut inner = file.inner.lock();
        let small = inner.sealed.is_empty();
        let packed = inner.dirty.take_all();
        let bytes: usize = packed.iter().map(|packed| packed.bytes.len()).sum();
        let inline = small
            && bytes <= INLINE_BYTES_MAX
            && inner.extents.values().filter(|extent| matches!(extent.source, wire::extent::Source::Inline(_))).count()
                < INLINE_EXTENTS;
        for packed in packed {
            let sealed = self.seal(&mut inner.next_sealed, packed, inline);
            inner.sealed.push_back(sealed);
        }
    }

    /// Waits for the uploads of the next blocks and commits them together.
    async fn commit_next(self: &Arc<Self>, file: &Arc<FileState>, last: u64) -> Result<(), FsError> {
        let commit = self.gather(file, last).await?;
        let (policy, copy) = self.policy(file).await?;
        let op = Op::Commit {
            ino: file.ino,
            base: commit.base,
            writes: commit.writes.clone(),
            append_from: commit.append_from,
            mtime: commit.mtime,
            clear_privileges: commit.clear_privileges,
            policy,
        };
        let reply = match self.session.one(op).await {
            Err(FsError::NotFound) => {
                // The file is gone for everyone; so is what was written to it.
                self.drop_sealed(file, commit.count);
                return Err(FsError::Stale);
            }
            other => other?,
        };
        self.committed(file, &commit, reply, copy)
    }

    /// What to do on a conflict, with a number for the copy.
    async fn policy(&self, file: &FileState) -> Result<(ConflictPolicy, Option<Ino>), FsError> {
        Ok(match self.config.on_conflict {
            OnConflict::Fail => (ConflictPolicy::Fail, None),
            OnConflict::LastWriter => (ConflictPolicy::LastWriter, None),
            OnConflict::Copy => {
                let ino = self.spare_ino().await?;
                let suffix = format!(".conflict-{}-{}", self.host, Timestamp::now().secs).into_bytes();
                debug_assert_ne!(ino, file.ino, "numbers are never used twice");
                (ConflictPolicy::Copy { ino, suffix }, Some(ino))
            }
        })
    }

    /// The next blocks up to number `last`, once they are stored, as one commit.
    async fn gather(self: &Arc<Self>, file: &Arc<FileState>, last: u64) -> Result<Commit, FsError> {
        let mut writes: Vec<ExtentWrite> = Vec::new();
        let mut count = 0;
        loop {
            let next = {
                let inner = file.inner.lock();
                inner
                    .sealed
                    .get(count)
                    .filter(|sealed| sealed.number <= last)
                    .map(|sealed| (sealed.packed.clone(), sealed.outcome.clone()))
            };
            let Some((packed, mut outcome)) = next else { break };
            // Pieces of later blocks may overlap those of earlier ones: these go into a commit of their own.
            let overlaps = packed.pieces.iter().any(|(at, _, len)| {
                writes.iter().any(|write| *at < write.file_off + write.len && write.file_off < at + *len as u64)
            });
            if count > 0 && (overlaps || writes.len() + packed.pieces.len() * 2 > COMMIT_EXTENTS_MAX) {
                break;
            }
            let stored = outcome.wait_for(Option::is_some).await.map_err(|_| FsError::Io)?.unwrap_or(Err(FsError::Io));
            match stored {
                Ok(hash) => writes.extend(writes_of(&packed, hash)),
                Err(error) => {
                    self.retry_upload(file, count, packed);
                    return Err(error);
                }
            }
            count += 1;
        }
        writes.sort_by_key(|write| write.file_off);
        let inner = file.inner.lock();
        Ok(Commit {
            writes,
            base: inner.base,
            append_from: inner.appended_from,
            mtime: inner.mtime,
            clear_privileges: inner.clear_privileges,
            count,
        })
    }

    /// The next flush finds a new attempt under way.
    fn retry_upload(self: &Arc<Self>, file: &FileState, index: usize, packed: Packed) {
        let (report, outcome) = watch::channel(None);
        if let Some(sealed) = file.inner.lock().sealed.get_mut(index) {
            sealed.outcome = outcome;
        }
        self.spawn_upload(packed, report);
    }

    fn drop_sealed(&self, file: &FileState, count: usize) {
        let mut inner = file.inner.lock();
        let mut gone: u64 = inner.sealed.drain(..count).map(|sealed| size(&sealed.packed)).sum();
        if inner.sealed.is_empty() && inner.dirty.is_empty() {
            gone = inner.held;
        }
        inner.held -= gone;
        drop(inner);
        self.window.release(gone);
    }

    /// Takes in the answer to a commit.
    fn committed(&self, file: &FileState, commit: &Commit, reply: OpReply, copy: Option<Ino>) -> Result<(), FsError> {
        let OpReply::Committed { attr, appended_at, conflict, .. } = reply else { return Err(FsError::Io) };
        self.drop_sealed(file, commit.count);
        let mut inner = file.inner.lock();
        let in_place = appended_at == commit.append_from;
        if let Some(conflict) = &conflict {
            tracing::warn!(
                ino = %file.ino,
                copy = %String::from_utf8_lossy(&conflict.name),
                "another session wrote the same bytes first; this content was kept as a conflict copy"
            );
            inner.forget_content();
        } else if attr.version == commit.base.next() && in_place {
            inner.apply(&commit.writes, attr.version);
        } else {
            // Merged with what others wrote: what is known of the content is old.
            inner.forget_content();
        }
        if attr.version == commit.base.next() && in_place {
            self.versions.lock().put(file.ino, attr.version);
        }
        if inner.held == 0 {
            inner.base = attr.version;
            inner.appended_from = None;
            inner.size = attr.size;
            inner.mtime = None;
            inner.clear_privileges = false;
        } else {
            // I6: what was written meanwhile saw the file as it was before others' changes, so it keeps that base.
            if attr.version == commit.base.next() {
                inner.base = attr.version;
            }
            inner.follow_append(commit.append_from, appended_at, end_of(&commit.writes));
            inner.size = inner.size.max(attr.size);
        }
        inner.attr = attr;
        drop(inner);
        match (conflict, copy) {
            (Some(_), _) => Err(FsError::Stale),
            (None, Some(unused)) => {
                self.keep_spare_ino(unused);
                Ok(())
            }
            (None, None) => Ok(()),
        }
    }
}

fn end_of(writes: &[ExtentWrite]) -> u64 {
    writes.last().map_or(0, |last| last.file_off + last.len)
}

fn size(packed: &Packed) -> u64 {
    packed.pieces.iter().map(|(_, _, len)| *len as u64).sum()
}
