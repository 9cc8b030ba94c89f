//! The links between clients and daemons. Every message may be late, lost or doubled, and may overtake others; a link
//! that is cut loses all of them. Events of one stream stay in order, as QUIC's streams do.

use crate::cluster::{Cluster, Node};
use crate::consensus::is_metad;
use crate::leases::Leases;
use crate::watched::Watched;
use bytes::Bytes;
use client::network::{Blockd, EventStream, Metad, Network};
use futures::FutureExt;
use futures::future::BoxFuture;
use kit::chance::Chance;
use metad::server::Followed;
use parking_lot::Mutex;
use std::fmt::{Debug, Display};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use wire::Error;
use wire::message::block::{BlockReply, BlockRequest};
use wire::message::event::MetaEvent;
use wire::message::meta::{LeaseState, MetaReply, MetaRequest};
use wire::tls::PeerIdentity;

/// Both ends of a connection notice after this time that the other one is silent.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that cannot be reached is given up after this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// What the links do to messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Longest usual delay of a message, in microseconds.
    pub delay_us: u64,
    /// Probability that a message is much later.
    pub late: f64,
    /// By how much at most, in milliseconds.
    pub late_ms: u64,
    /// Probability that a request, or its answer, is lost.
    pub lost: f64,
    /// Probability that a request arrives twice.
    pub doubled: f64,
    /// Probability that an event ends its stream.
    pub broken: f64,
}

/// The links of one client, for as long as its process lives.
pub struct Links {
    name: String,
    cluster: Arc<Cluster>,
    identity: Arc<PeerIdentity>,
    /// The client, and what is known of all leases.
    holder: (usize, Arc<Leases>),
    conditions: Mutex<Conditions>,
    /// Whether the link is cut, and whether the process is dead.
    state: Watched<State>,
}

struct Conditions {
    weather: Weather,
    chance: Chance,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct State {
    cut: bool,
    split: Option<Split>,
    dead: bool,
}

/// A partition of the metads, and with them of their clients.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// The metad that has lost the others.
    pub metad: SocketAddr,
    /// Whether this client is on that metad's side.
    pub with_it: bool,
}

impl State {
    /// Returns whether nothing passes between the client and this daemon.
    fn is_cut_to(self, peer: SocketAddr) -> bool {
        let apart = |split: Split| is_metad(peer) && (peer == split.metad) != split.with_it;
        self.cut || self.dead || self.split.is_some_and(apart)
    }
}

/// What happens to a message.
struct Fate {
    delay: Duration,
    lost: bool,
}

/// Prints a message, if `SIM_MESSAGES` is set.
pub fn show(who: impl Display, verb: impl Display, what: &dyn Debug) {
    static SHOWN: LazyLock<bool> = LazyLock::new(|| std::env::var_os("SIM_MESSAGES").is_some());
    if *SHOWN {
        let at = wire::sys::since_boot();
        let text: String = format!("{what:?}").chars().take(600).collect();
        eprintln!("{:>10.4} {who} {verb}: {text}", at.as_secs_f64());
    }
}

impl Links {
    /// Creates intact links to a cluster, in fair weather.
    #[must_use]
    pub fn new(
        holder: (usize, Arc<Leases>),
        cluster: Arc<Cluster>,
        identity: Arc<PeerIdentity>,
        chance: Chance,
    ) -> Arc<Self> {
        let conditions = Mutex::new(Conditions { weather: Weather::default(), chance });
        let name = format!("client-{}", holder.0);
        Arc::new(Self { name, cluster, identity, holder, conditions, state: Watched::default() })
    }

    /// Sets what happens to messages from now on.
    pub fn set_weather(&self, weather: Weather) {
        self.conditions.lock().weather = weather;
    }

    /// Cuts the links, or restores them.
    pub fn cut(&self, cut: bool) {
        self.state.change(|state| state.cut = cut);
    }

    /// Partitions the metads, or rejoins them.
    pub fn split(&self, split: Option<Split>) {
        self.state.change(|state| state.split = split);
    }

    /// Notes that the process is dead.
    pub fn kill(&self) {
        self.state.change(|state| state.dead = true);
    }

    /// Prints a message, if that is asked for.
    fn show(&self, verb: &str, peer: impl Display, message: &dyn Debug) {
        show(&self.name, format_args!("{verb} {peer}"), message);
    }

    fn is_dead(&self) -> bool {
        self.state.get().dead
    }

    fn is_cut_to(&self, peer: SocketAddr) -> bool {
        self.state.get().is_cut_to(peer)
    }

    fn fate(&self) -> Fate {
        let mut conditions = self.conditions.lock();
        let weather = conditions.weather;
        let lost = conditions.chance.happens(weather.lost);
        let late = conditions.chance.happens(weather.late);
        let usual = Duration::from_micros(50 + conditions.chance.below(weather.delay_us.max(1)));
        let more = if late { conditions.chance.below(weather.late_ms.max(1)) } else { 0 };
        Fate { delay: usual + Duration::from_millis(more), lost }
    }

    fn strikes(&self, probability: impl FnOnce(&Weather) -> f64) -> bool {
        let mut conditions = self.conditions.lock();
        let probability = probability(&conditions.weather);
        conditions.chance.happens(probability)
    }

    /// Waits until the process is dead.
    async fn death(&self) {
        self.state.wait_for(|state| state.dead).await;
    }

    /// Waits until the link has been cut for so long that both ends have noticed.
    async fn silence(&self, peer: SocketAddr) {
        loop {
            self.state.wait_for(|state| state.is_cut_to(peer)).await;
            if timeout(IDLE_TIMEOUT, self.state.wait_for(|state| !state.is_cut_to(peer))).await.is_err() {
                return;
            }
        }
    }

    /// Carries a message to the other end. If this does not return, the message does not arrive.
    async fn carry(&self, peer: SocketAddr) -> bool {
        let fate = self.fate();
        sleep(fate.delay).await;
        !fate.lost && !self.is_cut_to(peer)
    }

    /// Sends a request, and receives the answer at most once.
    async fn exchange<T: Debug + Send + 'static>(
        self: &Arc<Self>,
        (peer, asked): (SocketAddr, &(dyn Debug + Sync)),
        limit: Duration,
        arrives: impl Fn() -> BoxFuture<'static, Option<T>>,
    ) -> Result<T, Error> {
        if self.is_dead() {
            return Err(Error::Closed);
        }
        if self.is_cut_to(peer) {
            self.unless_dead(sleep(limit.min(CONNECT_TIMEOUT))).await?;
            return Err(Error::NotSent { peer: peer.to_string(), reason: "no answer to the handshake".to_owned() });
        }
        let (answer, answered) = oneshot::channel();
        let answer = Arc::new(Mutex::new(Some(answer)));
        let copies = 1 + usize::from(self.strikes(|weather| weather.doubled));
        for _ in 0..copies {
            let (links, answer, work) = (self.clone(), answer.clone(), arrives());
            // A task of its own: a request that has arrived is carried out even if its sender gives up.
            tokio::spawn(async move {
                if !links.carry(peer).await {
                    return;
                }
                let Some(reply) = work.await else { return };
                if links.carry(peer).await
                    && let Some(answer) = answer.lock().take()
                {
                    let _ = answer.send(reply);
                }
            });
        }
        drop(answer);
        self.show("asks", peer, asked);
        match self.unless_dead(timeout(limit, answered)).await? {
            Ok(Ok(reply)) => {
                self.show("hears", peer, &reply);
                Ok(reply)
            }
            // The request or its answer was lost: the connection is silent, and given up.
            Ok(Err(_)) => {
                self.unless_dead(sleep(limit.min(IDLE_TIMEOUT))).await?;
                Err(Error::Unanswered { peer: peer.to_string(), reason: "the connection was lost".to_owned() })
            }
            Err(_) => Err(Error::Unanswered { peer: peer.to_string(), reason: "deadline expired".to_owned() }),
        }
    }

    async fn unless_dead<T>(&self, waiting: impl Future<Output = T>) -> Result<T, Error> {
        tokio::select! {
            biased;
            () = self.death() => Err(Error::Closed),
            outcome = waiting => Ok(outcome),
        }
    }
}

/// The network of one client.
pub struct SimulatedNetwork(pub Arc<Links>);

impl Metad for SimulatedNetwork {
    fn ask<'a>(
        &'a self,
        metad: SocketAddr,
        request: &'a MetaRequest,
        limit: Duration,
    ) -> BoxFuture<'a, Result<MetaReply, Error>> {
        let arrives = move || {
            let (cluster, identity, request) = (self.0.cluster.clone(), self.0.identity.clone(), request.clone());
            async move { cluster.ask(metad, &identity, request).await }.boxed()
        };
        async move {
            let asked = Instant::now();
            let reply = self.0.exchange((metad, request), limit, arrives).await?;
            let (client, all) = &self.0.holder;
            match &reply {
                MetaReply::Alive { leases: LeaseState::Extended { .. }, .. } => all.extended(*client, asked, false),
                MetaReply::Alive { leases: LeaseState::Pending, .. } => all.extended(*client, asked, true),
                _ => {}
            }
            Ok(reply)
        }
        .boxed()
    }

    fn events<'a>(
        &'a self,
        metad: SocketAddr,
        request: &'a MetaRequest,
    ) -> BoxFuture<'a, Result<Box<dyn EventStream>, Error>> {
        async move {
            if self.0.is_cut_to(metad) {
                return Err(Error::NotSent {
                    peer: metad.to_string(),
                    reason: "no answer to the handshake".to_owned(),
                });
            }
            let (send, events) = mpsc::unbounded_channel();
            tokio::spawn(follow(self.0.clone(), metad, request.clone(), send));
            Ok(Box::new(Stream { events }) as Box<dyn EventStream>)
        }
        .boxed()
    }
}

/// Carries a stream's events, until one end is gone or the link is lost.
async fn follow(
    links: Arc<Links>,
    metad: SocketAddr,
    request: MetaRequest,
    send: mpsc::UnboundedSender<Result<MetaEvent, Error>>,
) {
    let ended = || Error::Unanswered { peer: metad.to_string(), reason: "the event stream has ended".to_owned() };
    if links.carry(metad).await
        && let Some(node) = links.cluster.node(metad)
    {
        match node.follow(&links.identity, &request).await {
            Err(reason) => {
                let refused = Error::Refused { peer: metad.to_string(), reason: reason.to_owned() };
                if links.carry(metad).await {
                    let _ = send.send(Err(refused));
                }
                return;
            }
            Ok(mut followed) => {
                if !pump((&links, metad), &node, &mut followed, &send).await {
                    return;
                }
            }
        }
    } else {
        sleep(IDLE_TIMEOUT).await;
    }
    let _ = send.send(Err(ended()));
}

/// Carries events as long as the link exists. Returns whether the client is still there, and has received nothing for
/// so long that it gives the stream up.
async fn pump(
    (links, metad): (&Links, SocketAddr),
    node: &Node,
    followed: &mut Followed,
    send: &mpsc::UnboundedSender<Result<MetaEvent, Error>>,
) -> bool {
    let mut arrives = Instant::now();
    loop {
        let event = tokio::select! {
            biased;
            () = node.death() => None,
            () = links.death() => None,
            () = links.silence(metad) => return true,
            () = send.closed() => return false,
            event = followed.next() => event,
        };
        let Some(event) = event else { break };
        let (sent, fate) = (Instant::now(), links.fate());
        arrives = arrives.max(Instant::now() + fate.delay);
        sleep_until(arrives).await;
        if links.is_cut_to(metad) || fate.lost || links.strikes(|weather| weather.broken) {
            // The daemon goes on believing in the stream meanwhile.
            break;
        }
        links.show("is notified", "by an event", &event);
        if let MetaEvent::Attached { seq } = &event {
            let (client, all) = &links.holder;
            all.extended(*client, sent, seq.is_some());
        }
        if send.send(Ok(event)).is_err() {
            return false;
        }
    }
    sleep(IDLE_TIMEOUT).await;
    true
}

struct Stream {
    events: mpsc::UnboundedReceiver<Result<MetaEvent, Error>>,
}

impl EventStream for Stream {
    fn next(&mut self) -> BoxFuture<'_, Result<MetaEvent, Error>> {
        async {
            let ended =
                || Error::Unanswered { peer: "metad".to_owned(), reason: "the event stream has ended".to_owned() };
            self.events.recv().await.unwrap_or_else(|| Err(ended()))
        }
        .boxed()
    }
}

impl Blockd for SimulatedNetwork {
    fn ask<'a>(
        &'a self,
        blockd: SocketAddr,
        request: &'a BlockRequest,
        payload: &'a [Bytes],
        limit: Duration,
    ) -> BoxFuture<'a, Result<(BlockReply, Bytes), Error>> {
        let content = payload.first().cloned().unwrap_or_default();
        let arrives = move || {
            let (cluster, request, content) = (self.0.cluster.clone(), request.clone(), content.clone());
            async move { cluster.blocks().ask(&request, content).await }.boxed()
        };
        async move { self.0.exchange((blockd, request), limit, arrives).await }.boxed()
    }
}

impl Network for SimulatedNetwork {
    fn runtime(&self) -> Handle {
        Handle::current()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.0.kill();
        futures::future::ready(()).boxed()
    }
}
