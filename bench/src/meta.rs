//! Many small files: the cost of metadata.

use crate::lane::{self, Deed};
use crate::scale::Scale;
use crate::side::Side;
use crate::signals;
use crate::tree::Inputs;
use anyhow::{Result, ensure};
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

const SMALL_FILE_BYTES: usize = 16 << 10;

/// Works on each of `count` files; returns files per second.
fn each(count: usize, work: impl Fn(usize) -> std::io::Result<()>) -> Result<f64> {
    let started = Instant::now();
    for number in 0..count {
        signals::check()?;
        work(number)?;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

/// The directory of a row, and its work by this many processes; a single one is this process.
fn by(processes: usize, deed: Deed, side: &Side, scale: Scale) -> Result<(PathBuf, f64)> {
    let dir = side.dir().join(format!("files-{processes}"));
    if deed == Deed::Create {
        fs::create_dir_all(&dir)?;
    }
    let rate = match processes {
        1 => each(scale.files, |number| deed.run(&dir, number))?,
        processes => lane::all(deed, &dir, scale.files, processes)?,
    };
    Ok((dir, rate))
}

fn stat(processes: usize, side: &mut Side, scale: Scale) -> Result<f64> {
    side.make_cold()?;
    by(processes, Deed::Stat, side, scale).map(|(_, rate)| rate)
}

fn unlink(processes: usize, side: &Side, scale: Scale) -> Result<f64> {
    let (dir, rate) = by(processes, Deed::Unlink, side, scale)?;
    fs::remove_dir(dir)?;
    Ok(rate)
}

pub(crate) fn create_1(side: &mut Side, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    by(1, Deed::Create, side, scale).map(|(_, rate)| rate)
}

pub(crate) fn stat_1(side: &mut Side, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    stat(1, side, scale)
}

pub(crate) fn list(side: &mut Side, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    side.make_cold()?;
    let started = Instant::now();
    let mut found = 0;
    for entry in fs::read_dir(side.dir().join("files-1"))? {
        entry?.metadata()?;
        found += 1;
    }
    ensure!(found == scale.files, "{found} of {} files are listed", scale.files);
    Ok(started.elapsed().as_secs_f64())
}

pub(crate) fn unlink_1(side: &mut Side, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    unlink(1, side, scale)
}

pub(crate) fn create_8(side: &mut Side, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    by(8, Deed::Create, side, scale).map(|(_, rate)| rate)
}

pub(crate) fn stat_8(side: &mut Side, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    stat(8, side, scale)
}

pub(crate) fn unlink_8(side: &mut Side, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    unlink(8, side, scale)
}

fn content(number: usize) -> Vec<u8> {
    (0..SMALL_FILE_BYTES).map(|at| (at ^ number ^ ((at >> 8) * number)) as u8).collect()
}

pub(crate) fn write_small(side: &mut Side, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    let dir = side.dir().join("small");
    fs::create_dir_all(&dir)?;
    each(scale.files / 4, |number| fs::write(dir.join(format!("f{number}")), content(number)))
}

pub(crate) fn read_small(side: &mut Side, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    side.make_cold()?;
    let dir = side.dir().join("small");
    let rate = each(scale.files / 4, |number| {
        let read = fs::read(dir.join(format!("f{number}")))?;
        if read == content(number) { Ok(()) } else { Err(std::io::Error::other("a small file reads wrong")) }
    })?;
    fs::remove_dir_all(dir)?;
    Ok(rate)
}
