//! The block daemon as a program: configuration, logs, signals, and the service manager.

#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use blockd::Node;
use blockd::config::{Config, Settings};
use clap::Parser;
use sd_notify::NotifyState;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use wire::tls::Identity;
use wire::{describe, log};

/// Surf's block daemon: stores blocks, and copies of others' blocks, on a disk.
#[derive(Parser)]
#[command(name = "blockd", version)]
struct Arguments {
    /// Configuration file.
    #[arg(long, short, env = "BLOCKD_CONFIG")]
    config: Option<PathBuf>,
    /// Check the configuration and the identity, then exit.
    #[arg(long)]
    check_config: bool,
    #[command(flatten)]
    settings: Settings,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("blockd: {}", describe(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let file = arguments.config.as_deref().map(Settings::load).transpose()?;
    let settings = file.unwrap_or_default().overridden_by(arguments.settings);
    let identity = Identity::load(settings.identity()?)?;
    blockd::check_role(&identity)?;
    let config = settings.validate(&identity.subject().name)?;
    let filter = settings.log.as_deref().unwrap_or("info");
    log::check(filter).context("`log` is no filter")?;
    if arguments.check_config {
        println!("the configuration of {} is valid", config.name);
        return Ok(());
    }
    log::start(filter, None)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(config, identity))
}

async fn serve(config: Config, identity: Identity) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let node = Node::start(config, identity).await?;
    tracing::info!(id = %node.id(), addr = %node.local_addr(), "serving");
    // A missing service manager is not an error.
    let _ = sd_notify::notify(false, &[NotifyState::Ready]);
    let ended = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let mut ended = pin!(ended);
    let outcome = tokio::select! {
        () = &mut ended => Ok(()),
        error = node.failed() => {
            // The blocks here must be served, so that others can copy them.
            tracing::error!(%error, "serving what is here until stopped; nothing is stored any more");
            let _ = sd_notify::notify(false, &[NotifyState::Status("the disk has failed")]);
            ended.await;
            Err(error)
        }
    };
    let _ = sd_notify::notify(false, &[NotifyState::Stopping]);
    node.stop().await;
    Ok(outcome?)
}
