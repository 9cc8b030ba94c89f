//! Programs and files that several end-to-end tests work with.

#![forbid(unsafe_code)]

use kit::command::{need, sh};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Time limit of a script; most end long before.
pub const LIMIT: Duration = Duration::from_secs(400);

/// Number of files in the source tree.
const FILES: usize = 5000;

/// Makes a tar file in `dir` of a real source tree of several thousand files: the sources of the crates from which this
/// project is built.
///
/// # Panics
/// When there are none: `cargo fetch` brings them.
#[must_use]
pub fn source_tree(dir: &Path) -> PathBuf {
    let cargo =
        std::env::var("CARGO_HOME").unwrap_or_else(|_| format!("{}/.cargo", std::env::var("HOME").unwrap_or_default()));
    // `sed` reads to the end, where `head` would leave `sort` with a broken pipe.
    let script = format!(
        "cd {cargo}/registry/src && find . -type f -size -256k | LC_ALL=C sort | sed -n '1,{FILES}p' > {dir}/list && \
         test $(wc -l < {dir}/list) -eq {FILES} && tar -cf {dir}/tree.tar --verbatim-files-from -T {dir}/list",
        dir = dir.display()
    );
    sh(dir, LIMIT, &script);
    dir.join("tree.tar")
}

/// Returns the names in a directory, sorted.
///
/// # Panics
/// When it cannot be listed.
#[must_use]
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("the directory can be listed");
    let name = |entry: io::Result<fs::DirEntry>| entry.expect("its entries can be read").file_name().into_string();
    let mut names: Vec<String> = entries.map(|entry| name(entry).expect("names are UTF-8")).collect();
    names.sort();
    names
}

/// Returns bytes that no compression or deduplication makes smaller; they differ for each seed.
#[must_use]
pub fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64 ^ len as u64 ^ seed << 32;
    (0..len.div_ceil(8))
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take(len)
        .collect()
}

/// Makes a file with this content and syncs it. Returns how long that took.
///
/// # Panics
/// When it fails.
#[must_use]
pub fn sync_file(path: &Path, content: &[u8]) -> Duration {
    let started = Instant::now();
    let mut file = File::create(path).expect("a file is made");
    file.write_all(content).and_then(|()| file.sync_all()).expect("a file is synced");
    started.elapsed()
}

/// Stops the background work of a test when it is dropped, even when the test fails.
#[derive(Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Returns the flag that becomes true then.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Makes sure that the programs that the tests run are installed.
///
/// # Panics
/// When a program is missing and cannot be installed.
pub fn need_programs() {
    need(&["git", "rsync", "sqlite3"]);
}
