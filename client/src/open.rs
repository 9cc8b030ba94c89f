//! Open inodes: their handles, when they are forgotten, and what happens to inodes without a name.
//!
//! An inode is in the map as long as a handle is open, or content of it waits to be committed. metad retains an
//! unlinked inode until this session releases it; [`opening`] separates opens from removals.

pub(crate) mod opening;

use crate::commit::committer::Committer;
use crate::file::state::FileState;
use crate::kernel::Kernel;
use crate::known::Known;
use crate::known::leased::LeasedSession;
use crate::ordered::{Ordered, Rank};
use crate::work::Work;
use opening::{Opening, Opens, Vouched};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use wire::FsError;
use wire::ids::Ino;
use wire::op::Op;

/// Open inodes.
pub(crate) struct OpenFiles {
    files: Ordered<BTreeMap<Ino, Arc<FileState>>>,
    /// Inodes being opened and removed.
    opens: Opens,
    /// Unlinked inodes that metad retains for our handles.
    orphans: Ordered<HashSet<Ino>>,
    known: Arc<Known>,
    session: Arc<LeasedSession>,
    committer: Arc<Committer>,
    kernel: Arc<Kernel>,
    work: Work,
}

impl OpenFiles {
    /// Starts with nothing open.
    pub fn new(
        (session, known): (Arc<LeasedSession>, Arc<Known>),
        committer: Arc<Committer>,
        kernel: Arc<Kernel>,
        work: Work,
    ) -> Self {
        Self {
            files: Ordered::new(Rank::Files, BTreeMap::new()),
            opens: Opens::default(),
            orphans: Ordered::new(Rank::Orphans, HashSet::new()),
            known,
            session,
            committer,
            kernel,
            work,
        }
    }

    /// Returns an open inode.
    pub fn get(&self, ino: Ino) -> Option<Arc<FileState>> {
        self.files.lock().get(&ino).cloned()
    }

    /// Returns whether an inode is open.
    pub fn has(&self, ino: Ino) -> bool {
        self.files.lock().contains_key(&ino)
    }

    /// Returns all open inodes.
    pub fn inos(&self) -> Vec<Ino> {
        self.files.lock().keys().copied().collect()
    }

    /// Returns those that `wanted` selects.
    pub fn filtered(&self, wanted: impl Fn(&FileState) -> bool) -> Vec<Arc<FileState>> {
        self.files.lock().values().filter(|file| wanted(file)).cloned().collect()
    }

    /// Adds a handle on an open inode.
    pub fn hold(&self, ino: Ino) -> Option<Arc<FileState>> {
        let files = self.files.lock();
        let file = files.get(&ino)?;
        file.add_handle();
        Some(file.clone())
    }

    /// Adds a handle on an inode that was not open. If it was opened meanwhile, the handle is on that state.
    pub fn insert(&self, file: Arc<FileState>) -> Arc<FileState> {
        let mut files = self.files.lock();
        let file = files.entry(file.ino()).or_insert(file).clone();
        file.add_handle();
        file
    }

    /// Begins to open an inode, once no removal of it is under way. Cancel-safe.
    pub async fn begin(&self, ino: Ino) -> Opening<'_> {
        self.opens.begin(ino).await
    }

    /// Begins to open an inode that is not made yet.
    pub fn begin_new(&self, ino: Ino) -> Opening<'_> {
        self.opens.begin_new(ino)
    }

    /// Vouches that an inode is not open, if that is so: nobody opens it until the returned value is dropped.
    pub fn vouch(&self, ino: Ino) -> Option<Vouched<'_>> {
        self.opens.vouch(ino, || self.has(ino))
    }

    /// Vouches that no handle on an inode is open. Content of it may wait to be committed.
    pub fn vouch_closed(&self, ino: Ino) -> Option<Vouched<'_>> {
        self.opens.vouch(ino, || self.files.lock().get(&ino).is_some_and(|file| file.is_open()))
    }

    /// Forgets an inode without handles and without uncommitted content.
    pub fn forget_if_idle(&self, file: &Arc<FileState>) {
        self.opens.forget(file.ino(), || {
            let mut files = self.files.lock();
            let (idle, page) = file.idle();
            if !idle || files.get(&file.ino()).is_none_or(|known| !Arc::ptr_eq(known, file)) {
                return false;
            }
            files.remove(&file.ino());
            if !file.pages_show_present() {
                // Which ones are old is forgotten with it: the next open drops all.
                self.kernel.spoils_pages(file.ino());
            }
            if let Some(page) = page {
                self.known.remember_content(file.ino(), page);
            }
            true
        });
    }

    /// Returns whether metad retains this unlinked inode for our handles.
    pub fn is_orphan(&self, ino: Ino) -> bool {
        self.orphans.lock().contains(&ino)
    }

    /// Retains those of these unlinked inodes that are open here, and releases the others.
    pub async fn retain_or_release(self: &Arc<Self>, inos: &[Ino]) {
        let mut vouched = Vec::new();
        for ino in inos {
            match self.vouch(*ino) {
                Some(closed) => {
                    self.orphans.lock().remove(ino);
                    vouched.push(closed);
                }
                None => {
                    self.orphans.lock().insert(*ino);
                    self.drop_unread(*ino);
                }
            }
        }
        let closed: Vec<Ino> = vouched.iter().map(Vouched::ino).collect();
        if !closed.is_empty()
            && let Err(error) = self.session.one(Op::ReleaseOrphans { inos: closed }).await
        {
            // metad asks again with the next keep-alive.
            tracing::debug!(%error, "orphans are released later");
        }
    }

    /// Drops uncommitted content of an unlinked inode without handles: nobody can read it any more.
    pub fn drop_unread(self: &Arc<Self>, ino: Ino) {
        let Some(file) = self.files.lock().get(&ino).filter(|file| file.lose_last_name()).cloned() else { return };
        let open = self.clone();
        self.work.spawn(async move {
            open.committer.discard(&file).await;
            open.forget_if_idle(&file);
            open.release_closed_orphan(ino).await;
        });
    }

    /// Releases an orphan that is not open here any more.
    pub async fn release_closed_orphan(self: &Arc<Self>, ino: Ino) {
        let orphaned = !self.has(ino) && self.orphans.lock().remove(&ino);
        if orphaned {
            // Boxed, because releasing may find another orphan to drop.
            Box::pin(self.retain_or_release(&[ino])).await;
        }
    }

    /// Notes that content could not be committed. It stays with the file, the next `fsync` or `close` gets the error,
    /// and the background tries again. Refused content is dropped when no handle is left to report it to.
    pub fn content_failed(self: &Arc<Self>, file: &Arc<FileState>, error: FsError) {
        if !self.committer.content_failed(file, error) {
            return;
        }
        tracing::warn!(ino = %file.ino(), "content that was in conflict is dropped: its writer has closed the file");
        let (open, file) = (self.clone(), file.clone());
        self.work.spawn(async move {
            open.committer.discard(&file).await;
            open.forget_if_idle(&file);
        });
    }
}
