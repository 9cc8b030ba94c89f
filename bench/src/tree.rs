//! Inputs of the programs: a real source tree as a tar file, and a repository of it. Made once a run, on the disk that
//! is measured.

use crate::side::Files;
use crate::signals::{self, Working};
use crate::sys;
use anyhow::{Context, Result, ensure};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The inputs, removed with this value.
pub(crate) struct Inputs {
    _files: Files,
    /// Source tree.
    pub tar: PathBuf,
    /// Repository of the same sources.
    pub repository: PathBuf,
}

/// Runs a shell script. A signal ends it.
pub(crate) fn sh(dir: &Path, script: &str) -> Result<()> {
    let mut command = Command::new("timeout");
    command.args(["-k", "10", "600", "bash", "-ec", script]).current_dir(dir).stdin(Stdio::null()).process_group(0);
    sys::die_with_parent(&mut command);
    let mut child = command.spawn().context("timeout")?;
    let group = sys::pid(&child);
    let working = Working::new(group);
    if signals::check().is_err() {
        // The signal came before the handler knew of the group.
        sys::kill_group(group);
    }
    let status = child.wait().context("bash");
    drop(working);
    signals::check()?;
    ensure!(status?.success(), "failed: {script}");
    Ok(())
}

impl Inputs {
    /// Takes sources of crates that cargo has fetched: 7,800 small files in some 1,900 directories, 28 MB, as a tar
    /// file, and a repository of 430 larger ones, 30 MB, packed like a cloned one. With `quick`, it is a tenth of that.
    pub(crate) fn make(place: &Path, quick: bool) -> Result<Self> {
        let files = Files::new(&place.join("inputs"))?;
        let dir = &files.0;
        let home = std::env::var("CARGO_HOME")
            .unwrap_or_else(|_| format!("{}/.cargo", std::env::var("HOME").unwrap_or_default()));
        let (small, large) = if quick { (780, 43) } else { (7_800, 430) };
        let script = format!(
            "out=$PWD; cd {home}/registry/src; \
             find . -type f -size -16k | LC_ALL=C sort | sed -n 1,{small}p > $out/small; \
             find . -type f -size +24k -size -400k | LC_ALL=C sort | sed -n 1,{large}p > $out/large; \
             tar -cf $out/tree.tar -T $out/small; mkdir $out/repo; tar -cf - -T $out/large | tar -xf - -C $out/repo; \
             cd $out/repo; git init -q .; git config user.email a@b; git config user.name bench; \
             git add -f .; git commit -qm all; git repack -adq"
        );
        sh(dir, &script).context("no source tree can be made: run `cargo fetch` first")?;
        Ok(Self { tar: dir.join("tree.tar"), repository: dir.join("repo"), _files: files })
    }
}
