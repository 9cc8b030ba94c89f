//! Cleaning up when the test itself can no longer do it.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// A shell that waits for the end of a pipe whose other end only the test process holds. When that process is gone for
/// whatever reason, `kill -9` included, the shell runs its script.
pub struct Watchdog {
    shell: Child,
}

impl Watchdog {
    /// Starts the shell; `script` runs if the test process ends without dropping this.
    ///
    /// # Panics
    /// When no shell starts.
    #[must_use]
    pub fn new(script: &str) -> Self {
        let shell = Command::new("sh")
            .args(["-c", &format!("read -r done && exit 0\n{script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own: Ctrl-C at the terminal must not take the watchdog along.
            .process_group(0)
            .spawn()
            .expect("sh starts");
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
