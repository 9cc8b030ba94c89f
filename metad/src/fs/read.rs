//! Reads of the state (I2: the caller makes sure that it is current).

use super::inode::Inode;
use super::view::{Kv, KvExt};
use super::{deferred, dentry, extent, keys, lock, numbered, orphan, settings, xattr};
use wire::FsError;
use wire::attr::{FileKind, InodeAttr};
use wire::ids::{Ino, SessionId};
use wire::limits::{
    CHUNK_BYTES, INLINE_BYTES_MAX, LISTED_CONTENT_MAX, LISTED_CONTENTS_BYTES_MAX, NAME_BYTES_MAX, READDIR_PAGE_MAX,
};
use wire::op::{DirEntry, ExtentPage, ListedDir, Read, ReadReply, StatFs, With};

/// Answers a question. For `StatFs` only inodes are known here, not bytes.
///
/// # Errors
/// The error of the system call.
pub fn read(kv: &dyn Kv, session: SessionId, question: &Read) -> Result<ReadReply, FsError> {
    // I2: an answer that takes several look-ups is of one moment. Otherwise a commit between them would show a hole
    // where neither the old nor the new content has one.
    let _held = kv.hold();
    held(kv, session, question)
}

/// Answers a question about a map that stays as it is meanwhile.
pub(super) fn held(kv: &dyn Kv, session: SessionId, question: &Read) -> Result<ReadReply, FsError> {
    match question {
        Read::Lookup { parent, name } => lookup(kv, *parent, name),
        Read::GetAttr { ino } => Ok(ReadReply::Attr(load(kv, *ino)?.attr)),
        Read::Open { ino } => open(kv, session, *ino),
        Read::ReadLink { ino } => {
            load(kv, *ino)?;
            numbered::load_bytes(kv, &keys::symlink(*ino)).map(ReadReply::Bytes).ok_or(FsError::Invalid)
        }
        Read::ReadDir { ino, after, limit, with } => {
            let ListedDir { parent, entries, end, .. } = Lister::new(kv, *with).dir(*ino, *after, *limit)?;
            Ok(ReadReply::Page { parent, entries, end })
        }
        Read::ReadTree { ino, with, behind, limit } => {
            Lister::new(kv, (*with).max(With::Attributes)).tree(*ino, behind, *limit).map(ReadReply::Tree)
        }
        Read::Extents { ino, off, len } => {
            let inode = load(kv, *ino)?;
            Ok(ReadReply::Extents(extent::page(kv, &inode, &(*off..off.saturating_add(*len)))))
        }
        Read::GetXattr { ino, name } => {
            numbered::load_bytes(kv, &keys::xattr(*ino, name)).map(ReadReply::Bytes).ok_or(FsError::NoAttribute)
        }
        Read::ListXattr { ino } => Ok(ReadReply::Names(xattr::names(kv, *ino))),
        Read::GetLock { ino, lock } => Ok(ReadReply::Lock(lock::conflicting(kv, session, *ino, lock))),
        Read::Journaled { journal } => Ok(ReadReply::Journaled(deferred::position(kv, *journal))),
        Read::StatFs => Ok(ReadReply::StatFs(StatFs { inodes: settings::inode_count(kv), ..StatFs::default() })),
    }
}

fn load(kv: &dyn Kv, ino: Ino) -> Result<Inode, FsError> {
    kv.load(&keys::inode(ino)).ok_or(FsError::NotFound)
}

fn load_dir(kv: &dyn Kv, ino: Ino) -> Result<Inode, FsError> {
    let inode = load(kv, ino)?;
    if inode.attr.kind == FileKind::Directory { Ok(inode) } else { Err(FsError::NotADirectory) }
}

fn lookup(kv: &dyn Kv, parent: Ino, name: &[u8]) -> Result<ReadReply, FsError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(FsError::NameTooLong);
    }
    let found = match name {
        b"." => Some(parent),
        b".." => Some(load_dir(kv, parent)?.parent),
        name => dentry::find(kv, parent, name).map(|(ino, _)| ino),
    };
    match found {
        Some(ino) => Ok(ReadReply::Attr(load(kv, ino)?.attr)),
        // The directory is checked only on a miss: nothing is found in an inode that is no directory.
        None => Err(load_dir(kv, parent).err().unwrap_or(FsError::NotFound)),
    }
}

fn open(kv: &dyn Kv, session: SessionId, ino: Ino) -> Result<ReadReply, FsError> {
    let inode = load(kv, ino)?;
    if inode.attr.nlink == 0 && orphan::is_gone_for(kv, session, ino) {
        return Err(FsError::Stale);
    }
    let page = extent::page(kv, &inode, &(0..CHUNK_BYTES));
    Ok(ReadReply::Opened { attr: inode.attr, page })
}

/// Most extents of a file of which a listing says where its content is stored.
const LISTED_EXTENTS_MAX: usize = 4;

/// Lists directories for one answer.
struct Lister<'a> {
    kv: &'a dyn Kv,
    with: With,
    /// How many bytes more may say where content is stored.
    contents_left: usize,
}

impl<'a> Lister<'a> {
    fn new(kv: &'a dyn Kv, with: With) -> Self {
        Self { kv, with, contents_left: LISTED_CONTENTS_BYTES_MAX }
    }

    fn dir(&mut self, ino: Ino, after: u64, limit: u32) -> Result<ListedDir, FsError> {
        let parent = load_dir(self.kv, ino)?.parent;
        let limit = limit.clamp(1, READDIR_PAGE_MAX) as usize;
        let mut entries: Vec<DirEntry> = Vec::with_capacity(limit.min(256));
        let mut end = true;
        self.kv.scan(keys::dentries(ino, after), &mut |key, value| {
            let (_, cookie, name) = keys::dentry_parts(key);
            // Names of one cookie stay on one page: the next page begins after the cookie, and would leave out the rest.
            if entries.len() >= limit && entries.last().is_some_and(|last| last.cookie != cookie) {
                end = false;
                return false;
            }
            let (ino, kind): dentry::Target = numbered::undamaged(key, numbered::decode(value));
            entries.push(DirEntry { name: name.to_vec(), ino, kind, cookie, attr: None, content: None });
            true
        });
        if self.with >= With::Attributes {
            for entry in &mut entries {
                let inode = load(self.kv, entry.ino)?;
                entry.content = self.content(&inode);
                entry.attr = Some(inode.attr);
            }
        }
        Ok(ListedDir { ino, parent, entries, end })
    }

    /// Returns where the content of a small file is stored, if that is asked for and there is room for it.
    fn content(&mut self, inode: &Inode) -> Option<ExtentPage> {
        let InodeAttr { kind, size, .. } = inode.attr;
        let is_small = kind == FileKind::Regular && size <= LISTED_CONTENT_MAX;
        if self.with < With::Contents || !is_small || self.contents_left == 0 {
            return None;
        }
        let page = extent::page(self.kv, inode, &(0..CHUNK_BYTES));
        // One that does not fit any more ends it, so that not many are read in vain.
        self.contents_left = self.contents_left.saturating_sub(page.memory());
        let is_simple = page.extents.len() <= LISTED_EXTENTS_MAX && page.inline_bytes() <= INLINE_BYTES_MAX;
        (self.contents_left > 0 && is_simple).then_some(page)
    }

    /// `Read::ReadTree`: a client that walks a tree gets one answer per thousand entries instead of one per directory.
    fn tree(&mut self, ino: Ino, behind: &[Ino], limit: u32) -> Result<Vec<ListedDir>, FsError> {
        let dirs_in = |listed: &ListedDir| -> Vec<Ino> {
            let dirs = listed.entries.iter().filter(|entry| entry.kind == FileKind::Directory);
            // Reversed: the first one is popped from the end.
            dirs.rev().map(|entry| entry.ino).collect()
        };
        let limit = limit.clamp(1, READDIR_PAGE_MAX);
        let first = self.dir(ino, 0, limit)?;
        let mut left = (limit as usize).saturating_sub(first.entries.len());
        // A request for more directories than entries is cut short.
        let mut ahead: Vec<Ino> = behind.iter().take(left).rev().copied().collect();
        ahead.extend(dirs_in(&first));
        let mut tree = vec![first];
        while let Some(next) = ahead.pop().filter(|_| left > 0) {
            let Ok(listed) = self.dir(next, 0, left as u32) else { continue };
            if !listed.end {
                break;
            }
            // An empty directory costs something, too.
            left = left.saturating_sub(listed.entries.len().max(1));
            ahead.extend(dirs_in(&listed));
            tree.push(listed);
        }
        Ok(tree)
    }
}
