//! Asking the leader: follow hints, go round the nodes, wait between rounds.

use crate::network::{EventStream, Metad};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use wire::message::meta::{MetaReply, MetaRequest};
use wire::retry::Backoff;
use wire::{Error, FsError};

/// One attempt takes no longer; a leader that hangs is asked again, or its successor.
const ATTEMPT: Duration = Duration::from_secs(10);
/// And no less: what is answered at all is answered by then.
const ATTEMPT_MIN: Duration = Duration::from_millis(500);
/// Between warnings while nobody answers.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Known metads, and the one that led last.
pub struct Rpc {
    metads: Arc<dyn Metad>,
    known: Mutex<Known>,
    soft_timeout: Option<Duration>,
}

struct Known {
    nodes: Vec<SocketAddr>,
    at: usize,
}

/// How one attempt ended when it was not an answer.
enum Missed {
    /// Another node leads.
    Hint,
    /// Nobody leads there, or it is away.
    Away(String),
}

impl Rpc {
    /// Knows these addresses to begin with.
    #[must_use]
    pub fn new(metads: Arc<dyn Metad>, nodes: Vec<SocketAddr>, soft_timeout: Option<Duration>) -> Self {
        Self { metads, known: Mutex::new(Known { nodes, at: 0 }), soft_timeout }
    }

    /// Where the leader is, as far as is known.
    #[must_use]
    pub fn leader(&self) -> SocketAddr {
        let known = self.known.lock();
        known.nodes[known.at % known.nodes.len()]
    }

    /// Asks until the leader answers. Only for requests that may be carried out twice: reads, and numbered batches (I1).
    /// Cancel-safe in that sense.
    ///
    /// # Errors
    /// `Io` when a soft mount's patience ends.
    pub async fn ask(&self, request: &MetaRequest) -> Result<MetaReply, FsError> {
        self.ask_for(request, self.soft_timeout).await
    }

    /// How long [`Rpc::ask`] asks; `None` for as long as it takes.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        self.soft_timeout
    }

    /// The same for so long.
    ///
    /// # Errors
    /// `Io` when that is over, or nobody can answer.
    pub async fn ask_for(&self, request: &MetaRequest, limit: Option<Duration>) -> Result<MetaReply, FsError> {
        match self.ask_within(request, limit).await {
            Ok(reply) => Ok(reply),
            Err(error) => {
                tracing::warn!(%error, "metad does not answer");
                Err(FsError::Io)
            }
        }
    }

    /// Asks until the leader answers, or `limit` is over.
    ///
    /// # Errors
    /// What became of the last attempt; at once when no attempt can succeed (wrong cluster, role or version).
    pub async fn ask_within(&self, request: &MetaRequest, limit: Option<Duration>) -> Result<MetaReply, Error> {
        let started = Instant::now();
        let mut backoff = Backoff::default();
        let mut warned = started;
        loop {
            // An attempt must not outlast the caller's patience.
            let left = limit.map_or(ATTEMPT, |limit| limit.saturating_sub(started.elapsed()));
            let missed = match self.attempt(request, left.clamp(ATTEMPT_MIN, ATTEMPT)).await? {
                Ok(reply) => return Ok(reply),
                Err(Missed::Hint) => continue,
                Err(Missed::Away(reason)) => reason,
            };
            if limit.is_some_and(|limit| started.elapsed() > limit) {
                return Err(Error::NotSent { peer: "metad".to_owned(), reason: missed });
            }
            if warned.elapsed() > WARN_EVERY {
                warned = Instant::now();
                tracing::warn!(reason = missed, "waiting for metad");
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    async fn attempt(&self, request: &MetaRequest, limit: Duration) -> Result<Result<MetaReply, Missed>, Error> {
        let asked = self.leader();
        match self.metads.ask(asked, request, limit).await {
            Ok(MetaReply::NotLeader { leader, nodes }) => {
                Ok(Err(self.learn(asked, leader.map(|(_, addr)| addr), &nodes)))
            }
            Ok(reply) => Ok(Ok(reply)),
            Err(error @ (Error::WrongCluster { .. } | Error::WrongRole { .. } | Error::ProtocolVersion { .. })) => {
                Err(error)
            }
            Err(error @ (Error::Refused { .. } | Error::Closed)) => Err(error),
            Err(error) => {
                self.known.lock().at += 1;
                Ok(Err(Missed::Away(error.to_string())))
            }
        }
    }

    /// Takes in what a node that does not lead has said.
    fn learn<Id>(&self, asked: SocketAddr, leader: Option<SocketAddr>, nodes: &[(Id, SocketAddr)]) -> Missed {
        let mut known = self.known.lock();
        if !nodes.is_empty() {
            known.nodes = nodes.iter().map(|(_, addr)| *addr).collect();
        }
        match leader.and_then(|leader| known.nodes.iter().position(|node| *node == leader)) {
            Some(at) if known.nodes[at] != asked => {
                known.at = at;
                Missed::Hint
            }
            _ => {
                known.at += 1;
                Missed::Away("no leader yet".to_owned())
            }
        }
    }

    /// Opens a stream of events with the leader, as far as it is known.
    ///
    /// # Errors
    /// As [`Metad::events`].
    pub async fn events(&self, request: &MetaRequest) -> Result<Box<dyn EventStream>, Error> {
        self.metads.events(self.leader(), request).await
    }
}
