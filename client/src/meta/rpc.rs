//! Asking the leader: following hints, trying the nodes in turn, waiting between rounds.
//!
//! While the leader is silent, one request looks for another one, for all that wait. If each looked on its own, hundreds
//! of clients with many requests each would keep metads that are overloaded from electing a leader.

use crate::network::{EventStream, Metad};
use crate::ordered::{Ordered, Rank};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use wire::leader::{KnownMetads, LOOK_LIMIT, WHO_LEADS, another_leads};
use wire::message::meta::{MetaReply, MetaRequest, Redirect};
use wire::retry::Backoff;
use wire::{Error, FsError};

/// One attempt takes no longer than this. A leader that hangs is asked again, or its successor is.
const ATTEMPT_MAX: Duration = Duration::from_secs(10);
/// No attempt is given less time than this, even if the caller's limit ends sooner: a leader that answers at all answers
/// by then.
const ATTEMPT_MIN: Duration = Duration::from_millis(500);
/// Hints that are followed without a pause. During an election metads may name each other.
const HINTS_IN_A_ROW_MAX: u32 = 4;
/// Time between warnings while no metad answers.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Known metads, and the one that led last.
pub struct Rpc {
    metads: Arc<dyn Metad>,
    known: Ordered<Known>,
    /// Notified when another metad is named as the leader.
    moved: Notify,
    /// Held by whoever looks for another leader while the known one is silent.
    looking: Semaphore,
    soft_timeout: Option<Duration>,
}

struct Known {
    metads: KnownMetads,
    /// Every address to try in turn, the members first.
    nodes: Vec<SocketAddr>,
    at: usize,
    /// The metad that was named as the leader last.
    named: Option<SocketAddr>,
}

/// Why an attempt got no answer.
enum Missed {
    /// Another node leads.
    Hint,
    /// The node is away, or knows no leader.
    Away(String),
}

impl Rpc {
    /// Creates a client that knows these addresses to begin with.
    #[must_use]
    pub fn new(metads: Arc<dyn Metad>, nodes: Vec<SocketAddr>, soft_timeout: Option<Duration>) -> Self {
        let known =
            Ordered::new(Rank::Leaf, Known { metads: KnownMetads::new(nodes.clone()), nodes, at: 0, named: None });
        Self { metads, known, moved: Notify::new(), looking: Semaphore::new(1), soft_timeout }
    }

    /// Returns the address of the leader, if that is known, or a guess.
    #[must_use]
    pub fn leader(&self) -> SocketAddr {
        let known = self.known.lock();
        known.nodes[known.at % known.nodes.len()]
    }

    /// Waits until another metad is named as the leader. A mere guess, after silence, does not count, nor does anything
    /// that happened before the call.
    pub async fn moved(&self) {
        self.moved.notified().await;
    }

    /// Asks until the leader answers. Only for requests that may be carried out twice: reads, and numbered batches
    /// (I1). Cancel-safe in that sense.
    ///
    /// # Errors
    /// `Io` when a soft mount's patience ends.
    pub async fn ask(&self, request: &MetaRequest) -> Result<MetaReply, FsError> {
        self.ask_for(request, self.soft_timeout).await
    }

    /// Returns how long [`Rpc::ask`] asks; `None` for ever.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        self.soft_timeout
    }

    /// Asks until the leader answers, or `limit` is over.
    ///
    /// # Errors
    /// `Io` when that is over, or no metad can answer.
    pub async fn ask_for(&self, request: &MetaRequest, limit: Option<Duration>) -> Result<MetaReply, FsError> {
        match self.ask_within(request, limit).await {
            Ok(reply) => Ok(reply),
            Err(error) => {
                tracing::warn!(%error, "metad does not answer");
                Err(FsError::Io)
            }
        }
    }

    /// Asks until the leader answers, or `limit` is over, and returns the cause of a failure.
    ///
    /// # Errors
    /// Returns why the last attempt failed; at once when no attempt can succeed (wrong cluster, role or
    /// version, a refusal, or a closed endpoint).
    pub async fn ask_within(&self, request: &MetaRequest, limit: Option<Duration>) -> Result<MetaReply, Error> {
        let started = Instant::now();
        let mut backoff = Backoff::default();
        let mut warned = started;
        let mut hints = 0;
        loop {
            // An attempt outlasts the caller's limit by no more than `ATTEMPT_MIN`.
            let left = limit.map_or(ATTEMPT_MAX, |limit| limit.saturating_sub(started.elapsed()));
            let missed = match self.attempt(request, left.clamp(ATTEMPT_MIN, ATTEMPT_MAX)).await? {
                Ok(reply) => return Ok(reply),
                Err(Missed::Hint) if hints < HINTS_IN_A_ROW_MAX => {
                    hints += 1;
                    continue;
                }
                Err(Missed::Hint) => "the metads name each other as the leader".to_owned(),
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
            hints = 0;
        }
    }

    async fn attempt(&self, request: &MetaRequest, limit: Duration) -> Result<Result<MetaReply, Missed>, Error> {
        // Notifications count from here on: one that comes before the first poll is not missed.
        let moved = self.moved.notified();
        let asked = self.leader();
        let answer = tokio::select! {
            // In a fixed order, so that a run can be repeated.
            biased;
            answer = self.metads.ask(asked, request, limit) => answer,
            said = self.another_leads(asked) => return Ok(Err(self.learn(asked, &said))),
            // Another request has found it.
            () = self.moved_from(asked, moved) => return Ok(Err(Missed::Hint)),
        };
        match answer {
            Ok(MetaReply::NotLeader(said)) => Ok(Err(self.learn(asked, &said))),
            Ok(reply) => Ok(Ok(reply)),
            Err(error @ (Error::WrongCluster { .. } | Error::WrongRole { .. } | Error::ProtocolVersion { .. })) => {
                Err(error)
            }
            // Waiting does not help a revoked client. An ended certificate is about to be renewed.
            Err(error @ (Error::Refused { .. } | Error::Revoked { .. } | Error::Closed)) => Err(error),
            // It leads, or knows the leader: the same request goes to it again.
            Err(error @ Error::Busy { .. }) => Ok(Err(Missed::Away(error.to_string()))),
            Err(error) => {
                self.known.lock().at += 1;
                Ok(Err(Missed::Away(error.to_string())))
            }
        }
    }

    /// Waits, with `moved` at first, until another metad than this one is named as the leader.
    async fn moved_from(&self, asked: SocketAddr, mut moved: Notified<'_>) {
        loop {
            moved.await;
            if self.leader() != asked {
                return;
            }
            moved = self.moved.notified();
        }
    }

    /// The metad that leads instead of `asked`, which is silent. One of the requests that wait looks for it.
    async fn another_leads(&self, asked: SocketAddr) -> Redirect {
        let _only = self.looking.acquire().await;
        let look = |node| self.metads.ask(node, &WHO_LEADS, LOOK_LIMIT);
        let others = || self.known.lock().metads.members().to_vec();
        let is_believed = |said: &Redirect| self.known.lock().metads.clone().learn(said).is_some();
        another_leads(asked, others, look, is_believed).await
    }

    /// Learns the leader and the nodes, as a node has named them.
    fn learn(&self, asked: SocketAddr, said: &Redirect) -> Missed {
        let mut known = self.known.lock();
        let leader = known.metads.learn(said);
        known.nodes = known.metads.ways_in();
        match leader.and_then(|leader| known.nodes.iter().position(|node| *node == leader)) {
            Some(at) if known.nodes[at] != asked => {
                let leader = known.nodes[at];
                let is_news = known.named.replace(leader) != Some(leader) || known.nodes.get(known.at) != Some(&leader);
                known.at = at;
                // Requests that have already gone to this leader are not sent again.
                if is_news {
                    self.moved.notify_waiters();
                }
                Missed::Hint
            }
            _ => {
                known.at += 1;
                Missed::Away("no leader yet".to_owned())
            }
        }
    }

    /// Asks one metad, whether it leads or not, until it answers or `limit` is over. Only for requests that may be
    /// carried out twice.
    ///
    /// # Errors
    /// Returns why the last attempt failed.
    pub async fn ask_at(&self, metad: SocketAddr, request: &MetaRequest, limit: Duration) -> Result<MetaReply, Error> {
        let started = Instant::now();
        let mut backoff = Backoff::default();
        loop {
            let left = limit.saturating_sub(started.elapsed());
            match self.metads.ask(metad, request, left.clamp(ATTEMPT_MIN, ATTEMPT_MAX)).await {
                Err(error) if started.elapsed() > limit => return Err(error),
                Err(_) => tokio::time::sleep(backoff.delay()).await,
                Ok(reply) => return Ok(reply),
            }
        }
    }

    /// Notes that other CAs are trusted.
    pub fn trust_changed(&self) {
        self.metads.trust_changed();
    }

    /// Opens a stream of events with the leader, or with the node that is guessed to lead.
    ///
    /// # Errors
    /// As [`Metad::events`].
    pub async fn events(&self, request: &MetaRequest) -> Result<Box<dyn EventStream>, Error> {
        self.metads.events(self.leader(), request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::BoxFuture;
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use tokio::runtime::Handle;
    use wire::ids::MetadId;
    use wire::quic::{Endpoint, Incoming, Service};
    use wire::tls::{ClusterCa, PeerIdentity, Role, Subject};

    /// A metad that names the other one as the leader, whatever it is asked.
    #[derive(Default)]
    struct Refers {
        nodes: OnceLock<Vec<(MetadId, SocketAddr)>>,
        other: usize,
        asked: AtomicU32,
    }

    impl Service for Refers {
        fn authorize(&self, _peer: &PeerIdentity) -> Result<(), Error> {
            Ok(())
        }

        async fn handle(self: Arc<Self>, _peer: Arc<PeerIdentity>, request: Incoming) {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let nodes = self.nodes.get().unwrap().clone();
            let reply =
                MetaReply::NotLeader(Redirect { leader: Some(nodes[self.other]), nodes, ..Redirect::default() });
            request.respond(&reply, &[]).await;
        }
    }

    /// A metad that is overloaded at first.
    struct Busy(AtomicU32);

    impl Service for Busy {
        fn authorize(&self, _peer: &PeerIdentity) -> Result<(), Error> {
            Ok(())
        }

        async fn handle(self: Arc<Self>, _peer: Arc<PeerIdentity>, request: Incoming) {
            if self.0.fetch_add(1, Ordering::Relaxed) < 3 {
                return request.refuse_busy("this is a test").await;
            }
            request.respond(&MetaReply::Done, &[]).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_request_that_a_busy_metad_refuses_is_sent_again() {
        let ca = ClusterCa::create("t").unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let endpoint = |role| Endpoint::bind(any, &ca.issue(&Subject::new(role, "x")).unwrap()).unwrap();
        let (metad, service) = (endpoint(Role::Metad), Arc::new(Busy(AtomicU32::new(0))));
        let _serving = metad.serve(service.clone(), &Handle::current());
        let rpc = Rpc::new(Arc::new(endpoint(Role::Client)), vec![metad.local_addr()], None);
        let reply = rpc.ask(&MetaRequest::WhoLeads).await.unwrap();
        assert!(matches!(reply, MetaReply::Done));
        assert_eq!(service.0.load(Ordering::Relaxed), 4);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn metads_that_name_each_other_are_not_asked_without_pause() {
        let ca = ClusterCa::create("t").unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let endpoint = |role, name| Endpoint::bind(any, &ca.issue(&Subject::new(role, name)).unwrap()).unwrap();
        let metads = [endpoint(Role::Metad, "m1"), endpoint(Role::Metad, "m2")];
        let nodes: Vec<_> = (1..).map(MetadId).zip(metads.iter().map(Endpoint::local_addr)).collect();
        let services: Vec<Arc<Refers>> = [1, 0].map(|other| Arc::new(Refers { other, ..Refers::default() })).into();
        let mut serving = Vec::new();
        for (metad, service) in metads.iter().zip(&services) {
            service.nodes.set(nodes.clone()).unwrap();
            serving.push(metad.serve(service.clone(), &Handle::current()));
        }
        let addrs = nodes.iter().map(|(_, addr)| *addr).collect();
        let rpc = Rpc::new(Arc::new(endpoint(Role::Client, "c")), addrs, None);
        let limit = Duration::from_secs(1);
        let outcome = rpc.ask_within(&MetaRequest::WhoLeads, Some(limit)).await;
        assert!(matches!(outcome, Err(Error::NotSent { .. })), "{outcome:?}");
        // Pauses begin at 5 ms, and each is twice as long as the one before: there are at most ten rounds in a second.
        let asked: u32 = services.iter().map(|service| service.asked.load(Ordering::Relaxed)).sum();
        assert!(asked <= 12 * (HINTS_IN_A_ROW_MAX + 1), "asked {asked} times within a second");
    }

    /// Two metads, the second of which leads if `leads` is set. The first one does not answer.
    #[derive(Default)]
    struct Second {
        leads: AtomicBool,
        looks: AtomicU32,
    }

    const FIRST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
    const SECOND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 2);

    impl Second {
        fn said(&self) -> Redirect {
            let nodes = vec![(MetadId(1), FIRST), (MetadId(2), SECOND)];
            let leader = self.leads.load(Ordering::Relaxed).then_some(nodes[1]);
            Redirect { leader, nodes, ..Redirect::default() }
        }
    }

    impl Metad for Second {
        fn ask<'a>(
            &'a self,
            metad: SocketAddr,
            request: &'a MetaRequest,
            limit: Duration,
        ) -> BoxFuture<'a, Result<MetaReply, Error>> {
            Box::pin(async move {
                let is_look = matches!(request, MetaRequest::WhoLeads);
                self.looks.fetch_add(is_look.into(), Ordering::Relaxed);
                if metad == FIRST {
                    tokio::time::sleep(limit).await;
                    return Err(Error::NotSent { peer: "first".to_owned(), reason: "silent".to_owned() });
                }
                let leads = self.leads.load(Ordering::Relaxed);
                Ok(if leads && !is_look { MetaReply::Done } else { MetaReply::NotLeader(self.said()) })
            })
        }

        fn events<'a>(
            &'a self,
            _metad: SocketAddr,
            _request: &'a MetaRequest,
        ) -> BoxFuture<'a, Result<Box<dyn EventStream>, Error>> {
            Box::pin(async { Err(Error::Closed) })
        }
    }

    /// In the first ten seconds they wait for the silent metad, and then learn that it does not answer.
    #[tokio::test(start_paused = true)]
    async fn however_many_requests_wait_metads_are_asked_who_leads_by_one_of_them() {
        for waited in [Duration::from_secs(5), Duration::from_secs(30)] {
            let metads = Arc::new(Second::default());
            let rpc = Arc::new(Rpc::new(metads.clone(), vec![FIRST, SECOND], None));
            let ask = |rpc: Arc<Rpc>| async move { rpc.ask(&MetaRequest::GetLayout).await };
            let mut asking = tokio::task::JoinSet::new();
            (0..500).for_each(|_| drop(asking.spawn(ask(rpc.clone()))));
            tokio::time::sleep(waited).await;
            let looks = u64::from(metads.looks.load(Ordering::Relaxed));
            assert!(looks <= 20 + 4 * waited.as_secs(), "asked {looks} times within {waited:?}");
            metads.leads.store(true, Ordering::Relaxed);
            let begun = Instant::now();
            assert!(asking.join_all().await.into_iter().all(|reply| matches!(reply, Ok(MetaReply::Done))));
            assert!(begun.elapsed() < Duration::from_secs(3), "after {:?}", begun.elapsed());
        }
    }
}
