//! `surf blockd`: block daemons, and what becomes of their blocks.

use super::access::Access;
use crate::output::{self, say};
use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use std::process::ExitCode;
use std::time::Duration;
use wire::layout::LayoutMember;
use wire::message::admin::{AdminRequest, BlockdHealth, BlockdState, ClusterStatus};

/// Block daemons: list them, weigh one, empty one, replace one, forget one that is lost.
#[derive(Args)]
pub struct Blockd {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// State of each, and what it still has to copy or to give back.
    List {
        #[command(flatten)]
        access: Access,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Empty one: its blocks move to the others, and `surf blockd list` says when it is drained and can be switched
    /// off.
    Drain {
        #[command(flatten)]
        access: Access,
        /// Its name.
        name: String,
        /// Let it own blocks again instead.
        #[arg(long)]
        undo: bool,
    },
    /// Give one another share of the blocks, relative to the weights of the others. Only the difference moves.
    Weight {
        #[command(flatten)]
        access: Access,
        /// Its name.
        name: String,
        /// Its weight from now on, 1 or more.
        weight: u32,
    },
    /// Let a new one take over what another one holds, with its place on the ring, so that nothing else moves. Run this
    /// before the new one is started for the first time. The other one is then emptied.
    Replace {
        #[command(flatten)]
        access: Access,
        /// Name of the one that leaves, whether it runs or not.
        name: String,
        /// Name of the new one, as in its identity.
        successor: String,
    },
    /// Forget one that does not run and will not come back: what it held is copied from the others. Its certificate is
    /// refused from then on.
    Remove {
        #[command(flatten)]
        access: Access,
        /// Its name.
        name: String,
        /// It will come back, empty, with the same identity: do not refuse that.
        #[arg(long)]
        keep_identity: bool,
    },
}

impl Blockd {
    /// Carries it out.
    pub async fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::List { access, json } => list(&access.status().await?, json)?,
            Command::Drain { access, name, undo } => {
                access.ask(AdminRequest::DrainBlockd { name: name.clone(), drain: !undo }).await?;
                if undo {
                    say!("{name} owns blocks again");
                } else {
                    say!("{name} is being emptied; `surf blockd list` says when it is drained and can be switched off");
                }
            }
            Command::Weight { access, name, weight } => {
                access.ask(AdminRequest::WeighBlockd { name: name.clone(), weight }).await?;
                say!("{name} has weight {weight}; `surf status` says when its blocks have moved");
            }
            Command::Replace { access, name, successor } => {
                let request = AdminRequest::ReplaceBlockd { name: name.clone(), successor: successor.clone() };
                access.ask(request).await?;
                say!(
                    "start {successor}: it takes over what {name} holds, and `surf blockd list` says when that is drained"
                );
            }
            Command::Remove { access, name, keep_identity } => {
                access.ask(AdminRequest::RemoveBlockd { name: name.clone(), keep_identity }).await?;
                say!("{name} is forgotten; what others have of it is copied, what it alone had is lost");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The word for a state.
#[must_use]
pub fn word(health: BlockdHealth) -> &'static str {
    match health {
        BlockdHealth::Up => "up",
        BlockdHealth::Suspect => "suspect",
        BlockdHealth::Down => "down",
        BlockdHealth::Out => "out",
        BlockdHealth::Draining => "draining",
        BlockdHealth::Drained => "drained",
        BlockdHealth::Failed => "failed",
    }
}

/// A daemon whose disk takes this many times as long as those of the others is slow,
const SLOW_FACTOR: u64 = 10;
/// if it takes at least this long: 100 ms.
const SLOW_US_MIN: u64 = 100_000;

/// Reports whether a daemon takes blocks, and its disk takes far longer for that than those of the others do.
#[must_use]
pub fn is_slow(status: &ClusterStatus, (member, state): (&LayoutMember, &BlockdState)) -> bool {
    let takes_blocks = |state: &BlockdState| state.health == BlockdHealth::Up;
    let others = states(status).filter(|(other, state)| other.id != member.id && takes_blocks(state));
    let mut times: Vec<u64> = others.filter_map(|(_, state)| state.repair.sync_us).collect();
    times.sort_unstable();
    let usual = times.get(times.len() / 2);
    let (own, usual) = (state.repair.sync_us.unwrap_or(0), usual.copied().unwrap_or(u64::MAX));
    takes_blocks(state) && own >= SLOW_US_MIN && own >= usual.saturating_mul(SLOW_FACTOR)
}

/// The word for a daemon's state, and for a slow disk where that is all that is wrong.
#[must_use]
pub fn condition(status: &ClusterStatus, of: (&LayoutMember, &BlockdState)) -> &'static str {
    if is_slow(status, of) { "slow" } else { word(of.1.health) }
}

/// The daemons with their states.
pub fn states(status: &ClusterStatus) -> impl Iterator<Item = (&LayoutMember, &BlockdState)> {
    status.layout.members.iter().zip(&status.blockds)
}

/// A daemon in output for programs.
#[must_use]
pub fn to_json(status: &ClusterStatus, (member, state): (&LayoutMember, &BlockdState)) -> serde_json::Value {
    json!({
        "id": member.id.to_string(), "name": member.name, "address": member.addr, "zone": member.zone,
        "weight": member.weight, "successor": member.successor, "state": word(state.health), "heard_ms_ago": state.heard_ms,
        "free_bytes": state.free_bytes, "capacity_bytes": state.capacity_bytes,
        "lacking_blocks": state.repair.lacking_blocks, "lacking_bytes": state.repair.lacking_bytes,
        "misplaced_blocks": state.repair.misplaced_blocks, "misplaced_bytes": state.repair.misplaced_bytes,
        "damaged_blocks": state.repair.damaged_blocks, "missing_blocks": state.repair.missing_blocks,
        "sync_us": state.repair.sync_us, "slow": is_slow(status, (member, state)),
        "bytes_per_s": state.repair.bytes_per_s, "scrubbed": state.repair.scrubbed.map(output::time),
    })
}

/// Time since the last heartbeat, for people.
#[must_use]
pub fn heard(state: &BlockdState) -> String {
    ago(state.heard_ms)
}

/// Returns how long ago somebody was heard, for people.
pub fn ago(heard_ms: Option<u64>) -> String {
    let ago = |ms| format!("{} ago", output::duration(Duration::from_millis(ms)));
    heard_ms.map_or_else(|| "never".to_owned(), ago)
}

fn list(status: &ClusterStatus, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(&states(status).map(|one| to_json(status, one)).collect());
    }
    let rows: Vec<Vec<String>> = states(status)
        .map(|(member, state)| {
            vec![
                member.name.clone(),
                condition(status, (member, state)).to_owned(),
                member.weight.to_string(),
                heard(state),
                output::bytes(state.free_bytes),
                output::bytes(state.capacity_bytes),
                output::bytes(state.repair.lacking_bytes),
                output::bytes(state.repair.misplaced_bytes),
                format!("{}/s", output::bytes(state.repair.bytes_per_s)),
                state.repair.sync_us.map_or_else(|| "-".to_owned(), |us| format!("{} ms", us.div_ceil(1000))),
                state.repair.scrubbed.map_or_else(|| "never".to_owned(), output::time),
            ]
        })
        .collect();
    output::table(
        &[
            "BLOCKD",
            "STATE",
            "WEIGHT",
            "HEARD",
            "FREE",
            "CAPACITY",
            "TO COPY",
            "TO GIVE BACK",
            "RATE",
            "SYNC",
            "SCRUBBED",
        ],
        &rows,
    );
    Ok(())
}
