//! Work on many files by several processes at once. Each is this program again. The work starts when all are ready, so
//! that starting processes is not measured.

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// The work on each file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Deed {
    Create,
    Stat,
    Unlink,
}

impl Deed {
    pub(crate) fn run(self, dir: &Path, number: usize) -> io::Result<()> {
        let path = dir.join(format!("f{number}"));
        match self {
            Deed::Create => File::create_new(path).map(drop),
            Deed::Stat => fs::metadata(path).map(drop),
            Deed::Unlink => fs::remove_file(path),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Deed::Create => "create",
            Deed::Stat => "stat",
            Deed::Unlink => "unlink",
        }
    }
}

/// Every nth file of a directory.
#[derive(Args)]
pub(crate) struct Lane {
    #[arg(value_enum)]
    deed: Deed,
    dir: PathBuf,
    count: usize,
    lane: usize,
    lanes: usize,
}

impl Lane {
    /// Runs the process: reports that it is ready, waits for a line, works, reports that it is done.
    pub(crate) fn run(&self) -> Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "ready")?;
        out.flush()?;
        io::stdin().lock().read_line(&mut String::new())?;
        (self.lane..self.count).step_by(self.lanes).try_for_each(|number| self.deed.run(&self.dir, number))?;
        writeln!(out, "done")?;
        Ok(())
    }
}

/// A process at work, killed if it is dropped before its end.
struct Worker {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Worker {
    fn start(deed: Deed, dir: &Path, count: usize, lane: usize, lanes: usize) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["lane", deed.name()]).arg(dir).args([count, lane, lanes].map(|number| number.to_string()));
        crate::sys::die_with_parent(&mut command);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("a process")?;
        let said = BufReader::new(child.stdout.take().context("its output")?);
        Ok(Self { child, said })
    }

    fn expect(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        ensure!(line.trim() == word, "a process has failed");
        Ok(())
    }

    fn begin(&mut self) -> Result<()> {
        self.child.stdin.take().context("its input")?.write_all(b"go\n")?;
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Works on `count` files of a directory with this many processes; returns files per second.
pub(crate) fn all(deed: Deed, dir: &Path, count: usize, lanes: usize) -> Result<f64> {
    let workers = (0..lanes).map(|lane| Worker::start(deed, dir, count, lane, lanes));
    let mut workers = workers.collect::<Result<Vec<_>>>()?;
    workers.iter_mut().try_for_each(|worker| worker.expect("ready"))?;
    let started = Instant::now();
    workers.iter_mut().try_for_each(Worker::begin)?;
    workers.iter_mut().try_for_each(|worker| worker.expect("done"))?;
    Ok(count as f64 / started.elapsed().as_secs_f64())
}
