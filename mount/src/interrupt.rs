//! Ending waits when the waiting program is signalled.
//!
//! fuser does not pass FUSE_INTERRUPT on, and the kernel lets a program wait uninterruptibly for a request that was
//! passed to us. Without this module, a process that waits for a lock, or for servers that are away, could not even be
//! killed. So a request that takes long looks at its caller's pending signals in `/proc`.

use std::future::Future;
use std::time::Duration;
use wire::FsError;

/// A request that is answered sooner never looks.
const FIRST_LOOK: Duration = Duration::from_millis(400);
/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Signals that ask a program to end: HUP, INT, QUIT, KILL and TERM.
const ENDING_SIGNALS: u64 =
    bit(libc::SIGHUP) | bit(libc::SIGINT) | bit(libc::SIGQUIT) | bit(libc::SIGKILL) | bit(libc::SIGTERM);

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// The signals that end a wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Patience {
    /// None: the request must be carried out.
    Endless,
    /// Signals that ask the program to end. Programs do not expect `EINTR` from file operations because of a timer.
    UntilEnding,
    /// Any signal: waiting for a lock is interruptible, as `fcntl(2)` and `flock(2)` say.
    UntilSignal,
}

/// Awaits `work`, unless the thread `tid` is signalled meanwhile: then `work` is dropped and the outcome `Interrupted`.
pub(crate) async fn unless_signalled<T>(
    tid: u32,
    patience: Patience,
    work: impl Future<Output = Result<T, FsError>>,
) -> Result<T, FsError> {
    let ends = match patience {
        Patience::Endless => return work.await,
        Patience::UntilEnding => ENDING_SIGNALS,
        Patience::UntilSignal => u64::MAX,
    };
    // Callers in other PID namespaces have no number here; nor have the kernel's own requests.
    if tid == 0 {
        return work.await;
    }
    tokio::select! {
        biased;
        outcome = work => outcome,
        () = signalled(tid, ends) => Err(FsError::Interrupted),
    }
}

async fn signalled(tid: u32, ends: u64) {
    tokio::time::sleep(FIRST_LOOK).await;
    loop {
        // A thread that is gone waits for nothing, and nobody needs the answer.
        let status = tokio::fs::read_to_string(format!("/proc/{tid}/status")).await;
        let pending = status.map_or(u64::MAX, |status| pending(&status));
        if pending & ends != 0 {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Signals that are pending for a thread or its process, and neither blocked nor ignored (`proc_pid_status(5)`).
fn pending(status: &str) -> u64 {
    let mask = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
    };
    (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:") & !mask("SigIgn:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_and_ignored_signals_do_not_end_a_wait() {
        let status = |pending: u64, blocked: u64, ignored: u64| {
            format!("Name:\tx\nSigPnd:\t0\nShdPnd:\t{pending:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\n")
        };
        let term = bit(libc::SIGTERM);
        assert_eq!(pending(&status(term, 0, 0)), term);
        assert_eq!(pending(&status(term, term, 0)), 0);
        assert_eq!(pending(&status(term, 0, term)), 0);
        assert_eq!(pending(""), 0);
    }

    #[tokio::test]
    async fn work_that_is_done_is_answered_whatever_is_pending() {
        let outcome = unless_signalled(std::process::id(), Patience::UntilSignal, async { Ok(7) }).await;
        assert_eq!(outcome, Ok(7));
    }

    #[tokio::test]
    async fn a_caller_that_is_gone_ends_the_wait() {
        let outcome =
            unless_signalled(u32::MAX, Patience::UntilEnding, std::future::pending::<Result<(), FsError>>()).await;
        assert_eq!(outcome, Err(FsError::Interrupted));
    }
}
