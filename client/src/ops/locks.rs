//! Advisory locks. Taking one refreshes what is known of the file, giving one up flushes it: programs that lock see each
//! other's writes.
//!
//! A deadlock is refused when it closes within this client: who waits here for what is kept here, who holds it is asked
//! of metad. Waits of other clients are not known, so a deadlock across clients lasts until somebody gives up.
//!
//! Locks end with their session. A client that was silent for too long has lost them, and says so to whoever goes on as if
//! it held one ([`crate::known::held_locks`]).

use crate::Client;
use crate::error::unexpected_reply;
use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;
use wire::FsError;
use wire::ids::{Ino, Version};
use wire::op::{Lock, LockFamily, Op, Read, ReadReply};
use wire::retry::Backoff;

/// What to do while a lock is held by another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Fail with `WouldBlock`.
    No,
    /// Wait, however long it takes.
    Yes,
    /// Wait, unless all waiters would wait for each other: `fcntl(2)` refuses that with `EDEADLK`.
    UnlessDeadlock,
}

/// A lock that was taken. It is given up again when this is dropped and not kept: who was to have it knows nothing of it.
#[must_use]
pub struct Taken {
    /// Who gives it up; nobody where the owner held some of it before.
    client: Option<Weak<Client>>,
    ino: Ino,
    lock: Lock,
    newer: Option<Version>,
}

impl Taken {
    /// Whether others have changed the file since the kernel got its pages: they are to be dropped before the lock is of
    /// use.
    #[must_use]
    pub fn has_old_pages(&self) -> bool {
        self.newer.is_some()
    }

    /// Its owner knows that it has it, and the kernel has nothing old.
    pub fn keep(mut self, client: &Client) {
        self.client = None;
        if let Some(version) = self.newer {
            client.kernel.gets_pages(self.ino, version);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let Some(client) = self.client.take().and_then(|client| client.upgrade()) else { return };
        let (keeper, ino, lock) = (client.clone(), self.ino, self.lock.clone());
        let give_up = async move {
            let given_up = keeper.unlock(ino, lock.family, lock.owner, lock.start, lock.end).await;
            if let Err(error) = given_up {
                tracing::debug!(%ino, %error, "after a lock that nobody waited for any more");
            }
        };
        client.work.spawn(give_up);
    }
}

impl Client {
    /// The first lock that stands in the way of this one.
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

    /// Takes a lock, waiting for it if asked to. Cancel-safe: who does not get to [`Taken::keep`] does not hold it.
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
                // The session has ended meanwhile, and whatever it held.
                Ok(None) => continue,
                // flock(2): who converts a lock gives up the old one first, and may lose it. Two that share a lock and
                // want it alone would wait for each other else.
                Err(FsError::WouldBlock) if lock.family == LockFamily::Flock && self.held_locks.holds(ino, &lock) => {
                    self.unlock(ino, lock.family, lock.owner, lock.start, lock.end).await?;
                    continue;
                }
                Err(FsError::WouldBlock) if wait != Wait::No => {}
                Err(error) => return Err(error),
            }
            if wait == Wait::UnlessDeadlock {
                let _one = self.waits.search().await;
                // Looked for again and again: of several holders only the first is followed.
                if self.is_deadlock(ino, &lock).await? {
                    return Err(FsError::Deadlock);
                }
                noted.get_or_insert_with(|| self.waits.note(ino, &lock));
            }
            // Told when another session releases it; asked again now and then, because telling is best effort.
            let _ = tokio::time::timeout(backoff.delay(), released).await;
        };
        drop(noted);
        let open = self.open_files.get(ino);
        if let Some(file) = open {
            // What is written from now on is based on what the file is now, whatever came of what was written before.
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

    /// One attempt; `None` when the session has ended meanwhile. Goes on to its end though the caller is dropped: what it
    /// takes is given up then.
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
        self.work.to_its_end(attempt).await
    }

    /// Whether whoever holds what stands in the way of a lock waits, maybe over others, for its owner.
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

    /// Whether one of these owners has lost locks on a file with a session that expired, and has not given them up since:
    /// others may have held them meanwhile.
    #[must_use]
    pub fn has_lost_locks(&self, ino: Ino, owners: impl FnOnce() -> Vec<u64>) -> bool {
        let locks = &self.held_locks;
        locks.has_lost_any() && owners().into_iter().any(|owner| locks.has_lost(ino, owner))
    }

    /// Gives up what an owner holds in a range. Goes on to its end though the caller is dropped: nobody would do it again.
    ///
    /// # Errors
    /// What kept the written content from being committed; the lock is given up all the same.
    pub async fn unlock(&self, ino: Ino, family: LockFamily, owner: u64, start: u64, end: u64) -> Result<(), FsError> {
        let client = self.arc();
        self.work
            .to_its_end(async move {
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
            })
            .await
    }
}
