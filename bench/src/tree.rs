//! What the programs work on: a real source tree as a tar file, and a repository of it. Made once a run, on local disk.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// The inputs, removed with this value.
pub(crate) struct Inputs {
    _dir: TempDir,
    /// Source tree.
    pub tar: PathBuf,
    /// Repository of the same.
    pub repository: PathBuf,
}

/// Runs a shell script.
pub(crate) fn sh(dir: &Path, script: &str) -> Result<()> {
    let status = Command::new("timeout").args(["600", "bash", "-ec", script]).current_dir(dir).status();
    ensure!(status.context("bash")?.success(), "failed: {script}");
    Ok(())
}

impl Inputs {
    /// Takes sources of crates that cargo has fetched: 9,600 files, about 80 MB; a tenth with `quick`.
    pub(crate) fn make(quick: bool) -> Result<Self> {
        let dir = tempfile::tempdir_in("/var/tmp").context("/var/tmp")?;
        let home = std::env::var("CARGO_HOME")
            .unwrap_or_else(|_| format!("{}/.cargo", std::env::var("HOME").unwrap_or_default()));
        let count = if quick { 900 } else { 9_600 };
        let script = format!(
            "out=$PWD; cd {home}/registry/src; find . -type f -size -24k | LC_ALL=C sort > $out/all; \
             head -n {count} $out/all > $out/list; tar -cf $out/tree.tar -T $out/list; \
             mkdir $out/repo; cd $out/repo; tar -xf ../tree.tar; git init -q .; git config user.email a@b; \
             git config user.name bench; git config gc.auto 0; \
             for d in $(ls); do git add -f $d; done; git commit -qm all"
        );
        sh(dir.path(), &script).context("no source tree can be made: run `cargo fetch` first")?;
        Ok(Self { tar: dir.path().join("tree.tar"), repository: dir.path().join("repo"), _dir: dir })
    }
}
