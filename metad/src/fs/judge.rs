//! What a confined client may do: each operation and each read is judged before it is carried out, on the state that it
//! meets. To the client, what lies outside of its subtree does not exist; within it, it has the rights that its certificate
//! leaves to its users.
//!
//! Every variant is listed here: one that is added later has to be judged before it compiles.

use super::access::{R, W, Who, X};
use super::commit::CopyTo;
use super::inode::Inode;
use super::session::Opening;
use super::subtree::Scope;
use super::view::{Kv, KvExt, View};
use super::walks::{Sight, Walks};
use super::{Context, acl, deferred, dentry, keys, read};
use std::borrow::Cow;
use wire::FsError;
use wire::attr::{AttrChange, FileKind, S_ISGID, S_ISUID, TimeChange, Timestamp};
use wire::caller::Caller;
use wire::ids::{Ino, SessionId};
use wire::op::{ConflictPolicy, Lock, LockFamily, NewInode, Op, OpReply, Read, ReadReply, RenameMode, With};
use wire::tls::Squash;

const TRUSTED: &[u8] = b"trusted.";

struct Judge<'a> {
    kv: &'a dyn Kv,
    opening: &'a Opening,
    walks: &'a mut Walks,
    who: Who,
    /// The leader's time.
    now: Timestamp,
}

type Verdict = Result<(), FsError>;

fn granted(is_granted: bool) -> Verdict {
    if is_granted { Ok(()) } else { Err(FsError::AccessDenied) }
}

fn permitted(is_permitted: bool) -> Verdict {
    if is_permitted { Ok(()) } else { Err(FsError::NotPermitted) }
}

/// Begins the walks for a request of a confined client, or for a batch of so many operations.
pub(super) fn walks((session, opening): (SessionId, &Opening), caller: Option<&Caller>, ops: usize) -> Walks {
    Walks::new(Scope { root: opening.root(), session }, Who::new(opening.squash(), caller), ops)
}

impl<'a> Judge<'a> {
    fn new(
        kv: &'a dyn Kv,
        walks: &'a mut Walks,
        opening: &'a Opening,
        caller: Option<&Caller>,
        now: Timestamp,
    ) -> Self {
        Self { kv, opening, walks, who: Who::new(opening.squash(), caller), now }
    }

    /// What lies within, also in directories that the user may not search: it may have been open before.
    fn within(&mut self, ino: Ino) -> Result<(Inode, Sight), FsError> {
        self.walks.look(self.kv, ino)?.filter(|(_, sight)| *sight > Sight::Outside).ok_or(FsError::NotFound)
    }

    fn inside(&mut self, ino: Ino) -> Result<Inode, FsError> {
        let (inode, sight) = self.within(ino)?;
        granted(sight == Sight::Open)?;
        Ok(inode)
    }

    fn dir(&mut self, ino: Ino) -> Result<Inode, FsError> {
        let inode = self.inside(ino)?;
        if inode.attr.kind == FileKind::Directory { Ok(inode) } else { Err(FsError::NotADirectory) }
    }

    /// A directory in which entries are made or removed.
    fn changing(&mut self, ino: Ino) -> Result<Inode, FsError> {
        let dir = self.dir(ino)?;
        granted(self.who.may(self.kv, &dir, W | X))?;
        Ok(dir)
    }

    /// A directory that gets an entry. One that would lie too deep to be seen is not made.
    fn receiving(&mut self, ino: Ino) -> Result<Inode, FsError> {
        let dir = self.changing(ino)?;
        let is_seen = self.opening.root() == Ino::ROOT || self.walks.is_below(self.kv, ino);
        if is_seen { Ok(dir) } else { Err(FsError::NameTooLong) }
    }

    /// An entry that is removed or moved away. What it leads to lies within, as its directory does, and is judged also if it
    /// lies too deep to be seen.
    fn removing(&mut self, parent: Ino, name: &[u8]) -> Result<Option<Inode>, FsError> {
        let dir = self.changing(parent)?;
        let target = dentry::find(self.kv, parent, name).and_then(|(ino, _)| self.kv.load(&keys::inode(ino)));
        if let Some(target) = &target {
            permitted(!self.who.is_kept_by_sticky(&dir, target))?;
        }
        Ok(target)
    }

    fn reading(&mut self, ino: Ino) -> Result<Inode, FsError> {
        let inode = self.inside(ino)?;
        granted(self.who.may_read(self.kv, &inode))?;
        Ok(inode)
    }

    /// A file that is written to: it was opened before, when the directories above it may have had other rights.
    fn writing(&mut self, ino: Ino) -> Result<Inode, FsError> {
        let (inode, _) = self.within(ino)?;
        granted(self.who.may_write(self.kv, &inode))?;
        Ok(inode)
    }

    /// A file that is open, so that the user may at least read or write it.
    fn open(&mut self, ino: Ino) -> Result<Inode, FsError> {
        let (inode, _) = self.within(ino)?;
        granted(self.who.may_read(self.kv, &inode) || self.who.may_write(self.kv, &inode))?;
        Ok(inode)
    }

    fn rename(
        &mut self,
        (parent, name): (Ino, &[u8]),
        (new_parent, new_name): (Ino, &[u8]),
        mode: RenameMode,
    ) -> Verdict {
        let source = self.removing(parent, name)?;
        let target = self.removing(new_parent, new_name)?;
        if parent != new_parent {
            self.receiving(new_parent)?;
            if mode == RenameMode::Exchange {
                self.receiving(parent)?;
            }
        }
        // A directory that comes to another parent changes itself: its entry `..`.
        let turned = |inode: &Option<Inode>| {
            let dir = inode.as_ref().filter(|inode| inode.attr.kind == FileKind::Directory && parent != new_parent);
            dir.is_none_or(|dir| self.who.may(self.kv, dir, W))
        };
        granted(turned(&source) && (mode != RenameMode::Exchange || turned(&target)))
    }

    fn attribute(&mut self, ino: Ino, name: &[u8]) -> Result<Inode, FsError> {
        let inode = self.inside(ino)?;
        if self.who.is_root() {
            return Ok(inode);
        }
        match name {
            acl::ACCESS | acl::DEFAULT => permitted(self.who.owns(&inode))?,
            name if name.starts_with(b"user.") => granted(self.who.may_set_user_attributes(self.kv, &inode))?,
            _ => permitted(false)?,
        }
        Ok(inode)
    }

    /// Returns the change as it is made.
    fn attributes(&mut self, ino: Ino, change: &AttrChange) -> Result<AttrChange, FsError> {
        let inode = self.inside(ino)?;
        let mut change = change.clone();
        if self.who.is_root() {
            return Ok(change);
        }
        let owns = self.who.owns(&inode);
        permitted(owns || (change.mode.is_none() && change.uid.is_none() && change.gid.is_none()))?;
        permitted(change.uid.is_none_or(|uid| uid == inode.attr.uid))?;
        permitted(change.gid.is_none_or(|gid| gid == inode.attr.gid || self.who.is_in(gid)))?;
        let sets = |time: Option<TimeChange>| matches!(time, Some(TimeChange::To(_)));
        permitted(owns || !(sets(change.atime) || sets(change.mtime)))?;
        let writes = change.size.is_some() || change.atime.is_some() || change.mtime.is_some();
        granted(!writes || self.who.may_write(self.kv, &inode))?;
        let group = change.gid.unwrap_or(inode.attr.gid);
        if !self.who.is_in(group) {
            change.mode = change.mode.map(|mode| mode & !S_ISGID);
        }
        change.clear_privileges |= change.uid.is_some() || change.gid.is_some() || change.size.is_some();
        Ok(change)
    }

    /// Returns the owner and the group of what is made.
    fn owner(&self, uid: u32, gid: u32) -> (u32, u32) {
        match (&self.who, self.opening.squash()) {
            (Who::User(user), _) => (user.uid, user.gid),
            (Who::Anybody, Squash::Root { uid: other, gid: group }) => {
                (if uid == 0 { other } else { uid }, if gid == 0 { group } else { gid })
            }
            (Who::Root | Who::Anybody, _) => (uid, gid),
        }
    }

    /// Returns where the conflict copy of a file goes, and whose it is; `None` if the user may not have one: it contains all
    /// of the file, and stands in a directory.
    fn copy_to(&mut self, original: &Inode) -> Option<CopyTo> {
        if !self.who.may_read(self.kv, original) {
            return None;
        }
        let root = self.opening.root();
        let beside = match root {
            Ino::ROOT => Some((original.parent, original.name.clone())),
            _ => self.walks.place(self.kv, original),
        };
        let name = beside.as_ref().map_or_else(|| original.name.clone(), |(_, name)| name.clone());
        let mut dirs = beside.map(|(dir, _)| dir).into_iter().chain([root]);
        let dir = dirs.find(|dir| self.receiving(*dir).is_ok())?;
        let (uid, gid) = self.owner(original.attr.uid, original.attr.gid);
        Some(CopyTo { dir, name, uid, gid })
    }

    /// Judges an operation. Returns it as it is carried out, if that is not as it was sent, and where a conflict copy goes.
    fn plain(&mut self, op: &Op) -> Result<(Option<Op>, Option<CopyTo>), FsError> {
        match op {
            Op::Create { parent, node, uid, gid, mode, .. } => {
                let dir = self.receiving(*parent)?;
                let device = |kind: FileKind| matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
                let is_device = matches!(node, NewInode::Special { kind, .. } if device(*kind));
                permitted(!is_device || self.who.is_root())?;
                let ((owner, group), mut made) = (self.owner(*uid, *gid), op.clone());
                let in_group = self.who.is_in(if dir.attr.mode & S_ISGID == 0 { group } else { dir.attr.gid });
                if let Op::Create { uid, gid, mode: made_mode, .. } = &mut made {
                    (*uid, *gid) = (owner, group);
                    *made_mode = if in_group { *mode } else { *mode & !S_ISGID };
                }
                return Ok((Some(made), None));
            }
            Op::Link { ino, parent, .. } => {
                let inode = self.inside(*ino)?;
                self.receiving(*parent)?;
                permitted(self.who.may_link(self.kv, &inode))?;
                if self.walks.is_full(self.kv, &inode) {
                    return Err(FsError::TooManyLinks);
                }
            }
            Op::Unlink { parent, name, released: _ } => {
                self.removing(*parent, name)?;
            }
            Op::Rmdir { parent, name, seen: _ } => {
                // The root of a subtree has its entry outside of it, so it is not removed from within.
                self.removing(*parent, name)?;
            }
            Op::Rename { parent, name, new_parent, new_name, mode, released: _, seen: _ } => {
                self.rename((*parent, name), (*new_parent, new_name), *mode)?;
            }
            Op::SetAttr { ino, change } => {
                let change = self.attributes(*ino, change)?;
                return Ok((Some(Op::SetAttr { ino: *ino, change }), None));
            }
            Op::Commit { ino, .. } => {
                let (inode, sight) = self.within(*ino)?;
                granted(self.who.may_write(self.kv, &inode))?;
                let (mut made, mut copy_to) = (op.clone(), None);
                if let Op::Commit { clear_privileges, policy, mtime, .. } = &mut made {
                    *clear_privileges |= !self.who.is_root();
                    if !self.who.owns(&inode) {
                        // utimensat(2): others set no time but the current one, and what was written before it is older.
                        *mtime = mtime.map(|at| at.min(self.now));
                    }
                    if matches!(policy, ConflictPolicy::Copy { .. }) {
                        // The copy has what the user could not read in a closed directory.
                        copy_to = if sight == Sight::Open { self.copy_to(&inode) } else { None };
                        if copy_to.is_none() {
                            *policy = ConflictPolicy::Fail;
                        }
                    }
                }
                return Ok((Some(made), copy_to));
            }
            Op::Range { ino, .. } => {
                self.writing(*ino)?;
            }
            Op::CloneRange { src, dst, .. } => {
                self.reading(*src)?;
                self.writing(*dst)?;
            }
            Op::SetXattr { ino, name, .. } => {
                let inode = self.attribute(*ino, name)?;
                let mut made = op.clone();
                if let Op::SetXattr { clear_sgid, .. } = &mut made {
                    *clear_sgid |= name == acl::ACCESS && !self.who.is_in(inode.attr.gid);
                }
                return Ok((Some(made), None));
            }
            Op::RemoveXattr { ino, name } => {
                self.attribute(*ino, name)?;
            }
            // They touch what the session itself holds, and their answers do not say whether that is anything.
            Op::ReleaseOrphans { .. } | Op::LeaseInos { .. } | Op::Unlock { .. } => {}
            Op::SetLock { ino, lock } => {
                let inode = self.open(*ino)?;
                // fcntl(2): an exclusive lock takes a descriptor for writing. flock(2) takes any.
                let writes = lock.family == LockFamily::Posix && lock.exclusive;
                granted(!writes || self.who.may_write(self.kv, &inode))?;
            }
            Op::Accessed { ino, .. } => {
                let (inode, _) = self.within(*ino)?;
                granted(self.who.may_read(self.kv, &inode))?;
            }
            Op::Deferred { at: _, expect, op } => {
                for expect in expect {
                    let dir = self.dir(expect.parent)?;
                    granted(self.who.may(self.kv, &dir, X))?;
                }
                // It holds none of its kind: that is checked when it is decoded. Nothing can have been done before, without a
                // delegation: the client would only choose the times that files have.
                let (judged, copy_to) = self.plain(op)?;
                let op = Box::new(judged.unwrap_or_else(|| (**op).clone()));
                return Ok((Some(Op::Deferred { at: self.now, expect: expect.clone(), op }), copy_to));
            }
            Op::Journaled { journal, .. } | Op::JournaledContent { journal, .. } => {
                permitted(deferred::may_use(self.kv, self.opening, *journal))?;
            }
        }
        Ok((None, None))
    }

    /// Judges a question. Returns it as it is answered.
    fn read<'q>(&mut self, question: &'q Read) -> Result<Cow<'q, Read>, FsError> {
        match question {
            Read::Lookup { parent, name } => {
                let dir = self.dir(*parent)?;
                granted(self.who.may(self.kv, &dir, X))?;
                if name == b".." && *parent == self.opening.root() {
                    return Ok(Cow::Owned(Read::GetAttr { ino: self.opening.root() }));
                }
            }
            Read::GetAttr { ino } | Read::ReadLink { ino } | Read::ListXattr { ino } => {
                self.inside(*ino)?;
            }
            Read::GetLock { ino, .. } => {
                self.open(*ino)?;
            }
            Read::Open { ino } | Read::Extents { ino, .. } => {
                self.reading(*ino)?;
            }
            Read::ReadDir { ino, after, limit, with } => {
                let with = self.listing(*ino, *with)?;
                return Ok(Cow::Owned(Read::ReadDir { ino: *ino, after: *after, limit: *limit, with }));
            }
            // Only the directory itself: those behind it would have to be judged one by one.
            Read::ReadTree { ino, with, limit, .. } => {
                let with = self.listing(*ino, (*with).max(With::Attributes))?;
                granted(with >= With::Attributes)?;
                return Ok(Cow::Owned(Read::ReadDir { ino: *ino, after: 0, limit: *limit, with }));
            }
            Read::GetXattr { ino, name } => {
                let inode = self.inside(*ino)?;
                granted(!name.starts_with(b"user.") || self.who.may_read(self.kv, &inode))?;
                if name.starts_with(TRUSTED) && !self.who.is_root() {
                    return Err(FsError::NoAttribute);
                }
            }
            Read::Journaled { journal } => permitted(deferred::may_use(self.kv, self.opening, *journal))?,
            Read::StatFs => {}
        }
        Ok(Cow::Borrowed(question))
    }

    /// Returns what comes with the entries of a directory.
    fn listing(&mut self, ino: Ino, with: With) -> Result<With, FsError> {
        let dir = self.dir(ino)?;
        granted(self.who.may(self.kv, &dir, R))?;
        match &self.who {
            Who::Root => Ok(with),
            // Where content is stored is for those who may read it.
            who if who.may(self.kv, &dir, X) => Ok(with.min(With::Attributes)),
            _ => Ok(With::Names),
        }
    }
}

/// Judges an operation. Returns it as it is carried out, and where a conflict copy goes.
///
/// # Errors
/// `NotFound` for what lies outside, `AccessDenied` or `NotPermitted` for what the user may not do; `ArgumentTooLarge` when the
/// batch has named too much.
pub(super) fn op<'o>(
    view: &mut View,
    (context, opening, walks): (&Context, &Opening, &mut Walks),
    caller: Option<&Caller>,
    op: &'o Op,
) -> Result<(Cow<'o, Op>, Option<CopyTo>), FsError> {
    let mut judge = Judge::new(view, walks, opening, caller, context.now);
    let (judged, copy_to) = judge.plain(op)?;
    let is_root = judge.who.is_root();
    if !is_root && let Op::Range { ino, .. } | Op::CloneRange { dst: ino, .. } = op.plain() {
        clear_privileges(view, *ino);
    }
    Ok((judged.map_or(Cow::Borrowed(op), Cow::Owned), copy_to))
}

/// Lets walks forget what an operation has changed for those that follow.
pub(super) fn applied(walks: &mut Walks, op: &Op, reply: &OpReply) {
    match (op.plain(), reply) {
        (_, OpReply::Renamed { moved, replaced, .. }) => {
            walks.forget(moved.ino);
            replaced.iter().for_each(|attr| walks.forget(attr.ino));
        }
        (Op::SetAttr { ino, .. } | Op::SetXattr { ino, .. } | Op::RemoveXattr { ino, .. }, _) => walks.forget(*ino),
        _ => {}
    }
}

/// Other changes of content clear setuid and setgid by themselves.
fn clear_privileges(view: &mut View, ino: Ino) {
    if let Ok(mut inode) = Inode::load(view, ino)
        && inode.attr.mode & (S_ISUID | S_ISGID) != 0
    {
        inode.attr.clear_privileges();
        inode.save(view);
    }
}

/// An answer to a confined client.
pub(crate) struct Answered {
    /// What it is told.
    pub reply: Result<ReadReply, FsError>,
    /// The directories whose names decide whether it sees the inode; `None` when it does not.
    pub above: Option<Vec<Ino>>,
}

/// Answers a question of a confined client: with the error of the system call, or with `NotFound` for what lies outside.
pub(crate) fn answer(
    kv: &dyn Kv,
    (session, opening): (SessionId, &Opening),
    caller: Option<&Caller>,
    question: &Read,
) -> Answered {
    // The answer is of one moment with the judgement.
    let _held = kv.hold();
    let mut walks = walks((session, opening), caller, 0);
    let mut judge = Judge::new(kv, &mut walks, opening, caller, Timestamp::default());
    let is_within = question.ino().is_none_or(|ino| judge.within(ino).is_ok());
    let reply = judge.answer(session, question);
    Answered { reply, above: is_within.then(|| walks.above()) }
}

impl Judge<'_> {
    fn answer(&mut self, session: SessionId, question: &Read) -> Result<ReadReply, FsError> {
        let question = self.read(question)?;
        match read::held(self.kv, session, &question)? {
            ReadReply::Page { entries, end, .. } if question.ino() == Some(self.opening.root()) => {
                Ok(ReadReply::Page { parent: self.opening.root(), entries, end })
            }
            ReadReply::Names(names) if !self.who.is_root() => {
                Ok(ReadReply::Names(names.into_iter().filter(|name| !name.starts_with(TRUSTED)).collect()))
            }
            // Who it is, is nothing to others.
            ReadReply::Lock(Some(lock)) => Ok(ReadReply::Lock(Some(Lock { owner: 0, ..lock }))),
            reply => Ok(reply),
        }
    }
}
