//! Ordinary programs, run with a time limit.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What a program left behind.
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
/// # Panics
/// When it does not start, or takes longer than `limit`: its whole process group is killed then.
pub fn run(command: &mut Command, limit: Duration) -> Output {
    let name = command.get_program().to_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("{} does not start: {error}", name.display()));
    let mut out = child.stdout.take().expect("stdout is piped");
    let mut err = child.stderr.take().expect("stderr is piped");
    let out = thread::spawn(move || read_all(&mut out));
    let err = thread::spawn(move || read_all(&mut err));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break status;
        }
        if started.elapsed() > limit {
            kill_group(child.id());
            panic!("{} takes longer than {limit:?}: {command:?}", name.display());
        }
        thread::sleep(Duration::from_millis(5));
    };
    let text = out.join().unwrap_or_default() + &err.join().unwrap_or_default();
    Output { status, text }
}

fn read_all(from: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn kill_group(pid: u32) {
    // SAFETY: kill takes no pointers; the group was made for the child by `process_group(0)`.
    unsafe { libc::kill(-(pid as i32), libc::SIGKILL) };
}

/// Whether a program is there to be run.
#[must_use]
pub fn has_program(name: impl AsRef<OsStr>) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name.as_ref()).is_file())
}

/// Makes sure that programs are there, installing Debian's packages when run as root.
///
/// # Panics
/// When one is missing and cannot be installed; the message says what to install.
pub fn need(programs: &[(&str, &str)]) {
    let missing: Vec<&str> =
        programs.iter().filter(|(name, _)| !has_program(name)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return;
    }
    let script = format!(
        "(apt-get install -y --no-install-recommends {0} || (apt-get update && apt-get install -y --no-install-recommends {0})) >/dev/null",
        missing.join(" ")
    );
    let installed = run(
        Command::new("sh").args(["-c", &script]).env("DEBIAN_FRONTEND", "noninteractive"),
        Duration::from_secs(300),
    );
    assert!(installed.status.success(), "please install: {}\n{}", missing.join(" "), installed.text);
}
