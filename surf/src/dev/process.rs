//! Starts and stops daemons, and distinguishes them from other processes that happen to have the same pid.

use super::cluster::{Daemon, Kind};
use crate::sys;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Pause between looks whether a process has ended.
const POLL: Duration = Duration::from_millis(20);

/// Reports whether the daemon's process runs. Pids are used again, so the command line must have our paths.
#[must_use]
pub fn is_running(daemon: &Daemon) -> bool {
    if daemon.pid == 0 {
        return false;
    }
    // The command line of a zombie is empty; it counts as ended.
    let Ok(cmdline) = fs::read(format!("/proc/{}/cmdline", daemon.pid)) else { return false };
    cmdline.split(|byte| *byte == 0).any(|word| word == daemon.config.as_os_str().as_bytes())
}

/// Starts a daemon, detached from the terminal, its output in its log.
pub fn start(daemon: &mut Daemon, log_filter: &str) -> Result<()> {
    if is_running(daemon) {
        bail!("{} runs already (pid {})", daemon.name, daemon.pid);
    }
    let program = program(daemon.kind)?;
    let log = File::options().create(true).append(true).open(&daemon.log);
    let log = log.with_context(|| daemon.log.display().to_string())?;
    let mut command = Command::new(&program);
    command.arg("--config").arg(&daemon.config).arg("--log").arg(log_filter);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // The daemon must neither hold nor need the working directory, which may be deleted or on a mount.
    command.current_dir("/");
    sys::detach(&mut command);
    let child = command.spawn().with_context(|| format!("{} cannot be started", program.display()))?;
    daemon.pid = child.id();
    Ok(())
}

/// The program of a daemon: beside this one, or in PATH.
fn program(kind: Kind) -> Result<PathBuf> {
    let name = kind.program();
    let own = std::env::current_exe().context("this program's own path is unknown")?;
    let beside = own.parent().map(|dir| dir.join(name)).filter(|path| path.is_file());
    let in_path = || {
        let paths = std::env::var_os("PATH")?;
        std::env::split_paths(&paths).map(|dir| dir.join(name)).find(|path| path.is_file())
    };
    beside
        .or_else(in_path)
        .with_context(|| format!("{name} is neither beside {} nor in PATH: build or install it", own.display()))
}

/// Outcome of stopping daemons.
#[derive(Default)]
pub struct StopReport {
    /// Daemons that ended when asked to.
    pub ended: Vec<String>,
    /// Daemons that had to be killed.
    pub killed: Vec<String>,
}

/// Asks daemons to end, waits, and kills those that do not within `limit`. Their pids become 0.
pub async fn stop_all(daemons: &mut [&mut Daemon], limit: Duration) -> Result<StopReport> {
    let mut report = StopReport::default();
    let running: Vec<bool> = daemons.iter().map(|daemon| is_running(daemon)).collect();
    for daemon in daemons.iter().filter(|daemon| is_running(daemon)) {
        signal(daemon, libc::SIGTERM)?;
    }
    let started = Instant::now();
    while started.elapsed() < limit && daemons.iter().any(|daemon| is_running(daemon)) {
        tokio::time::sleep(POLL).await;
    }
    for (daemon, was_running) in daemons.iter_mut().zip(running) {
        if is_running(daemon) {
            kill(daemon).await?;
            report.killed.push(daemon.name.clone());
        } else if was_running {
            report.ended.push(daemon.name.clone());
        }
        daemon.pid = 0;
    }
    Ok(report)
}

/// Kills a daemon at once, as a crash would, and waits until it is gone.
pub async fn kill(daemon: &mut Daemon) -> Result<()> {
    signal(daemon, libc::SIGKILL)?;
    // A process in an uninterruptible wait ends only after that wait.
    let started = Instant::now();
    while is_running(daemon) {
        if started.elapsed() > Duration::from_secs(30) {
            bail!("{} (pid {}) does not go away when killed", daemon.name, daemon.pid);
        }
        tokio::time::sleep(POLL).await;
    }
    daemon.pid = 0;
    Ok(())
}

fn signal(daemon: &Daemon, signal: i32) -> Result<()> {
    if !is_running(daemon) {
        return Ok(());
    }
    match sys::kill(daemon.pid, signal) {
        // The process has ended by itself.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.with_context(|| format!("{} (pid {})", daemon.name, daemon.pid)),
    }
}

/// The last line of a daemon's log, for the message when it has ended.
#[must_use]
pub fn last_words(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it left no message").to_owned()
}
