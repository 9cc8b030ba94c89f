//! `just fuzz` where there is no cargo-fuzz, and `just fuzz-corpus`.
//!
//! ```text
//! fuzzing corpus                       write the corpus anew
//! fuzzing list                         the targets, and what each reads
//! fuzzing run SECONDS [TARGET [SEED]]  each target, or one, for so long
//! fuzzing try TARGET FILE              one input
//! ```

#![forbid(unsafe_code)]

use fuzzing::runner::{self, Fault};
use fuzzing::{TARGETS, Target, corpus, target};
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match act(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(said) => {
            eprintln!("{said}");
            ExitCode::FAILURE
        }
    }
}

fn act(words: &[&str]) -> Result<(), String> {
    match words {
        ["corpus"] => {
            let mut count = 0;
            for Target { name, samples, .. } in TARGETS {
                count += corpus::write(name, samples()).map_err(|error| format!("the corpus of {name}: {error}"))?;
            }
            println!("{count} files");
            Ok(())
        }
        ["list"] => {
            TARGETS.iter().for_each(|target| println!("{:16} {}", target.name, target.reads));
            Ok(())
        }
        ["run", seconds, rest @ ..] if rest.len() <= 2 => {
            let limit = Duration::from_secs(seconds.parse().map_err(|_| format!("{seconds} is no number"))?);
            let seed = rest.get(1).map(|seed| seed.parse().map_err(|_| format!("{seed} is no seed"))).transpose()?;
            let chosen: Vec<&Target> = match rest.first() {
                Some(name) => vec![named(name)?],
                None => TARGETS.iter().collect(),
            };
            chosen.into_iter().try_for_each(|target| run(target, seed.unwrap_or_else(rand::random), limit))
        }
        ["try", name, file] => {
            let input = std::fs::read(file).map_err(|error| format!("{file}: {error}"))?;
            println!("{}", if (named(name)?.run)(&input) { "good" } else { "refused" });
            Ok(())
        }
        _ => Err("corpus | list | run SECONDS [TARGET [SEED]] | try TARGET FILE".to_owned()),
    }
}

fn named(name: &str) -> Result<&'static Target, String> {
    target(name).ok_or_else(|| format!("there is no target {name}: see `list`"))
}

fn run(target: &Target, seed: u64, limit: Duration) -> Result<(), String> {
    println!("{:16} seed {seed}", target.name);
    let run = runner::run(target, seed, limit, &corpus::regressions_dir()).map_err(|fault| {
        let Fault { input, said } = fault;
        format!("{} has a fault with seed {seed}: {said}\nthe input is {}", target.name, input.display())
    })?;
    let rate = run.executions as f64 / run.elapsed.as_secs_f64();
    println!(
        "{:16} {} executions, {} good, {rate:.0} per second, the slowest took {:.1} ms; {} MiB at most so far",
        target.name,
        run.executions,
        run.good,
        run.slowest.as_secs_f64() * 1000.0,
        runner::peak_mib().unwrap_or(0),
    );
    Ok(())
}
