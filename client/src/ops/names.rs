//! Names: looking them up, and making, linking, moving and removing the inodes behind them.

use crate::Client;
use crate::commit::committer::is_full;
use crate::error::unexpected_reply;
use crate::known::leased::LeasedAnswer;
use crate::open::opening::{Opening, Vouched};
use crate::queue::NewNode;
use std::sync::Arc;
use wire::FsError;
use wire::attr::InodeAttr;
use wire::ids::Ino;
use wire::op::{Name, Op, OpReply, Read, ReadReply, RenameMode};
use wire::trace;

impl Client {
    /// Returns the inode behind a name, also for `.` and `..`.
    ///
    /// # Errors
    /// As `stat(2)`.
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<InodeAttr, FsError> {
        if matches!(name, b"." | b"..") {
            return self.lookup_dots(parent, name).await;
        }
        if let Some(known) = self.known_name(parent, name) {
            return known;
        }
        let found = self.look_up(parent, name).await.map(|attr| self.view.with_uncommitted(attr));
        match &found {
            Ok(attr) => {
                self.note_missed(parent);
                self.known.note_places([((parent, name.to_vec()), attr.ino)]);
            }
            Err(_) => self.known.forget_place(parent, name),
        }
        found
    }

    /// Looks up the inode itself, or a directory's parent. The kernel asks for them when a file handle names an inode
    /// that it does not remember (`open_by_handle_at(2)`).
    async fn lookup_dots(&self, ino: Ino, name: &[u8]) -> Result<InodeAttr, FsError> {
        if name == b"." {
            return self.view.attr(ino).await;
        }
        // It may have been made or moved here, and metad not know it yet.
        self.order.wait_of(ino).await?;
        let (attr, _) = self.view.ask(Read::Lookup { parent: ino, name: name.to_vec() }).await?;
        Ok(self.view.with_uncommitted(attr))
    }

    /// Returns the inode behind a name, or its absence, if that is known under a lease.
    #[must_use]
    pub fn known_name(&self, parent: Ino, name: &[u8]) -> Option<Result<InodeAttr, FsError>> {
        self.known.name(parent, name).map(|known| known.map(|attr| self.view.with_uncommitted(attr)))
    }

    async fn look_up(&self, parent: Ino, name: &[u8]) -> Result<InodeAttr, FsError> {
        let read = Read::Lookup { parent, name: name.to_vec() };
        let LeasedAnswer { answer, leased } = self.session.read_leased(read).await?;
        match answer {
            Ok(ReadReply::Attr(attr)) => {
                if let Some(mark) = leased {
                    self.known.learn_found(parent, name, &attr, mark);
                }
                Ok(attr)
            }
            Ok(_) => Err(unexpected_reply()),
            Err(error) => {
                if let Some(mark) = leased.filter(|_| error == FsError::NotFound) {
                    self.known.learn_name(parent, name, None, mark);
                }
                Err(error)
            }
        }
    }

    /// Returns the target of a symlink.
    ///
    /// # Errors
    /// As `readlink(2)`.
    pub async fn readlink(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        self.order.wait_of(ino).await?;
        self.ask_bytes(Read::ReadLink { ino }).await
    }

    pub(crate) async fn ask_bytes(&self, read: Read) -> Result<Vec<u8>, FsError> {
        match self.session.read(read).await? {
            ReadReply::Bytes(bytes) => Ok(bytes),
            _ => Err(unexpected_reply()),
        }
    }

    /// Makes an inode.
    ///
    /// # Errors
    /// As `mknod(2)`, `mkdir(2)`, `symlink(2)`.
    pub async fn make_node(&self, parent: Ino, name: &[u8], new: NewNode) -> Result<InodeAttr, FsError> {
        self.make_to_open(parent, name, new).await.map(|(made, _)| made)
    }

    /// Makes an inode that is opened next. It counts as open, and outlives its name, until the returned guard is
    /// dropped.
    pub(crate) async fn make_to_open(
        &self,
        parent: Ino,
        name: &[u8],
        new: NewNode,
    ) -> Result<(InodeAttr, Opening<'_>), FsError> {
        if let Some(made) = self.make_here(parent, name, &new).await {
            return Ok(made);
        }
        let NewNode { node, mode, umask, uid, gid } = new;
        let (made, opening) = loop {
            let session = self.session.id();
            let ino = self.session.next_ino().await?;
            let opening = self.open_files.begin_new(ino);
            let node = node.clone();
            let op = Op::Create { parent, name: name.to_vec(), ino, node, mode, umask, uid, gid };
            match self.change(op).await {
                // I4: the session has ended meanwhile, and the number with it.
                Err(FsError::Invalid) if self.session.id() != session => {}
                made => break (made?, opening),
            }
        };
        self.known.note_places([((parent, name.to_vec()), made.ino)]);
        Ok((made, opening))
    }

    /// Makes another name for an inode.
    ///
    /// # Errors
    /// As `link(2)`.
    pub async fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<InodeAttr, FsError> {
        let attr = self.change(Op::Link { ino, parent, name: name.to_vec() }).await?;
        self.known.note_places([((parent, name.to_vec()), ino)]);
        Ok(attr)
    }

    /// Returns the inode to which a name led when it was last seen here.
    #[must_use]
    pub fn led_to(&self, parent: Ino, name: &[u8]) -> Option<Ino> {
        self.known.led_to(parent, name)
    }

    /// Vouches for the inode behind a name, if it is known and not open here.
    fn vouch(&self, parent: Ino, name: &[u8]) -> Option<Vouched<'_>> {
        let ino = self.known.led_to(parent, name)?;
        self.open_files.vouch(ino)
    }

    /// Removes a name.
    ///
    /// # Errors
    /// As `unlink(2)`.
    pub async fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        if self.unlink_here(parent, name).await.is_some() {
            return Ok(());
        }
        let (client, name) = (self.arc(), name.to_vec());
        // This runs to its end: nobody may open the inode meanwhile.
        let removing = Box::pin(async move {
            let _barred = client.order.bar([parent]).await?;
            let vouched = client.vouch(parent, &name);
            let released = vouched.as_ref().map(Vouched::ino);
            let reply = client.session.one(Op::Unlink { parent, name: name.clone(), released }).await?;
            drop(vouched);
            client.known.forget_place(parent, &name);
            if let OpReply::Removed { attr, orphaned: true } = reply {
                client.open_files.retain_or_release(&[attr.ino]).await;
            }
            Ok(())
        });
        self.work.to_its_end(trace::carried(removing)).await
    }

    /// Removes an empty directory. The caller may have `seen` one there, which it takes for removed afterwards.
    ///
    /// # Errors
    /// As `rmdir(2)`; `Stale`, and nothing is removed, when the name leads elsewhere than to what was `seen`.
    pub async fn rmdir(&self, parent: Ino, name: &[u8], seen: Option<Ino>) -> Result<(), FsError> {
        if let Some(attr) = self.rmdir_here((parent, name), seen).await {
            self.known.note_removed(&attr);
            return Ok(());
        }
        let op = Op::Rmdir { parent, name: name.to_vec(), seen };
        if let OpReply::Removed { attr, .. } = self.at_once(op).await? {
            self.known.note_removed(&attr);
            self.known.forget_place(parent, name);
        }
        Ok(())
    }

    /// Moves a name. The caller may have `seen` a directory at the new name, which it takes for removed afterwards.
    ///
    /// # Errors
    /// As `renameat2(2)`; `Stale`, and nothing is moved, when the new name leads elsewhere than to what was `seen`.
    pub async fn rename(
        &self,
        (parent, name): (Ino, &[u8]),
        (new_parent, new_name): (Ino, &[u8]),
        mode: RenameMode,
        seen: Option<Ino>,
    ) -> Result<(), FsError> {
        let replaced = self.known_name(new_parent, new_name).and_then(Result::ok);
        // A directory is only replaced by metad.
        if seen.is_none() && self.rename_here((parent, name), (new_parent, new_name), mode).await.is_some() {
            if let Some(attr) = replaced {
                self.known.note_removed(&attr);
            }
            self.known.note_moved(parent, new_parent);
            return Ok(());
        }
        let (client, name, new_name) = (self.arc(), name.to_vec(), new_name.to_vec());
        let moving = async move { client.rename_there((parent, name), (new_parent, new_name), mode, seen).await };
        let moving = Box::pin(moving);
        self.work.to_its_end(trace::carried(moving)).await?;
        self.known.note_moved(parent, new_parent);
        Ok(())
    }

    /// Asks metad to move a name.
    async fn rename_there(
        self: &Arc<Self>,
        (parent, name): (Ino, Name),
        (new_parent, new_name): (Ino, Name),
        mut mode: RenameMode,
        seen: Option<Ino>,
    ) -> Result<(), FsError> {
        let _barred = self.order.bar([parent, new_parent]).await?;
        // Content that replaces a file must be stored when its name is: programs write a new file, rename it, and
        // expect one or the other after a crash.
        let source = self.known.led_to(parent, &name);
        let open = source.and_then(|ino| self.open_files.get(ino));
        let mut unstored = None;
        if let Some(file) = open.filter(|file| file.is_dirty()) {
            match self.flusher.flush(&file, true).await {
                // The file may be moved, but must not replace anything.
                Err(error) if is_full(error) && mode != RenameMode::Exchange => {
                    unstored = (mode == RenameMode::Replace).then_some(error);
                    mode = RenameMode::NoReplace;
                }
                flushed => flushed?,
            }
        }
        let vouched = self.vouch(new_parent, &new_name);
        let op = Op::Rename {
            parent,
            name: name.clone(),
            new_parent,
            new_name: new_name.clone(),
            mode,
            released: vouched.as_ref().map(Vouched::ino),
            seen,
        };
        let reply = match (self.session.one(op).await, unstored) {
            (Err(FsError::Exists), Some(unstored)) => return Err(unstored),
            (reply, _) => reply?,
        };
        drop(vouched);
        let (moved, replaced, orphaned) = match reply {
            OpReply::Renamed { moved, replaced, orphaned } => (moved, replaced, orphaned),
            // Both names lead to one inode, and stay.
            OpReply::Done => return Ok(()),
            _ => return Err(unexpected_reply()),
        };
        self.known.forget_place(parent, &name);
        let back = replaced.as_ref().filter(|_| mode == RenameMode::Exchange).map(|other| ((parent, name), other.ino));
        self.known.note_places(back.into_iter().chain([((new_parent, new_name), moved.ino)]));
        if let Some(attr) = replaced.as_ref().filter(|_| mode != RenameMode::Exchange) {
            self.known.note_removed(attr);
        }
        if let Some(attr) = replaced.filter(|_| orphaned) {
            self.open_files.retain_or_release(&[attr.ino]).await;
        }
        Ok(())
    }
}
