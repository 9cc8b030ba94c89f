//! What is done here under delegations is pinned until metad knows it, too. Pure.

use super::Now;
use super::names::Place;
use super::pins::Pinned;
use super::state::State;
use wire::attr::{FileKind, InodeAttr};
use wire::ids::Ino;

impl State {
    /// Pins an operation that is done here and sent later, by the entry of this number.
    pub fn pin(&mut self, number: u64, pinned: Pinned) {
        let at = self.leases.tick();
        let made = pinned.made;
        for attr in pinned.attrs {
            if made == Some(attr.ino) && attr.kind == FileKind::Directory {
                self.names.begin_complete(attr.ino);
            }
            self.pins.pin_attr(attr.clone(), number, made == Some(attr.ino));
        }
        for (parent, name, ino) in pinned.names {
            self.names.complete_with(parent, &name, ino.is_some());
            // Pages of the listing are not valid any more.
            self.leases.note_change(parent, at);
            let place = (parent, name);
            match ino {
                Some(ino) => self.places.put(place.clone(), ino),
                None => {
                    self.places.forget(&place);
                }
            }
            self.pins.pin_name(place, ino, number);
        }
    }

    /// Unpins the operation of the entry of this number: metad has acknowledged it, and its answer is applied.
    pub fn unpin(&mut self, number: u64, inos: &[Ino], names: &[Place], now: Now) {
        for ino in inos {
            let Some(attr) = self.pins.unpin_attr(*ino, number) else { continue };
            if attr.nlink > 0 && self.is_delegated(*ino, now) && !self.attrs.contains(*ino) {
                // A later change had overtaken metad's answer, and metad has acknowledged that now, too.
                self.attrs.put(attr);
            }
        }
        for place in names {
            let Some(ino) = self.pins.unpin_name(place, number) else { continue };
            if self.is_delegated(place.0, now) {
                let since = self.leases.mark();
                self.names.put(place.clone(), ino, since);
            }
        }
    }

    /// Applies attributes after a commit of content: where a later entry still pins them, and where an earlier entry of
    /// the same batch did. Those attributes are cached by now, and do not have the content. Must be called before the
    /// file's content counts as committed: until then, it is shown with the content all the same.
    pub fn follow_commit(&mut self, committed: &InodeAttr) {
        self.pins.follow_commit(committed);
        if self.attrs.get(committed.ino).is_some_and(|attr| attr.version < committed.version) {
            self.attrs.forget(committed.ino);
        }
    }

    /// Unpins an entry that was undone or that metad has refused: the true state is what metad knows.
    pub fn undo(&mut self, number: u64, inos: &[Ino], names: &[Place]) {
        let at = self.leases.tick();
        for ino in inos {
            if self.pins.undo_attr(*ino, number) {
                self.attrs.forget(*ino);
                self.leases.note_change(*ino, at);
            }
        }
        for place in names {
            if self.pins.unpin_name(place, number).is_some() {
                self.names.forget(place);
            }
            self.names.end_complete(place.0);
        }
    }
}
