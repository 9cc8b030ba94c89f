//! Advisory locks. Taking one refreshes the file, giving one up flushes it: programs that use locks see each other's
//! writes.
//!
//! A deadlock is refused when it closes within this client. The client knows which of its owners wait for which locks,
//! and asks metad who holds them. It does not know the waits of other clients, so a deadlock across clients lasts until
//! one of them gives up.
//!
//! Locks end with their session. A client that was silent for too long has lost them, and returns an error to programs
//! that go on as if they held one ([`crate::known::held_locks`]).

use crate::Client;
use crate::error::unexpected_reply;
use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;
use wire::ids::{Ino, Version};
use wire::op::{Lock, LockFamily, Op, Read, ReadReply};
use wire::retry::Backoff;
use wire::{FsError, trace};

/// What to do while another owner holds the lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Fail with `WouldBlock`.
    No,
    /// Wait, however long it takes.
    Yes,
    /// Wait, unless all waiters would wait for each other: `fcntl(2)` refuses that with `EDEADLK`.
    UnlessDeadlock,
}

/// A lock that was taken. It is given up again when this is dropped without [`Taken::confirm`]: its owner does not know
/// of it then.
#[must_use]
pub struct Taken {
    /// The client that gives it up; none if the owner held some of it before.
    client: Option<Weak<Client>>,
    ino: Ino,
    lock: Lock,
    newer: Option<Version>,
}

impl Taken {
    /// Returns whether others have changed the file since the kernel got its pages: these must be dropped before the
    /// lock is of use.
    #[must_use]
    pub fn has_old_pages(&self) -> bool {
        self.newer.is_some()
    }

    /// Confirms that the owner knows that it has the lock, and that the kernel has no old pages.
    pub fn confirm(mut self, client: &Client) {
        self.client = None;
        if let Some(version) = self.newer {
            client.kernel.gets_pages(self.ino, version);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let Some(client) = self.client.take().and_then(|client| client.upgrade()) else { return };
        let (holder, ino, lock) = (client.clone(), self.ino, self.lock.clone());
        let give_up = async move {
            let given_up = holder.unlock(ino, lock.family, lock.owner, lock.start, lock.end).await;
            if let Err(error) = given_up {
                tracing::debug!(%ino, %error, "after a lock that nobody waited for any more");
            }
        };
        client.work.spawn(trace::carried(give_up));
    }
}

impl Client {
    /// Returns the first lock that conflicts with this one.
    ///
    /// # Errors
    /// As `fcntl(2)` with `F_GETLK`.
    pub async fn getlk(&self, ino: Ino, lock: Lock) -> Result<Option<Lock>, FsError> {
        self.order.wait_of(ino).await?;
        match self.session.read(Read::GetLock { ino, lock }).await? {
            ReadReply::Lock(lock) => Ok(lock),
            _ => Err(unexpected_reply()),
        }
    }

    /// Takes a lock, waiting for it if asked to. Cancel-safe: the lock is not held before [`Taken::confirm`].
    ///
    /// # Errors
    /// `WouldBlock` when it is held and must not be waited for, `Deadlock`.
    pub async fn setlk(&self, ino: Ino, lock: Lock, wait: Wait) -> Result<Taken, FsError> {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(500));
        let mut noted = None;
        self.order.wait_of(ino).await?;
        let mut taken = loop {
            let released = self.lock_released.notified();
            match self.try_lock(ino, &lock).await {
                Ok(Some(taken)) => break taken,
                // The session has ended meanwhile, and with it all locks that it held.
                Ok(None) => continue,
                // flock(2): converting a lock gives up the old one first, and may lose it. Otherwise two owners of a
                // shared lock that both want it alone would wait for each other.
                Err(FsError::WouldBlock) if lock.family == LockFamily::Flock && self.held_locks.holds(ino, &lock) => {
                    self.unlock(ino, lock.family, lock.owner, lock.start, lock.end).await?;
                    continue;
                }
                Err(FsError::WouldBlock) if wait != Wait::No => {}
                Err(error) => return Err(error),
            }
            if wait == Wait::UnlessDeadlock {
                let _one = self.waits.search().await;
                // Checked again and again, because of several holders only the first is followed.
                if self.is_deadlock(ino, &lock).await? {
                    return Err(FsError::Deadlock);
                }
                noted.get_or_insert_with(|| self.waits.note(ino, &lock));
            }
            // Notified when another session releases it; tried again now and then, because the notification is best
            // effort.
            let _ = tokio::time::timeout(backoff.delay(), released).await;
        };
        drop(noted);
        let open = self.open_files.get(ino);
        if let Some(file) = open {
            // Later writes are based on the file as it is now, whatever happened to earlier ones.
            if file.is_diverted() {
                let _ = self.flusher.flush(&file, true).await;
                file.end_diversion();
            }
            let attr = self.getattr(ino).await?;
            let moved = file.refresh(&attr, None);
            let has_pages = self.kernel.has_pages(ino, attr.version);
            taken.newer = (moved || !has_pages).then_some(attr.version);
        }
        Ok(taken)
    }

    /// Tries once; `None` when the session has ended meanwhile. Runs to its end though the caller is dropped: the lock
    /// that it takes is given up then.
    async fn try_lock(&self, ino: Ino, lock: &Lock) -> Result<Option<Taken>, FsError> {
        let (client, lock) = (self.arc(), lock.clone());
        let attempt = async move {
            let held_before = client.held_locks.holds(ino, &lock);
            let generation = client.held_locks.generation();
            client.session.one_until_answered(Op::SetLock { ino, lock: lock.clone() }).await?;
            let taken = client.held_locks.taken(generation, ino, &lock);
            let give_up = (!held_before).then(|| Arc::downgrade(&client));
            Ok(taken.then(|| Taken { client: give_up, ino, lock, newer: None }))
        };
        self.work.to_its_end(trace::carried(attempt)).await
    }

    /// Returns whether the holder of a conflicting lock waits for the owner of this one, perhaps through other owners.
    async fn is_deadlock(&self, ino: Ino, lock: &Lock) -> Result<bool, FsError> {
        let mut seen = HashSet::new();
        let mut wanted = vec![(ino, lock.clone())];
        while let Some((ino, waits_for)) = wanted.pop() {
            if self.waits.is_empty() {
                return Ok(false);
            }
            let Some(holder) = self.getlk(ino, waits_for).await? else { continue };
            if holder.owner == lock.owner {
                return Ok(true);
            }
            if seen.insert(holder.owner) {
                wanted.extend(self.waits.of(holder.owner));
            }
        }
        Ok(false)
    }

    /// Returns whether one of these owners has lost locks on a file with a session that expired, and has not given them
    /// up since: others may have held them meanwhile.
    #[must_use]
    pub fn has_lost_locks(&self, ino: Ino, owners: impl FnOnce() -> Vec<u64>) -> bool {
        let locks = &self.held_locks;
        locks.has_lost_any() && owners().into_iter().any(|owner| locks.has_lost(ino, owner))
    }

    /// Gives up what an owner holds in a range. Runs to its end though the caller is dropped: nobody would do it again.
    ///
    /// # Errors
    /// Returns why the written content could not be committed; the lock is given up all the same.
    pub async fn unlock(&self, ino: Ino, family: LockFamily, owner: u64, start: u64, end: u64) -> Result<(), FsError> {
        let client = self.arc();
        let giving_up = async move {
            let open = client.open_files.get(ino);
            let flushed = match open.filter(|file| file.is_dirty()) {
                Some(file) => client.flusher.flush(&file, true).await,
                None => Ok(()),
            };
            client.held_locks.given_up(ino, family, owner, start..end);
            // Nobody else gives it up before the session ends.
            client.session.one_until_answered(Op::Unlock { ino, family, owner, start, end }).await?;
            client.lock_released.notify_waiters();
            flushed
        };
        self.work.to_its_end(trace::carried(giving_up)).await
    }
}
