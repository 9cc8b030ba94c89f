//! Large files: sequential and random.

use crate::scale::Scale;
use crate::side::Side;
use crate::signals;
use crate::tree::Inputs;
use anyhow::{Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

const MIB: usize = 1 << 20;
const PAGE_BYTES: usize = 4096;

/// A MiB that differs from every other.
fn fill(buffer: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for word in buffer.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

fn write_file(path: &Path, mib: usize) -> Result<f64> {
    let blocks: Vec<Vec<u8>> = (0..8)
        .map(|number| {
            let mut block = vec![0; MIB];
            fill(&mut block, number + 1);
            block
        })
        .collect();
    let started = Instant::now();
    let mut file = File::create(path)?;
    for number in 0..mib {
        signals::check()?;
        let mut block = blocks[number % blocks.len()].clone();
        block[..8].copy_from_slice(&(number as u64).to_le_bytes());
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(mib as f64 / started.elapsed().as_secs_f64())
}

fn read_file(path: &Path, mib: usize) -> Result<f64> {
    let mut buffer = vec![0; MIB];
    let started = Instant::now();
    let mut file = File::open(path)?;
    for number in 0..mib {
        signals::check()?;
        file.read_exact(&mut buffer)?;
        ensure!(buffer[..8] == (number as u64).to_le_bytes(), "MiB {number} reads wrong");
    }
    Ok(mib as f64 / started.elapsed().as_secs_f64())
}

pub(crate) fn sequential_write(side: &mut Side, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    let path = side.dir().join("sequential");
    let _ = std::fs::remove_file(&path);
    write_file(&path, scale.sequential_mib)
}

pub(crate) fn sequential_read_cold(side: &mut Side, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    side.make_cold()?;
    read_file(&side.dir().join("sequential"), scale.sequential_mib)
}

pub(crate) fn sequential_read_warm(side: &mut Side, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    let path = side.dir().join("sequential");
    read_file(&path, scale.sequential_mib)?;
    let rate = read_file(&path, scale.sequential_mib)?;
    std::fs::remove_file(path)?;
    Ok(rate)
}

fn offsets(scale: Scale, count: usize) -> Vec<u64> {
    let mut random = StdRng::seed_from_u64(7);
    let pages = scale.random_mib * MIB / PAGE_BYTES;
    (0..count).map(|_| (random.random_range(0..pages) * PAGE_BYTES) as u64).collect()
}

pub(crate) fn random_read_cold(side: &mut Side, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    let path = side.dir().join("random");
    write_file(&path, scale.random_mib)?;
    side.make_cold()?;
    let file = File::open(&path)?;
    let count = scale.random_ops / 4;
    let mut page = [0; PAGE_BYTES];
    let started = Instant::now();
    for offset in offsets(scale, count) {
        signals::check()?;
        file.read_exact_at(&mut page, offset)?;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

pub(crate) fn random_write(side: &mut Side, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    let path = side.dir().join("random");
    if !path.exists() {
        write_file(&path, scale.random_mib)?;
    }
    let file = File::options().write(true).open(path)?;
    let mut page = [0; PAGE_BYTES];
    let started = Instant::now();
    for (number, offset) in offsets(scale, scale.random_ops).into_iter().enumerate() {
        signals::check()?;
        fill(&mut page, number as u64);
        file.write_all_at(&page, offset)?;
    }
    file.sync_all()?;
    Ok(scale.random_ops as f64 / started.elapsed().as_secs_f64())
}

pub(crate) fn random_write_synced(side: &mut Side, _inputs: &Inputs, scale: Scale) -> Result<f64> {
    let path = side.dir().join("random");
    if !path.exists() {
        write_file(&path, scale.random_mib)?;
    }
    let file = File::options().read(true).write(true).open(&path)?;
    let count = scale.random_ops / 20;
    let mut page = [0; PAGE_BYTES];
    let started = Instant::now();
    for (number, offset) in offsets(scale, count).into_iter().enumerate() {
        signals::check()?;
        fill(&mut page, number as u64 + 9);
        file.write_all_at(&page, offset)?;
        file.sync_data()?;
    }
    let rate = count as f64 / started.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(rate)
}
