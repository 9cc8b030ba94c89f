//! What inodes look like from here: what is known or metad says of them, and over it what is not committed yet. Open files
//! are looked at again when others change them.

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
    /// Open files that are being looked at because another session changed them.
    refreshing: Ordered<HashSet<Ino>>,
    work: Work,
}

impl View {
    /// What is asked by `session`, with what is uncommitted in open files.
    pub fn new(
        (session, known): (Arc<LeasedSession>, Arc<Known>),
        open_files: Arc<OpenFiles>,
        kernel: Arc<Kernel>,
        work: Work,
    ) -> Self {
        let refreshing = Ordered::new(Rank::Refreshing, HashSet::new());
        Self { session, known, open_files, kernel, refreshing, work }
    }

    /// Asks metad for attributes. Answers whether they are leased, too.
    pub async fn ask(&self, read: Read) -> Result<(InodeAttr, bool), FsError> {
        let LeasedAnswer { answer, leased } = self.session.read_leased(read).await?;
        let ReadReply::Attr(attr) = answer? else { return Err(unexpected_reply()) };
        if let Some(mark) = leased {
            self.known.learn_attr(&attr, mark);
        }
        Ok((attr, leased.is_some()))
    }

    /// What is not committed yet shows in our own attributes.
    pub fn with_uncommitted(&self, attr: InodeAttr) -> InodeAttr {
        let open = self.open_files.get(attr.ino);
        match open {
            Some(file) => file.overlaid(attr),
            None => attr,
        }
    }

    /// Attributes.
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

    /// Attributes, when they are known under a lease.
    pub fn known_attr(&self, ino: Ino) -> Option<InodeAttr> {
        self.known.attr(ino).map(|attr| self.with_uncommitted(attr))
    }

    /// Another session is about to change an inode. If it is open here, its next use asks metad first, the kernel drops its
    /// pages, and it is looked at until nobody changes it. Returns what says that the pages are dropped.
    pub fn recalled(self: &Arc<Self>, ino: Ino) -> Option<Dropping> {
        self.open_files.get(ino)?.note_recall();
        let dropping = self.kernel.drop_pages(ino);
        self.refresh_open(ino);
        dropping
    }

    /// Before an open file is used: if others may be changing it, this takes in what metad says of it now. So whoever
    /// knows that another session has changed it finds that here.
    ///
    /// # Errors
    /// As those of asking metad for attributes; not that the inode is gone: who has it open goes on.
    pub async fn catch_up(&self, file: &FileState) -> Result<(), FsError> {
        if !file.is_contended() {
            return Ok(());
        }
        match self.take_in(file).await {
            Ok(_) | Err(FsError::NotFound | FsError::Stale) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Asks metad for the attributes of an open file and takes them in. Whether they are leased.
    async fn take_in(&self, file: &FileState) -> Result<bool, FsError> {
        let recalls = file.recalls();
        let (attr, leased) = self.ask(Read::GetAttr { ino: file.ino() }).await?;
        // One notice more than needed is more than a waste: the kernel passes over attributes that it asks for meanwhile,
        // and reads up to the old end.
        if file.refresh(&attr, None) && !file.is_dropped() {
            self.kernel.notify(Notice::Changed(file.ino()));
        }
        if leased {
            file.note_settled(recalls);
        }
        Ok(leased)
    }

    /// Something of an open file was given to the kernel to keep. While others change the file, it must not.
    pub fn given_pages(&self, file: &FileState) {
        if file.is_contended() {
            self.kernel.notify(Notice::Changed(file.ino()));
        }
    }

    /// An open file that another session changes shows the new content once it is there, and what is written to it is
    /// based on that.
    pub fn refresh_open(self: &Arc<Self>, ino: Ino) {
        if !self.open_files.has(ino) || !self.refreshing.lock().insert(ino) {
            return;
        }
        let view = self.clone();
        let refresh = async move {
            // Before asking: a change that comes after the answer asks again.
            view.refreshing.lock().remove(&ino);
            let open = view.open_files.get(ino);
            if let Some(file) = open {
                view.refresh_until_leased(&file).await;
            }
        };
        self.work.spawn_until_stopped(refresh);
    }

    /// All open files show what they are now: nobody would have reported changes.
    pub fn refresh_all_open(self: &Arc<Self>) {
        for ino in self.open_files.inos() {
            self.refresh_open(ino);
        }
    }

    /// Asks for the attributes of an open file until they are leased: meanwhile somebody changes it.
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
