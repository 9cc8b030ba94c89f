//! Many schedules, on all processors, until time is up; and a failing one made small.

use crate::plan::Plan;
use crate::world::{Outcome, run};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A failing schedule.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The schedule.
    pub plan: Plan,
    /// What went wrong.
    pub outcome: Outcome,
}

/// How many schedules succeeded, and the first one that failed.
#[derive(Debug)]
pub struct Ran {
    /// Number of schedules.
    pub count: u64,
    /// Number of acts of programs in them.
    pub acts: u64,
    /// Simulated time of all of them.
    pub simulated: Duration,
    /// The failing schedule with the lowest seed of those that were run.
    pub failed: Option<Failed>,
}

/// Runs the schedules that `plan` makes of the seeds from `first` on, until `count` of them have run, one fails, or
/// time is up.
#[must_use]
pub fn run_many(plan: impl Fn(u64) -> Plan + Sync, (first, count): (u64, u64), limit: Duration) -> Ran {
    let begun = Instant::now();
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let mut ran = Ran { count: 0, acts: 0, simulated: Duration::ZERO, failed: None };
        while !stop.load(Ordering::Relaxed) && begun.elapsed() < limit {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first.saturating_add(count) {
                break;
            }
            let plan = plan(seed);
            let outcome = run(&plan);
            ran.count += 1;
            ran.acts += outcome.acts;
            ran.simulated += outcome.took;
            if !outcome.problems.is_empty() {
                stop.store(true, Ordering::Relaxed);
                ran.failed = Some(Failed { plan, outcome });
                break;
            }
        }
        ran
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut all = Ran { count: 0, acts: 0, simulated: Duration::ZERO, failed: None };
        for worker in workers {
            let ran = worker.join().expect("a schedule does not panic");
            all.count += ran.count;
            all.acts += ran.acts;
            all.simulated += ran.simulated;
            all.failed = [all.failed, ran.failed].into_iter().flatten().min_by_key(|failed| failed.plan.seed);
        }
        all
    })
}

/// Returns all failing schedules of these seeds.
#[must_use]
pub fn survey(plan: impl Fn(u64) -> Plan + Sync, (first, count): (u64, u64), limit: Duration) -> (u64, Vec<Failed>) {
    let (begun, next) = (Instant::now(), AtomicU64::new(first));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let (mut ran, mut failed) = (0, Vec::new());
        while begun.elapsed() < limit {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first.saturating_add(count) {
                break;
            }
            let plan = plan(seed);
            let outcome = run(&plan);
            ran += 1;
            if !outcome.problems.is_empty() {
                failed.push(Failed { plan, outcome });
            }
        }
        (ran, failed)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let (mut ran, mut failed) = (0, Vec::new());
        for worker in workers {
            let (more, of_it) = worker.join().expect("a schedule does not panic");
            ran += more;
            failed.extend(of_it);
        }
        failed.sort_by_key(|failed: &Failed| failed.plan.seed);
        (ran, failed)
    })
}

/// Leaves out steps that a failing plan does not need to fail, within this time.
#[must_use]
pub fn shrink(plan: &Plan, limit: Duration) -> (Plan, Outcome) {
    let begun = Instant::now();
    let mut smallest = plan.clone();
    let mut outcome = run(plan);
    let mut portion = plan.steps.len().div_ceil(2).max(1);
    while begun.elapsed() < limit && !outcome.problems.is_empty() {
        let (mut at, mut smaller) = (0, false);
        while at < smallest.steps.len() && begun.elapsed() < limit {
            let kept: Vec<bool> = (0..smallest.steps.len()).map(|index| !(at..at + portion).contains(&index)).collect();
            let candidate = smallest.only(&kept);
            let tried = run(&candidate);
            if tried.problems.is_empty() {
                at += portion;
            } else {
                (smallest, outcome, smaller) = (candidate, tried, true);
            }
        }
        match portion {
            1 if !smaller => break,
            1 => {}
            _ => portion = portion.div_ceil(2),
        }
    }
    (smallest, outcome)
}

/// Shows a plan in readable form.
#[must_use]
pub fn show(plan: &Plan, outcome: &Outcome) -> String {
    let steps: Vec<String> = plan.steps.iter().map(|step| format!("  {step:?}")).collect();
    format!(
        "{} {}: {} clients, {} programs each, {:?}\n{}\nproblems:\n  {}",
        plan.theme,
        plan.seed,
        plan.clients,
        plan.lanes,
        plan.weather,
        steps.join("\n"),
        outcome.problems.join("\n  ")
    )
}
