//! Commits of written content to a file (I6).
//!
//! A commit names the version it is based on. Each extent carries the version that wrote it, and an inode the ranges
//! that were cut since (`Cut`). So metad sees without any history whether others touched the same bytes meanwhile.
//! Appended content comes after everything and conflicts with nothing.

use super::Context;
use super::acl;
use super::dentry;
use super::extent::{all_if_few, any_overlapping, count_in_chunk, place_all};
use super::inode::Inode;
use super::keys;
use super::numbered;
use super::session;
use super::settings::inodes_changed;
use super::view::{KvExt, View};
use super::xattr;
use std::collections::BTreeSet;
use wire::FsError;
use wire::attr::{FileKind, Timestamp};
use wire::extent::{ExtentWrite, Source};
use wire::ids::{Ino, Version};
use wire::limits::{BLOCK_BYTES_MAX, COMMIT_EXTENTS_MAX, FILE_BYTES_MAX, INLINE_BYTES_MAX, NAME_BYTES_MAX};
use wire::op::{ConflictCopy, ConflictPolicy, Name, OpReply, check_name};

/// Extents are counted in a written chunk up to this number. The count shows the client when to compact.
const COUNTED_EXTENTS: usize = 4096;
/// Extents are counted with a commit of at least this many pieces, and with each whose version is a multiple of it:
/// counting thousands takes longer than a small commit.
const COUNTED_EVERY: usize = 64;

/// Longest suffix of a conflict copy, in bytes: a dot and the largest number fit in a name with it.
const SUFFIX_BYTES_MAX: usize = NAME_BYTES_MAX - ".4294967295".len();

/// Follows the suffix of a copy that has nothing but what was written.
const PART: &[u8] = b".part";

/// The first names of conflict copies, numbered consecutively.
const NUMBERED_IN_ORDER: u32 = 16;
/// Names tried for one conflict copy. Only a malicious client has taken them all.
const NAMES_TRIED_MAX: u32 = 256;

/// `Op::Commit`, without the inode.
pub(super) struct Commit<'a> {
    pub base: Version,
    pub own: &'a [Version],
    pub writes: &'a [ExtentWrite],
    pub append_from: Option<u64>,
    pub mtime: Option<Timestamp>,
    pub clear_privileges: bool,
    pub policy: &'a ConflictPolicy,
}

/// `Op::Commit`.
pub(super) fn commit(view: &mut View, context: &Context, ino: Ino, commit: &Commit) -> Result<OpReply, FsError> {
    let mut inode = Inode::load_file(view, ino)?;
    let appended_at = commit.append_from.map(|_| inode.attr.size);
    let writes = shifted(commit, inode.attr.size)?;
    check_writes(&writes)?;
    if commit.base > inode.attr.version {
        return Err(FsError::Invalid);
    }
    // I6: the first commit wins. The content of the other one is stored beside it, and never dropped.
    let appends = appended_at.is_some();
    let changed = commit.base < inode.attr.version && !appends;
    let conflict = if changed && touched_since(view, &inode, commit, &writes) {
        match commit.policy {
            ConflictPolicy::Fail => return Err(FsError::Stale),
            ConflictPolicy::LastWriter => None,
            ConflictPolicy::Copy { ino: copy, suffix } => {
                Some(make_copy(view, context, &inode, (*copy, suffix), commit)?)
            }
        }
    } else {
        None
    };
    if conflict.is_none() {
        write(view, context, &mut inode, &writes)?;
        if commit.clear_privileges {
            inode.attr.clear_privileges();
        }
        // The writer's clock may be behind that of the previous one: mtime goes back to what an application had set,
        // but no further.
        let earliest = inode.attr.mtime.min(inode.attr.ctime);
        inode.modified(context.now);
        inode.attr.mtime = commit.mtime.map_or(inode.attr.mtime, |mtime| mtime.max(earliest));
        inode.save(view);
    }
    let is_counted = writes.len() >= COUNTED_EVERY || inode.attr.version.0.is_multiple_of(COUNTED_EVERY as u64);
    let last = writes.last().filter(|_| is_counted);
    let chunk_extents = last.map_or(0, |last| count_in_chunk(view, ino, last.file_off, COUNTED_EXTENTS));
    Ok(OpReply::Committed { attr: inode.attr, appended_at, conflict, chunk_extents })
}

/// Returns the writes, moved to the end of the file if they append.
fn shifted(commit: &Commit, size: u64) -> Result<Vec<ExtentWrite>, FsError> {
    let mut writes = commit.writes.to_vec();
    if let Some(from) = commit.append_from {
        for write in &mut writes {
            let within = write.file_off.checked_sub(from).ok_or(FsError::Invalid)?;
            write.file_off = size.checked_add(within).ok_or(FsError::TooLarge)?;
        }
    }
    Ok(writes)
}

fn check_writes(writes: &[ExtentWrite]) -> Result<(), FsError> {
    if writes.len() > COMMIT_EXTENTS_MAX {
        return Err(FsError::Invalid);
    }
    let mut end = 0;
    for write in writes {
        let fits = match &write.source {
            Source::Block { form, offset, .. } => {
                form.check()?;
                let end = u64::from(*offset).checked_add(write.len);
                let is_block = form.stored_len as usize <= BLOCK_BYTES_MAX;
                is_block && end.is_some_and(|end| end <= u64::from(form.plain_len))
            }
            Source::Inline(bytes) => bytes.len() as u64 == write.len && bytes.len() <= INLINE_BYTES_MAX,
            Source::Zero => true,
        };
        if !fits || write.len == 0 || write.file_off < end {
            return Err(FsError::Invalid);
        }
        end = write.file_off.checked_add(write.len).ok_or(FsError::TooLarge)?;
    }
    if end > FILE_BYTES_MAX { Err(FsError::TooLarge) } else { Ok(()) }
}

/// Returns whether others wrote or removed bytes of these ranges after the version that a commit is based on.
fn touched_since(view: &View, inode: &Inode, commit: &Commit, writes: &[ExtentWrite]) -> bool {
    // A set, because thousands of extents are looked up in a thousand versions.
    let own: BTreeSet<Version> = commit.own.iter().copied().collect();
    let foreign = |version: Version| version > commit.base && !own.contains(&version);
    writes.iter().any(|write| {
        let range = write.file_off..write.file_off + write.len;
        inode.was_cut_since(commit.base, &range)
            || any_overlapping(view, inode.attr.ino, &range, |extent| foreign(extent.version))
    })
}

fn write(view: &mut View, context: &Context, inode: &mut Inode, writes: &[ExtentWrite]) -> Result<(), FsError> {
    inode.attr.version = inode.attr.version.next();
    place_all(view, context, inode, writes)?;
    let end = writes.last().map_or(0, |last| last.file_off + last.len);
    inode.attr.size = inode.attr.size.max(end);
    Ok(())
}

/// Where the conflict copy of a confined client's commit stands, after which name it is named, and whose it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct CopyTo {
    pub dir: Ino,
    pub name: Name,
    pub uid: u32,
    pub gid: u32,
}

/// Stores the losing writes: a sibling with the file's current content and these writes over it. Of a file with more
/// extents than one entry may share, the sibling has these writes alone.
fn make_copy(
    view: &mut View,
    context: &Context,
    original: &Inode,
    (ino, suffix): (Ino, &[u8]),
    commit: &Commit,
) -> Result<ConflictCopy, FsError> {
    let shared = all_if_few(view, original.attr.ino)?;
    // I6: nobody may take such a copy for the whole file, and put it in the file's place.
    let mark: &[u8] = if shared.is_some() { &[] } else { PART };
    let suffix = [suffix, mark].concat();
    if suffix.len() > SUFFIX_BYTES_MAX {
        return Err(FsError::NameTooLong);
    }
    session::use_ino(view, context, ino)?;
    // The copy of a confined client is put where that client sees it: the judge has looked for a place that the user may change.
    let (parent, name) = match &context.copy_to {
        Some(to) => (to.dir, &to.name),
        None => (original.parent, &original.name),
    };
    // The directory may have gone together with the file's last name: the copy is then put in the root.
    let mut dir = match Inode::load_dir(view, parent) {
        Ok(dir) => dir,
        Err(_) => Inode::load_dir(view, context.root)?,
    };
    let name = free_name(view, dir.attr.ino, name, &suffix, ino)?;
    check_name(&name)?;
    let mut attr = original.attr.clone();
    (attr.ino, attr.nlink, attr.size, attr.allocated) = (ino, 1, 0, 0);
    (attr.version, attr.btime, attr.ctime) = (Version(0), context.now, context.now);
    if let Some(CopyTo { uid, gid, .. }) = &context.copy_to {
        (attr.uid, attr.gid) = (*uid, *gid);
    }
    let mut copy = Inode::new(attr, dir.attr.ino, name.clone());
    let present: Vec<ExtentWrite> = shared
        .unwrap_or_default()
        .into_iter()
        .map(|extent| ExtentWrite { file_off: extent.file_off, len: extent.len, source: extent.source })
        .collect();
    write(view, context, &mut copy, &present)?;
    copy.attr.size = original.attr.size;
    write(view, context, &mut copy, commit.writes)?;
    if commit.clear_privileges {
        copy.attr.clear_privileges();
    }
    copy.modified(context.now);
    // The copy gets the access list too: without it, the mode would mean something else. What only root may set is not given
    // to a file of somebody else.
    let is_given = |name: &[u8]| context.copy_to.is_none() || acl::is_list(name) || name.starts_with(b"user.");
    xattr::copy(view, original.attr.ino, ino, &is_given);
    copy.attr.has_xattrs = view.any(keys::xattrs(ino));
    copy.save(view);
    numbered::store(view, keys::dentry(dir.attr.ino, &name), &(ino, FileKind::Regular));
    dir.attr.size += 1;
    dir.modified(context.now);
    dir.save(view);
    inodes_changed(view, 1);
    Ok(ConflictCopy { ino, parent: dir.attr.ino, name })
}

/// Returns the file's name with the suffix of at most [`SUFFIX_BYTES_MAX`], shortened to fit, and with a number if that
/// name is taken. Numbers begin with 1. After a few they are hashes of the copy's inode number: otherwise each of many
/// copies would try the names of all others.
fn free_name(view: &View, dir: Ino, name: &[u8], suffix: &[u8], copy: Ino) -> Result<Vec<u8>, FsError> {
    let hashed = |attempt: u32| {
        let hash = blake3::hash(&[copy.0.to_le_bytes().as_slice(), &attempt.to_le_bytes()].concat());
        u32::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1], hash.as_bytes()[2], hash.as_bytes()[3]])
    };
    let number = |attempt| if attempt < NUMBERED_IN_ORDER { attempt } else { hashed(attempt) };
    let free = (0..NAMES_TRIED_MAX).map(number).map(|number| {
        let mut tail = suffix.to_vec();
        if number > 0 {
            tail.extend_from_slice(format!(".{number}").as_bytes());
        }
        // The number is never cut off, so all these names differ.
        let room = NAME_BYTES_MAX - tail.len();
        let mut full = name[..name.len().min(room)].to_vec();
        full.extend_from_slice(&tail);
        full
    });
    let mut free = free.filter(|name| dentry::find(view, dir, name).is_none());
    free.next().ok_or(FsError::Exists)
}
