//! Runs a target with changed inputs, for machines without cargo-fuzz. It does not see which code an input reaches:
//! inputs that were good join the pool instead, so that changes add up.

use crate::mutate::mutated;
use crate::{Target, corpus};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Inputs in the pool beside the corpus.
const POOL_MAX: usize = 256;
/// Executions between two looks at the clock.
const EXECUTIONS_AT_ONCE: u64 = 16;

/// An input that takes longer is a fault, on a busy machine too: each has some KiB.
const SLOW_MAX: Duration = Duration::from_secs(20);

/// What a run did.
#[derive(Debug)]
pub struct Run {
    /// Inputs that were tried.
    pub executions: u64,
    /// Those that the target took for good.
    pub good: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// The longest time for one input.
    pub slowest: Duration,
}

/// Why a run ended early.
#[derive(Debug)]
pub struct Fault {
    /// Where the input is.
    pub input: PathBuf,
    /// What the target said.
    pub said: String,
}

/// Runs a target for so long. The inputs follow from the seed and the corpus. An input with which the target panics, or
/// takes very long, is written into `faults`.
///
/// # Errors
/// The first fault.
///
/// # Panics
/// When the corpus is missing, or the input of a fault cannot be written.
pub fn run(target: &Target, seed: u64, limit: Duration, faults: &Path) -> Result<Run, Fault> {
    let mut pool: Vec<Vec<u8>> = corpus::inputs(target.name).into_iter().map(|(_, input)| input).collect();
    pool.extend(corpus::regressions(target.name).into_iter().map(|(_, input)| input));
    assert!(!pool.is_empty(), "{} has no corpus: run `just fuzz-corpus`", target.name);
    let (kept, mut chance) = (pool.len(), StdRng::seed_from_u64(seed));
    let mut run = Run { executions: 0, good: 0, elapsed: Duration::ZERO, slowest: Duration::ZERO };
    let started = Instant::now();
    while run.elapsed < limit {
        for _ in 0..EXECUTIONS_AT_ONCE {
            let input = mutated(&pool, &mut chance);
            let began = Instant::now();
            let is_good = attempt(target, &input, faults)?;
            run.slowest = run.slowest.max(began.elapsed());
            run.executions += 1;
            if is_good {
                run.good += 1;
                if pool.len() < kept + POOL_MAX {
                    pool.push(input);
                } else {
                    let place = chance.random_range(kept..pool.len());
                    pool[place] = input;
                }
            }
        }
        run.elapsed = started.elapsed();
    }
    Ok(run)
}

/// Tries one input.
///
/// # Errors
/// The fault that it finds.
///
/// # Panics
/// When the input of a fault cannot be written.
pub fn attempt(target: &Target, input: &[u8], faults: &Path) -> Result<bool, Fault> {
    let began = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        said.or_else(|| panic.downcast_ref::<&str>().map(|said| (*said).to_owned())).unwrap_or_default()
    });
    let elapsed = began.elapsed();
    let outcome =
        outcome.and_then(|good| if elapsed < SLOW_MAX { Ok(good) } else { Err(format!("it took {elapsed:?}")) });
    outcome.map_err(|said| {
        let folder = faults.join(target.name);
        fs::create_dir_all(&folder).expect("a directory for faults can be made");
        let path = folder.join(&blake3::hash(input).to_hex()[..16]);
        fs::write(&path, input).expect("the input of a fault can be written");
        Fault { input: path, said }
    })
}

/// Returns the most memory that this process has had so far, in MiB; `None` where the kernel does not say.
#[must_use]
pub fn peak_mib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.map(|kib: u64| kib >> 10)
}
