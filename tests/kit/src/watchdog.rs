//! Cleaning up when the test itself can no longer do it.

use crate::scale::scale;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A shell that waits for the end of a pipe whose other end only the test process holds. When that process is gone
/// for whatever reason, `kill -9` included, the shell runs its script. It also runs the script after
/// [`LIFE_MINUTES`]: a test that hangs on its mount then fails, instead of delaying everything behind it.
pub struct Watchdog {
    shell: Child,
}

/// Longer than any test takes on a slow machine, unless `SURF_TEST_MINUTES` says that it may take more.
const LIFE_MINUTES: u64 = 20;

fn life_limit() -> Duration {
    Duration::from_secs(scale("SURF_TEST_MINUTES", LIFE_MINUTES) * 60)
}

impl Watchdog {
    /// Starts the shell; `script` runs if the test process ends without dropping this.
    ///
    /// # Panics
    /// When bash does not start.
    #[must_use]
    pub fn new(script: &str) -> Self {
        let shell = Command::new("bash")
            .args(["-c", &format!("read -r -t {} done && exit 0\n{script}", life_limit().as_secs())])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own: Ctrl-C at the terminal must not take the watchdog along.
            .process_group(0)
            .spawn()
            .expect("bash starts");
        Self { shell }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Some(mut pipe) = self.shell.stdin.take() {
            let _ = pipe.write_all(b"done\n");
        }
        let _ = self.shell.wait();
    }
}
