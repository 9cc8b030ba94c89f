//! Ordinary programs, run with a time limit.

use crate::bins::workspace;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// After a program has ended, how long processes that it has started may keep its output open.
const OPEN_OUTPUT_LIMIT: Duration = Duration::from_secs(10);
/// How long packages may take to be installed.
const INSTALL_LIMIT: Duration = Duration::from_secs(300);

/// The result of a program.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output and error, in that order.
    pub text: String,
}

/// Runs a shell script (`set -eu`) in `dir` and returns what it printed.
///
/// # Panics
/// When it fails or takes longer than `limit`; the message holds the script and its output.
pub fn sh(dir: &Path, limit: Duration, script: &str) -> String {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]).current_dir(dir);
    let output = run(&mut command, limit);
    assert!(output.status.success(), "failed ({}): {script}\n{}", output.status, output.text);
    output.text
}

/// Runs a command to its end, whatever its exit code.
///
/// # Panics When it does not start, when it takes longer than `limit`, or when a process that it started goes on and
/// keeps its output open. Its whole process group is killed then, and the message holds its output.
pub fn run(command: &mut Command, limit: Duration) -> Output {
    let name = command.get_program().to_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("{} does not start: {error}", name.display()));
    let out = Printed::collect(child.stdout.take().expect("stdout is piped"));
    let err = Printed::collect(child.stderr.take().expect("stderr is piped"));
    let text = || out.text() + &err.text();
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break status;
        }
        if started.elapsed() > limit {
            let waits = waits_for(child.id());
            kill_group(child.id());
            panic!("{} takes longer than {limit:?}: {command:?}\n{}{waits}", name.display(), text());
        }
        thread::sleep(Duration::from_millis(5));
    };
    if !(out.is_complete() && err.is_complete()) {
        kill_group(child.id());
        panic!("{} left processes behind ({status}): {command:?}\n{}", name.display(), text());
    }
    Output { status, text: text() }
}

/// Returns where in the kernel a process waits, if the kernel says so.
fn waits_for(pid: u32) -> String {
    let stack = fs::read_to_string(format!("/proc/{pid}/stack")).unwrap_or_default();
    if stack.is_empty() { stack } else { format!("it waits in\n{stack}") }
}

/// The output from a pipe; it can be read while the other end is still open.
struct Printed {
    bytes: Arc<Mutex<Vec<u8>>>,
    ended: Receiver<()>,
}

impl Printed {
    fn collect(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let (end, ended) = mpsc::channel::<()>();
        let shared = bytes.clone();
        thread::spawn(move || {
            let _signals_the_end = end;
            let mut part = vec![0; 64 << 10];
            while let Ok(count @ 1..) = pipe.read(&mut part) {
                lock(&shared).extend_from_slice(&part[..count]);
            }
        });
        Self { bytes, ended }
    }

    /// Returns whether the other end is closed, now or soon.
    fn is_complete(&self) -> bool {
        self.ended.recv_timeout(OPEN_OUTPUT_LIMIT) == Err(RecvTimeoutError::Disconnected)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.bytes)).into_owned()
    }
}

fn lock(bytes: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kill_group(pid: u32) {
    // SAFETY: kill takes no pointers; the group was made for the child by `process_group(0)`.
    unsafe { libc::kill(-(pid as i32), libc::SIGKILL) };
}

/// Makes sure that packages of `.ci/packages` are installed. As root, it installs missing ones.
///
/// # Panics
/// When a package is missing and cannot be installed; the message says what to install.
pub fn need(packages: &[&str]) {
    let setup = run(Command::new(workspace().join(".ci/setup")).args(packages), INSTALL_LIMIT);
    assert!(setup.status.success(), "{}", setup.text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;

    #[test]
    fn a_program_that_leaves_a_process_behind_does_not_hold_the_test() {
        let started = Instant::now();
        let panic = catch_unwind(|| sh(Path::new("/"), Duration::from_secs(60), "sleep 600 & echo printed; exit 3"));
        let message = *panic.unwrap_err().downcast::<String>().expect("a message");
        assert!(message.contains("left processes behind") && message.contains("printed"), "{message}");
        assert!(started.elapsed() < OPEN_OUTPUT_LIMIT * 3);
    }

    #[test]
    fn a_program_that_takes_too_long_is_killed_and_its_output_is_reported() {
        let panic = catch_unwind(|| sh(Path::new("/"), Duration::from_secs(1), "echo printed; sleep 600"));
        let message = *panic.unwrap_err().downcast::<String>().expect("a message");
        assert!(message.contains("takes longer") && message.contains("printed"), "{message}");
    }
}
