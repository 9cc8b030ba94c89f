//! surfmount: mounts Surf with FUSE.
//!
//! `options` reads the command line, `session` leads from cluster to kernel and back, `guard` looks after the mount
//! point, `fuse` translates requests, and `notify` notifies the kernel of changes by others.

mod error;
mod fuse;
mod guard;
mod handles;
mod inodes;
mod interrupt;
mod nodes;
mod notify;
mod options;
mod payloads;
mod session;
mod spool;
mod sys;

use clap::Parser;
use error::Error;
use options::Flags;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use sys::{Forked, Parent};
use wire::log;

fn main() -> ExitCode {
    sys::bound_heaps();
    sys::outlive_file_size_limit();
    match start(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("surfmount: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Goes to the background if asked to. The parent returns once the mount stands, or with the reason why it does not.
fn start(flags: &Flags) -> Result<(), Error> {
    let mut parent = None;
    if flags.daemon {
        // This process reports what is wrong with the command line, by its exit code.
        flags.check()?;
        match sys::detach().map_err(Error::system("cannot go to the background"))? {
            Forked::Parent(said) => return said.map_err(Error::Background),
            Forked::Child(pipe) => parent = Some(pipe),
        }
    }
    let outcome = run(flags, &mut parent);
    match (&outcome, parent) {
        // The parent prints the error.
        (Err(error), Some(parent)) => {
            parent.failed(&error.to_string());
            Ok(())
        }
        _ => outcome,
    }
}

fn run(flags: &Flags, parent: &mut Option<Parent>) -> Result<(), Error> {
    let mut options = flags.check()?;
    init_log(flags)?;
    if !Path::new("/dev/fuse").exists() {
        let reason = "/dev/fuse is missing: load the kernel module with `modprobe fuse`".to_owned();
        return Err(Error::Refused { path: options.mount_point, reason });
    }
    options.mount_point = guard::prepare(&options.mount_point)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("surf-worker")
        .enable_all()
        .build()
        .map_err(Error::system("no threads can be started"))?;
    let outcome = runtime.block_on(Box::pin(session::run(&options, || announce(&options.mount_point, parent))));
    // Every task that matters was waited for.
    runtime.shutdown_background();
    // Without a log file, the error goes to standard error.
    if let (Err(error), Some(_)) = (&outcome, &flags.log_file) {
        tracing::error!(%error, "ended");
    }
    outcome
}

fn init_log(flags: &Flags) -> Result<(), Error> {
    let open = |path: &PathBuf| {
        let opened = File::options().create(true).append(true).open(path);
        opened.map_err(Error::system(&path.display().to_string()))
    };
    let file = flags.log_file.as_ref().map(open).transpose()?;
    log::start(&flags.log, file).map_err(|error| Error::Usage(format!("--log: {error}")))
}

/// Notifies the parent process and systemd that the mount stands.
fn announce(path: &Path, parent: &mut Option<Parent>) {
    // This fails without systemd, and may.
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    match parent.take() {
        Some(parent) => {
            println!("Surf is mounted on {}", path.display());
            parent.succeeded();
            if let Err(error) = sys::leave_terminal() {
                tracing::debug!(%error, "the terminal is kept");
            }
        }
        None => println!("Surf is mounted on {}; Ctrl-C unmounts it", path.display()),
    }
}
