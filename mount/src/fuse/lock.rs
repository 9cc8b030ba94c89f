//! Advisory locks, and which of the two kinds a request means.
//!
//! The kernel marks requests of `flock(2)`, but fuser does not pass the mark on. A lock on less than the whole file is
//! one of `fcntl(2)`. For the others, the caller is looked at: it waits inside its system call, whose number is in
//! `/proc`. Where that cannot be read (not root, and another user's process), the lock counts as one of `fcntl`, as on
//! NFS: it works across clients, but the two kinds exclude each other.
//!
//! Locks of open file descriptions (`F_OFD_SETLK`) are owned by the open file, as those of `flock` are, and only the
//! release of the handle reports their end. So a handle remembers who locked through it (`LockOwners`). A process that
//! closes any descriptor of the file gives up its locks then, and is forgotten; an owner that is left at the release
//! was an open file.

use super::Shared;
use super::open_file::OpenFile;
use client::Wait;
use fuser::LockOwner;
use std::fs;
use std::time::{Duration, Instant};
use wire::FsError;
use wire::ids::Ino;
use wire::op::{Lock, LockFamily};

/// The kernel's end of a lock without an end (`OFFSET_MAX`).
const TO_THE_END: u64 = i64::MAX as u64;
/// Pause between looks at a caller that is still on its way into its wait, and for how long it is looked at.
const CALLER_PAUSE: Duration = Duration::from_millis(1);
const CALLER_PATIENCE: Duration = Duration::from_secs(1);

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
    fn is_whole(self) -> bool {
        self.start == 0 && self.last >= TO_THE_END
    }

    fn unlocks(self) -> bool {
        self.typ == libc::F_UNLCK
    }

    /// The kernel counts to the last byte, a lock here to one past it.
    pub(super) fn lock(self, family: LockFamily) -> Lock {
        let end = if self.last >= TO_THE_END { u64::MAX } else { self.last + 1 };
        let exclusive = self.typ == libc::F_WRLCK;
        Lock { family, owner: self.owner.0, pid: self.pid, start: self.start, end, exclusive }
    }
}

/// The system call that a thread waits in, by kinds of locks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Caller {
    Flock,
    /// `fcntl(2)` for a lock of the open file description.
    OpenFileLock,
    Other,
}

impl Caller {
    /// Waits until the thread waits: its request arrives a moment before.
    async fn of(tid: u32) -> Self {
        let asked = Instant::now();
        loop {
            match Self::look(tid) {
                Some(caller) => return caller,
                None if asked.elapsed() > CALLER_PATIENCE => return Self::Other,
                None => tokio::time::sleep(CALLER_PAUSE).await,
            }
        }
    }

    /// `None` while the thread is still running.
    fn look(tid: u32) -> Option<Self> {
        let syscall = fs::read_to_string(format!("/proc/{tid}/syscall")).unwrap_or_default();
        (!syscall.starts_with("running")).then(|| Self::parse(&syscall))
    }

    fn family(self) -> LockFamily {
        if self == Self::Flock { LockFamily::Flock } else { LockFamily::Posix }
    }

    /// Only processes can be in a deadlock: any thread may give up the lock of an open file.
    fn wait(self, sleep: bool) -> Wait {
        match (sleep, self) {
            (false, _) => Wait::No,
            (true, Self::Other) => Wait::UnlessDeadlock,
            (true, _) => Wait::Yes,
        }
    }

    /// From `proc_pid_syscall(5)`: the call's number in decimal, then its arguments in hexadecimal.
    fn parse(syscall: &str) -> Self {
        let mut words = syscall.split_ascii_whitespace();
        let number = words.next().and_then(|number| number.parse().ok());
        let command = words.nth(1).and_then(|hex| i64::from_str_radix(hex.trim_start_matches("0x"), 16).ok());
        match (number, command) {
            (Some(libc::SYS_flock), _) => Self::Flock,
            (Some(libc::SYS_fcntl), Some(command)) if command == i64::from(libc::F_OFD_SETLKW) => Self::OpenFileLock,
            _ => Self::Other,
        }
    }
}

impl Shared {
    pub(super) async fn getlk(&self, ino: Ino, wanted: Wanted) -> Result<Option<Lock>, FsError> {
        // flock(2) has no such request.
        self.client.getlk(ino, wanted.lock(LockFamily::Posix)).await
    }

    /// Finds out who asks, if the request leaves that open: without a wait, only `fcntl(2)` locks a part of the file.
    async fn caller(&self, ino: Ino, wanted: Wanted, sleep: bool) -> Caller {
        let holds = |family| self.locked.has(ino, wanted.owner.0, family);
        match (wanted.unlocks(), wanted.is_whole()) {
            (true, false) => Caller::Other,
            // If the owner holds locks of one kind alone, that kind is given up.
            (true, true) => match (holds(LockFamily::Flock), holds(LockFamily::Posix)) {
                (true, false) => Caller::Flock,
                (false, true) => Caller::Other,
                _ => Caller::of(wanted.tid).await,
            },
            // Both kinds can lock the whole file, and only the caller shows whether its wait can be a deadlock.
            (false, whole) if whole || sleep => Caller::of(wanted.tid).await,
            (false, _) => Caller::Other,
        }
    }

    pub(super) async fn setlk(&self, file: &OpenFile, wanted: Wanted, sleep: bool) -> Result<(), FsError> {
        let ino = file.handle.ino();
        let caller = self.caller(ino, wanted, sleep).await;
        // flock(2) locks only whole files.
        let lock = wanted.lock(if wanted.is_whole() { caller.family() } else { LockFamily::Posix });
        if wanted.unlocks() {
            return self.client.unlock(ino, lock.family, lock.owner, lock.start, lock.end).await;
        }
        // Noted before it is taken: whatever becomes of this request, the last `close` gives the lock up.
        self.locked.note(ino, lock.owner, lock.family);
        file.lock_owners.note(lock.owner);
        let taken = self.client.setlk(ino, lock, caller.wait(sleep)).await?;
        if taken.has_old_pages() {
            self.drop_pages(ino).await;
        }
        taken.confirm(&self.client);
        Ok(())
    }

    /// Fails if a lock was taken through the file and then lost, until it is given up or taken anew.
    pub(super) fn check_locks(&self, file: &OpenFile) -> Result<(), FsError> {
        let lost = self.client.has_lost_locks(file.handle.ino(), || file.lock_owners.all());
        if lost { Err(FsError::Stale) } else { Ok(()) }
    }

    /// Gives up what an open file held, when it is released.
    pub(super) async fn unlock_open_file(&self, file: &OpenFile) -> Result<(), FsError> {
        let mut outcome = Ok(());
        for owner in file.lock_owners.drain() {
            for family in [LockFamily::Flock, LockFamily::Posix] {
                outcome = outcome.and(self.unlock_all(file.handle.ino(), family, owner).await);
            }
        }
        outcome
    }

    /// Gives up all that an owner holds on a file, when it closes it. Does nothing for owners that never locked.
    pub(super) async fn unlock_all(&self, ino: Ino, family: LockFamily, owner: u64) -> Result<(), FsError> {
        if self.locked.forget(ino, owner, family) {
            self.client.unlock(ino, family, owner, 0, u64::MAX).await
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

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
        while Caller::look(tid) != Some(Caller::Flock) {
            assert!(started.elapsed() < Duration::from_secs(10), "the thread never waited in flock");
            std::thread::sleep(Duration::from_millis(5));
        }
        file.as_file().unlock().unwrap();
        assert_eq!(waiter.join().unwrap(), 0);
        assert_eq!(Caller::look(0), Some(Caller::Other));
    }

    #[test]
    fn a_lock_of_an_open_file_is_distinguished_from_one_of_a_process() {
        let call = |number, command: i32| format!("{number} 0x3 {command:#x} 0x7ffc 0x0 0x0 0x0 0x7ffc 0x7f00");
        assert_eq!(Caller::parse(&call(libc::SYS_fcntl, libc::F_OFD_SETLKW)), Caller::OpenFileLock);
        assert_eq!(Caller::parse(&call(libc::SYS_fcntl, libc::F_SETLKW)), Caller::Other);
    }
}
