//! bench: a fixed set of file workloads in any directories, side by side.
//!
//! Each row is run in every directory before the next row begins, so that whatever else the machine does meanwhile meets
//! all of them; the median of several runs is shown, and its ratio to the first directory.

mod apps;
mod io;
mod meta;
mod report;
mod sys;
mod tree;

use anyhow::{Context, Result, bail};
use clap::Parser;
use report::{Report, Row, Unit};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tree::Inputs;

/// Measures file workloads in directories, side by side.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// A side: NAME=DIRECTORY. The first one is what the others are compared with.
    #[arg(long = "dir", required = true, value_name = "NAME=DIRECTORY")]
    dirs: Vec<String>,
    /// Runs of each row; the median counts.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Only rows whose name contains this.
    #[arg(long)]
    only: Option<String>,
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

/// Sizes of the workloads.
#[derive(Clone, Copy)]
struct Scale {
    sequential_mib: usize,
    random_mib: usize,
    random_ops: usize,
    files: usize,
}

/// A directory under test, emptied afterwards.
struct Side {
    name: String,
    dir: PathBuf,
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A row's work in a directory; answers its figure.
type Work = fn(&Path, &Inputs, Scale) -> Result<f64>;

const ROWS: &[(&str, Unit, Work)] = &[
    ("sequential write + fsync", Unit::MibPerSecond, io::sequential_write),
    ("sequential read, cold", Unit::MibPerSecond, io::sequential_read_cold),
    ("sequential read, warm", Unit::MibPerSecond, io::sequential_read_warm),
    ("random 4 KiB read, cold", Unit::PerSecond, io::random_read_cold),
    ("random 4 KiB write", Unit::PerSecond, io::random_write),
    ("random 4 KiB write, fsync each", Unit::PerSecond, io::random_write_synced),
    ("create, 1 process", Unit::PerSecond, meta::create_1),
    ("stat cold, 1 process", Unit::PerSecond, meta::stat_1),
    ("ls -l of 4,000", Unit::Seconds, meta::list),
    ("unlink, 1 process", Unit::PerSecond, meta::unlink_1),
    ("create, 8 threads", Unit::PerSecond, meta::create_8),
    ("stat cold, 8 threads", Unit::PerSecond, meta::stat_8),
    ("unlink, 8 threads", Unit::PerSecond, meta::unlink_8),
    ("write 16 KiB files", Unit::PerSecond, meta::write_small),
    ("read 16 KiB files, cold", Unit::PerSecond, meta::read_small),
    ("untar", Unit::Seconds, apps::untar),
    ("find, cold", Unit::Seconds, apps::find),
    ("du, warm", Unit::Seconds, apps::du),
    ("grep -r, cold", Unit::Seconds, apps::grep),
    ("git clone", Unit::Seconds, apps::git_clone),
    ("git status", Unit::Seconds, apps::git_status),
    ("rm -r of both", Unit::Seconds, apps::remove),
];

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn sides(flags: &Flags) -> Result<Vec<Side>> {
    let side = |text: &String| {
        let Some((name, dir)) = text.split_once('=') else { bail!("--dir {text}: expected NAME=DIRECTORY") };
        let dir = Path::new(dir).join(format!("bench-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
        Ok(Side { name: name.to_owned(), dir })
    };
    flags.dirs.iter().map(side).collect()
}

fn run(flags: &Flags) -> Result<()> {
    let scale = if flags.quick {
        Scale { sequential_mib: 64, random_mib: 32, random_ops: 500, files: 400 }
    } else {
        Scale { sequential_mib: 1024, random_mib: 256, random_ops: 20_000, files: 4_000 }
    };
    sys::warm_memory(if flags.quick { 0 } else { flags.warm_gib });
    let inputs = Inputs::make(flags.quick)?;
    let sides = sides(flags)?;
    let mut report = Report::new(sides.iter().map(|side| side.name.clone()).collect(), flags.runs);
    let wanted = |name: &str| flags.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let mut figures: Vec<Vec<Vec<f64>>> = vec![vec![Vec::new(); sides.len()]; ROWS.len()];
    for number in 0..flags.runs {
        for (row, (name, _, work)) in ROWS.iter().enumerate().filter(|(_, (name, ..))| wanted(name)) {
            for (at, side) in sides.iter().enumerate() {
                let figure = work(&side.dir, &inputs, scale).with_context(|| format!("{name} in {}", side.name))?;
                figures[row][at].push(figure);
                eprintln!("run {} {name}: {} {figure:.2}", number + 1, side.name);
            }
        }
    }
    for ((name, unit, _), runs) in ROWS.iter().zip(figures) {
        if wanted(name) {
            report.rows.push(Row { name, unit: *unit, runs });
        }
    }
    print!("{}", report.table());
    if let Some(path) = &flags.json {
        fs::write(path, report.json()?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
