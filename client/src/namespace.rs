//! Names, attributes, directories, extended attributes.

use crate::error::unexpected_reply;
use crate::file::flush::is_full;
use crate::file::state::FileState;
use crate::known::leased::LeasedAnswer;
use crate::opens::{Opening, Vouched};
use crate::walks::Next;
use crate::{Client, Notice};
use std::sync::Arc;
use std::time::Duration;
use wire::FsError;
use wire::attr::{AttrChange, FileKind, InodeAttr};
use wire::ids::{Ino, Version};
use wire::op::{DirEntry, ListedDir, Name, NewInode, Op, OpReply, Read, ReadReply, RenameMode, StatFs, XattrMode};
use wire::retry::Backoff;

/// Entries that are asked for at once of a directory whose names are looked at one after the other, and how often.
const AHEAD_PAGE: u32 = 1024;
const AHEAD_PAGES: u32 = 4;

/// Part of a directory.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The directory's parent; the root's is the root.
    pub parent: Ino,
    /// Without `.` and `..`.
    pub entries: Vec<DirEntry>,
    /// No entries follow.
    pub end: bool,
}

/// An inode to be made, with its owner.
#[derive(Clone, Debug)]
pub struct NewNode {
    /// What it is.
    pub node: NewInode,
    /// Permission bits before the umask.
    pub mode: u32,
    /// The caller's umask.
    pub umask: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Client {
    /// Asks metad for attributes; tells whether they are leased.
    pub(crate) async fn ask_attr(&self, read: Read) -> Result<(InodeAttr, bool), FsError> {
        let LeasedAnswer { answer, leased } = self.session.read_leased(read).await?;
        let ReadReply::Attr(attr) = answer? else { return Err(unexpected_reply()) };
        if let Some(mark) = leased {
            self.known.learn_attr(&attr, mark);
        }
        Ok((attr, leased.is_some()))
    }

    /// What is not committed yet shows in our own attributes.
    fn with_uncommitted(&self, attr: InodeAttr) -> InodeAttr {
        let open = self.files.lock().get(&attr.ino).cloned();
        match open {
            Some(file) => file.overlaid(attr),
            None => attr,
        }
    }

    async fn change(&self, op: Op) -> Result<InodeAttr, FsError> {
        match self.at_once(op).await? {
            OpReply::Attr(attr) => Ok(self.with_uncommitted(attr)),
            _ => Err(unexpected_reply()),
        }
    }

    /// The inode behind a name; `.` and `..` too.
    ///
    /// # Errors
    /// As `stat(2)`.
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<InodeAttr, FsError> {
        if let Some(known) = self.known_name(parent, name) {
            return known;
        }
        let found = self.look_up(parent, name).await.map(|attr| self.with_uncommitted(attr));
        if found.is_ok() {
            self.note_missed(parent);
        }
        let mut names = self.names.lock();
        match &found {
            Ok(attr) => names.put((parent, name.to_vec()), attr.ino),
            Err(_) => names.pop(&(parent, name.to_vec())),
        };
        found
    }

    /// The inode behind a name, or its absence, when that is known under a lease.
    #[must_use]
    pub fn known_name(&self, parent: Ino, name: &[u8]) -> Option<Result<InodeAttr, FsError>> {
        let known = self.known.name(parent, name)?;
        if let Ok(attr) = &known {
            self.names.lock().put((parent, name.to_vec()), attr.ino);
        }
        Some(known.map(|attr| self.with_uncommitted(attr)))
    }

    async fn look_up(&self, parent: Ino, name: &[u8]) -> Result<InodeAttr, FsError> {
        let read = Read::Lookup { parent, name: name.to_vec() };
        let LeasedAnswer { answer, leased } = self.session.read_leased(read).await?;
        match answer {
            Ok(ReadReply::Attr(attr)) => {
                if let Some(mark) = leased {
                    self.known.learn_attr(&attr, mark);
                    self.known.learn_name(parent, name, Some(attr.ino), mark);
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

    /// Attributes.
    ///
    /// # Errors
    /// As `fstat(2)`; `NotFound` when the inode is gone.
    pub async fn getattr(&self, ino: Ino) -> Result<InodeAttr, FsError> {
        if let Some(known) = self.known_attr(ino) {
            return Ok(known);
        }
        match self.ask_attr(Read::GetAttr { ino }).await {
            Err(FsError::NotFound) => self.removed_dir(ino).ok_or(FsError::NotFound),
            found => found.map(|(attr, _)| self.with_uncommitted(attr)),
        }
    }

    /// Attributes, when they are known under a lease.
    #[must_use]
    pub fn known_attr(&self, ino: Ino) -> Option<InodeAttr> {
        self.known.attr(ino).map(|attr| self.with_uncommitted(attr))
    }

    /// For how long the kernel may believe these attributes, which are handed over now: leases on them are given back
    /// only when that is over.
    #[must_use]
    pub fn believe_attr(&self, attr: &InodeAttr) -> Duration {
        self.known.believe_attr(attr)
    }

    /// The same for a name, and the inode that it leads to, if there is one.
    #[must_use]
    pub fn believe_name(&self, parent: Ino, name: &[u8], ino: Option<Ino>) -> Duration {
        self.known.believe_name(parent, name, ino)
    }

    /// What metad says of an open file, until that is leased: meanwhile somebody changes it.
    pub(crate) async fn refresh_until_leased(&self, file: &Arc<FileState>) {
        let mut backoff = Backoff::new(Duration::from_millis(2), Duration::from_secs(1));
        while self.files.lock().contains_key(&file.ino()) {
            match self.ask_attr(Read::GetAttr { ino: file.ino() }).await {
                Ok((attr, leased)) => {
                    if file.refresh(&attr, None) {
                        self.notify(Notice::Changed(file.ino()));
                    }
                    if leased {
                        return;
                    }
                }
                Err(_) => return,
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    /// Attributes of a directory that was removed through this client, as it was then: POSIX lets whoever is in it, or
    /// has it open, go on asking.
    fn removed_dir(&self, ino: Ino) -> Option<InodeAttr> {
        self.removed_dirs.lock().get(&ino).cloned()
    }

    fn remember_removed(&self, attr: &InodeAttr) {
        if attr.kind == FileKind::Directory {
            self.removed_dirs.lock().put(attr.ino, attr.clone());
        }
    }

    /// Changes attributes. A change of length waits for what was written before.
    ///
    /// # Errors
    /// As `chmod(2)`, `chown(2)`, `truncate(2)`, `utimensat(2)`.
    pub async fn setattr(&self, ino: Ino, change: AttrChange) -> Result<InodeAttr, FsError> {
        if let Some(attr) = self.set_attr_here(ino, &change).await {
            return Ok(self.with_uncommitted(attr));
        }
        let open = self.files.lock().get(&ino).cloned();
        let Some(file) = open else { return self.change(Op::SetAttr { ino, change }).await };
        // Times that are set must not be overtaken by the commit of what was written before.
        let ordered =
            change.size.is_some() || change.mtime.is_some() || change.clear_privileges || change.mode.is_some();
        if ordered && file.is_dirty() {
            match self.arc().flush_file(&file, true).await {
                // What cannot be stored is cut like the rest, and keeps the time that is set: on a full disk, this is how
                // room is made.
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
            self.notify(Notice::Changed(ino));
        }
        file.time_was_set(&change, &attr);
        Ok(file.overlaid(attr))
    }

    /// Carries out a change of an open file's content that is no commit. `cut` tells from where on content goes, if that
    /// is all that happens. Runs to its end though the caller is dropped: whoever does not know of its own change takes
    /// it for another session's.
    pub(crate) async fn change_content(
        &self,
        file: &Arc<FileState>,
        op: Op,
        cut: Option<u64>,
    ) -> Result<InodeAttr, FsError> {
        let (client, file) = (self.arc(), file.clone());
        self.to_its_end(async move {
            // Before the lock: who tells metad of the file's content takes it, too.
            let _kept_off = client.in_order([file.ino()]).await?;
            let _one = file.begin_flush().await;
            let OpReply::Attr(attr) = client.session.one_until_answered(op).await? else {
                return Err(unexpected_reply());
            };
            client.kernel_follows(file.ino(), Version(attr.version.0.saturating_sub(1)), attr.version);
            if file.changed_here(&attr, cut) {
                client.notify(Notice::Changed(file.ino()));
            }
            let gone = cut.map_or(0, |size| file.cut_uncommitted(size));
            if gone > 0 {
                client.window.release(gone);
                client.forget_if_idle(&file);
            }
            Ok(file.overlaid(attr))
        })
        .await
    }

    /// Target of a symlink.
    ///
    /// # Errors
    /// As `readlink(2)`.
    pub async fn readlink(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        self.tell_of(ino).await?;
        self.ask_bytes(Read::ReadLink { ino }).await
    }

    async fn ask_bytes(&self, read: Read) -> Result<Vec<u8>, FsError> {
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

    /// The same for who opens it next: until what comes with it is dropped, it counts as open, and outlives its name.
    pub(crate) async fn make_to_open(
        &self,
        parent: Ino,
        name: &[u8],
        new: NewNode,
    ) -> Result<(InodeAttr, Opening<'_>), FsError> {
        if let Some((made, opening)) = self.make_here(parent, name, &new).await {
            self.names.lock().put((parent, name.to_vec()), made.ino);
            return Ok((made, opening));
        }
        let NewNode { node, mode, umask, uid, gid } = new;
        let (made, opening) = loop {
            let session = self.session.id();
            let ino = self.session.next_ino().await?;
            let opening = self.opens.begin_new(ino);
            let node = node.clone();
            let op = Op::Create { parent, name: name.to_vec(), ino, node, mode, umask, uid, gid };
            match self.change(op).await {
                // I4: the session ended meanwhile, and the number with it.
                Err(FsError::Invalid) if self.session.id() != session => {}
                made => break (made?, opening),
            }
        };
        self.names.lock().put((parent, name.to_vec()), made.ino);
        Ok((made, opening))
    }

    /// Makes another name for an inode.
    ///
    /// # Errors
    /// As `link(2)`.
    pub async fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<InodeAttr, FsError> {
        let attr = self.change(Op::Link { ino, parent, name: name.to_vec() }).await?;
        self.names.lock().put((parent, name.to_vec()), ino);
        Ok(attr)
    }

    /// Vouches for the inode behind a name, if it is known and nothing of it is open here.
    fn vouch(&self, parent: Ino, name: &[u8]) -> Option<Vouched<'_>> {
        let ino = *self.names.lock().get(&(parent, name.to_vec()))?;
        self.opens.vouch(ino, || self.files.lock().contains_key(&ino))
    }

    /// Removes a name.
    ///
    /// # Errors
    /// As `unlink(2)`.
    pub async fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        if self.unlink_here(parent, name).await.is_some() {
            self.names.lock().pop(&(parent, name.to_vec()));
            return Ok(());
        }
        let (client, name) = (self.arc(), name.to_vec());
        // To its end: nobody may open meanwhile what is vouched for.
        self.to_its_end(async move {
            let _kept_off = client.in_order([parent]).await?;
            let vouched = client.vouch(parent, &name);
            let released = vouched.as_ref().map(Vouched::ino);
            let reply = client.session.one(Op::Unlink { parent, name: name.clone(), released }).await?;
            drop(vouched);
            client.names.lock().pop(&(parent, name));
            if let OpReply::Removed { attr, orphaned: true } = reply {
                client.keep_or_release(&[attr.ino]).await;
            }
            Ok(())
        })
        .await
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// As `rmdir(2)`.
    pub async fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        if let Some(attr) = self.rmdir_here(parent, name).await {
            self.remember_removed(&attr);
        } else if let OpReply::Removed { attr, .. } = self.at_once(Op::Rmdir { parent, name: name.to_vec() }).await? {
            self.remember_removed(&attr);
        }
        self.names.lock().pop(&(parent, name.to_vec()));
        Ok(())
    }

    /// Moves a name.
    ///
    /// # Errors
    /// As `renameat2(2)`.
    pub async fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<(), FsError> {
        let replaced = self.known_name(new_parent, new_name).and_then(Result::ok);
        if self.rename_here((parent, name), (new_parent, new_name), mode).await.is_some() {
            let mut names = self.names.lock();
            if let Some(moved) = names.pop(&(parent, name.to_vec())) {
                names.put((new_parent, new_name.to_vec()), moved);
            }
            drop(names);
            if let Some(attr) = replaced {
                self.remember_removed(&attr);
            }
            return Ok(());
        }
        let (client, name, new_name) = (self.arc(), name.to_vec(), new_name.to_vec());
        self.to_its_end(async move { client.rename_there((parent, name), (new_parent, new_name), mode).await }).await
    }

    /// The same at metad.
    async fn rename_there(
        self: &Arc<Self>,
        (parent, name): (Ino, Name),
        (new_parent, new_name): (Ino, Name),
        mut mode: RenameMode,
    ) -> Result<(), FsError> {
        let _kept_off = self.in_order([parent, new_parent]).await?;
        // What replaces a file must be there when its name is: programs write a new file, rename it, and expect one
        // or the other after a crash.
        let source = self.names.lock().get(&(parent, name.clone())).copied();
        let open = source.and_then(|ino| self.files.lock().get(&ino).cloned());
        let mut unstored = None;
        if let Some(file) = open.filter(|file| file.is_dirty()) {
            match self.flush_file(&file, true).await {
                // It may be moved, but nothing may be replaced by it.
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
        };
        let reply = match (self.session.one(op).await, unstored) {
            (Err(FsError::Exists), Some(unstored)) => return Err(unstored),
            (reply, _) => reply?,
        };
        drop(vouched);
        let OpReply::Renamed { moved, replaced, orphaned } = reply else { return Err(unexpected_reply()) };
        {
            let mut names = self.names.lock();
            match (mode, &replaced) {
                (RenameMode::Exchange, Some(other)) => names.put((parent, name), other.ino),
                _ => names.pop(&(parent, name)),
            };
            names.put((new_parent, new_name), moved.ino);
        }
        if let Some(attr) = replaced.as_ref().filter(|_| mode != RenameMode::Exchange) {
            self.remember_removed(attr);
        }
        if let Some(attr) = replaced.filter(|_| orphaned) {
            self.keep_or_release(&[attr.ino]).await;
        }
        Ok(())
    }

    /// Before metad is asked for a listing: it must know what was done in the directory.
    async fn tell_names_of(&self, dir: Ino) -> Result<(), FsError> {
        if self.known.has_pinned_names(dir) || self.known.is_made_here(dir) {
            self.tell_of(dir).await?;
        }
        Ok(())
    }

    async fn ask_page(&self, ino: Ino, asked: (u64, u32, bool)) -> Result<Listed, FsError> {
        self.tell_names_of(ino).await?;
        let (after, limit, plus) = asked;
        let LeasedAnswer { answer, leased } =
            self.session.read_leased(Read::ReadDir { ino, after, limit, plus }).await?;
        let ReadReply::Page { parent, entries, end } = answer? else { return Err(unexpected_reply()) };
        let listed = Listed { parent, entries, end };
        // What is done here and not told yet, metad does not know of.
        if let Some(mark) = leased.filter(|_| !self.known.has_pinned_names(ino)) {
            self.known.learn_page(ino, asked, &Arc::new(listed.clone()), mark);
        }
        if after == 0 && plus {
            self.walks.listed(&listed);
        }
        Ok(listed)
    }

    /// The start of a directory with attributes, and what lies below and behind it for who walks on.
    async fn ask_tree(&self, asked: Next, limit: u32) -> Result<Listed, FsError> {
        self.tell_names_of(asked.dir).await?;
        let read = Read::ReadTree { ino: asked.dir, behind: asked.behind(), limit };
        let LeasedAnswer { answer, leased } = self.session.read_leased(read).await?;
        let dirs = match answer? {
            ReadReply::Tree(dirs) => dirs,
            // Others are at work in what lies ahead.
            ReadReply::Page { parent, entries, end } => vec![ListedDir { ino: asked.dir, parent, entries, end }],
            _ => return Err(unexpected_reply()),
        };
        if leased.is_some() {
            self.walks.answered(asked, &dirs);
        }
        let mut first = None;
        for ListedDir { ino: dir, parent, entries, end } in dirs {
            let listed = Arc::new(Listed { parent, entries, end });
            if leased.is_some() {
                self.walks.listed(&listed);
            }
            // What is done here and not told yet, metad does not know of.
            if let Some(mark) = leased.filter(|_| !self.known.has_pinned_names(dir)) {
                self.known.learn_page(dir, (0, limit, true), &listed, mark);
            }
            first.get_or_insert(listed);
        }
        first.map(Arc::unwrap_or_clone).ok_or(FsError::Io)
    }

    /// Somebody who walks has come to a directory that was asked for ahead: asks for what comes behind, while they go
    /// through what is there.
    fn walk_on(&self, dir: Ino, limit: u32) {
        let Some(next) = self.walks.go_on(dir) else { return };
        let client = self.arc();
        self.in_background(async move {
            let cache = &client.known;
            // Who changes what they walk through needs more than to know it.
            let enough = !client.session.is_at_work() || cache.is_delegated(&[next.dir]);
            let known = enough && cache.page(next.dir, (0, limit, true)).is_some();
            if !known && let Some(_asking) = client.walks.begin(next.dir) {
                // Who comes to it asks again, and hears what is wrong.
                let _ = client.ask_tree(next, limit).await;
            }
        });
    }

    /// Asks for a delegation on an inode; for who walks through a tree and changes it, on what comes next as well.
    pub(crate) async fn ask_to_be_alone(&self, ino: Ino) -> Result<(), FsError> {
        if self.walks.wait_for(ino).await && self.known.is_delegated(&[ino]) {
            return Ok(());
        }
        // Asking ahead ends others' delegations there: only for who does one directory after the other.
        match self.walks.is_one_of_many().then(|| self.walks.from(ino)).flatten() {
            Some(next) => self.ask_tree(next, AHEAD_PAGE).await.map(|_| ()),
            None => self.ask_attr(Read::GetAttr { ino }).await.map(|_| ()),
        }
    }

    /// Who looks at one name after the other of a directory that is not too large, looks at the next ones as well: the
    /// whole of it costs less than they do.
    fn note_missed(&self, parent: Ino) {
        let cache = &self.known;
        let small = |dir: InodeAttr| dir.size <= u64::from(AHEAD_PAGES * AHEAD_PAGE);
        let ours = cache.has_pinned_names(parent) || cache.is_made_here(parent);
        if ours || !cache.attr(parent).is_some_and(small) || !self.walks.missed(parent) {
            return;
        }
        let client = self.arc();
        self.in_background(async move {
            let mut after = 0;
            for _ in 0..AHEAD_PAGES {
                let Ok(listed) = client.ask_page(parent, (after, AHEAD_PAGE, true)).await else { return };
                match listed.entries.last() {
                    Some(last) if !listed.end => after = last.cookie,
                    _ => return,
                }
            }
        });
    }

    async fn list(&self, ino: Ino, after: u64, limit: u32, plus: bool) -> Result<Listed, FsError> {
        let (cache, asked, may_walk) = (&self.known, (after, limit, plus), after == 0 && plus);
        let mut known = cache.page(ino, asked);
        if known.is_none() && may_walk && self.walks.wait_for(ino).await {
            known = cache.page(ino, asked);
        }
        match known {
            Some(known) => {
                if may_walk {
                    self.walks.listed(&known);
                    self.walk_on(ino, limit);
                }
                Ok(known)
            }
            None => match may_walk.then(|| self.walks.from(ino)).flatten() {
                Some(next) => self.ask_tree(next, limit).await,
                None => self.ask_page(ino, asked).await,
            },
        }
    }

    /// Entries of a directory behind a cookie (0 for the start).
    ///
    /// # Errors
    /// As `getdents(2)`.
    pub async fn readdir(&self, ino: Ino, after: u64, limit: u32, plus: bool) -> Result<Listed, FsError> {
        let Listed { parent, mut entries, end } = self.list(ino, after, limit, plus).await?;
        for entry in &mut entries {
            entry.attr = entry.attr.take().map(|attr| self.with_uncommitted(attr));
        }
        if plus {
            let mut names = self.names.lock();
            for entry in &entries {
                names.put((ino, entry.name.clone()), entry.ino);
            }
        }
        Ok(Listed { parent, entries, end })
    }

    /// Capacity and use.
    ///
    /// # Errors
    /// As `statfs(2)`.
    pub async fn statfs(&self) -> Result<StatFs, FsError> {
        match self.session.read(Read::StatFs).await? {
            ReadReply::StatFs(stats) => Ok(stats),
            _ => Err(unexpected_reply()),
        }
    }

    /// Before metad is asked about an inode that it may not know yet.
    pub(crate) async fn tell_if_new(&self, ino: Ino) -> Result<(), FsError> {
        if self.known.is_made_here(ino) { self.tell_of(ino).await } else { Ok(()) }
    }

    /// Value of an extended attribute.
    ///
    /// # Errors
    /// As `getxattr(2)`.
    pub async fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, FsError> {
        self.tell_if_new(ino).await?;
        self.ask_bytes(Read::GetXattr { ino, name: name.to_vec() }).await
    }

    /// Names of the extended attributes.
    ///
    /// # Errors
    /// As `listxattr(2)`.
    pub async fn listxattr(&self, ino: Ino) -> Result<Vec<Name>, FsError> {
        self.tell_if_new(ino).await?;
        match self.session.read(Read::ListXattr { ino }).await? {
            ReadReply::Names(names) => Ok(names),
            _ => Err(unexpected_reply()),
        }
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// As `setxattr(2)`.
    pub async fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        clear_sgid: bool,
    ) -> Result<(), FsError> {
        let op = Op::SetXattr { ino, name: name.to_vec(), value: value.to_vec(), mode, clear_sgid };
        // Before it is there: nobody may be told that it is not, once it is.
        if let Some(file) = self.files.lock().get(&ino) {
            file.note_xattrs();
        }
        self.at_once(op).await?;
        // An answer from before may have said otherwise meanwhile.
        if let Some(file) = self.files.lock().get(&ino) {
            file.note_xattrs();
        }
        Ok(())
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// As `removexattr(2)`.
    pub async fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), FsError> {
        self.at_once(Op::RemoveXattr { ino, name: name.to_vec() }).await.map(|_| ())
    }
}
