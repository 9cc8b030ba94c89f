//! Schedules from seeds: those that found a bug once come first, then as many as time allows.
#![allow(missing_docs)]

use sim::plan::Plan;
use sim::seeds::{Failed, run_many, show, shrink};
use sim::themes::Theme;
use sim::world::run;
use std::collections::BTreeSet;
use std::time::Duration;

/// Seeds that found a bug, one a line, with a description of it.
const REGRESSIONS: &str = include_str!("../../regressions.txt");
/// Schedules that CI runs, if there is time.
const SCHEDULES: u64 = 20_000;
/// Time for them.
const SECONDS: u64 = 120;
/// Time for making a failing one small.
const SHRINKING: Duration = Duration::from_secs(60);

fn fail(failed: &Failed) -> ! {
    let Failed { plan, outcome } = failed;
    let (small, of_small) = shrink(plan, SHRINKING);
    panic!(
        "{}\n\nshrunk:\n{}\n\nmend it, and add `{} {}` to tests/sim/regressions.txt",
        show(plan, outcome),
        show(&small, &of_small),
        plan.theme,
        plan.seed
    );
}

/// Guards I1, I2, I3, I4, I5, I6 and I8.
#[test]
fn answers_to_programs_are_true_in_every_schedule() {
    for line in REGRESSIONS.lines().filter(|line| !line.starts_with('#')) {
        let (theme, seed) = line.split_once(' ').unwrap_or_else(|| panic!("{line} is no theme with a seed"));
        let theme = Theme::named(theme).unwrap_or_else(|| panic!("there is no theme {theme}"));
        let plan = Plan::about(theme, seed.parse().unwrap());
        let outcome = run(&plan);
        if !outcome.problems.is_empty() {
            fail(&Failed { plan, outcome });
        }
    }
    let (first, count) = (kit::scale("SIM_FIRST", 0), kit::scale("SIM_SCHEDULES", SCHEDULES));
    let ran = run_many(Plan::of, (first, count), Duration::from_secs(kit::scale("SIM_SECONDS", SECONDS)));
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

#[test]
fn a_seed_says_what_its_schedule_is_about_and_all_themes_come_up() {
    let themes: Vec<Theme> = (0..200).map(Theme::of).collect();
    let names: BTreeSet<String> = themes.iter().map(Theme::to_string).collect();
    assert_eq!(names.len(), 6);
    for theme in themes {
        assert_eq!(Theme::named(&theme.to_string()), Some(theme));
        let plan = Plan::about(theme, 7);
        assert!(plan.theme == theme && !plan.steps.is_empty());
    }
    assert_eq!(Theme::named("nothing"), None);
}
