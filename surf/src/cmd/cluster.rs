//! `surf cluster`: make a cluster, look at it, change its members.

mod init;

use super::access::Access;
use super::blockd::{ago, condition, heard, states, to_json as blockd_json};
use super::lengths;
use super::session;
use super::token::issuable;
use crate::output::{self, say};
use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use wire::ids::MetadId;
use wire::issuer::IssuerKey;
use wire::message::admin::{AdminReply, AdminRequest, ClusterStatus};
use wire::tls::{ClusterCa, Role};

/// Make a cluster, look at it, change its members.
#[derive(Args)]
pub struct Cluster {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the CA, and the first configurations, identities and bundles.
    Init(init::Init),
    /// Members, their state, sessions.
    Status {
        #[command(flatten)]
        access: Access,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Add a running, empty metad; block daemons join by themselves when started.
    Add {
        #[command(flatten)]
        access: Access,
        /// Its number, never used before in this cluster.
        #[arg(long)]
        id: u64,
        /// Where it serves.
        #[arg(long)]
        address: SocketAddr,
    },
    /// Make an issuer for a metad, with which it signs identities for join tokens. `surf cluster init` and `surf metad
    /// replace` make one for each metad.
    Issuer {
        /// The new file. It belongs on the metad's machine, readable by its user alone, and into its configuration as
        /// `issuer`.
        file: PathBuf,
        /// The cluster's ca.pem.
        #[arg(long, value_name = "FILE")]
        ca: PathBuf,
        /// The role of identities that it may sign, several times or separated by commas: client, blockd, metad.
        #[arg(long, value_delimiter = ',', value_parser = issuable, default_value = "client,blockd,metad")]
        role: Vec<Role>,
    },
    /// Remove a metad. Its certificate is refused from then on.
    Remove {
        #[command(flatten)]
        access: Access,
        /// Its number.
        #[arg(long)]
        id: u64,
    },
    /// Change what holds for the whole cluster.
    Set {
        #[command(flatten)]
        access: Access,
        /// Take a block daemon out that is silent for this many seconds, and copy what it held from the others.
        #[arg(long, value_name = "SECONDS")]
        down_after_s: Option<u64>,
        /// Replicas of each block, 1 to 5. Needs --min-sync.
        #[arg(long, requires = "min_sync")]
        replicas: Option<u8>,
        /// Replicas that must have synced a block before a write counts. Needs --replicas.
        #[arg(long, requires = "replicas")]
        min_sync: Option<u8>,
        /// Life of certificates that are issued or renewed from now on: a number with s, m, h or d. They are renewed when
        /// half of it is over.
        #[arg(long, value_name = "TIME", value_parser = lengths::duration)]
        cert_life: Option<Duration>,
    },
}

impl Cluster {
    /// Carries it out.
    pub async fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Init(init) => init.run()?,
            Command::Status { access, json } => show(&access.status().await?, json)?,
            Command::Add { access, id, address } => {
                access.ask(AdminRequest::AddMetad { id: MetadId(id), addr: address }).await?;
                say!("metad-{id} votes");
            }
            Command::Issuer { file, ca, role } => {
                if file.exists() {
                    bail!("{}: is there already; choose another name", file.display());
                }
                let name = file.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                IssuerKey::create(&ClusterCa::load(&ca)?, &name, &role)?.save(&file)?;
                say!("copy {} to a metad, name it there as `issuer` in metad.toml, and start it again", file.display());
            }
            Command::Remove { access, id } => {
                if let AdminReply::Report(lines) = access.ask(AdminRequest::RemoveMetad { id: MetadId(id) }).await? {
                    lines.iter().for_each(|line| say!("{line}"));
                }
                say!("metad-{id} removed; it can be stopped now");
            }
            Command::Set { access, down_after_s, replicas, min_sync, cert_life } => {
                if let Some(life) = cert_life {
                    let ms = u64::try_from(life.as_millis())?;
                    access.ask(AdminRequest::SetCertLife { ms }).await?;
                }
                if let Some(seconds) = down_after_s {
                    access.ask(AdminRequest::SetDownAfter { ms: seconds.saturating_mul(1000) }).await?;
                }
                if let (Some(replicas), Some(min_sync)) = (replicas, min_sync) {
                    access.ask(AdminRequest::SetRedundancy { replicas, min_sync }).await?;
                }
                say!("set");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show(status: &ClusterStatus, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(&to_json(status));
    }
    say!("cluster {}, term {}, {} entries applied", status.cluster, status.term, status.applied);
    let metads: Vec<Vec<String>> = status
        .metads
        .iter()
        .zip(&status.metads_heard_ms)
        .map(|((id, addr, voter, matched), heard_ms)| {
            let role = match (*id == status.leader, voter) {
                (true, _) => "leads",
                (false, true) => "votes",
                (false, false) => "learns",
            };
            let heard = if *id == status.leader { "-".to_owned() } else { ago(*heard_ms) };
            vec![format!("metad-{id}"), role.to_owned(), addr.to_string(), matched.to_string(), heard]
        })
        .collect();
    output::table(&["METAD", "ROLE", "ADDRESS", "LOG", "HEARD"], &metads);
    let blockds: Vec<Vec<String>> = states(status)
        .map(|(member, state)| {
            vec![
                member.name.clone(),
                member.addr.to_string(),
                member.zone.clone(),
                member.weight.to_string(),
                condition(status, (member, state)).to_owned(),
                heard(state),
                output::bytes(state.free_bytes),
                output::bytes(state.capacity_bytes),
            ]
        })
        .collect();
    output::table(&["BLOCKD", "ADDRESS", "ZONE", "WEIGHT", "STATE", "HEARD", "FREE", "CAPACITY"], &blockds);
    session::print_table(status);
    Ok(())
}

fn to_json(status: &ClusterStatus) -> serde_json::Value {
    let metads: Vec<_> = status
        .metads
        .iter()
        .zip(&status.metads_heard_ms)
        .map(|((id, addr, voter, matched), heard_ms)| {
            json!({
                "id": id, "address": addr, "voter": voter, "leader": *id == status.leader, "log_index": matched,
                "heard_ms": heard_ms,
            })
        })
        .collect();
    let blockds: Vec<_> = states(status).map(|one| blockd_json(status, one)).collect();
    json!({
        "cluster": status.cluster, "leader": status.leader, "term": status.term, "applied": status.applied,
        "layout_epoch": status.layout.epoch, "replicas": status.layout.replicas, "min_sync": status.layout.min_sync,
        "down_after_s": status.layout.down_after_ms / 1000, "layout_final": status.layout.is_final(),
        "metads": metads, "blockds": blockds, "sessions": session::to_json(status),
        "total_bytes": status.statfs.total_bytes, "free_bytes": status.statfs.free_bytes,
        "inodes": status.statfs.inodes,
    })
}
