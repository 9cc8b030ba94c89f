//! The only place that knows error numbers: `FsError` to `errno(3)`, with the doubtful choices argued.

use crate::FsError;

impl FsError {
    /// The error number that a system call returns for this outcome.
    #[must_use]
    pub fn errno(self) -> i32 {
        match self {
            FsError::NotFound => libc::ENOENT,
            FsError::Exists => libc::EEXIST,
            FsError::NotADirectory => libc::ENOTDIR,
            FsError::IsADirectory => libc::EISDIR,
            FsError::NotEmpty => libc::ENOTEMPTY,
            FsError::AccessDenied => libc::EACCES,
            FsError::NotPermitted => libc::EPERM,
            FsError::Invalid => libc::EINVAL,
            FsError::NameTooLong => libc::ENAMETOOLONG,
            FsError::TooLarge => libc::EFBIG,
            FsError::NoSpace => libc::ENOSPC,
            FsError::QuotaExceeded => libc::EDQUOT,
            FsError::TooManyLinks => libc::EMLINK,
            // A conflict that the policy refuses is ESTALE as well: the handle's view of the file is no longer the
            // file's, and unlike EIO no program retries it blindly.
            FsError::Stale => libc::ESTALE,
            FsError::NoAttribute => libc::ENODATA,
            FsError::Range => libc::ERANGE,
            FsError::ArgumentTooLarge => libc::E2BIG,
            // EOPNOTSUPP rather than ENOSYS: the kernel remembers ENOSYS and stops asking for the whole mount.
            FsError::NotSupported => libc::EOPNOTSUPP,
            FsError::WouldBlock => libc::EAGAIN,
            FsError::Deadlock => libc::EDEADLK,
            FsError::ReadOnly => libc::EROFS,
            FsError::CrossDevice => libc::EXDEV,
            FsError::Busy => libc::EBUSY,
            FsError::NoSuchDataOrHole => libc::ENXIO,
            FsError::Io => libc::EIO,
            FsError::Interrupted => libc::EINTR,
            // The client opens a new session by itself. A program sees this only on a handle of the old session.
            FsError::SessionExpired => libc::ESTALE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubtful_outcomes_have_the_numbers_that_programs_expect() {
        assert_eq!(FsError::Stale.errno(), 116);
        assert_eq!(FsError::NotSupported.errno(), 95);
        assert_eq!(FsError::NoAttribute.errno(), 61);
        assert_eq!(FsError::NoSuchDataOrHole.errno(), 6);
        assert_eq!(FsError::SessionExpired.errno(), FsError::Stale.errno());
    }
}
