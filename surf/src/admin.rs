//! Asking the leader of a cluster on an operator's behalf.

use crate::output::duration;
use anyhow::{Context, Result, anyhow, bail};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use wire::bundle::Bundle;
use wire::ids::{ClusterId, MetadId};
use wire::leader::KnownMetads;
use wire::message::admin::{AdminReply, AdminRequest, ClusterStatus};
use wire::message::block::{BlockReply, BlockRequest};
use wire::message::meta::{MetaReply, MetaRequest};
use wire::quic::{Endpoint, EventReceiver};
use wire::tls::Role;

/// A running metad answers far sooner; others are not waited for longer.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// Pause between two rounds of looking for a leader.
const LEADER_PAUSE: Duration = Duration::from_millis(100);

/// A way into a cluster.
pub struct Admin {
    endpoint: Endpoint,
    /// Held for a few lines only.
    known: Mutex<KnownMetads>,
}

impl Admin {
    /// Enters with an operator's bundle file.
    pub fn load(bundle: &Path) -> Result<Self> {
        let opened = Bundle::load(bundle)?;
        opened.require(bundle, Role::Admin)?;
        Self::open(&opened)
    }

    /// Enters with a bundle of any role: metad decides which requests the role may send.
    pub fn open(bundle: &Bundle) -> Result<Self> {
        let any: SocketAddr = if bundle.metads.iter().all(|addr| addr.ip().is_loopback()) {
            ([127, 0, 0, 1], 0).into()
        } else {
            ([0, 0, 0, 0], 0).into()
        };
        let known = Mutex::new(KnownMetads::new(bundle.metads.clone()));
        Ok(Self { endpoint: Endpoint::bind(any, &bundle.identity)?, known })
    }

    /// The cluster of the operator's identity.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        self.endpoint.identity().cluster_id()
    }

    /// Hash of the certificate of the cluster's CA, by which tokens name it.
    #[must_use]
    pub fn ca_hash(&self) -> [u8; 32] {
        wire::token::hash_of(self.endpoint.identity().ca())
    }

    /// The cluster's state, from its leader.
    pub async fn status(&self, limit: Duration) -> Result<ClusterStatus> {
        match self.ask_admin(AdminRequest::Status, limit).await? {
            AdminReply::Status(status) => Ok(*status),
            other => bail!("metad answered {other:?} when asked for its state"),
        }
    }

    /// Asks the leader as an operator. Changes of the membership may be sent twice when leadership changes in between;
    /// metad treats the second as done.
    pub async fn ask_admin(&self, request: AdminRequest, limit: Duration) -> Result<AdminReply> {
        for_operators(self.ask(&MetaRequest::Admin(request), limit).await?)
    }

    /// Asks the leader, looking for it until `limit` is over.
    pub async fn ask(&self, request: &MetaRequest, limit: Duration) -> Result<MetaReply> {
        let started = Instant::now();
        let mut last = anyhow!("no metad leads");
        loop {
            let left = limit.saturating_sub(started.elapsed());
            match self.leader().await {
                Ok((_, addr)) => match self.endpoint.peer(addr, Role::Metad).request(request, &[], left).await {
                    Ok((MetaReply::NotLeader(said), _)) => {
                        // What was believed of the leader was old: this may be newer.
                        self.known.lock().learn(&said);
                    }
                    Ok((reply, _)) => return Ok(reply),
                    Err(error) if is_final(&error) => return Err(error.into()),
                    Err(error) => last = error.into(),
                },
                Err(error) if error.downcast_ref().is_some_and(is_final) => return Err(error),
                Err(error) => last = error,
            }
            if started.elapsed() >= limit {
                return Err(last)
                    .with_context(|| format!("no leader within {}, check that the metads run", duration(limit)));
            }
            tokio::time::sleep(LEADER_PAUSE).await;
        }
    }

    /// Asks the leader for a backup, looking for it until `limit` is over.
    pub async fn backup(&self, limit: Duration) -> Result<EventReceiver> {
        let started = Instant::now();
        loop {
            let opened = match self.leader().await {
                Ok((_, addr)) => {
                    let opening = self.endpoint.peer(addr, Role::Metad).open_events(&MetaRequest::Backup).await;
                    opening.map_err(anyhow::Error::from)
                }
                Err(error) => Err(error),
            };
            if opened.is_ok() || started.elapsed() >= limit {
                return opened.with_context(|| format!("no leader within {}", duration(limit)));
            }
            tokio::time::sleep(LEADER_PAUSE).await;
        }
    }

    /// Asks this metad as an operator, once: for requests that must not be repeated, or that only this metad knows
    /// about.
    pub async fn ask_once(&self, metad: SocketAddr, request: AdminRequest, limit: Duration) -> Result<AdminReply> {
        let request = MetaRequest::Admin(request);
        for_operators(self.endpoint.peer(metad, Role::Metad).request(&request, &[], limit).await?.0)
    }

    /// Asks a block daemon.
    pub async fn ask_blockd(&self, addr: SocketAddr, request: &BlockRequest, limit: Duration) -> Result<BlockReply> {
        Ok(self.endpoint.peer(addr, Role::Blockd).request(request, &[], limit).await?.0)
    }

    /// Returns whether a metad of this cluster answers at an address, whether it is a member or not.
    pub async fn answers(&self, addr: SocketAddr) -> bool {
        let peer = self.endpoint.peer(addr, Role::Metad);
        peer.request::<_, MetaReply>(&MetaRequest::WhoLeads, &[], PROBE_LIMIT).await.is_ok()
    }

    /// Finds the leader by asking all metads at once: a dead one does not delay the answer of a live one.
    pub async fn leader(&self) -> Result<(MetadId, SocketAddr)> {
        let mut probes = JoinSet::new();
        let ways_in = self.known.lock().ways_in();
        for addr in ways_in {
            let peer = self.endpoint.peer(addr, Role::Metad);
            probes.spawn(async move {
                peer.request::<_, MetaReply>(&MetaRequest::WhoLeads, &[], PROBE_LIMIT).await.map(|(reply, _)| reply)
            });
        }
        let mut last = anyhow!("no metad leads: is a majority running?");
        while let Some(probe) = probes.join_next().await {
            match probe {
                Ok(Ok(MetaReply::NotLeader(said))) => {
                    if let (Some(_), Some(leader)) = (self.known.lock().learn(&said), said.leader) {
                        return Ok(leader);
                    }
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => last = error.into(),
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    /// Closes the connections.
    pub async fn close(self) {
        self.endpoint.close().await;
    }
}

/// Returns whether it is of no use to ask again: nothing renews an operator's certificate.
fn is_final(error: &wire::Error) -> bool {
    matches!(error, wire::Error::Refused { .. } | wire::Error::Revoked { .. } | wire::Error::Ended { .. })
}

fn for_operators(reply: MetaReply) -> Result<AdminReply> {
    match reply {
        MetaReply::Admin(AdminReply::Failed(reason)) => bail!("{reason}"),
        MetaReply::Admin(reply) => Ok(reply),
        other => bail!("metad answered {other:?} to an operator"),
    }
}
