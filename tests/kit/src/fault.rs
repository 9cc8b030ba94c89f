//! Faults: flipped bytes on disk, processes killed, disks that fail.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Kills a process at once, as a crash would.
///
/// # Panics
/// When there is no such process.
pub fn kill_9(pid: u32) {
    // SAFETY: kill takes no pointers; the pid is of a process that this test started.
    let result = unsafe { libc::kill(pid as i32, libc::SIGKILL) };
    assert_eq!(result, 0, "process {pid} is not there");
}

/// A process that is stopped until this is dropped: it retains its memory and its connections, and answers nobody.
pub struct Paused(u32);

impl Paused {
    /// Stops the process.
    ///
    /// # Panics
    /// When there is no such process.
    #[must_use]
    pub fn stop(pid: u32) -> Self {
        // SAFETY: kill takes no pointers; the pid is of a process that this test started.
        let result = unsafe { libc::kill(pid as i32, libc::SIGSTOP) };
        assert_eq!(result, 0, "process {pid} is not there");
        Self(pid)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::kill(self.0 as i32, libc::SIGCONT) };
    }
}

/// From now on, processes that are started survive when they reach their [`limit_file_size`]: their writes fail
/// instead.
pub fn outlive_file_size_limits() {
    // SAFETY: signal is given no function. An ignored signal stays ignored in the processes that are started.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Makes all writes of a process beyond this offset of a file fail, like those to a disk that has failed.
///
/// # Panics
/// When there is no such process.
pub fn limit_file_size(pid: u32, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: prlimit reads one rlimit, which lives until it returns, and is given nowhere to write the old one.
    let result = unsafe { libc::prlimit(pid as i32, libc::RLIMIT_FSIZE, &raw const limit, std::ptr::null_mut()) };
    assert_eq!(result, 0, "process {pid} is not there");
}

/// Returns whether a process exists (a zombie counts as gone).
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

/// Returns the peak resident memory of a process, in bytes.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("the kernel reports VmHWM");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("VmHWM is a number");
    kib * 1024
}

/// Returns all files below `dir`, sorted.
///
/// # Panics
/// When a folder cannot be read.
#[must_use]
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("the folder can be read") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Flips one bit wherever `needle` occurs in the files below `dir`, and returns the number of occurrences.
///
/// # Panics
/// When a file cannot be read or written.
pub fn corrupt(dir: &Path, needle: &[u8]) -> usize {
    files_below(dir).iter().map(|path| corrupt_file(path, needle)).sum()
}

fn corrupt_file(path: &Path, needle: &[u8]) -> usize {
    let content = fs::read(path).expect("the file can be read");
    let file: File = OpenOptions::new().write(true).open(path).expect("the file can be written");
    let mut count = 0;
    let mut from = 0;
    while let Some(at) = content[from..].windows(needle.len()).position(|window| window == needle) {
        let at = from + at;
        file.write_all_at(&[content[at] ^ 0x01], at as u64).expect("the file can be written");
        file.sync_all().expect("the file can be synced");
        count += 1;
        from = at + needle.len();
    }
    count
}
