//! Signals that end a run. The first one is noticed between two steps, so that everything is taken down in order. The
//! second one ends the process at once, and all processes that it had started end with it (see [`crate::process`]).

use crate::sys;
use anyhow::{Result, bail};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

/// Pause between looks at a condition that a signal may end.
pub(crate) const POLL: Duration = Duration::from_millis(10);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// Process group of the program that does a row's work; 0 for none.
static WORKING: AtomicI32 = AtomicI32::new(0);

/// Runs inside a signal handler, so it uses only atomics and system calls.
extern "C" fn on_signal(_signal: libc::c_int) {
    if INTERRUPTED.swap(true, Ordering::Relaxed) {
        sys::exit_at_once(130);
    }
    let group = WORKING.load(Ordering::Relaxed);
    if group != 0 {
        sys::kill_group(group);
    }
}

/// From here on signals are handled.
pub(crate) fn handle() -> Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        sys::on_signal(signal, on_signal)?;
    }
    Ok(())
}

/// Fails once a signal has come.
pub(crate) fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// The process group that a signal ends, until the value is dropped.
pub(crate) struct Working;

impl Working {
    pub(crate) fn new(group: i32) -> Self {
        WORKING.store(group, Ordering::Relaxed);
        Self
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        WORKING.store(0, Ordering::Relaxed);
    }
}

/// Waits until a condition holds. When a signal comes, `interrupt` must bring that about.
pub(crate) fn while_waiting(condition: impl Fn() -> bool, interrupt: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut interrupt = Some(interrupt);
    while !condition() {
        if check().is_err()
            && let Some(interrupt) = interrupt.take()
        {
            interrupt()?;
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
