//! `surf status`: state of a cluster in short.

use super::access::Access;
use super::blockd::{condition, states, to_json};
use super::health::{Health, Work};
use crate::output::{self, say};
use anyhow::Result;
use clap::Args;
use std::process::ExitCode;
use std::time::Duration;
use wire::layout::LayoutMember;
use wire::message::admin::{BlockdState, ClusterStatus};

/// Something needs attention, but nothing is in danger.
const ATTENTION: u8 = 2;
/// Something cannot be read or written now.
const CRITICAL: u8 = 3;

/// State of a cluster in short. Exit code 0 when all is well, 2 when something needs attention (a daemon is away or
/// slow, copies are being made), 3 when something cannot be read or written, 1 when nobody could be asked.
#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    access: Access,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Status {
    /// Carries it out.
    pub async fn run(self) -> Result<ExitCode> {
        let status = self.access.status().await?;
        let (health, work) = (Health::of(&status), Work::of(&status));
        if self.json {
            output::json(&as_json(&status, &health, &work))?;
        } else {
            show(&status, &health, &work);
        }
        Ok(match (health.problems.is_empty(), health.is_critical) {
            (true, _) => ExitCode::SUCCESS,
            (false, false) => ExitCode::from(ATTENTION),
            (false, true) => ExitCode::from(CRITICAL),
        })
    }
}

/// Bytes used, and all bytes.
fn usage(status: &ClusterStatus) -> (u64, u64) {
    let total = status.statfs.total_bytes;
    (total - status.statfs.free_bytes.min(total), total)
}

fn as_json(status: &ClusterStatus, health: &Health, work: &Work) -> serde_json::Value {
    let (used, total) = usage(status);
    serde_json::json!({
        "cluster": status.cluster,
        "healthy": health.problems.is_empty(),
        "critical": health.is_critical,
        "problems": health.problems,
        "notes": health.notes,
        "deletion_stopped": status.deletion_stopped.as_ref().map(|stop| &stop.reason),
        "pins": status.pins.iter().map(|pin| &pin.name).collect::<Vec<_>>(),
        "used_bytes": used,
        "total_bytes": total,
        "inodes": status.statfs.inodes,
        "sessions": status.sessions.len(),
        "layout_epoch": status.layout.epoch,
        "layout_final": status.layout.is_final(),
        "lacking_blocks": work.lacking_blocks,
        "lacking_bytes": work.lacking_bytes,
        "misplaced_blocks": work.misplaced_blocks,
        "misplaced_bytes": work.misplaced_bytes,
        "surplus_blocks": work.surplus_blocks,
        "damaged_blocks": work.damaged_blocks,
        "missing_blocks": work.missing_blocks,
        "repair_bytes_per_s": work.bytes_per_s,
        "repair_left_s": work.left_s,
        "blockds": states(status).map(|one| to_json(status, one)).collect::<Vec<_>>(),
    })
}

/// The block daemons with their states, and with their weights unless all have the same.
fn blockds(status: &ClusterStatus) -> Vec<String> {
    let are_equal = status.layout.members.windows(2).all(|pair| pair[0].weight == pair[1].weight);
    let weight = |weight: u32| if are_equal { String::new() } else { format!(" (weight {weight})") };
    let line = |(member, state): (&LayoutMember, &BlockdState)| {
        format!("{} {}{}", member.name, condition(status, (member, state)), weight(member.weight))
    };
    states(status).map(line).collect()
}

fn show(status: &ClusterStatus, health: &Health, work: &Work) {
    let (used, total) = usage(status);
    let state = match (health.problems.is_empty(), health.is_critical) {
        (true, _) => "healthy",
        (false, false) => "needs attention",
        (false, true) => "in danger",
    };
    say!("{}: {state}", status.cluster);
    health.problems.iter().chain(&health.notes).for_each(|line| say!("  {line}"));
    say!(
        "{} of {} used, {} inodes, {} sessions",
        output::bytes(used),
        output::bytes(total),
        status.statfs.inodes,
        status.sessions.len()
    );
    say!("blockds: {}", blockds(status).join(", "));
    if [work.lacking_blocks, work.misplaced_blocks, work.damaged_blocks].iter().any(|count| *count > 0) {
        let left =
            work.left_s.map_or_else(|| "unknown".to_owned(), |seconds| output::duration(Duration::from_secs(seconds)));
        say!(
            "to copy: {} blocks, {}; misplaced: {} blocks, {}, {} of them one copy too many; {}/s now, time left: {left}",
            work.lacking_blocks,
            output::bytes(work.lacking_bytes),
            work.misplaced_blocks,
            output::bytes(work.misplaced_bytes),
            work.surplus_blocks,
            output::bytes(work.bytes_per_s),
        );
    }
}
