//! Attributes: reading and changing them, and what the kernel may believe of them.

use crate::commit::committer::is_full;
use crate::error::unexpected_reply;
use crate::file::state::FileState;
use crate::{Client, Notice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use wire::FsError;
use wire::attr::{AttrChange, InodeAttr};
use wire::ids::{Ino, Version};
use wire::op::{Op, OpReply, Read, ReadReply, StatFs};
use wire::trace;

impl Client {
    /// Carries out a change of an inode at once.
    pub(crate) async fn change(&self, op: Op) -> Result<InodeAttr, FsError> {
        match self.at_once(op).await? {
            OpReply::Attr(attr) => Ok(self.view.with_uncommitted(attr)),
            _ => Err(unexpected_reply()),
        }
    }

    /// Returns attributes.
    ///
    /// # Errors
    /// As `fstat(2)`; `NotFound` when the inode is gone.
    pub async fn getattr(&self, ino: Ino) -> Result<InodeAttr, FsError> {
        self.view.attr(ino).await
    }

    /// Returns attributes, if they are known under a lease.
    #[must_use]
    pub fn known_attr(&self, ino: Ino) -> Option<InodeAttr> {
        self.view.known_attr(ino)
    }

    /// Returns for how long the kernel may believe these attributes, which it is given now. Leases on them are given
    /// back only after that time.
    #[must_use]
    pub fn believe_attr(&self, attr: &InodeAttr) -> Duration {
        self.known.believe_attr(attr)
    }

    /// Returns for how long the kernel may believe that a name leads to this inode, or to none.
    #[must_use]
    pub fn believe_name(&self, parent: Ino, name: &[u8], ino: Option<Ino>) -> Duration {
        self.known.believe_name(parent, name, ino)
    }

    /// Changes attributes. A change of length waits for what was written before.
    ///
    /// # Errors
    /// As `chmod(2)`, `chown(2)`, `truncate(2)`, `utimensat(2)`.
    pub async fn setattr(&self, ino: Ino, change: AttrChange) -> Result<InodeAttr, FsError> {
        if let Some(attr) = self.set_attr_here(ino, &change).await {
            return Ok(self.view.with_uncommitted(attr));
        }
        let open = self.open_files.get(ino);
        let Some(file) = open else { return self.change(Op::SetAttr { ino, change }).await };
        // The commit of earlier content must not replace times that are set.
        let ordered =
            change.size.is_some() || change.mtime.is_some() || change.clear_privileges || change.mode.is_some();
        if ordered && file.is_dirty() {
            match self.flusher.flush(&file, true).await {
                // Content that cannot be stored is cut like the rest, and gets the time that is set: on a full disk,
                // this is how room is made.
                Err(error) if is_full(error) => {}
                flushed => flushed?,
            }
        }
        if let Some(size) = change.size {
            return self.change_content(&file, Op::SetAttr { ino, change }, Some(size)).await;
        }
        let OpReply::Attr(attr) = self.at_once(Op::SetAttr { ino, change: change.clone() }).await? else {
            return Err(unexpected_reply());
        };
        if file.refresh(&attr, None) {
            self.kernel.notify(Notice::Changed(ino));
        }
        file.time_was_set(&change, &attr);
        Ok(file.overlaid(attr))
    }

    /// Carries out a change of an open file's content that is not a commit. `cut` is the offset from which content is
    /// removed, if nothing else happens. Runs to its end though the caller is dropped: a session that does not learn of
    /// its own change takes it for another session's.
    pub(crate) async fn change_content(
        &self,
        file: &Arc<FileState>,
        op: Op,
        cut: Option<u64>,
    ) -> Result<InodeAttr, FsError> {
        let change = Arc::new(Change::new(self.arc(), file.clone()));
        let mut caller = Caller { change: change.clone(), answered: false };
        let (client, file) = (self.arc(), file.clone());
        let changed = self
            .work
            .to_its_end(trace::carried(Box::pin(async move {
                // Before the flush lock: sending the file's content to metad takes that lock, too.
                let _barred = client.order.bar([file.ino()]).await?;
                let _one = file.begin_flush().await;
                let OpReply::Attr(attr) = client.session.one_until_answered(op).await? else {
                    return Err(unexpected_reply());
                };
                client.kernel.follows(file.ino(), Version(attr.version.0.saturating_sub(1)), attr.version);
                if file.changed_here(&attr, cut) {
                    client.kernel.notify(Notice::Changed(file.ino()));
                }
                let gone = cut.map_or(0, |size| file.cut_uncommitted(size));
                change.ended(attr.version);
                if gone > 0 {
                    client.committer.window().release(gone);
                    client.open_files.forget_if_idle(&file);
                }
                Ok(file.overlaid(attr))
            })))
            .await;
        caller.answered = changed.is_ok();
        changed
    }

    /// Returns capacity and use.
    ///
    /// # Errors
    /// As `statfs(2)`.
    pub async fn statfs(&self) -> Result<StatFs, FsError> {
        match self.session.read(Read::StatFs).await? {
            ReadReply::StatFs(stats) => Ok(stats),
            _ => Err(unexpected_reply()),
        }
    }
}

/// A change of a file's content that runs to its end. The kernel drops the pages that are concerned when it gets the
/// answer; if the caller is gone by then, it retains them as they were before the change.
struct Change {
    client: Arc<Client>,
    file: Arc<FileState>,
    /// The caller does not wait for the answer any more.
    gone: AtomicBool,
    /// The version that the change has made; 0 until it has ended.
    made: AtomicU64,
}

impl Change {
    fn new(client: Arc<Client>, file: Arc<FileState>) -> Self {
        Self { client, file, gone: AtomicBool::new(false), made: AtomicU64::new(0) }
    }

    /// Notes that the change has made this version, and that this is applied.
    fn ended(&self, made: Version) {
        self.made.store(made.0, Ordering::SeqCst);
        if self.gone.load(Ordering::SeqCst) {
            self.missed(made);
        }
    }

    /// Notes that the caller is gone. Each of the two looks after it has noted its own part, so one of them, or both,
    /// find that the kernel has missed the change.
    fn lost_caller(&self) {
        self.gone.store(true, Ordering::SeqCst);
        let made = self.made.load(Ordering::SeqCst);
        if made > 0 {
            self.missed(Version(made));
        }
    }

    fn missed(&self, made: Version) {
        self.file.note_missed(made);
        self.client.kernel.spoils_pages(self.file.ino());
    }
}

/// Held by the caller of a change until it has the answer.
struct Caller {
    change: Arc<Change>,
    answered: bool,
}

impl Drop for Caller {
    fn drop(&mut self) {
        if !self.answered {
            self.change.lost_caller();
        }
    }
}
