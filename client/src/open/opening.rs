//! Opening against removing: the session may vouch that it holds no handle on an inode only while nobody opens it.
//!
//! Opening costs no log entry, so metad cannot know of it. An open that has begun keeps removals from vouching. An open
//! that begins while a removal is under way waits for its outcome: it finds the inode gone, or retained for us.

use crate::known::count_down;
use crate::ordered::{Ordered, Rank};
use std::collections::HashMap;
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
    opening: HashMap<Ino, usize>,
    vouched: HashMap<Ino, usize>,
}

/// An open under way, until it is dropped.
pub struct Opening<'a> {
    opens: &'a Opens,
    ino: Ino,
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
        *under_way.opening.entry(ino).or_insert(0) += 1;
        Opening { opens: self, ino }
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
        count_down(&mut self.opens.under_way.lock().opening, self.ino);
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
}
