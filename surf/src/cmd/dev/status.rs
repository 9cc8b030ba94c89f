//! `surf dev status`: which daemons run, and who leads.

use super::Place;
use super::up::describe;
use crate::admin::Admin;
use crate::dev::{is_running, required};
use crate::output;
use anyhow::Result;
use clap::Args;
use serde_json::json;
use std::time::Duration;

/// A cluster with a leader answers far sooner.
const ASK_LIMIT: Duration = Duration::from_secs(3);

/// Which daemons run, and who leads.
#[derive(Args)]
pub(super) struct Status {
    #[command(flatten)]
    place: Place,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) async fn run(self) -> Result<()> {
        let dir = self.place.dir.canonicalize().unwrap_or(self.place.dir);
        let cluster = required(&dir)?;
        let asked = if cluster.daemons.iter().any(is_running) {
            Admin::load(&cluster.admin_bundle)?.status(ASK_LIMIT).await.ok()
        } else {
            None
        };
        let leader = asked.map(|status| format!("metad-{}", status.leader));
        if self.json {
            let daemons: Vec<_> = cluster.daemons.iter().map(describe).collect();
            let value = json!({
                "cluster": cluster.cluster,
                "leader": leader,
                "client_bundle": cluster.client_bundle,
                "admin_bundle": cluster.admin_bundle,
                "daemons": daemons,
            });
            return output::json(&value);
        }
        let rows: Vec<Vec<String>> = cluster
            .daemons
            .iter()
            .map(|daemon| {
                let running = is_running(daemon);
                let state = match (running, leader.as_deref() == Some(&daemon.name)) {
                    (true, true) => "leads",
                    (true, false) => "runs",
                    (false, _) => "stopped",
                };
                let pid = if running { daemon.pid.to_string() } else { "-".to_owned() };
                vec![daemon.name.clone(), state.to_owned(), pid, daemon.address.to_string()]
            })
            .collect();
        output::table(&["DAEMON", "STATE", "PID", "ADDRESS"], &rows);
        Ok(())
    }
}
