//! Many small files: what metadata costs.

use crate::Scale;
use crate::sys::drop_caches;
use crate::tree::Inputs;
use anyhow::{Result, anyhow, ensure};
use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

const SMALL: usize = 16 << 10;

/// Does something with each of `count` files, on several threads; answers files per second.
fn each(count: usize, threads: usize, work: impl Fn(usize) -> std::io::Result<()> + Sync) -> Result<f64> {
    let started = Instant::now();
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..threads)
            .map(|lane| {
                let work = &work;
                scope.spawn(move || (lane..count).step_by(threads).try_for_each(work))
            })
            .collect();
        lanes.into_iter().try_for_each(|lane| match lane.join() {
            Ok(done) => done.map_err(Into::into),
            Err(_) => Err(anyhow!("a thread panicked")),
        })
    })?;
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

fn create(dir: &Path, count: usize, threads: usize) -> Result<f64> {
    let dir = dir.join(format!("files-{threads}"));
    fs::create_dir_all(&dir)?;
    each(count, threads, |number| File::create_new(dir.join(format!("f{number}"))).map(|_| ()))
}

fn stat(dir: &Path, count: usize, threads: usize) -> Result<f64> {
    let dir = dir.join(format!("files-{threads}"));
    drop_caches();
    each(count, threads, |number| fs::metadata(dir.join(format!("f{number}"))).map(|_| ()))
}

fn unlink(dir: &Path, count: usize, threads: usize) -> Result<f64> {
    let dir = dir.join(format!("files-{threads}"));
    let rate = each(count, threads, |number| fs::remove_file(dir.join(format!("f{number}"))))?;
    fs::remove_dir(dir)?;
    Ok(rate)
}

pub(crate) fn create_1(dir: &Path, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    create(dir, scale.files, 1)
}

pub(crate) fn stat_1(dir: &Path, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    stat(dir, scale.files, 1)
}

pub(crate) fn list(dir: &Path, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    drop_caches();
    let started = Instant::now();
    let mut found = 0;
    for entry in fs::read_dir(dir.join("files-1"))? {
        entry?.metadata()?;
        found += 1;
    }
    ensure!(found == scale.files, "{found} of {} files are listed", scale.files);
    Ok(started.elapsed().as_secs_f64())
}

pub(crate) fn unlink_1(dir: &Path, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    unlink(dir, scale.files, 1)
}

pub(crate) fn create_8(dir: &Path, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    create(dir, scale.files, 8)
}

pub(crate) fn stat_8(dir: &Path, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    stat(dir, scale.files, 8)
}

pub(crate) fn unlink_8(dir: &Path, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    unlink(dir, scale.files, 8)
}

fn content(number: usize) -> Vec<u8> {
    (0..SMALL).map(|at| (at ^ number ^ ((at >> 8) * number)) as u8).collect()
}

pub(crate) fn write_small(dir: &Path, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    let dir = dir.join("small");
    fs::create_dir_all(&dir)?;
    each(scale.files / 4, 1, |number| fs::write(dir.join(format!("f{number}")), content(number)))
}

pub(crate) fn read_small(dir: &Path, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    let dir = dir.join("small");
    drop_caches();
    let rate = each(scale.files / 4, 1, |number| {
        let read = fs::read(dir.join(format!("f{number}")))?;
        if read == content(number) { Ok(()) } else { Err(std::io::Error::other("a small file reads wrong")) }
    })?;
    fs::remove_dir_all(dir)?;
    Ok(rate)
}
