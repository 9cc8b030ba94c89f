//! Opening against removing: the session may vouch that it holds no handle on an inode only while nobody opens it.
//!
//! Opening costs no log entry, so metad cannot know of it. An open that has begun keeps removals from vouching. An open
//! that begins while a removal is under way waits for its outcome: it finds the inode gone, or retained for us.
//!
//! What metad answers to an open may be older than what other handles on the inode have committed meanwhile. Their state
//! knows that. If it was forgotten with the last of them, the open must ask again (I6): content that is based on the older
//! version would be in conflict with our own.

use crate::known::count_down;
use crate::ordered::{Ordered, Rank};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use tokio::sync::Notify;
use wire::ids::Ino;

/// Inodes that are being opened and removed.
pub struct Opens {
    under_way: Ordered<UnderWay>,
    changed: Notify,
}

impl Default for Opens {
    fn default() -> Self {
        Self { under_way: Ordered::new(Rank::Opens, UnderWay::default()), changed: Notify::new() }
    }
}

#[derive(Default)]
struct UnderWay {
    opening: HashMap<Ino, OpeningInode>,
    vouched: HashMap<Ino, usize>,
}

/// An inode that is being opened.
#[derive(Default)]
struct OpeningInode {
    /// Opens of it that are under way.
    under_way: usize,
    /// How often its state was forgotten since the first of them began.
    forgotten: u64,
}

/// An open under way, until it is dropped.
pub struct Opening<'a> {
    opens: &'a Opens,
    ino: Ino,
    /// How often the inode's state had been forgotten when metad was asked.
    forgotten: u64,
}

impl Opening<'_> {
    /// Calls `insert`, which adds the inode's state as metad has answered, unless another state was forgotten since the
    /// open has begun or was [renewed](Self::renew). No state is forgotten meanwhile.
    pub fn unless_overtaken<T>(&self, insert: impl FnOnce() -> T) -> Option<T> {
        let under_way = self.opens.under_way.lock();
        let is_overtaken = under_way.opening.get(&self.ino).is_some_and(|inode| inode.forgotten > self.forgotten);
        (!is_overtaken).then(insert)
    }

    /// Notes that metad is about to be asked again.
    pub fn renew(&mut self) {
        let under_way = self.opens.under_way.lock();
        self.forgotten = under_way.opening.get(&self.ino).map_or(0, |inode| inode.forgotten);
    }
}

/// A promise that nothing is open, until it is dropped.
pub struct Vouched<'a> {
    opens: &'a Opens,
    ino: Ino,
}

impl Vouched<'_> {
    /// The inode.
    #[must_use]
    pub fn ino(&self) -> Ino {
        self.ino
    }
}

impl Opens {
    /// Begins to open, once no removal is under way. Cancel-safe.
    pub async fn begin(&self, ino: Ino) -> Opening<'_> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let mut under_way = self.under_way.lock();
                if !under_way.vouched.contains_key(&ino) {
                    return self.opening(&mut under_way, ino);
                }
            }
            changed.await;
        }
    }

    /// Begins to open an inode that is not made yet: nobody can be removing it. Others may do so once metad has it,
    /// which is before this session knows.
    pub fn begin_new(&self, ino: Ino) -> Opening<'_> {
        self.opening(&mut self.under_way.lock(), ino)
    }

    fn opening(&self, under_way: &mut UnderWay, ino: Ino) -> Opening<'_> {
        let inode = under_way.opening.entry(ino).or_default();
        inode.under_way += 1;
        Opening { opens: self, ino, forgotten: inode.forgotten }
    }

    /// Calls `forget`, which returns whether it has forgotten the inode's state. No open adds one meanwhile.
    pub fn forget(&self, ino: Ino, forget: impl FnOnce() -> bool) {
        let mut under_way = self.under_way.lock();
        if forget()
            && let Some(inode) = under_way.opening.get_mut(&ino)
        {
            inode.forgotten += 1;
        }
    }

    /// Vouches that an inode is not open, if that is so. `is_open` is called while no open can begin.
    pub fn vouch(&self, ino: Ino, is_open: impl FnOnce() -> bool) -> Option<Vouched<'_>> {
        let mut under_way = self.under_way.lock();
        if under_way.opening.contains_key(&ino) || is_open() {
            return None;
        }
        *under_way.vouched.entry(ino).or_insert(0) += 1;
        Some(Vouched { opens: self, ino })
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let mut under_way = self.opens.under_way.lock();
        if let Entry::Occupied(mut inode) = under_way.opening.entry(self.ino) {
            inode.get_mut().under_way -= 1;
            if inode.get().under_way == 0 {
                inode.remove();
            }
        }
    }
}

impl Drop for Vouched<'_> {
    fn drop(&mut self) {
        if count_down(&mut self.opens.under_way.lock().vouched, self.ino) {
            self.opens.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn an_open_waits_for_a_removal_and_keeps_others_from_vouching() {
        let opens = Opens::default();
        assert!(opens.vouch(Ino(7), || true).is_none(), "a handle is open");
        let vouched = opens.vouch(Ino(7), || false).unwrap();
        assert!(opens.begin(Ino(7)).now_or_never().is_none());
        let _other = opens.begin(Ino(8)).now_or_never().unwrap();
        let waiting = opens.begin(Ino(7));
        drop(vouched);
        let opening = waiting.await;
        assert!(opens.vouch(Ino(7), || false).is_none());
        drop(opening);
        assert!(opens.vouch(Ino(7), || false).is_some());
    }

    /// Guards I6.
    #[tokio::test]
    async fn what_metad_has_answered_is_not_relied_on_once_another_state_of_the_inode_was_forgotten() {
        let opens = Opens::default();
        let mut opening = opens.begin_new(Ino(7));
        opens.forget(Ino(7), || false);
        opens.forget(Ino(8), || true);
        assert_eq!(opening.unless_overtaken(|| 1), Some(1));
        opens.forget(Ino(7), || true);
        let later = opens.begin(Ino(7)).await;
        assert_eq!(opening.unless_overtaken(|| 1), None);
        assert_eq!(later.unless_overtaken(|| 1), Some(1), "it has asked after that");
        opening.renew();
        assert_eq!(opening.unless_overtaken(|| 1), Some(1));
    }
}
