//! The metad daemon: flags, configuration, signals.

#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use metad::Node;
use metad::config::ConfigFile;
use std::net::SocketAddr;
use std::path::PathBuf;
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
    /// What to log: a level, or directives as of RUST_LOG.
    #[arg(long, env = "SURF_LOG", default_value = "info")]
    log: String,
    /// Check the configuration and exit.
    #[arg(long)]
    check_config: bool,
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
    let filter = tracing_subscriber::EnvFilter::try_new(&flags.log).context("--log")?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let mut file = ConfigFile::load(&flags.config)?;
    file.listen = flags.listen.unwrap_or(file.listen);
    file.data_dir = flags.data_dir.unwrap_or(file.data_dir);
    let config = file.check()?;
    if flags.check_config {
        println!("{}: no problem found", flags.config.display());
        return Ok(());
    }
    metad::runtime()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let node = Node::start(config).await?;
        tracing::info!(addr = %node.local_addr(), "serving");
        // Without systemd there is nobody to tell.
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
