//! How inodes look from here: what is known or metad answers, with uncommitted content applied. The attributes of
//! open files are asked for again when others change them.

use crate::error::unexpected_reply;
use crate::file::state::FileState;
use crate::kernel::{Dropping, Kernel, Notice};
use crate::known::Known;
use crate::known::leased::{LeasedAnswer, LeasedSession};
use crate::open::OpenFiles;
use crate::ordered::{Ordered, Rank};
use crate::work::Work;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use wire::FsError;
use wire::attr::InodeAttr;
use wire::ids::Ino;
use wire::op::{Read, ReadReply};
use wire::retry::Backoff;

/// Attributes as this mount shows them.
pub(crate) struct View {
    session: Arc<LeasedSession>,
    known: Arc<Known>,
    open_files: Arc<OpenFiles>,
    kernel: Arc<Kernel>,
    /// Open files whose attributes are asked for because another session changed them.
    refreshing: Ordered<HashSet<Ino>>,
    work: Work,
}

impl View {
    /// Creates a view of what `session` answers, with what is uncommitted in open files.
    pub fn new(
        (session, known): (Arc<LeasedSession>, Arc<Known>),
        open_files: Arc<OpenFiles>,
        kernel: Arc<Kernel>,
        work: Work,
    ) -> Self {
        let refreshing = Ordered::new(Rank::Refreshing, HashSet::new());
        Self { session, known, open_files, kernel, refreshing, work }
    }

    /// Asks metad for attributes. Returns also whether they are leased.
    pub async fn ask(&self, read: Read) -> Result<(InodeAttr, bool), FsError> {
        let LeasedAnswer { answer, leased } = self.session.read_leased(read).await?;
        let ReadReply::Attr(attr) = answer? else { return Err(unexpected_reply()) };
        if let Some(mark) = leased {
            self.known.learn_attr(&attr, mark);
        }
        Ok((attr, leased.is_some()))
    }

    /// Applies uncommitted content of our own to attributes.
    pub fn with_uncommitted(&self, attr: InodeAttr) -> InodeAttr {
        let open = self.open_files.get(attr.ino);
        match open {
            Some(file) => file.overlaid(attr),
            None => attr,
        }
    }

    /// Returns attributes.
    ///
    /// # Errors
    /// As `fstat(2)`; `NotFound` when the inode is gone.
    pub async fn attr(&self, ino: Ino) -> Result<InodeAttr, FsError> {
        if let Some(known) = self.known_attr(ino) {
            return Ok(known);
        }
        match self.ask(Read::GetAttr { ino }).await {
            Err(FsError::NotFound) => self.known.removed_dir(ino).ok_or(FsError::NotFound),
            found => found.map(|(attr, _)| self.with_uncommitted(attr)),
        }
    }

    /// Returns attributes, if they are known under a lease.
    pub fn known_attr(&self, ino: Ino) -> Option<InodeAttr> {
        self.known.attr(ino).map(|attr| self.with_uncommitted(attr))
    }

    /// Handles that another session is about to change an inode. If it is open here, its next use asks metad first,
    /// the kernel drops its pages, and its attributes are asked for until nobody changes it. Returns a receiver that
    /// reports when the pages are dropped.
    pub fn recalled(self: &Arc<Self>, ino: Ino) -> Option<Dropping> {
        self.open_files.get(ino)?.note_recall();
        let dropping = self.kernel.drop_pages(ino);
        self.refresh_open(ino);
        dropping
    }

    /// Prepares the use of an open file: if others may be changing it, asks metad for its attributes and applies
    /// them. So a program that knows of another session's change finds it here.
    ///
    /// # Errors
    /// As those of asking metad for attributes. That the inode is gone is not an error: a program that has it open
    /// goes on.
    pub async fn catch_up(&self, file: &FileState) -> Result<(), FsError> {
        if !file.is_contended() {
            return Ok(());
        }
        match self.take_in(file).await {
            Ok(_) | Err(FsError::NotFound | FsError::Stale) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Asks metad for the attributes of an open file and applies them. Returns whether they are leased.
    async fn take_in(&self, file: &FileState) -> Result<bool, FsError> {
        let recalls = file.recalls();
        let (attr, leased) = self.ask(Read::GetAttr { ino: file.ino() }).await?;
        // A needless notice does harm: the kernel ignores attributes that it asks for meanwhile, and reads up to the
        // old end.
        if file.refresh(&attr, None) && !file.is_dropped() {
            self.kernel.notify(Notice::Changed(file.ino()));
        }
        if leased {
            file.note_settled(recalls);
        }
        Ok(leased)
    }

    /// Must be called when the kernel was given something of an open file to cache. While others change the file, it
    /// must not cache it.
    pub fn given_pages(&self, file: &FileState) {
        if file.is_contended() {
            self.kernel.notify(Notice::Changed(file.ino()));
        }
    }

    /// Refreshes an open file that another session changes: once the new content is there, it is shown, and later
    /// writes are based on it.
    pub fn refresh_open(self: &Arc<Self>, ino: Ino) {
        if !self.open_files.has(ino) || !self.refreshing.lock().insert(ino) {
            return;
        }
        let view = self.clone();
        let refresh = async move {
            // Removed before asking: a change that comes after the answer must ask again.
            view.refreshing.lock().remove(&ino);
            let open = view.open_files.get(ino);
            if let Some(file) = open {
                view.refresh_until_leased(&file).await;
            }
        };
        self.work.spawn_until_stopped(refresh);
    }

    /// Refreshes all open files, because nobody would have reported changes.
    pub fn refresh_all_open(self: &Arc<Self>) {
        for ino in self.open_files.inos() {
            self.refresh_open(ino);
        }
    }

    /// Asks for the attributes of an open file until they are leased: until then, another session changes it.
    pub async fn refresh_until_leased(&self, file: &Arc<FileState>) {
        let mut backoff = Backoff::new(Duration::from_millis(2), Duration::from_secs(1));
        while self.open_files.has(file.ino()) {
            match self.take_in(file).await {
                Ok(true) | Err(_) => return,
                Ok(false) => {}
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }
}
