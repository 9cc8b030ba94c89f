//! bench: a fixed set of file workloads in any directories, side by side.
//!
//! Each row is run in every directory before the next row begins, so that other load on the machine meets all of them.
//! The report shows the median of several runs, and its ratio to the first directory. Besides existing directories,
//! whole file systems can be set up for a run, and are taken down after it: Surf, the null file system, and others that
//! store three copies as Surf does.

mod apps;
mod columns;
mod io;
mod lane;
mod meta;
mod mounts;
mod null;
mod packages;
mod process;
mod report;
mod rows;
mod scale;
mod side;
mod signals;
mod sys;
mod tree;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use columns::{Build, Column};
use report::Report;
use rows::Selected;
use scale::Scale;
use side::{Files, Side};
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use tree::Inputs;

/// Measures file workloads in directories, side by side.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Other>,
    #[command(flatten)]
    flags: Flags,
}

/// Other commands of this program.
#[derive(Subcommand)]
enum Other {
    /// Mounts the null file system, until it is unmounted or interrupted.
    Null {
        /// An empty directory.
        mount_point: PathBuf,
        /// Mount once for each line of standard input, and keep the files in between.
        #[arg(long, hide = true)]
        again: bool,
    },
    /// One of several processes of a row.
    #[command(hide = true)]
    Lane(lane::Lane),
}

#[derive(clap::Args)]
struct Flags {
    /// File systems to set up for this run (all but ext4 as root), separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "COLUMN")]
    columns: Vec<Column>,
    /// Another build of Surf, NAME=DIRECTORY with its programs: the columns embedded and cluster are set up with it, too, as
    /// embedded-NAME and cluster-NAME, before the ones with the programs beside this one.
    #[arg(long = "build", value_name = "NAME=DIRECTORY")]
    builds: Vec<String>,
    /// Where they keep their files. Choose a place on the disk that is to be measured.
    #[arg(long, default_value = "/var/tmp", value_name = "DIRECTORY")]
    at: PathBuf,
    /// Install Debian's packages of columns whose programs are missing; their services are not started.
    #[arg(long)]
    install: bool,
    /// A directory that is there: NAME=DIRECTORY. Columns come first; the first side is what the others are compared
    /// with.
    #[arg(long = "dir", value_name = "NAME=DIRECTORY")]
    dirs: Vec<String>,
    /// Runs of each row; the median counts.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Only rows whose name contains this; several are separated by commas or given one by one. What such a row needs
    /// is done, and not shown.
    #[arg(long, value_name = "WORDS")]
    only: Vec<String>,
    /// Write the figures there, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Small sizes: to see that it works, not how fast.
    #[arg(long)]
    quick: bool,
    /// GiB of memory to touch first: fresh pages of a virtual machine are slow.
    #[arg(long, default_value_t = 10)]
    warm_gib: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.command {
        Some(Other::Null { mount_point, again }) => null::run(mount_point, *again),
        Some(Other::Lane(lane)) => lane.run(),
        None => run(&cli.flags),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn named_side(text: &str) -> Result<Side> {
    match side::named(text) {
        Some((name, dir)) => Side::plain(name, dir),
        None => bail!("--dir {text}: expected NAME=DIRECTORY"),
    }
}

fn run(flags: &Flags) -> Result<()> {
    ensure!(!flags.columns.is_empty() || !flags.dirs.is_empty(), "measure what? Name --columns, or a --dir");
    ensure!(flags.runs > 0, "--runs must be 1 at least");
    let builds = flags.builds.iter().map(|text| Build::parse(text)).collect::<Result<Vec<_>>>()?;
    ensure!(
        builds.is_empty() || flags.columns.iter().any(|column| column.is_surf()),
        "--build needs one of --columns embedded,cluster"
    );
    let rows = rows::select(&flags.only)?;
    signals::handle()?;
    columns::prepare(&flags.columns, flags.install)?;
    sys::warm_memory(if flags.quick { 0 } else { flags.warm_gib });
    let place = Files::new(&flags.at.canonicalize().with_context(|| flags.at.display().to_string())?.join(own_name()))?;
    let inputs = Inputs::make(&place.0, flags.quick)?;
    let mut sides = columns::set_up(&flags.columns, &builds, &place.0)?;
    for text in &flags.dirs {
        sides.push(named_side(text)?);
    }
    let mut failures = Vec::new();
    let report = measure(flags, &rows, &mut sides, &inputs, &mut failures)?;
    print!("{}", report.table());
    if let Some(path) = &flags.json {
        fs::write(path, report.json()?).with_context(|| path.display().to_string())?;
    }
    ensure!(failures.is_empty(), "{} measurements failed:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

/// Directory of a run's columns.
fn own_name() -> String {
    format!("surf-bench-{}", std::process::id())
}

/// Runs everything. A row that fails on one side is listed in `failures`, and the others go on.
fn measure(
    flags: &Flags,
    rows: &[Selected],
    sides: &mut [Side],
    inputs: &Inputs,
    failures: &mut Vec<String>,
) -> Result<Report> {
    let scale = if flags.quick { Scale::QUICK } else { Scale::FULL };
    let mut figures: Vec<Vec<Vec<f64>>> = vec![vec![Vec::new(); sides.len()]; rows.len()];
    for number in 1..=flags.runs {
        for (Selected { row, .. }, figures) in rows.iter().zip(&mut figures) {
            for (side, figures) in sides.iter_mut().zip(figures) {
                let outcome = (row.work)(side, inputs, scale);
                signals::check()?;
                match outcome {
                    Ok(figure) => {
                        figures.push(figure);
                        eprintln!("run {number} {}: {} {figure:.2}", row.name, side.name);
                    }
                    Err(error) => {
                        failures.push(format!("run {number} {}: {} {error:#}", row.name, side.name));
                        eprintln!("{}", failures[failures.len() - 1]);
                    }
                }
            }
        }
        for side in sides.iter() {
            side.empty().with_context(|| format!("what run {number} left in {}", side.name))?;
        }
    }
    let columns = sides.iter().map(|side| report::Column { name: side.name.clone(), what: side.what.clone() });
    let mut report = Report::new(columns.collect(), flags.runs);
    let shown = rows.iter().zip(figures).filter(|(selected, _)| selected.is_shown);
    report.rows =
        shown.map(|(Selected { row, .. }, runs)| report::Row { name: row.name, unit: row.unit, runs }).collect();
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("bench").chain(arguments.split(' ')))
    }

    #[test]
    fn columns_and_rows_are_lists() {
        let flags =
            parse("--columns ext4,null --columns glusterfs --only untar,git --only find --dir a=/x").unwrap().flags;
        assert_eq!(flags.columns, [Column::Ext4, Column::Null, Column::Glusterfs]);
        assert_eq!(flags.only, ["untar,git", "find"]);
        assert_eq!(flags.dirs, ["a=/x"]);
        assert!(parse("--columns ext3").is_err());
        assert!(parse("null /mnt --runs 3").is_err());
    }

    #[test]
    fn a_side_needs_a_name_and_a_directory() {
        for wrong in ["/tmp", "=/tmp", "a="] {
            assert!(named_side(wrong).err().unwrap().to_string().contains("NAME=DIRECTORY"));
        }
    }
}
