//! Runs schedules: `sim [FIRST_SEED [COUNT [SECONDS]]]` runs them until one fails, `sim --seed SEED` runs one and
//! shrinks it if it fails, `sim --survey [FIRST_SEED [COUNT [SECONDS]]]` lists all that fail. `--theme NAME` before
//! these sets the theme.
#![forbid(unsafe_code)]

use sim::plan::Plan;
use sim::seeds::{Failed, run_many, show, shrink, survey};
use sim::themes::Theme;
use sim::world::run;
use std::process::ExitCode;
use std::time::Duration;

/// Time for making a failing schedule small.
const SHRINKING: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut theme = None;
    if arguments.first().is_some_and(|flag| flag == "--theme") {
        let name = arguments.drain(..arguments.len().min(2)).next_back().unwrap_or_default();
        theme = Theme::named(&name);
        if theme.is_none() {
            eprintln!("there is no theme {name}");
            return ExitCode::FAILURE;
        }
    }
    let plan_of = |seed| theme.map_or_else(|| Plan::of(seed), |theme| Plan::about(theme, seed));
    let number =
        |index: usize, otherwise: u64| arguments.get(index).and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    if arguments.first().is_some_and(|flag| flag == "--seed") {
        return report(&plan_of(number(1, 0)));
    }
    if arguments.first().is_some_and(|flag| flag == "--survey") {
        let limit = Duration::from_secs(number(3, 60));
        let (ran, failed) = survey(plan_of, (number(1, 0), number(2, u64::MAX)), limit);
        for Failed { plan, outcome } in &failed {
            println!("{} {}: {}", plan.theme, plan.seed, outcome.problems.join("; "));
        }
        println!("{ran} schedules, {} failed", failed.len());
        return if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let (first, count, seconds) = (number(0, 0), number(1, u64::MAX), number(2, 60));
    let ran = run_many(plan_of, (first, count), Duration::from_secs(seconds));
    println!("{} schedules, {} acts, {:?} simulated", ran.count, ran.acts, ran.simulated);
    match ran.failed {
        None => ExitCode::SUCCESS,
        Some(failed) => report(&failed.plan),
    }
}

fn report(plan: &Plan) -> ExitCode {
    let outcome = run(plan);
    println!("{}", show(plan, &outcome));
    if outcome.problems.is_empty() {
        return ExitCode::SUCCESS;
    }
    let (small, _) = shrink(plan, SHRINKING);
    // `SIM_MESSAGES` shows this run last.
    let outcome = run(&small);
    println!("\nshrunk:\n{}", show(&small, &outcome));
    ExitCode::FAILURE
}
