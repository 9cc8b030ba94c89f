//! `surf metad replace`: a new metad in place of one that is lost, or is to be switched off.

use super::files::Place;
use super::plan::{Metads, Step, Wanted, next};
use crate::admin::Admin;
use crate::cmd::access::Access;
use crate::cmd::node::ETC;
use crate::output::{complain, say};
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use wire::ids::{ClusterId, MetadId};
use wire::message::admin::{AdminReply, AdminRequest, ClusterStatus};
use wire::tls::ClusterCa;

/// Pause between two looks at the membership.
const MEMBERSHIP_PAUSE: Duration = Duration::from_millis(500);
/// A change of the membership that takes longer is looked at again, and continued.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

/// Where a majority is missing, nothing can be replaced.
const NO_LEADER: &str = "no metad leads, so none can be replaced: bring back enough of them for a majority. Only if a \
    majority is lost for good, go on with a single survivor (`metad --force-single`; see \"A majority is lost for good\" \
    in docs/operations.md), and then add new ones";

/// Let a new metad take the place of one that is lost or is to be switched off.
#[derive(Args)]
pub(super) struct Replace {
    #[command(flatten)]
    access: Access,
    /// Number of the metad that leaves.
    old: u64,
    /// Where the others and the clients reach the new one. It may be the address of one that is lost.
    #[arg(long)]
    address: SocketAddr,
    /// Number of the new one, never used before in this cluster. With --ca, it is chosen if it is left out.
    #[arg(long, required_unless_present = "ca")]
    id: Option<u64>,
    /// The cluster's ca.pem: makes identity and configuration of the new one. Leave it out if it has them already.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Directory for them. It is metad-N beside ca.pem if it is left out.
    #[arg(long, value_name = "DIR", requires = "ca")]
    out: Option<PathBuf>,
    /// Give up after this many seconds. The same command, given again, goes on from there.
    #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
    timeout: u64,
}

impl Replace {
    /// Carries it out.
    pub(super) async fn run(self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(self.timeout);
        let (admin, patience) = self.access.enter()?;
        let replaced = self.replace(&admin, deadline, patience).await;
        admin.close().await;
        replaced
    }

    async fn replace(&self, admin: &Admin, deadline: Instant, patience: Duration) -> Result<()> {
        let status = state(admin, patience).await?;
        let wanted = self.wanted(admin.cluster_id(), &status)?;
        let (mut said, mut failed) = (None, String::new());
        loop {
            let status = state(admin, patience).await?;
            let is_member = status.metads.iter().any(|(id, ..)| *id == wanted.new);
            let answers = is_member || admin.answers(wanted.addr).await;
            // A refusal is final: to wait changes nothing about it.
            let step = next(&wanted, &Metads::of(&status), answers).map_err(|refusal| anyhow!("{refusal}"))?;
            if said != Some(step) {
                say!("{}", in_words(&wanted, step));
                said = Some(step);
            }
            let request = match step {
                Step::Done => {
                    self.say_what_is_left(&wanted);
                    return Ok(());
                }
                Step::Start | Step::CatchUp { .. } => None,
                Step::Add => Some(AdminRequest::AddLearner { id: wanted.new, addr: wanted.addr }),
                Step::Replace => Some(AdminRequest::ReplaceMetad { old: wanted.old, new: wanted.new }),
                Step::Forget => Some(AdminRequest::RemoveMetad { id: wanted.old }),
            };
            let asked = match request {
                Some(request) => change(admin, request, patience).await,
                None => Ok(()),
            };
            if Instant::now() >= deadline {
                let Err(error) = asked else { bail!("{}", self.not_done(&wanted, step)) };
                return Err(error.context(self.not_done(&wanted, step)));
            }
            if let Err(error) = asked {
                let reason = format!("{error:#}");
                if reason != failed {
                    complain!("surf: {reason}; trying again");
                    failed = reason;
                }
            }
            tokio::time::sleep(MEMBERSHIP_PAUSE).await;
        }
    }

    /// Decides on the number of the new one, and makes its files if that is asked for.
    fn wanted(&self, cluster: ClusterId, status: &ClusterStatus) -> Result<Wanted> {
        let (old, addr) = (MetadId(self.old), self.address);
        let Some(ca) = &self.ca else {
            let new = MetadId(self.id.context("--id or --ca is needed")?);
            return Ok(Wanted { old, new, addr });
        };
        let of_ca = ClusterCa::load(ca)?.cluster_id()?;
        if of_ca != cluster {
            bail!(
                "{}: the CA of cluster {of_ca}, and the bundle is of {cluster}: name this cluster's ca.pem",
                ca.display()
            );
        }
        let place = Place { ca, out: self.out.as_deref() };
        let metads = Metads::of(status);
        let chosen = place.choose(&metads, (old, self.id), addr)?;
        let wanted = Wanted { old, new: chosen.new, addr };
        // No files are made for what will be refused, and no message asks an operator to use those that are there.
        next(&wanted, &metads, false).map_err(|refusal| anyhow!("{refusal}"))?;
        if !chosen.is_made {
            place.make(&status.cluster, old, &chosen, addr)?;
        }
        say!(
            "{}: copy the content to {ETC} on the machine of metad-{}, and start it",
            chosen.home.display(),
            chosen.new
        );
        Ok(wanted)
    }

    fn not_done(&self, wanted: &Wanted, step: Step) -> String {
        let Wanted { new, addr, .. } = wanted;
        let check = match step {
            Step::Start => format!("no metad of this cluster answers at {addr}: start metad-{new} there"),
            Step::CatchUp { .. } => {
                format!("check that metad-{new} runs at {addr}, with `id = {new}` in its metad.toml, and can keep up")
            }
            _ => "the membership could not be changed".to_owned(),
        };
        format!(
            "not done within {} s: {check}. Then give the same command again, which goes on from here",
            self.timeout
        )
    }

    fn say_what_is_left(&self, wanted: &Wanted) {
        let Wanted { old, addr, .. } = wanted;
        say!("stop metad-{old} if it runs, and never start it with its data again: remove its data directory");
        say!("add {addr} to `metads` in bundles and in each blockd.toml, unless it is there: they must name a member");
    }
}

/// Changes the membership. What the leader refuses because it is too early, and what is lost with a leader, is tried
/// again with the next look at the membership.
async fn change(admin: &Admin, request: AdminRequest, patience: Duration) -> Result<()> {
    match admin.ask_admin(request, CHANGE_LIMIT.max(patience)).await? {
        AdminReply::Done => Ok(()),
        AdminReply::Report(lines) => {
            lines.iter().for_each(|line| say!("{line}"));
            Ok(())
        }
        other => bail!("metad answered {other:?} when asked to change the membership"),
    }
}

/// Returns the state of the cluster, or says what to do where nobody can tell.
async fn state(admin: &Admin, patience: Duration) -> Result<ClusterStatus> {
    use wire::Error::{ProtocolVersion, Refused, WrongCluster, WrongRole};
    let is_about_us = |error: &anyhow::Error| {
        let cause = error.downcast_ref::<wire::Error>();
        matches!(cause, Some(Refused { .. } | WrongCluster { .. } | WrongRole { .. } | ProtocolVersion { .. }))
    };
    let asked = admin.status(patience).await;
    asked.map_err(|error| if is_about_us(&error) { error } else { error.context(NO_LEADER) })
}

fn in_words(wanted: &Wanted, step: Step) -> String {
    let Wanted { old, new, addr } = wanted;
    match step {
        Step::Start => format!("waiting for metad-{new} at {addr}"),
        Step::Add => format!("metad-{new} becomes a learner"),
        Step::CatchUp { has, of } => format!("metad-{new} has {has} of {of} entries"),
        Step::Replace => format!("metad-{new} gets the vote of metad-{old}"),
        Step::Forget => format!("metad-{old} is removed"),
        Step::Done => format!("metad-{new} votes in place of metad-{old}"),
    }
}
