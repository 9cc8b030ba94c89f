//! `surf metad`: backups of the metadata and the pins on their blocks, and the replacement of a metad.

mod fetch;
mod files;
mod plan;
mod replace;

use super::access::Access;
use crate::output::{self, say};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use wire::attr::Timestamp;
use wire::backup::{Counts, Head, verify};
use wire::message::admin::{AdminReply, AdminRequest, Pin};

/// Limit for the check of the whole metadata before deletion resumes.
const CHECK_LIMIT: Duration = Duration::from_secs(1800);

/// Back up the metadata, look at backups, and let go of what they keep; replace a metad.
#[derive(Args)]
pub struct Metad {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the metadata as it is now into a file, while the cluster goes on. `metad --restore FILE` makes a new
    /// cluster of it, which needs the block daemons: content is not in it.
    Backup(fetch::Backup),
    /// Check that a backup is whole, and show where it comes from. Needs no cluster.
    Verify {
        /// The backup.
        file: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Backups whose blocks are kept.
    Backups {
        #[command(flatten)]
        access: Access,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Keep the blocks of a backup no longer.
    Release {
        #[command(flatten)]
        access: Access,
        /// Its name, as `surf metad backups` has it.
        name: String,
    },
    /// Let a new metad take the place of one that is lost or is to be switched off. The same command, given again, goes
    /// on where an earlier one was interrupted.
    Replace(replace::Replace),
    /// Resume the deletion of unreferenced blocks after a recovery. The metadata is checked first. Exit code 2 when it
    /// contradicts itself: deletion then stays stopped.
    ResumeDeletion {
        #[command(flatten)]
        access: Access,
        /// Resume even if the metadata contradicts itself.
        #[arg(long)]
        force: bool,
    },
}

impl Metad {
    /// Carries it out.
    pub async fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Backup(backup) => return backup.run().await,
            Command::Verify { file, json } => {
                let (head, counts, bytes) = verified(&file)?;
                if json {
                    output::json(&to_json(&head, &counts, bytes))?;
                } else {
                    say!("{}: whole, {}", file.display(), in_words(&head, &counts, bytes));
                }
            }
            Command::Backups { access, json } => list(&pins(&access).await?, json)?,
            Command::Release { access, name } => {
                access.ask(AdminRequest::ReleasePin { name: name.clone() }).await?;
                say!("the blocks of {name} are kept no longer");
            }
            Command::Replace(replace) => replace.run().await?,
            Command::ResumeDeletion { access, force } => {
                let (admin, _) = access.enter()?;
                let request = AdminRequest::ResumeDeletion { force };
                let answered = match admin.leader().await {
                    Ok((_, leader)) => admin.ask_once(leader, request, CHECK_LIMIT).await,
                    Err(error) => Err(error),
                };
                admin.close().await;
                if let AdminReply::Problems(problems) = answered? {
                    problems.iter().for_each(|problem| say!("{problem}"));
                    say!(
                        "the metadata contradicts itself: deletion stays stopped. Run `surf fsck --repair`, then this again; \
                         `--force` deletes all the same"
                    );
                    return Ok(ExitCode::from(2));
                }
                say!("blocks that nothing refers to are deleted again");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Reads a backup to its end.
fn verified(file: &Path) -> Result<(Head, Counts, u64)> {
    let opened = File::open(file).with_context(|| format!("{}: cannot be read", file.display()))?;
    verify(BufReader::with_capacity(1 << 20, opened)).with_context(|| file.display().to_string())
}

fn in_words(head: &Head, counts: &Counts, bytes: u64) -> String {
    format!(
        "cluster {} ({}) as of log index {} in term {}, made {}: {} inodes, {} blocks, {} records, {}",
        head.cluster,
        head.cluster_id,
        head.index,
        head.term,
        output::time(head.at),
        counts.of(b'I'),
        counts.of(b'B'),
        counts.records(),
        output::bytes(bytes)
    )
}

fn to_json(head: &Head, counts: &Counts, bytes: u64) -> serde_json::Value {
    json!({
        "cluster": head.cluster, "cluster_id": head.cluster_id.to_string(), "term": head.term, "log_index": head.index,
        "made": output::time(head.at), "inodes": counts.of(b'I'), "blocks": counts.of(b'B'),
        "records": counts.records(), "bytes": bytes,
    })
}

async fn pins(access: &Access) -> Result<Vec<Pin>> {
    match access.ask(AdminRequest::Pins).await? {
        AdminReply::Pins(pins) => Ok(pins),
        other => bail!("metad answered {other:?} when asked for its backups"),
    }
}

fn list(pins: &[Pin], as_json: bool) -> Result<()> {
    let row = |pin: &Pin| [pin.name.clone(), output::time(pin.made), output::time(pin.until)];
    if as_json {
        let to_json =
            |pin: &Pin| json!({ "name": pin.name, "made": output::time(pin.made), "until": output::time(pin.until) });
        return output::json(&pins.iter().map(to_json).collect());
    }
    let rows: Vec<Vec<String>> = pins.iter().map(|pin| row(pin).to_vec()).collect();
    output::table(&["BACKUP", "MADE", "BLOCKS ARE KEPT UNTIL"], &rows);
    Ok(())
}

/// Default name for a backup.
fn name_of(at: Timestamp) -> String {
    format!("backup-{}", output::time(at))
}
