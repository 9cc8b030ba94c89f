//! Advisory locks. Taking one refreshes what is known of the file, giving one up flushes it: programs that lock see each
//! other's writes.

use crate::Client;
use std::time::Duration;
use wire::FsError;
use wire::ids::Ino;
use wire::op::{Lock, LockFamily, Op, Read, ReadReply};
use wire::retry::Backoff;

impl Client {
    /// The first lock that stands in the way of this one.
    ///
    /// # Errors
    /// As `fcntl(2)` with `F_GETLK`.
    pub async fn getlk(&self, ino: Ino, lock: Lock) -> Result<Option<Lock>, FsError> {
        match self.session.read(Read::GetLock { ino, lock }).await? {
            ReadReply::Lock(lock) => Ok(lock),
            _ => Err(FsError::Io),
        }
    }

    /// Takes a lock, waiting for it if asked to. Cancel-safe: a wait that is dropped takes nothing.
    ///
    /// # Errors
    /// `WouldBlock` when it is held and `wait` is not set.
    pub async fn setlk(&self, ino: Ino, lock: Lock, wait: bool) -> Result<(), FsError> {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(500));
        loop {
            let released = self.lock_released.notified();
            match self.session.one(Op::SetLock { ino, lock: lock.clone() }).await {
                Ok(_) => break,
                Err(FsError::WouldBlock) if wait => {}
                Err(error) => return Err(error),
            }
            // Told when another session releases it; asked again now and then, because telling is best effort.
            let _ = tokio::time::timeout(backoff.delay(), released).await;
        }
        let open = self.files.lock().get(&ino).cloned();
        if let Some(file) = open {
            let attr = self.getattr(ino).await?;
            file.refresh(&attr, None);
        }
        Ok(())
    }

    /// Gives up what an owner holds in a range.
    ///
    /// # Errors
    /// What kept the written content from being committed; the lock is given up all the same.
    pub async fn unlock(&self, ino: Ino, family: LockFamily, owner: u64, start: u64, end: u64) -> Result<(), FsError> {
        let open = self.files.lock().get(&ino).cloned();
        let flushed = match open.filter(|file| file.is_dirty()) {
            Some(file) => self.arc().flush_file(&file, true).await,
            None => Ok(()),
        };
        self.session.one(Op::Unlock { ino, family, owner, start, end }).await?;
        self.lock_released.notify_waiters();
        flushed
    }
}
