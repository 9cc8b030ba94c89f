//! Operations carried out here, under delegations. Each checks what metad would check; where that is not known, or it would
//! be refused, it is left to metad: `None`.

use super::{Client, Doing, Work};
use crate::file::sealed::To;
use crate::file::state::FileState;
use crate::known::{Local, NameState};
use crate::namespace::NewNode;
use crate::opens::{Opening, Vouched};
use std::sync::Arc;
use wire::attr::{AttrChange, Creator, FileKind, InodeAttr};
use wire::ids::{Ino, Version};
use wire::limits::{LINKS_MAX, SYMLINK_BYTES_MAX};
use wire::op::{Expect, NewInode, Op, RenameMode, check_name};

fn expect(parent: Ino, name: &[u8], ino: Option<Ino>) -> Expect {
    Expect { parent, name: name.to_vec(), ino, version: None }
}

/// What an entry leads to that is to lose it.
struct Removable<'a> {
    attr: InodeAttr,
    /// The newest content that is known, if nobody is to lose any other with it.
    version: Option<Version>,
    /// Nobody opens it until this is dropped: after the entry is in the queue.
    vouched: Vouched<'a>,
}

impl Client {
    /// Whether something may be done to these inodes here, as it seems; returns once there is room for it.
    async fn may_do_here(&self, inos: &[Ino]) -> bool {
        if !self.config.write_back {
            return false;
        }
        if self.session.is_at_work() {
            for ino in inos.iter().filter(|ino| !self.known.is_delegated(&[**ino])) {
                // What was read before this session was at work came without. A question costs a tenth of a change.
                if !self.walks.may_ask_for(*ino) || self.ask_to_be_alone(*ino).await.is_err() {
                    return false;
                }
            }
        }
        // Without room in time it is tried at once, and that does not succeed either.
        self.known.is_delegated(inos) && self.patiently(self.writeback.wait_for_room()).await.is_ok()
    }

    /// What was written to a file goes before what is done to it now. False when it cannot go into the queue.
    fn defer_content_of(&self, ino: Ino) -> bool {
        let open = self.files.lock().get(&ino).cloned();
        open.filter(|file| file.is_dirty()).is_none_or(|file| self.defer_content(&file))
    }

    /// Makes an inode.
    pub(crate) async fn make_here(&self, parent: Ino, name: &[u8], new: &NewNode) -> Option<(InodeAttr, Opening<'_>)> {
        let cache = &self.known;
        let kind = new.node.kind().ok()?;
        let target_bytes = if let NewInode::Symlink(target) = &new.node { Some(target.len()) } else { None };
        let fits = target_bytes.is_none_or(|bytes| (1..=SYMLINK_BYTES_MAX).contains(&bytes));
        if !fits || check_name(name).is_err() || !self.may_do_here(&[parent]).await {
            return None;
        }
        let ino = self.session.next_ino().await.ok()?;
        let opening = self.opens.begin_new(ino);
        let at = self.session.stamp();
        let doing = self.writeback.begin((&self.session, &self.known), &[parent])?;
        // A default ACL would be inherited.
        let mut dir = cache.attr(parent).filter(|dir| !dir.has_xattrs && dir.kind == FileKind::Directory)?;
        let full = kind == FileKind::Directory && dir.nlink >= LINKS_MAX;
        if full || dir.nlink == 0 || cache.name_state(parent, name) != NameState::Absent {
            return None;
        }
        let mode = if kind == FileKind::Symlink { new.mode } else { new.mode & !(new.umask & 0o777) };
        let creator = Creator { mode, uid: new.uid, gid: new.gid };
        let mut made = InodeAttr::new_in(&dir, ino, kind, new.node.rdev(), creator, at);
        made.size = target_bytes.unwrap_or(0) as u64;
        dir.gained(kind, at);
        let NewNode { node, mode, umask, uid, gid } = new.clone();
        let op = Op::Create { parent, name: name.to_vec(), ino, node, mode, umask, uid, gid };
        let local =
            Local { attrs: vec![dir, made.clone()], made: Some(ino), names: vec![(parent, name.to_vec(), Some(ino))] };
        doing.enter(at, Work::Change { op, expect: Vec::new() }, local, &[]);
        Some((made, opening))
    }

    /// What an entry leads to that may lose it: not open here, no directory, with no other entry that others may know of.
    fn removable(&self, ino: Ino) -> Option<Removable<'_>> {
        let cache = &self.known;
        let attr = cache.attr(ino)?;
        let ours = attr.nlink == 1 || cache.is_delegated(&[ino]);
        if attr.kind == FileKind::Directory || attr.nlink == 0 || !ours {
            return None;
        }
        let is_open = || self.files.lock().get(&ino).is_some_and(|file| file.is_open());
        let vouched = self.opens.vouch(ino, is_open)?;
        let file = self.files.lock().get(&ino).cloned();
        let version = match file.map(|file| file.newest_version()) {
            _ if attr.nlink > 1 => None,
            Some(newest) => newest.map(|newest| newest.max(attr.version)),
            None => Some(attr.version),
        };
        Some(Removable { attr, version, vouched })
    }

    /// Whether everything that was written to a file is in the queue.
    fn is_deferred(&self, ino: Ino) -> bool {
        self.files.lock().get(&ino).is_none_or(|file| !file.is_dirty() || file.is_queued())
    }

    /// Removes a name.
    pub(crate) async fn unlink_here(&self, parent: Ino, name: &[u8]) -> Option<()> {
        let cache = &self.known;
        if !self.may_do_here(&[parent]).await {
            return None;
        }
        let at = self.session.stamp();
        let doing = self.writeback.begin((&self.session, &self.known), &[parent])?;
        let NameState::Leads(ino) = cache.name_state(parent, name) else { return None };
        let mut dir = cache.attr(parent).filter(|dir| dir.size > 0)?;
        let Removable { mut attr, version, vouched: _vouched } = self.removable(ino)?;
        dir.lost(attr.kind, at);
        attr.nlink -= 1;
        attr.changed(at);
        let released = (attr.nlink == 0).then_some(ino);
        let op = Op::Unlink { parent, name: name.to_vec(), released };
        let expect = vec![Expect { version, ..expect(parent, name, Some(ino)) }];
        let local = Local { attrs: vec![dir, attr], made: None, names: vec![(parent, name.to_vec(), None)] };
        doing.enter(at, Work::Change { op, expect }, local, &[]);
        Some(())
    }

    /// Removes an empty directory. Returns its attributes as they are then.
    pub(crate) async fn rmdir_here(&self, parent: Ino, name: &[u8]) -> Option<InodeAttr> {
        let cache = &self.known;
        let NameState::Leads(ino) = cache.name_state(parent, name) else { return None };
        if !self.may_do_here(&[parent, ino]).await {
            return None;
        }
        let at = self.session.stamp();
        let doing = self.writeback.begin((&self.session, &self.known), &[parent, ino])?;
        if cache.name_state(parent, name) != NameState::Leads(ino) {
            return None;
        }
        let mut dir = cache.attr(parent)?;
        let mut attr = cache.attr(ino).filter(|attr| attr.kind == FileKind::Directory && attr.size == 0)?;
        dir.lost(FileKind::Directory, at);
        attr.nlink = 0;
        attr.changed(at);
        let op = Op::Rmdir { parent, name: name.to_vec() };
        let expect = vec![expect(parent, name, Some(ino))];
        let local = Local { attrs: vec![dir, attr.clone()], made: None, names: vec![(parent, name.to_vec(), None)] };
        doing.enter(at, Work::Change { op, expect }, local, &[]);
        Some(attr)
    }

    /// Moves the name of something that is no directory, or of a directory within its parent. Whether it would get into
    /// itself, metad knows.
    pub(crate) async fn rename_here(
        &self,
        (parent, name): (Ino, &[u8]),
        (new_parent, new_name): (Ino, &[u8]),
        mode: RenameMode,
    ) -> Option<()> {
        let cache = &self.known;
        let parents = [parent, new_parent];
        let same = parent == new_parent && name == new_name;
        let ordinary = check_name(new_name).is_ok() && !same && mode != RenameMode::Exchange;
        if !ordinary || !self.may_do_here(&parents).await {
            return None;
        }
        let NameState::Leads(source) = cache.name_state(parent, name) else { return None };
        // What replaces a file must be there when its name is: programs write a new file, rename it, and expect one or
        // the other after a crash.
        if !self.defer_content_of(source) {
            return None;
        }
        let at = self.session.stamp();
        let doing = self.writeback.begin((&self.session, &self.known), &parents)?;
        // What was in the queue may have been refused meanwhile.
        if cache.name_state(parent, name) != NameState::Leads(source) || !self.is_deferred(source) {
            return None;
        }
        let mut moved = cache.attr(source)?;
        let is_dir = moved.kind == FileKind::Directory;
        let ours = cache.is_delegated(&[source]) || (moved.nlink == 1 && !is_dir);
        if !ours || (is_dir && parent != new_parent) {
            return None;
        }
        let mut attrs = Vec::with_capacity(4);
        let mut new_dir = cache.attr(new_parent)?;
        let (mut _vouched, mut version) = (None, None);
        let target = match cache.name_state(new_parent, new_name) {
            NameState::Absent => None,
            NameState::Leads(target) if mode == RenameMode::Replace && target != source && !is_dir => {
                let removable = self.removable(target)?;
                let mut replaced = removable.attr;
                (_vouched, version) = (Some(removable.vouched), removable.version);
                replaced.nlink -= 1;
                replaced.changed(at);
                new_dir.lost(replaced.kind, at);
                attrs.push(replaced);
                Some(target)
            }
            NameState::Leads(_) | NameState::Unknown => return None,
        };
        moved.changed(at);
        if parent == new_parent {
            new_dir.modified(at);
        } else {
            let mut dir = cache.attr(parent)?;
            dir.lost(moved.kind, at);
            attrs.push(dir);
            new_dir.gained(moved.kind, at);
        }
        attrs.extend([new_dir, moved]);
        let released = target.filter(|target| attrs.iter().any(|attr| attr.ino == *target && attr.nlink == 0));
        let op = Op::Rename { parent, name: name.to_vec(), new_parent, new_name: new_name.to_vec(), mode, released };
        let expect =
            vec![expect(parent, name, Some(source)), Expect { version, ..expect(new_parent, new_name, target) }];
        let names = vec![(parent, name.to_vec(), None), (new_parent, new_name.to_vec(), Some(source))];
        doing.enter(at, Work::Change { op, expect }, Local { attrs, made: None, names }, &[]);
        Some(())
    }

    /// Changes attributes other than the length.
    pub(crate) async fn set_attr_here(&self, ino: Ino, change: &AttrChange) -> Option<InodeAttr> {
        let cache = &self.known;
        if change.size.is_some() || !self.may_do_here(&[ino]).await {
            return None;
        }
        // Times and rights that are set must not be overtaken by the commit of what was written before.
        if !self.defer_content_of(ino) {
            return None;
        }
        let at = self.session.stamp();
        let doing = self.writeback.begin((&self.session, &self.known), &[ino])?;
        // An access list would have to follow the mode.
        let mut attr = cache.attr(ino).filter(|attr| !attr.has_xattrs && attr.nlink > 0)?;
        attr.apply(change, at);
        let op = Op::SetAttr { ino, change: change.clone() };
        let local = Local { attrs: vec![attr.clone()], made: None, names: Vec::new() };
        doing.enter(at, Work::Change { op, expect: Vec::new() }, local, &[]);
        let open = self.files.lock().get(&ino).cloned();
        if let Some(file) = open {
            file.time_was_set(change, &attr);
        }
        Some(attr)
    }

    /// Puts a file's content as it is now into the queue. False when it must be committed at once, or not at all.
    pub(crate) fn defer_content(&self, file: &Arc<FileState>) -> bool {
        // On a full disk whoever closes a file hears of it.
        if !self.config.write_back || self.window.is_failing() {
            return false;
        }
        self.queue_content(file, || self.writeback.begin((&self.session, &self.known), &[file.ino()]))
    }

    /// The same for content of a file that others may use too, when the mount ends and the servers are away: so that the
    /// journal has it.
    pub(crate) fn leave_content(&self, file: &Arc<FileState>) -> bool {
        self.queue_content(file, || Some(self.writeback.begin_leaving((&self.session, &self.known))))
    }

    fn queue_content<'a>(&'a self, file: &Arc<FileState>, begin: impl FnOnce() -> Option<Doing<'a>>) -> bool {
        let (cache, ino) = (&self.known, file.ino());
        let Some(written_at) = file.may_queue() else { return false };
        let at = written_at.unwrap_or_else(|| self.session.stamp());
        let Some(doing) = begin() else { return false };
        if cache.attr(ino).is_some_and(|attr| attr.nlink == 0) {
            return false;
        }
        let Some(upto) = self.arc().seal_rest(file, To::SharedBlock) else { return true };
        if !file.enter_queue(upto) {
            return true;
        }
        doing.enter(at, Work::Content { file: file.clone(), upto }, Local::default(), &[ino]);
        true
    }
}
