//! The metad daemon: flags, configuration, signals.

#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use metad::config::{Config, ConfigFile};
use metad::{Node, recovery};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use wire::describe;

/// Surf's metadata daemon.
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// Configuration file.
    #[arg(long, env = "METAD_CONFIG", default_value = "/etc/surf/metad.toml")]
    config: PathBuf,
    /// Serve on this address instead of the file's.
    #[arg(long, env = "METAD_LISTEN")]
    listen: Option<SocketAddr>,
    /// Keep data there instead of where the file says.
    #[arg(long, env = "METAD_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// What to log: a level, or directives as of RUST_LOG. The default leaves out that openraft had an answer for
    /// somebody who has stopped waiting.
    #[arg(long, env = "SURF_LOG", default_value = "info,openraft::raft::responder=error")]
    log: String,
    /// Check the configuration and exit.
    #[arg(long)]
    check_config: bool,
    /// Make a cluster of this node alone from a backup of `surf metad backup`, in an empty data directory, and exit. Others are
    /// added to it when it runs.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["check_config", "force_single"])]
    restore: Option<PathBuf>,
    /// Make a cluster of this node alone from what it holds, because the others are lost for good, and exit. What they had
    /// acknowledged and this one does not have is lost.
    #[arg(long, conflicts_with = "check_config")]
    force_single: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    match run(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("metad: {}", describe(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(flags: Flags) -> anyhow::Result<()> {
    wire::log::start(&flags.log, None).context("--log")?;
    let mut file = ConfigFile::load(&flags.config)?;
    file.listen = flags.listen.unwrap_or(file.listen);
    file.data_dir = flags.data_dir.unwrap_or(file.data_dir);
    let config = file.check()?;
    if flags.check_config {
        println!("{}: no problem found", flags.config.display());
        return Ok(());
    }
    if let Some(backup) = &flags.restore {
        return metad::runtime()?.block_on(restore(&config, backup));
    }
    if flags.force_single {
        return metad::runtime()?.block_on(force_single(&config));
    }
    metad::runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let node = tokio::select! {
            started = Node::start(config) => started?,
            // On a full disk it waits for room, with threads that nothing else ends. Nothing is served yet.
            _ = terminate.recv() => std::process::exit(0),
            _ = interrupt.recv() => std::process::exit(0),
        };
        tracing::info!(addr = %node.local_addr(), "serving");
        // Without systemd nobody is notified.
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        node.stop().await;
        Ok(())
    })
}

async fn restore(config: &Config, backup: &Path) -> anyhow::Result<()> {
    let head = recovery::restore(config, backup).await?;
    println!("metad-{} alone is cluster {} as of log index {}", config.id, head.cluster, head.index);
    after_recovery(config);
    Ok(())
}

async fn force_single(config: &Config) -> anyhow::Result<()> {
    eprintln!("metad: what only the lost metads had acknowledged is lost with them");
    let forced = recovery::force_single(config).await?;
    let lost: Vec<String> = forced.lost.iter().map(|id| format!("metad-{id}")).collect();
    let (id, term, index) = (config.id, forced.term, forced.index);
    println!("metad-{id} alone is the cluster as of term {term} and log index {index}, the last in its log");
    if !lost.is_empty() {
        println!("never start {} again with the data they have: wipe them", lost.join(", "));
    }
    println!("what was here before is kept in {}: remove it when all is well", forced.set_aside.display());
    after_recovery(config);
    Ok(())
}

fn after_recovery(config: &Config) {
    println!("all sessions have ended, and no block is deleted until `surf metad resume-deletion`");
    println!("start metad-{}, then add empty ones under numbers never used, with `surf cluster add`", config.id);
}
