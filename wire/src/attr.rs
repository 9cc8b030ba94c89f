//! Attributes of an inode, as `stat(2)` shows them and metad stores them.

use crate::ids::{Ino, Version};
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const NANOS_PER_SEC: i128 = 1_000_000_000;

/// A point in time with nanosecond resolution; before 1970 when `secs` is negative.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since the epoch.
    pub secs: i64,
    /// Nanoseconds into that second, always below 10^9.
    pub nanos: u32,
}

impl Timestamp {
    /// The wall clock. Never called while a Raft entry is applied: the leader stamps entries before.
    #[must_use]
    pub fn now() -> Self {
        #[cfg(feature = "simulation")]
        if let Some(now) = crate::simulation::wall() {
            return Self::from(now);
        }
        Self::from(SystemTime::now())
    }

    /// Returns the time so many nanoseconds later, or earlier when negative.
    #[must_use]
    pub fn shifted(self, nanos: i128) -> Self {
        let all = i128::from(self.secs) * NANOS_PER_SEC + i128::from(self.nanos) + nanos;
        let secs = i64::try_from(all.div_euclid(NANOS_PER_SEC)).unwrap_or(self.secs);
        Self { secs, nanos: all.rem_euclid(NANOS_PER_SEC) as u32 }
    }

    /// Nanoseconds from `earlier` to this.
    #[must_use]
    pub fn nanos_since(self, earlier: Self) -> i128 {
        let secs = i128::from(self.secs) - i128::from(earlier.secs);
        secs * NANOS_PER_SEC + i128::from(self.nanos) - i128::from(earlier.nanos)
    }

    /// Whole milliseconds since the epoch; saturates at zero for times before 1970.
    #[must_use]
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.secs).unwrap_or(0).saturating_mul(1000).saturating_add(u64::from(self.nanos / 1_000_000))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self { secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanos: after.subsec_nanos() },
            Err(error) => {
                let before = error.duration();
                let secs = -i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                match before.subsec_nanos() {
                    0 => Self { secs, nanos: 0 },
                    nanos => Self { secs: secs - 1, nanos: 1_000_000_000 - nanos },
                }
            }
        }
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        let nanos = Duration::from_nanos(u64::from(time.nanos));
        let whole = Duration::from_secs(time.secs.unsigned_abs());
        let second = if time.secs >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
        second.and_then(|second| second.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
    }
}

/// Type of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix domain socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

/// All that `stat(2)` reports of an inode, and what cache coherence needs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InodeAttr {
    /// The inode's number.
    pub ino: Ino,
    /// Its type.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: the low twelve bits of `st_mode`.
    pub mode: u32,
    /// Number of directory entries that lead here; for a directory 2 plus its subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, as `makedev(3)` packs it.
    pub rdev: u32,
    /// Length in bytes; of a symlink its target's, of a directory the number of its entries.
    pub size: u64,
    /// Bytes allocated by extents; `st_blocks` is this divided by 512, rounded up.
    pub allocated: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of attributes or content.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// Content version, against which commits are checked (I6).
    pub version: Version,
    /// Whether the inode has extended attributes (so that a listing needs no second look for ACLs).
    pub has_xattrs: bool,
}

/// An access time that is older than this is renewed by any access, in seconds.
const ACCESS_SECS: i64 = 24 * 60 * 60;

impl InodeAttr {
    /// Reports whether an access at `now` moves the access time by the rule of `relatime` (mount(8)): the inode was
    /// changed since the last access, or that access is a day old.
    #[must_use]
    pub fn is_access_due(&self, now: Timestamp) -> bool {
        let since_change = self.atime <= self.mtime || self.atime <= self.ctime;
        now > self.atime && (since_change || now.secs.saturating_sub(self.atime.secs) >= ACCESS_SECS)
    }
}

/// Set-user-id bit.
pub const S_ISUID: u32 = 0o4000;
/// Set-group-id bit.
pub const S_ISGID: u32 = 0o2000;
/// Group may execute.
const S_IXGRP: u32 = 0o0010;

/// Owner and permissions of an inode to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Creator {
    /// Permission bits asked for, without those that the umask takes away.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory passes on its own.
    pub gid: u32,
}

/// Changes of attributes by the rules of POSIX, the same for metad and for a client under a delegation.
impl InodeAttr {
    /// Attributes of an inode that is made in the directory `dir`.
    #[must_use]
    pub fn new_in(dir: &Self, ino: Ino, kind: FileKind, rdev: u32, creator: Creator, at: Timestamp) -> Self {
        // Linux: in a setgid directory the group is inherited, and by directories the bit as well (`inode(7)`).
        let inherits = dir.mode & S_ISGID != 0;
        let inherited_bit = if inherits && kind == FileKind::Directory { S_ISGID } else { 0 };
        let mode = if kind == FileKind::Symlink { 0o777 } else { creator.mode & 0o7777 | inherited_bit };
        let gid = if inherits { dir.gid } else { creator.gid };
        Self { rdev, ..Self::new(ino, kind, Creator { mode, uid: creator.uid, gid }, at) }
    }

    /// Attributes of an inode that has just been made for this creator.
    #[must_use]
    pub fn new(ino: Ino, kind: FileKind, creator: Creator, at: Timestamp) -> Self {
        let Creator { mode, uid, gid } = creator;
        Self {
            ino,
            kind,
            mode,
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            uid,
            gid,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: at,
            mtime: at,
            ctime: at,
            btime: at,
            version: Version(1),
            has_xattrs: false,
        }
    }

    /// Marks a change of attributes. Time never runs backwards on an inode, even when a new leader's clock is behind.
    pub fn changed(&mut self, at: Timestamp) {
        self.ctime = self.ctime.max(at);
    }

    /// Marks a change of content.
    pub fn modified(&mut self, at: Timestamp) {
        self.changed(at);
        self.mtime = self.ctime;
    }

    /// Counts an entry that was added to this directory.
    pub fn gained(&mut self, kind: FileKind, at: Timestamp) {
        self.size += 1;
        if kind == FileKind::Directory {
            self.nlink += 1;
        }
        self.modified(at);
    }

    /// Counts an entry that was removed from this directory.
    pub fn lost(&mut self, kind: FileKind, at: Timestamp) {
        self.size -= 1;
        if kind == FileKind::Directory {
            self.nlink -= 1;
        }
        self.modified(at);
    }

    /// Drops setuid, and setgid where it means a group rather than mandatory locking.
    pub fn clear_privileges(&mut self) {
        self.mode &= !S_ISUID;
        if self.mode & S_IXGRP != 0 {
            self.mode &= !S_ISGID;
        }
    }

    /// Applies a `setattr`, except for the length.
    pub fn apply(&mut self, change: &AttrChange, at: Timestamp) {
        if let Some(mode) = change.mode {
            self.mode = mode & 0o7777;
        }
        self.uid = change.uid.unwrap_or(self.uid);
        self.gid = change.gid.unwrap_or(self.gid);
        if change.clear_privileges && self.kind != FileKind::Directory {
            self.clear_privileges();
        }
        self.changed(at);
        // `at` may be earlier: a new leader's clock may be behind.
        let ctime = self.ctime;
        let time = |change: Option<TimeChange>, before| match change {
            Some(TimeChange::Now) => ctime,
            Some(TimeChange::To(time)) => time,
            None => before,
        };
        self.atime = time(change.atime, self.atime);
        self.mtime = time(change.mtime, self.mtime);
    }
}

/// New value of one of the times in an [`AttrChange`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TimeChange {
    /// Set to the time at which the leader accepted the batch.
    Now,
    /// Set to this time.
    To(Timestamp),
}

/// The attributes that a `setattr` changes; `None` leaves one as it is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct AttrChange {
    /// New permission bits.
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New length: extents beyond it are cut off, a hole appears before it.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<TimeChange>,
    /// New modification time.
    pub mtime: Option<TimeChange>,
    /// Clear setuid, and setgid of group-executable files, as a change by an unprivileged caller does.
    pub clear_privileges: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_counts_after_a_change_or_a_day() {
        let time = |secs| Timestamp { secs, nanos: 0 };
        let due = |atime, mtime, ctime| {
            let attr = InodeAttr {
                ino: Ino(7),
                kind: FileKind::Regular,
                mode: 0o644,
                nlink: 1,
                uid: 0,
                gid: 0,
                rdev: 0,
                size: 0,
                allocated: 0,
                atime: time(atime),
                mtime: time(mtime),
                ctime: time(ctime),
                btime: time(0),
                version: Version(0),
                has_xattrs: false,
            };
            attr.is_access_due(time(1_000_000))
        };
        assert!(due(10, 10, 5), "written since");
        assert!(due(999_000, 5, 999_000), "its attributes changed since");
        assert!(!due(999_000, 10, 10));
        assert!(due(1_000_000 - ACCESS_SECS, 10, 10));
        assert!(!due(1_000_000, 1_000_001, 10), "not backwards");
    }

    #[test]
    fn times_before_the_epoch_survive_conversion() {
        for time in [Timestamp { secs: -3, nanos: 250 }, Timestamp { secs: 7, nanos: 999_999_999 }] {
            assert_eq!(Timestamp::from(SystemTime::from(time)), time);
        }
    }
}
