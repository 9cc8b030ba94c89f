//! Ordinary programs at work.

use crate::scale::Scale;
use crate::side::Side;
use crate::tree::{Inputs, sh};
use anyhow::Result;
use std::path::Path;
use std::time::Instant;

fn timed(dir: &Path, script: &str) -> Result<f64> {
    let started = Instant::now();
    sh(dir, script)?;
    Ok(started.elapsed().as_secs_f64())
}

pub(crate) fn untar(side: &mut Side, inputs: &Inputs, _scale: Scale) -> Result<f64> {
    timed(side.dir(), &format!("mkdir tree && tar -xf {} -C tree", inputs.tar.display()))
}

/// Empties the caches for a row's tree, but not for the program itself.
fn make_cold(side: &mut Side, program: &str) -> Result<()> {
    side.make_cold()?;
    sh(Path::new("/"), &format!("{program} --version > /dev/null"))
}

pub(crate) fn find(side: &mut Side, _inputs: &Inputs, _scale: Scale) -> Result<f64> {
    make_cold(side, "find")?;
    timed(side.dir(), "find tree > /dev/null")
}

pub(crate) fn du(side: &mut Side, _inputs: &Inputs, _scale: Scale) -> Result<f64> {
    timed(side.dir(), "du -s tree > /dev/null")
}

pub(crate) fn grep(side: &mut Side, _inputs: &Inputs, _scale: Scale) -> Result<f64> {
    make_cold(side, "grep")?;
    timed(side.dir(), "grep -r 'no such line anywhere' tree || true")
}

pub(crate) fn git_clone(side: &mut Side, inputs: &Inputs, _scale: Scale) -> Result<f64> {
    timed(side.dir(), &format!("git clone -q --no-hardlinks {} clone", inputs.repository.display()))
}

pub(crate) fn git_status(side: &mut Side, _inputs: &Inputs, _scale: Scale) -> Result<f64> {
    // A file as young as the index, to the second, is read and compared. After a clone, chance decides how many files
    // that are. With an index older than all of them, it is all files, on each side.
    sh(side.dir(), "touch -d 2000-01-01 clone/.git/index")?;
    timed(side.dir(), "cd clone && test -z \"$(git status --porcelain)\"")
}

pub(crate) fn remove(side: &mut Side, _inputs: &Inputs, _scale: Scale) -> Result<f64> {
    timed(side.dir(), "rm -r tree clone")
}
