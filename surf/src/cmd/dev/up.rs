//! `surf dev up`: makes or starts a cluster, and waits until it serves.

use super::Place;
use crate::admin::Admin;
use crate::dev::{self, ClusterFile, DevDir, Kind, Shape, is_running};
use crate::output::{self, say};
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde_json::json;
use std::time::{Duration, Instant};
use wire::bundle::Bundle;
use wire::message::meta::{MetaReply, MetaRequest};

/// Pause between looks whether the cluster serves.
const SERVE_PAUSE: Duration = Duration::from_millis(50);
/// Daemons of a cluster that does not come up get this long to end.
const GIVE_UP_LIMIT: Duration = Duration::from_secs(5);

/// Make a cluster, or start the one that is there, and wait until it serves.
#[derive(Args)]
pub(super) struct Up {
    #[command(flatten)]
    place: Place,
    /// Metadata daemons of a new cluster (3 by default).
    #[arg(long, value_name = "COUNT")]
    metad: Option<u8>,
    /// Block daemons of a new cluster (3 by default).
    #[arg(long, value_name = "COUNT")]
    blockd: Option<u8>,
    /// Replicas of each block in a new cluster; by default 3, or one per block daemon when there are fewer.
    #[arg(long, value_name = "COUNT")]
    replicas: Option<u8>,
    /// Give up after this many seconds.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    wait_s: u64,
    /// What the daemons log.
    #[arg(long, default_value = "info,openraft::raft::responder=error", value_name = "FILTER")]
    daemon_log: String,
    /// Make the files of a new cluster and start nothing, so that its configuration can be changed first.
    #[arg(long)]
    no_start: bool,
    /// Print what is in cluster.json.
    #[arg(long)]
    json: bool,
}

impl Up {
    pub(super) async fn run(self) -> Result<()> {
        let dir = DevDir::take(&self.place.dir, true)?;
        let mut cluster = match dir.load()? {
            Some(_) if self.no_start => {
                bail!("{}: there is a cluster here already: leave --no-start out", dir.path().display())
            }
            Some(cluster) => self.check_existing(&dir, cluster)?,
            None => dev::create(&dir, self.shape())?,
        };
        if self.no_start {
            return self.print_state(&cluster, "are made; start them with: surf dev up");
        }
        if let Err(error) = self.start(&dir, &mut cluster).await {
            let mut daemons: Vec<_> = cluster.daemons.iter_mut().collect();
            let stopped = dev::stop_all(&mut daemons, GIVE_UP_LIMIT).await;
            dir.save(&cluster)?;
            stopped?;
            return Err(error);
        }
        let bundle = cluster.client_bundle.display();
        self.print_state(&cluster, &format!("serve; mount with: surfmount --cluster {bundle} MOUNTPOINT"))
    }

    fn print_state(&self, cluster: &ClusterFile, state: &str) -> Result<()> {
        if self.json {
            return output::json(&serde_json::to_value(cluster)?);
        }
        say!("{} metads and {} blockds {state}", cluster.count(Kind::Metad), cluster.count(Kind::Blockd));
        Ok(())
    }

    fn shape(&self) -> Shape {
        let blockds = self.blockd.unwrap_or(3);
        let replicas = self.replicas.unwrap_or_else(|| blockds.clamp(1, 3));
        Shape { metads: self.metad.unwrap_or(3), blockds, replicas }
    }

    /// Checks that the existing cluster can be started: it must have the shape that is asked for, and must not run.
    fn check_existing(&self, dir: &DevDir, cluster: ClusterFile) -> Result<ClusterFile> {
        let shown = dir.path().display();
        if let Some(daemon) = cluster.daemons.iter().find(|daemon| is_running(daemon)) {
            bail!(
                "{shown}: a cluster runs here already ({}, pid {}): `surf dev down` stops it",
                daemon.name,
                daemon.pid
            );
        }
        for (kind, asked) in [(Kind::Metad, self.metad), (Kind::Blockd, self.blockd)] {
            let found = cluster.count(kind);
            if asked.is_some_and(|asked| usize::from(asked) != found) {
                bail!("{shown}: the cluster here has {found} {}s: leave --{0} out", kind.program());
            }
        }
        if self.replicas.is_some_and(|replicas| replicas != cluster.replicas) {
            bail!("{shown}: the cluster here was made with {} replicas: leave --replicas out", cluster.replicas);
        }
        Ok(cluster)
    }

    async fn start(&self, dir: &DevDir, cluster: &mut ClusterFile) -> Result<()> {
        let started = Instant::now();
        for daemon in &mut cluster.daemons {
            dev::start(daemon, &self.daemon_log)?;
        }
        dir.save(cluster)?;
        let limit = Duration::from_secs(self.wait_s);
        let admin = Admin::load(&cluster.admin_bundle)?;
        let client = Bundle::load(&cluster.client_bundle)?;
        loop {
            if let Some(ended) = cluster.daemons.iter().find(|daemon| !is_running(daemon)) {
                bail!("{} ended: {} ({})", ended.name, dev::last_words(&ended.log), ended.log.display());
            }
            let missing = match serves(cluster, &admin, &client).await {
                Ok(()) => break,
                Err(error) => error,
            };
            if started.elapsed() > limit {
                let logs = dir.path().join("*/*.log");
                return Err(missing).with_context(|| {
                    format!("the cluster does not serve after {} s (see {})", self.wait_s, logs.display())
                });
            }
            tokio::time::sleep(SERVE_PAUSE).await;
        }
        admin.close().await;
        Ok(())
    }
}

/// Checks that there is a leader, every blockd is in the layout and alive, and a client can open a session.
async fn serves(cluster: &ClusterFile, admin: &Admin, client: &Bundle) -> Result<()> {
    let ask_limit = Duration::from_secs(2);
    let status = admin.status(ask_limit).await?;
    let alive = status.blockds.iter().filter(|blockd| blockd.heard_ms.is_some()).count();
    let wanted = cluster.count(Kind::Blockd);
    if alive < wanted {
        return Err(anyhow!("{alive} of {wanted} blockds have joined"));
    }
    let mount = Admin::open(client)?;
    let opening = MetaRequest::OpenSession {
        host: "localhost".to_owned(),
        purpose: "surf dev up".to_owned(),
        caches: false,
        resumes: None,
        token: Some(wire::chance::number()),
    };
    match mount.ask(&opening, ask_limit).await? {
        MetaReply::Session { session, .. } => {
            mount.ask(&MetaRequest::CloseSession { session }, ask_limit).await?;
        }
        other => bail!("metad answered {other:?} to a new client"),
    }
    mount.close().await;
    Ok(())
}

/// A daemon in the output of `up` and `status`.
pub(super) fn describe(daemon: &crate::dev::Daemon) -> serde_json::Value {
    json!({
        "name": daemon.name,
        "kind": daemon.kind,
        "pid": daemon.pid,
        "running": is_running(daemon),
        "address": daemon.address,
        "data_dir": daemon.data_dir,
        "log": daemon.log,
    })
}
