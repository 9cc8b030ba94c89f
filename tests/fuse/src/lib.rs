//! Programs and files that several end-to-end tests work with.

use kit::command::{need, sh};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most scripts end long before.
pub const LIMIT: Duration = Duration::from_secs(400);

/// Files in the source tree.
const FILES: usize = 5000;

/// A tar file of a real source tree of several thousand files, made in `dir` from the sources of the crates that this
/// project is built from.
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

/// Makes sure that the programs which the tests run are there.
///
/// # Panics
/// When one is missing and cannot be installed.
pub fn need_programs() {
    need(&[("git", "git"), ("rsync", "rsync"), ("sqlite3", "sqlite3")]);
}
