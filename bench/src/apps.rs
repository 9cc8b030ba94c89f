//! Ordinary programs at work.

use crate::Scale;
use crate::sys::drop_caches;
use crate::tree::{Inputs, sh};
use anyhow::Result;
use std::path::Path;
use std::time::Instant;

fn timed(dir: &Path, script: &str) -> Result<f64> {
    let started = Instant::now();
    sh(dir, script)?;
    Ok(started.elapsed().as_secs_f64())
}

pub(crate) fn untar(dir: &Path, inputs: &Inputs, _scale: Scale) -> Result<f64> {
    timed(dir, &format!("mkdir tree && tar -xf {} -C tree", inputs.tar.display()))
}

pub(crate) fn find(dir: &Path, _inputs: &Inputs, _scale: Scale) -> Result<f64> {
    drop_caches();
    timed(dir, "find tree > /dev/null")
}

pub(crate) fn du(dir: &Path, _inputs: &Inputs, _scale: Scale) -> Result<f64> {
    timed(dir, "du -s tree > /dev/null")
}

pub(crate) fn grep(dir: &Path, _inputs: &Inputs, _scale: Scale) -> Result<f64> {
    drop_caches();
    timed(dir, "grep -r 'no such line anywhere' tree || true")
}

pub(crate) fn git_clone(dir: &Path, inputs: &Inputs, _scale: Scale) -> Result<f64> {
    timed(dir, &format!("git clone -q --no-hardlinks {} clone", inputs.repository.display()))
}

pub(crate) fn git_status(dir: &Path, _inputs: &Inputs, _scale: Scale) -> Result<f64> {
    timed(dir, "cd clone && test -z \"$(git status --porcelain)\"")
}

pub(crate) fn remove(dir: &Path, _inputs: &Inputs, _scale: Scale) -> Result<f64> {
    timed(dir, "rm -r tree clone")
}
