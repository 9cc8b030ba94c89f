//! System calls without a safe wrapper in std: signals, and leaving the terminal's session.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Sends a signal to one process.
///
/// # Errors
/// Those of `kill(2)`: ESRCH when the process is gone.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 1).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: kill takes no pointers; `pid` names one process, neither a group nor all.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the command's process the leader of a new session, so that neither a hang-up nor Ctrl-C at this terminal
/// reaches it (`setsid(2)`).
pub fn detach(command: &mut Command) {
    // SAFETY: setsid is async-signal-safe and touches no memory of the parent.
    unsafe {
        command.pre_exec(|| if libc::setsid() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) });
    }
}
