//! Advisory locks, and which of the two kinds a request means.
//!
//! The kernel marks requests of `flock(2)`, but fuser does not pass the mark on. A lock on less than the whole file is one
//! of `fcntl(2)`. For the others, the caller is asked: it waits inside its system call, whose number `/proc` tells. Where
//! that cannot be read (not root, and another user's process), the lock counts as one of `fcntl`, as on NFS: it works
//! across clients, but the two kinds exclude each other.

use super::Shared;
use fuser::LockOwner;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::fs;
use wire::FsError;
use wire::ids::Ino;
use wire::op::{Lock, LockFamily};

/// The kernel's word for the end of a lock that reaches as far as the file does (`OFFSET_MAX`).
const TO_THE_END: u64 = i64::MAX as u64;

/// What was locked through this mount: inode, owner, and which kind it counts as.
#[derive(Default)]
pub(super) struct Locked {
    held: Mutex<HashSet<(Ino, u64, LockFamily)>>,
}

impl Locked {
    /// Whether a process may hold locks of `fcntl(2)` on a file.
    pub(super) fn holds(&self, ino: Ino, owner: u64) -> bool {
        self.held.lock().contains(&(ino, owner, LockFamily::Posix))
    }
}

/// A lock as a request describes it.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub owner: LockOwner,
    pub start: u64,
    /// The last byte.
    pub last: u64,
    pub typ: i32,
    pub pid: u32,
    /// The thread that waits.
    pub tid: u32,
}

impl Wanted {
    fn family(self) -> LockFamily {
        let whole = self.start == 0 && self.last >= TO_THE_END;
        if whole && in_flock(self.tid) { LockFamily::Flock } else { LockFamily::Posix }
    }

    /// The kernel counts to the last byte, a lock here to one past it.
    pub(super) fn lock(self, family: LockFamily) -> Lock {
        let end = if self.last >= TO_THE_END { u64::MAX } else { self.last + 1 };
        let exclusive = self.typ == libc::F_WRLCK;
        Lock { family, owner: self.owner.0, pid: self.pid, start: self.start, end, exclusive }
    }
}

/// Whether a thread waits inside `flock(2)`: `proc_pid_syscall(5)`.
fn in_flock(tid: u32) -> bool {
    let syscall = fs::read_to_string(format!("/proc/{tid}/syscall")).unwrap_or_default();
    let number = syscall.split_ascii_whitespace().next().and_then(|number| number.parse().ok());
    number == Some(libc::SYS_flock)
}

impl Shared {
    pub(super) async fn getlk(&self, ino: Ino, wanted: Wanted) -> Result<Option<Lock>, FsError> {
        // flock(2) has no such question.
        self.client.getlk(ino, wanted.lock(LockFamily::Posix)).await
    }

    pub(super) async fn setlk(&self, ino: Ino, wanted: Wanted, wait: bool) -> Result<(), FsError> {
        let family = wanted.family();
        let lock = wanted.lock(family);
        if wanted.typ == libc::F_UNLCK {
            return self.client.unlock(ino, family, lock.owner, lock.start, lock.end).await;
        }
        // Noted before it is taken: whatever becomes of this request, the last `close` gives the lock up.
        self.locked.held.lock().insert((ino, lock.owner, family));
        self.client.setlk(ino, lock, wait).await
    }

    /// Gives up all that an owner holds on a file, when it closes it. Costs nothing for those who never locked.
    pub(super) async fn unlock_all(&self, ino: Ino, family: LockFamily, owner: u64) -> Result<(), FsError> {
        let mut families = vec![family];
        if family == LockFamily::Flock {
            // One that could not be told from a lock of `fcntl` has the same owner, which no process shares.
            families.push(LockFamily::Posix);
        }
        let mut outcome = Ok(());
        for family in families {
            let held = self.locked.held.lock().remove(&(ino, owner, family));
            if held {
                outcome = outcome.and(self.client.unlock(ino, family, owner, 0, u64::MAX).await);
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::time::{Duration, Instant};

    fn wanted(start: u64, last: u64) -> Wanted {
        Wanted { owner: LockOwner(1), start, last, typ: libc::F_RDLCK, pid: 1, tid: 0 }
    }

    #[test]
    fn a_lock_ends_one_past_its_last_byte_or_never() {
        let lock = |start, last| wanted(start, last).lock(LockFamily::Posix);
        assert_eq!((lock(5, 9).start, lock(5, 9).end), (5, 10));
        assert_eq!(lock(0, TO_THE_END).end, u64::MAX);
    }

    #[test]
    fn a_thread_that_waits_in_flock_is_recognised() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let other = file.reopen().unwrap();
        file.as_file().lock().unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn(move || {
            // SAFETY: gettid takes nothing and cannot fail.
            send.send(unsafe { libc::gettid() }).unwrap();
            // SAFETY: the descriptor is open for the whole call.
            unsafe { libc::flock(other.as_raw_fd(), libc::LOCK_EX) }
        });
        let tid = receive.recv().unwrap() as u32;
        let started = Instant::now();
        while !in_flock(tid) {
            assert!(started.elapsed() < Duration::from_secs(10), "the thread never waited in flock");
            std::thread::sleep(Duration::from_millis(5));
        }
        file.as_file().unlock().unwrap();
        assert_eq!(waiter.join().unwrap(), 0);
        assert!(!in_flock(0));
    }
}
