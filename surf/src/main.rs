//! surf: the operator's command line.

mod admin;
mod cmd;
mod dev;
mod output;
mod sys;

use crate::output::complain;
use anyhow::Context;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Operates Surf clusters.
#[derive(Parser)]
#[command(name = "surf", version, arg_required_else_help = true)]
struct Arguments {
    /// What to log to standard error: a level, or directives in the form of RUST_LOG.
    #[arg(long, global = true, env = "SURF_LOG", default_value = "error")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A cluster of real daemons on this machine, for development and tests.
    Dev(cmd::dev::Dev),
    /// Make a cluster, look at it, change its members.
    Cluster(cmd::cluster::Cluster),
    /// Block daemons: list them, empty one, replace one, forget one that is lost.
    Blockd(cmd::blockd::Blockd),
    /// Back up the metadata, look at backups, and let go of what they keep; replace a metad.
    Metad(cmd::metad::Metad),
    /// Tokens by which new machines get their identities: make them, list them, revoke them.
    Token(cmd::token::Token),
    /// Certificates: list them, refuse some from now on, let them in again.
    Cert(cmd::cert::Cert),
    /// What has happened to identities, and who was refused.
    Audit(cmd::audit::Audit),
    /// The identity of this machine as a client.
    Client(cmd::enroll::Client),
    /// The identity of this machine as a node of the cluster.
    Node(cmd::enroll::Node),
    /// Sessions of mounts: list them, end one.
    Session(cmd::session::Session),
    /// State of a cluster in short.
    Status(cmd::status::Status),
    /// Check the metadata and the blocks of a cluster, while it is used.
    Fsck(cmd::fsck::Fsck),
    /// Copies that were kept because two mounts wrote the same bytes: list them, decide on them.
    Conflicts(cmd::conflicts::Conflicts),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // The exit code is that of fsck(8).
        Err(error) if error.use_stderr() && asks_for_fsck() => {
            let _ = error.print();
            return ExitCode::from(cmd::fsck::EXIT_USAGE);
        }
        Err(error) => error.exit(),
    };
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            complain!("surf: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Reports whether the first word that is not a flag is `fsck`.
fn asks_for_fsck() -> bool {
    let mut words = std::env::args_os().skip(1);
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("--log") => drop(words.next()),
            Some(flag) if flag.starts_with('-') => {}
            other => return other == Some("fsck"),
        }
    }
    false
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    wire::log::start(&arguments.log, None).context("--log")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let code = runtime.block_on(async {
        match arguments.command {
            Command::Dev(dev) => dev.run().await,
            Command::Cluster(cluster) => cluster.run().await,
            Command::Blockd(blockd) => blockd.run().await,
            Command::Metad(metad) => metad.run().await,
            Command::Token(token) => token.run().await,
            Command::Cert(cert) => cert.run().await,
            Command::Audit(audit) => audit.run().await,
            Command::Client(client) => client.run().await,
            Command::Node(node) => node.run().await,
            Command::Session(session) => session.run().await,
            Command::Status(status) => status.run().await,
            Command::Fsck(fsck) => fsck.run().await,
            Command::Conflicts(conflicts) => conflicts.run(),
        }
    });
    // What still reads or writes for a command that was broken off, a full pipe perhaps, is not waited for.
    runtime.shutdown_background();
    code
}
