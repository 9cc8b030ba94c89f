//! Names and attributes in memory, without a kernel, so that they can be tested without one.
//!
//! The kernel checks permissions and loops of directories (`default_permissions`, `rename(2)`).

use super::content::Content;
use fuser::{Errno, FileAttr, FileType, INodeNo};
use parking_lot::RwLock;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::SystemTime;

/// `st_blksize`, as surfmount has it.
const BLOCK_SIZE: u32 = 4096;
/// Cookies of `.` and `..`; entries' are above.
const DOT: u64 = 1;
const DOTS: u64 = 2;

/// Content of an inode besides its attributes.
enum Body {
    File(Arc<RwLock<Content>>),
    Directory(Directory),
    Symlink(OsString),
    /// Pipes, sockets and devices.
    Special,
}

/// Entries by name, and by cookie, so that a listing goes on where it was despite removals.
struct Directory {
    parent: u64,
    names: HashMap<OsString, u64>,
    entries: BTreeMap<u64, (OsString, u64)>,
    last_cookie: u64,
}

impl Directory {
    fn new(parent: u64) -> Self {
        Self { parent, names: HashMap::new(), entries: BTreeMap::new(), last_cookie: DOTS }
    }

    fn find(&self, name: &OsStr) -> Result<u64, Errno> {
        let cookie = self.names.get(name).ok_or(Errno::ENOENT)?;
        self.entries.get(cookie).map(|(_, ino)| *ino).ok_or(Errno::ENOENT)
    }

    fn insert(&mut self, name: &OsStr, ino: u64) {
        self.last_cookie += 1;
        self.names.insert(name.to_owned(), self.last_cookie);
        self.entries.insert(self.last_cookie, (name.to_owned(), ino));
    }

    fn remove(&mut self, name: &OsStr) {
        if let Some(cookie) = self.names.remove(name) {
            self.entries.remove(&cookie);
        }
    }
}

struct Node {
    attr: FileAttr,
    body: Body,
    /// How many times the kernel has looked it up, less the times it has forgotten it.
    lookups: u64,
}

/// An inode to be made.
pub(super) struct New<'a> {
    pub kind: FileType,
    pub perm: u16,
    pub owner: (u32, u32),
    pub rdev: u32,
    /// Target of a symbolic link.
    pub target: &'a OsStr,
}

/// Attributes to be set; `None` leaves one as it is.
#[derive(Default)]
pub(super) struct Change {
    pub perm: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SystemTime>,
    pub mtime: Option<SystemTime>,
}

/// What `rename` does with a name that exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Renaming {
    Replace,
    NoReplace,
    Exchange,
}

/// An entry of a listing.
pub(super) struct Listed<'a> {
    /// The listing goes on behind this cookie.
    pub cookie: u64,
    pub name: &'a OsStr,
    pub attr: FileAttr,
    /// `.` or `..`, which the kernel does not count as looked up.
    pub is_dot: bool,
}

/// The whole file system. Inode numbers are never used again.
pub(super) struct Tree {
    nodes: HashMap<u64, Node>,
    last_ino: u64,
}

fn new_attr(ino: u64, new: &New<'_>) -> FileAttr {
    let now = SystemTime::now();
    let nlink = if new.kind == FileType::Directory { 2 } else { 1 };
    FileAttr {
        ino: INodeNo(ino),
        size: new.target.len() as u64,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        kind: new.kind,
        perm: new.perm,
        nlink,
        uid: new.owner.0,
        gid: new.owner.1,
        rdev: new.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

impl Tree {
    /// An empty root, owned by a user and a group.
    pub(super) fn new(owner: (u32, u32)) -> Self {
        let root = INodeNo::ROOT.0;
        let new = New { kind: FileType::Directory, perm: 0o755, owner, rdev: 0, target: OsStr::new("") };
        let node = Node { attr: new_attr(root, &new), body: Body::Directory(Directory::new(root)), lookups: 1 };
        Self { nodes: HashMap::from([(root, node)]), last_ino: root }
    }

    fn node(&mut self, ino: u64) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&ino).ok_or(Errno::ESTALE)
    }

    fn directory(&mut self, ino: u64) -> Result<&mut Directory, Errno> {
        match &mut self.node(ino)?.body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// Content of a file, and its length.
    pub(super) fn file(&self, ino: u64) -> Result<(Arc<RwLock<Content>>, u64), Errno> {
        let node = self.nodes.get(&ino).ok_or(Errno::ESTALE)?;
        match &node.body {
            Body::File(content) => Ok((content.clone(), node.attr.size)),
            _ => Err(Errno::EINVAL),
        }
    }

    pub(super) fn attr(&self, ino: u64) -> Result<FileAttr, Errno> {
        self.nodes.get(&ino).map(|node| node.attr).ok_or(Errno::ESTALE)
    }

    pub(super) fn target(&self, ino: u64) -> Result<&OsStr, Errno> {
        match self.nodes.get(&ino).map(|node| &node.body) {
            Some(Body::Symlink(target)) => Ok(target),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Counts a lookup by the kernel, which will forget the inode some day.
    fn looked_up(&mut self, ino: u64) -> Result<FileAttr, Errno> {
        let node = self.node(ino)?;
        node.lookups += 1;
        Ok(node.attr)
    }

    pub(super) fn lookup(&mut self, parent: u64, name: &OsStr) -> Result<FileAttr, Errno> {
        let ino = self.directory(parent)?.find(name)?;
        self.looked_up(ino)
    }

    pub(super) fn make(&mut self, parent: u64, name: &OsStr, new: &New<'_>) -> Result<FileAttr, Errno> {
        let ino = self.last_ino + 1;
        let directory = self.directory(parent)?;
        if directory.names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        directory.insert(name, ino);
        let body = match new.kind {
            FileType::RegularFile => Body::File(Arc::default()),
            FileType::Directory => Body::Directory(Directory::new(parent)),
            FileType::Symlink => Body::Symlink(new.target.to_owned()),
            _ => Body::Special,
        };
        self.last_ino = ino;
        self.nodes.insert(ino, Node { attr: new_attr(ino, new), body, lookups: 0 });
        self.changed(parent, u32::from(new.kind == FileType::Directory), 0)?;
        self.looked_up(ino)
    }

    pub(super) fn link(&mut self, ino: u64, parent: u64, name: &OsStr) -> Result<FileAttr, Errno> {
        if self.directory(parent)?.names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let node = self.node(ino)?;
        node.attr.nlink += 1;
        node.attr.ctime = SystemTime::now();
        self.directory(parent)?.insert(name, ino);
        self.changed(parent, 0, 0)?;
        self.looked_up(ino)
    }

    /// Updates a directory that has changed, with so many more and fewer directories in it.
    fn changed(&mut self, ino: u64, more: u32, fewer: u32) -> Result<(), Errno> {
        let attr = &mut self.node(ino)?.attr;
        (attr.mtime, attr.nlink) = (SystemTime::now(), attr.nlink + more - fewer);
        attr.ctime = attr.mtime;
        Ok(())
    }

    fn is_directory(&self, ino: u64) -> bool {
        self.nodes.get(&ino).is_some_and(|node| node.attr.kind == FileType::Directory)
    }

    pub(super) fn unlink(&mut self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        let ino = self.directory(parent)?.find(name)?;
        if self.is_directory(ino) {
            return Err(Errno::EISDIR);
        }
        self.remove(parent, name, ino)
    }

    pub(super) fn rmdir(&mut self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        let ino = self.directory(parent)?.find(name)?;
        if !self.directory(ino)?.names.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.remove(parent, name, ino)
    }

    /// Removes a name after all checks. The inode stays as long as the kernel knows it.
    fn remove(&mut self, parent: u64, name: &OsStr, ino: u64) -> Result<(), Errno> {
        let is_directory = self.is_directory(ino);
        self.directory(parent)?.remove(name);
        self.changed(parent, 0, u32::from(is_directory))?;
        let attr = &mut self.node(ino)?.attr;
        attr.nlink = if is_directory { 0 } else { attr.nlink - 1 };
        attr.ctime = SystemTime::now();
        self.drop_if_unused(ino);
        Ok(())
    }

    fn drop_if_unused(&mut self, ino: u64) {
        if self.nodes.get(&ino).is_some_and(|node| node.attr.nlink == 0 && node.lookups == 0) {
            self.nodes.remove(&ino);
        }
    }

    pub(super) fn rename(
        &mut self,
        (parent, name): (u64, &OsStr),
        (new_parent, new_name): (u64, &OsStr),
        renaming: Renaming,
    ) -> Result<(), Errno> {
        let ino = self.directory(parent)?.find(name)?;
        let there = self.directory(new_parent)?.find(new_name).ok();
        match (renaming, there) {
            (Renaming::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            (Renaming::Exchange, None) => return Err(Errno::ENOENT),
            (Renaming::Exchange, Some(there)) => {
                self.take_away(parent, name, ino)?;
                self.take_away(new_parent, new_name, there)?;
                self.put(new_parent, new_name, ino)?;
                return self.put(parent, name, there);
            }
            (_, Some(there)) if there == ino => return Ok(()),
            (_, Some(there)) => self.replace(ino, (new_parent, new_name), there)?,
            (_, None) => {}
        }
        self.take_away(parent, name, ino)?;
        self.put(new_parent, new_name, ino)
    }

    /// Removes what a rename replaces, if rename(2) allows it.
    fn replace(&mut self, ino: u64, (parent, name): (u64, &OsStr), there: u64) -> Result<(), Errno> {
        match (self.is_directory(ino), self.is_directory(there)) {
            (true, false) => Err(Errno::ENOTDIR),
            (false, true) => Err(Errno::EISDIR),
            (true, true) => self.rmdir(parent, name),
            (false, false) => self.unlink(parent, name),
        }
    }

    fn take_away(&mut self, parent: u64, name: &OsStr, ino: u64) -> Result<(), Errno> {
        self.directory(parent)?.remove(name);
        self.changed(parent, 0, u32::from(self.is_directory(ino)))
    }

    fn put(&mut self, parent: u64, name: &OsStr, ino: u64) -> Result<(), Errno> {
        self.directory(parent)?.insert(name, ino);
        self.changed(parent, u32::from(self.is_directory(ino)), 0)?;
        let node = self.node(ino)?;
        node.attr.ctime = SystemTime::now();
        if let Body::Directory(directory) = &mut node.body {
            directory.parent = parent;
        }
        Ok(())
    }

    pub(super) fn change(&mut self, ino: u64, change: &Change) -> Result<FileAttr, Errno> {
        let node = self.node(ino)?;
        let attr = &mut node.attr;
        let now = SystemTime::now();
        if let Some(size) = change.size {
            let Body::File(content) = &node.body else { return Err(Errno::EISDIR) };
            if size < attr.size {
                content.write().cut(size);
            }
            (attr.size, attr.blocks, attr.mtime) = (size, size.div_ceil(512), now);
        }
        attr.perm = change.perm.unwrap_or(attr.perm);
        attr.uid = change.uid.unwrap_or(attr.uid);
        attr.gid = change.gid.unwrap_or(attr.gid);
        attr.atime = change.atime.unwrap_or(attr.atime);
        attr.mtime = change.mtime.unwrap_or(attr.mtime);
        attr.ctime = now;
        Ok(*attr)
    }

    /// Notes that a file is written up to `end`.
    pub(super) fn written(&mut self, ino: u64, end: u64) -> Result<Arc<RwLock<Content>>, Errno> {
        let node = self.node(ino)?;
        let Body::File(content) = &node.body else { return Err(Errno::EINVAL) };
        let attr = &mut node.attr;
        attr.size = attr.size.max(end);
        attr.blocks = attr.size.div_ceil(512);
        attr.mtime = SystemTime::now();
        attr.ctime = attr.mtime;
        Ok(content.clone())
    }

    /// Lists a directory behind a cookie until `add` reports that it is full. Entries that it took count as looked up
    /// if they are `counted`.
    pub(super) fn list(
        &mut self,
        ino: u64,
        after: u64,
        counted: bool,
        mut add: impl FnMut(Listed<'_>) -> bool,
    ) -> Result<(), Errno> {
        let own = self.attr(ino)?;
        let parent = self.directory(ino)?.parent;
        // The parent of a removed directory may be gone; the kernel uses only number and kind of this entry.
        let above = self.attr(parent).unwrap_or(own);
        let mut dot =
            |cookie, name, attr| after < cookie && add(Listed { cookie, name: OsStr::new(name), attr, is_dot: true });
        if dot(DOT, ".", own) || dot(DOTS, "..", above) {
            return Ok(());
        }
        let Some(Node { body: Body::Directory(directory), .. }) = self.nodes.get(&ino) else {
            return Err(Errno::ENOTDIR);
        };
        let mut taken = Vec::new();
        for (cookie, (name, child)) in directory.entries.range(after.max(DOTS) + 1..) {
            let Some(node) = self.nodes.get(child) else { continue };
            if add(Listed { cookie: *cookie, name, attr: node.attr, is_dot: false }) {
                break;
            }
            if counted {
                taken.push(*child);
            }
        }
        taken.into_iter().try_for_each(|child| self.looked_up(child).map(drop))
    }

    pub(super) fn forget(&mut self, ino: u64, count: u64) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.lookups = node.lookups.saturating_sub(count);
            self.drop_if_unused(ino);
        }
    }

    /// Forgets all lookups, when the kernel has unmounted.
    pub(super) fn forget_all(&mut self) {
        self.nodes.retain(|_, node| {
            node.lookups = 0;
            node.attr.nlink > 0
        });
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
