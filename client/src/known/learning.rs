//! What is learned from metad's answers, and from this session's own changes. Pure.

use super::Now;
use super::leases::Mark;
use super::listings::{Listed, PageKey};
use super::state::State;
use std::collections::HashSet;
use std::sync::Arc;
use wire::attr::InodeAttr;
use wire::ids::Ino;
use wire::op::{ConflictCopy, ExtentPage, NewInode, Op, OpReply, RenameMode};

/// Answers.
impl State {
    /// Caches attributes that were asked for at `mark`, with a lease.
    pub fn learn_attr(&mut self, attr: &InodeAttr, mark: Mark) {
        if !self.leases.is_changed_since(attr.ino, mark) {
            self.attrs.put(attr.clone());
        }
    }

    /// Caches where a name leads, or that it is absent.
    pub fn learn_name(&mut self, parent: Ino, name: &[u8], ino: Option<Ino>, mark: Mark) {
        // A change here may have been of this name.
        if name != b"." && name != b".." && !self.leases.is_changed_since(parent, mark) {
            self.names.put((parent, name.to_vec()), ino, mark);
        }
    }

    /// Caches part of a listing, with its names, attributes if it has them, and where the content of its small files is
    /// stored. A listing lacks what was done in the directory and is not sent to metad yet: in that case it is not cached.
    pub fn learn_page(&mut self, key: PageKey, listed: &Arc<Listed>, contents: Vec<(Ino, ExtentPage)>, mark: Mark) {
        if self.leases.is_changed_since(key.dir, mark) || self.pins.has_names_in(key.dir) {
            return;
        }
        self.listings.put(key, listed, mark);
        for entry in &listed.entries {
            if let Some(attr) = entry.attr.as_ref().filter(|_| key.plus) {
                self.learn_attr(attr, mark);
                self.names.put((key.dir, entry.name.clone()), Some(entry.ino), mark);
            }
        }
        // Each is of one version, and used only while that is the file's.
        for (ino, page) in contents {
            self.attrs.put_content(ino, page);
        }
    }
}

/// Changes.
impl State {
    fn note_change(&mut self, ino: Ino, at: Mark) {
        self.attrs.forget(ino);
        self.leases.note_change(ino, at);
    }

    /// Begins a change by this session. Answers that are asked for from now on are not cached until [`State::changed`].
    pub fn change(&mut self, ops: &[Op]) -> Mark {
        let at = self.leases.tick();
        let mut changing = Vec::new();
        for op in ops {
            changing.extend(op.attrs_changed());
            for (parent, name) in op.names_changed() {
                changing.extend(self.names.forget(&(parent, name.clone())));
                // Until it is known what became of it, it may exist.
                self.names.complete_with(parent, name, true);
            }
        }
        for ino in &changing {
            self.note_change(*ino, at);
        }
        self.leases.begin_changing(&changing);
        self.changing.insert(at, changing);
        at
    }

    /// Ends a change that was carried out, or has failed (no replies), or whose outcome is unknown. With leases on all
    /// of it, its result is known: from the replies, and from the attributes that come with the leases.
    pub fn changed(
        &mut self,
        mark: Mark,
        ops: &[Op],
        replies: &[OpReply],
        leased: Option<&[InodeAttr]>,
        (delegated, now): (&[Ino], Now),
    ) {
        let changing = self.changing.remove(&mark).unwrap_or_default();
        self.leases.end_changing(&changing);
        let at = self.leases.tick();
        let (leased, rest) = (leased.is_some(), leased.unwrap_or_default());
        // This must be determined before answers that arrived meanwhile are made void.
        let overtaken: HashSet<Ino> = replies
            .iter()
            .flat_map(answered)
            .chain(rest)
            .map(|attr| attr.ino)
            .chain(ops.iter().flat_map(Op::attrs_changed))
            .filter(|ino| self.leases.is_changed_since(*ino, mark))
            .collect();
        self.void(ops, leased, at);
        for copy in replies.iter().filter_map(conflict) {
            self.note_change(copy.parent, at);
            self.names.forget(&(copy.parent, copy.name.clone()));
            self.names.end_complete(copy.parent);
        }
        for attr in replies.iter().flat_map(answered).chain(rest) {
            if !leased {
                self.note_change(attr.ino, at);
            } else if !overtaken.contains(&attr.ino) {
                self.attrs.put(attr.clone());
            }
        }
        let made: Vec<Ino> = ops.iter().filter_map(Op::made).collect();
        self.leases.delegate(delegated, mark, &made, now);
        if leased {
            for (op, reply) in ops.iter().zip(replies) {
                self.learn_change(op, reply, &overtaken);
            }
        }
    }

    /// Voids answers that were asked for while these operations were under way: they may be of before or after them.
    fn void(&mut self, ops: &[Op], leased: bool, at: Mark) {
        for op in ops {
            for ino in op.attrs_changed() {
                self.note_change(ino, at);
            }
            for (parent, name) in op.names_changed() {
                self.names.forget(&(parent, name.clone()));
                if !leased {
                    self.names.end_complete(parent);
                }
            }
        }
    }

    /// Learns what became of names.
    fn learn_change(&mut self, op: &Op, reply: &OpReply, overtaken: &HashSet<Ino>) {
        if op.names_changed().any(|(parent, _)| overtaken.contains(&parent)) {
            // The order of the two changes is unknown, so each name may exist: neither is known to be absent.
            for (parent, name) in op.names_changed() {
                self.names.complete_with(parent, name, true);
            }
            return;
        }
        match (op.plain(), reply) {
            (Op::Create { parent, name, .. } | Op::Link { parent, name, .. }, OpReply::Attr(attr)) => {
                self.name_leads(*parent, name, Some(attr.ino));
                let is_new = matches!(op, Op::Create { node: NewInode::Directory, .. });
                if is_new && self.attrs.contains(attr.ino) {
                    self.names.begin_complete(attr.ino);
                }
            }
            (Op::Unlink { parent, name, .. } | Op::Rmdir { parent, name, .. }, OpReply::Removed { .. }) => {
                self.name_leads(*parent, name, None);
            }
            (Op::Rename { parent, name, new_parent, new_name, mode, .. }, OpReply::Renamed { moved, replaced, .. }) => {
                let back = replaced.as_ref().filter(|_| *mode == RenameMode::Exchange);
                self.name_leads(*parent, name, back.map(|attr| attr.ino));
                self.name_leads(*new_parent, new_name, Some(moved.ino));
            }
            _ => {}
        }
    }

    fn name_leads(&mut self, parent: Ino, name: &[u8], ino: Option<Ino>) {
        let since = self.leases.mark();
        self.names.put((parent, name.to_vec()), ino, since);
        self.names.complete_with(parent, name, ino.is_some());
    }
}

/// Returns the conflict copy that a commit has made.
fn conflict(reply: &OpReply) -> Option<&ConflictCopy> {
    match reply {
        OpReply::Committed { conflict, .. } => conflict.as_ref(),
        _ => None,
    }
}

/// Returns the attributes that a reply has.
fn answered(reply: &OpReply) -> impl Iterator<Item = &InodeAttr> {
    let (one, two) = match reply {
        OpReply::Attr(attr) | OpReply::Removed { attr, .. } | OpReply::Committed { attr, .. } => (Some(attr), None),
        OpReply::Renamed { moved, replaced, .. } => (Some(moved), replaced.as_ref()),
        OpReply::Inos { .. } | OpReply::Done => (None, None),
    };
    one.into_iter().chain(two)
}
