//! Operations under delegations. What `queue::here` decides from what is known is pinned and queued here, and sent to
//! metad later. `None` and `false` leave an operation to metad.

use crate::Client;
use crate::known::NameState;
use crate::open::opening::{Opening, Vouched};
use crate::queue::NewNode;
use crate::queue::here::{Doomed, may_make};
use wire::attr::{AttrChange, InodeAttr};
use wire::ids::Ino;
use wire::op::{RenameMode, check_name};

impl Client {
    /// Returns whether operations on these inodes may be done here, as it seems, once there is room for one.
    async fn may_do_here(&self, inos: &[Ino]) -> bool {
        if !self.config.write_back {
            return false;
        }
        if !self.known.is_delegated(inos) {
            if !self.known.is_at_work() {
                return false;
            }
            for ino in inos.iter().filter(|ino| !self.known.is_delegated(&[**ino])) {
                // Inodes that were read before this session was at work came without a delegation. A question costs a
                // tenth of a change.
                if !self.known.may_ask_for(*ino) || self.ask_to_be_alone(*ino).await.is_err() {
                    return false;
                }
            }
            if !self.known.is_delegated(inos) {
                return false;
            }
        }
        // Without room in time the operation is tried at once, and fails like this.
        self.work.patiently(self.writeback.wait_for_room()).await.is_ok()
    }

    /// Queues a file's content, so that it is sent before what is done to the file now. False when it cannot be queued.
    fn defer_content_of(&self, ino: Ino) -> bool {
        let open = self.open_files.get(ino);
        open.filter(|file| file.is_dirty()).is_none_or(|file| self.flusher.defer_content(&file))
    }

    /// Returns whether all content of a file is in the queue.
    fn is_deferred(&self, ino: Ino) -> bool {
        self.open_files.get(ino).is_none_or(|file| !file.is_dirty() || file.is_queued())
    }

    /// Makes an inode.
    pub(crate) async fn make_here(&self, parent: Ino, name: &[u8], new: &NewNode) -> Option<(InodeAttr, Opening<'_>)> {
        if !may_make(name, new) || !self.may_do_here(&[parent]).await {
            return None;
        }
        let ino = self.session.next_ino().await.ok()?;
        let opening = self.open_files.begin_new(ino);
        let at = self.session.stamp();
        let doing = self.writeback.begin(&[parent])?;
        let made = doing.enter(at, &[parent], |here| here.make((parent, name), ino, new))?;
        Some((made, opening))
    }

    /// Vouches for an inode that is about to lose a name, if it is not open here. Nobody opens it until the returned
    /// value is dropped.
    fn doom(&self, ino: Ino) -> Option<(Doomed, Vouched<'_>)> {
        let vouched = self.open_files.vouch_closed(ino)?;
        let file = self.open_files.get(ino);
        Some((Doomed { ino, newest: file.map(|file| file.newest_version()) }, vouched))
    }

    /// Removes a name.
    pub(crate) async fn unlink_here(&self, parent: Ino, name: &[u8]) -> Option<()> {
        if !self.may_do_here(&[parent]).await {
            return None;
        }
        let at = self.session.stamp();
        let doing = self.writeback.begin(&[parent])?;
        let target = doing.look(at, |here| here.removable(parent, name))?;
        let (doomed, _vouched) = self.doom(target.ino)?;
        doing.enter(at, &[parent], |here| Some((here.unlink((parent, name), doomed)?, ())))
    }

    /// Removes an empty directory. Returns its attributes after that.
    pub(crate) async fn rmdir_here(&self, (parent, name): (Ino, &[u8]), seen: Option<Ino>) -> Option<InodeAttr> {
        let NameState::Leads(ino) = self.known.name_state(parent, name) else { return None };
        if seen.is_some_and(|seen| seen != ino) || !self.may_do_here(&[parent, ino]).await {
            return None;
        }
        let at = self.session.stamp();
        let doing = self.writeback.begin(&[parent, ino])?;
        doing.enter(at, &[parent, ino], |here| here.rmdir((parent, name), ino))
    }

    /// Moves a name.
    pub(crate) async fn rename_here(
        &self,
        (parent, name): (Ino, &[u8]),
        (new_parent, new_name): (Ino, &[u8]),
        mode: RenameMode,
    ) -> Option<()> {
        let (from, to, parents) = ((parent, name), (new_parent, new_name), [parent, new_parent]);
        let ordinary = check_name(new_name).is_ok() && from != to && mode != RenameMode::Exchange;
        if !ordinary || !self.may_do_here(&parents).await {
            return None;
        }
        let NameState::Leads(source) = self.known.name_state(parent, name) else { return None };
        // Content that replaces a file must be stored when its name is: programs write a new file, rename it, and
        // expect one or the other after a crash.
        if !self.defer_content_of(source) {
            return None;
        }
        let at = self.session.stamp();
        let doing = self.writeback.begin(&parents)?;
        // The content in the queue may have been refused meanwhile.
        if !self.is_deferred(source) {
            return None;
        }
        let (doomed, _vouched) = match doing.look(at, |here| here.replaced(source, to, mode))? {
            Some(target) => self.doom(target).map(|(doomed, vouched)| (Some(doomed), Some(vouched)))?,
            None => (None, None),
        };
        doing.enter(at, &parents, |here| Some((here.rename((from, to), mode, source, doomed)?, ())))
    }

    /// Changes attributes other than the length.
    pub(crate) async fn set_attr_here(&self, ino: Ino, change: &AttrChange) -> Option<InodeAttr> {
        if change.size.is_some() || !self.may_do_here(&[ino]).await {
            return None;
        }
        // The commit of earlier content must not replace times and rights that are set.
        if !self.defer_content_of(ino) {
            return None;
        }
        let at = self.session.stamp();
        let doing = self.writeback.begin(&[ino])?;
        let attr = doing.enter(at, &[ino], |here| here.set_attr(ino, change))?;
        let open = self.open_files.get(ino);
        if let Some(file) = open {
            file.time_was_set(change, &attr);
        }
        Some(attr)
    }
}
