//! Schedules from seeds: those that once found something first, then as many as time allows.
#![allow(missing_docs)]

use sim::plan::Plan;
use sim::seeds::{Failed, run_many, show, shrink};
use sim::world::run;
use std::time::Duration;

/// Seeds that found something, one a line, with what it was.
const REGRESSIONS: &str = include_str!("../../regressions.txt");
/// Schedules that CI runs, if there is time.
const SCHEDULES: u64 = 20_000;
/// Time for them.
const SECONDS: u64 = 120;
/// Time for making a failing one small.
const SHRINKING: Duration = Duration::from_secs(60);

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn fail(failed: &Failed) -> ! {
    let plan = Plan::of(failed.seed);
    let (small, outcome) = shrink(&plan, SHRINKING);
    panic!(
        "{}\n\nshrunk:\n{}\n\nmend it, and add the seed {} to tests/sim/regressions.txt",
        show(&plan, &failed.outcome),
        show(&small, &outcome),
        failed.seed
    );
}

/// Guards I1, I2, I3, I4, I5, I6 and I8.
#[test]
fn what_programs_are_told_is_so_in_every_schedule() {
    let seeds = REGRESSIONS.lines().filter(|line| !line.starts_with('#'));
    for seed in seeds.filter_map(|line| line.split_whitespace().next()) {
        let seed: u64 = seed.parse().unwrap();
        let outcome = run(&Plan::of(seed));
        if !outcome.problems.is_empty() {
            fail(&Failed { seed, outcome });
        }
    }
    let (first, count) = (setting("SIM_FIRST", 0), setting("SIM_SCHEDULES", SCHEDULES));
    let ran = run_many(first, count, Duration::from_secs(setting("SIM_SECONDS", SECONDS)));
    println!("{} schedules from seed {first} on, {} acts, {:?} simulated", ran.count, ran.acts, ran.simulated);
    if let Some(failed) = ran.failed {
        fail(&failed);
    }
    assert!(ran.count > 0, "no schedule was run");
}

#[test]
fn a_seed_is_the_same_schedule_to_the_last_message() {
    for seed in 0..40 {
        let plan = Plan::of(seed);
        let (first, second) = (run(&plan), run(&plan));
        assert_eq!((first.trace, first.acts, first.took), (second.trace, second.acts, second.took), "seed {seed}");
        assert!(first.acts > 0);
    }
}
