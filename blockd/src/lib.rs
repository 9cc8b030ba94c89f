//! Surf's block daemon: a store of blocks that are named by their hash, on a Chord ring of such daemons.
//!
//! [`Node`] is a running daemon; `main.rs` starts one from a file, the embedded cluster and the tests start several
//! in one process. Life of a request: [`server`] authorises and dispatches, [`replicate`] receives blocks and passes
//! them down their chain, [`store`] stores them. Beside it run: the ring ([`chord`]), heartbeats and block reports
//! ([`heartbeat`]), all that keeps blocks in enough good copies ([`repair`]), `scrub`, and compaction (`upkeep`).
//!
//! Stop order, each step bounded in time: no new requests, those under way end; background tasks; the store, to which
//! nobody writes any more by then; the endpoint.

pub mod chord;
pub mod config;
mod confined;
pub mod error;
pub mod heartbeat;
pub mod lagging;
pub mod layouts;
pub mod metrics;
mod missed;
pub mod origins;
mod own_identity;
pub mod ownership;
mod reading;
pub mod refused;
pub mod repair;
pub mod replicate;
mod scrub;
pub mod server;
#[cfg(test)]
mod server_tests;
pub mod stamps;
pub mod store;
mod sys;
pub mod tickets;
mod upkeep;

pub use config::Config;
pub use error::Error;
pub use layouts::LayoutSource;

use chord::driver::Ring;
use futures::future::BoxFuture;
use heartbeat::{Metads, Reporter};
use layouts::Layouts;
use metrics::Metrics;
use own_identity::OwnIdentity;
use ownership::Ownership;
use refused::Refused;
use repair::audit::{self, Auditor};
use repair::claims::Claims;
use repair::handoff::Handoff;
use repair::heal;
use repair::healer::{Healer, References};
use repair::pass::Round;
use repair::patience;
use repair::progress::Progress;
use repair::read_repair::{self, RepairQueue, Repairer};
use repair::search::Search;
use repair::throttle::{Activity, Throttle};
use replicate::Replicator;
use scrub::Scrubber;
use server::Server;
use stamps::Stamps;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use store::{Store, StoreOptions};
use tickets::Tickets;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wire::ids::BlockdId;
use wire::message::block::RepairReport;
use wire::quic::renew::keep_renewed;
use wire::quic::{Endpoint, ServerHandle};
use wire::tls::{Identity, Role};

/// How long a stopping daemon waits for requests under way.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A running block daemon. Dropping it without [`Node::stop`] ends its tasks, as a crash would.
///
/// Its futures are boxed: their code is compiled in this crate, once, and not again in each program and test that
/// awaits it.
pub struct Node {
    id: BlockdId,
    endpoint: Endpoint,
    serving: ServerHandle,
    store: Arc<Store>,
    layouts: Arc<Layouts>,
    ring: Arc<Ring>,
    progress: Arc<Progress>,
    metrics: Arc<Metrics>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    disk_failed: CancellationToken,
    /// Held until the end.
    _ownership: Ownership,
}

/// Checks that an identity is one of a block daemon.
///
/// # Errors
/// [`Error::WrongRole`].
pub fn check_role(identity: &Identity) -> Result<(), Error> {
    let subject = identity.subject();
    if subject.role == Role::Blockd {
        return Ok(());
    }
    Err(Error::WrongRole { name: subject.name.clone(), role: subject.role })
}

impl Node {
    /// Starts a daemon that learns its layout from the metads of the configuration. It serves on return.
    ///
    /// # Errors
    /// The reason why it does not start.
    pub fn start(config: Config, identity: Identity) -> BoxFuture<'static, Result<Self, Error>> {
        Self::start_with(config, identity, LayoutSource::Metad)
    }

    /// Starts a daemon with another source of layouts.
    ///
    /// # Errors
    /// The reason why it does not start.
    pub fn start_with(
        config: Config,
        identity: Identity,
        source: LayoutSource,
    ) -> BoxFuture<'static, Result<Self, Error>> {
        Box::pin(Self::open(config, identity, source))
    }

    async fn open(config: Config, identity: Identity, source: LayoutSource) -> Result<Self, Error> {
        check_role(&identity)?;
        let config = Arc::new(config);
        let ownership = Ownership::take(&config.data_dir, &identity)?;
        let id = ownership.id;
        // This comes before the store, which may take long to open: an address in use is reported at once.
        let identity = own_identity::latest(identity, &config.data_dir);
        let endpoint = Endpoint::bind(config.listen, &identity)?;
        let refused = Arc::new(Refused::open(endpoint.clone(), &config.data_dir));
        let tickets = Arc::<Tickets>::default();
        let store = open_store(&config).await?;
        let layouts = Arc::new(Layouts::default());
        let stamps = Arc::new(Stamps::default());
        let metrics = Arc::new(Metrics::default());
        let (activity, progress) = (Arc::new(Activity::default()), Arc::new(Progress::default()));
        let ring = Arc::new(Ring::new(id, endpoint.clone(), config.ring.clone()));
        let ((repairs, wants), claims) = (RepairQueue::new(), Arc::new(Claims::default()));
        let (disk_failed, handoff) = (CancellationToken::new(), Arc::new(Handoff::default()));
        let server = Server {
            id,
            store: store.clone(),
            stamps: stamps.clone(),
            replicator: Replicator::new(endpoint.clone()),
            layouts: layouts.clone(),
            ring: ring.clone(),
            repairs: repairs.clone(),
            handoff: handoff.clone(),
            drop_grace_min: config.drop_grace_min,
            refused: refused.clone(),
            tickets: tickets.clone(),
            activity: activity.clone(),
            reading: Arc::default(),
            origins: Arc::default(),
            metrics: metrics.clone(),
            disk_failed: disk_failed.clone(),
        };
        let serving = endpoint.serve(Arc::new(server), &Handle::current());
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        tasks.spawn(ring.clone().run(layouts.clone(), stop.clone()));
        let throttle = Arc::new(Throttle::new(config.repair_rates));
        let repairer = Repairer {
            id,
            store: store.clone(),
            layouts: layouts.clone(),
            endpoint: endpoint.clone(),
            claims: claims.clone(),
            throttle: throttle.clone(),
            activity: activity.clone(),
            metrics: metrics.clone(),
        };
        tasks.spawn(read_repair::run(repairer, wants, stop.clone()));
        let scrubber = Scrubber {
            store: store.clone(),
            repairs: repairs.clone(),
            metrics: metrics.clone(),
            progress: progress.clone(),
            record: config.data_dir.join("scrub"),
            bytes_per_s: config.scrub_bytes_per_s,
        };
        upkeep::spawn(&mut tasks, config.compaction_bytes_per_s, &store, scrubber, &stop);
        let healer = Healer {
            id,
            store: store.clone(),
            stamps: stamps.clone(),
            layouts: layouts.clone(),
            endpoint: endpoint.clone(),
            references: match source {
                LayoutSource::Metad => References::Metads(Metads::new(endpoint.clone(), config.metads.clone())),
                LayoutSource::Given(_) => References::All,
            },
            activity,
            throttle,
            progress: progress.clone(),
            handoff: handoff.clone(),
            metrics: metrics.clone(),
            compare_every: config.compare_every,
            account: patience::PATIENCE_MAX,
            round: Round::default(),
        };
        tasks.spawn(heal::run(healer, stop.clone()));
        if matches!(source, LayoutSource::Metad) {
            let search = Search { id, store: store.clone(), endpoint: endpoint.clone(), repairs, claims };
            let auditor = Auditor {
                search,
                layouts: layouts.clone(),
                metads: Metads::new(endpoint.clone(), config.metads.clone()),
                progress: progress.clone(),
                every: config.compare_every,
            };
            tasks.spawn(audit::run(auditor, stop.clone()));
        }
        let renewing = OwnIdentity::new(endpoint.clone(), config.metads.clone(), &config.data_dir);
        spawn_renewal(&mut tasks, endpoint.clone(), renewing, &stop);
        let reporter = Reporter {
            id,
            advertise: config.advertise.unwrap_or_else(|| endpoint.local_addr()),
            config,
            store: store.clone(),
            layouts: layouts.clone(),
            refused,
            tickets,
            stamps,
            progress: progress.clone(),
            endpoint: endpoint.clone(),
            metrics: metrics.clone(),
        };
        spawn_source(&mut tasks, source, reporter, &stop);
        Ok(Self {
            id,
            endpoint,
            serving,
            store,
            layouts,
            ring,
            progress,
            metrics,
            tasks,
            stop,
            disk_failed,
            _ownership: ownership,
        })
    }

    /// Its random id, which is stored in its data directory.
    #[must_use]
    pub fn id(&self) -> BlockdId {
        self.id
    }

    /// The address that it serves on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.endpoint.local_addr()
    }

    /// Its knowledge of the layout.
    #[must_use]
    pub fn layouts(&self) -> &Layouts {
        &self.layouts
    }

    /// Its place on the ring.
    #[must_use]
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Progress of the repairs that the layout asks for.
    #[must_use]
    pub fn repair(&self) -> RepairReport {
        self.progress.report(&self.store)
    }

    /// Its counters.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Waits until it can store nothing more, such as after a failed sync. It still serves its blocks until others
    /// have copied them, and must not be started again before a person has looked. Cancel-safe.
    pub async fn failed(&self) -> Error {
        self.disk_failed.cancelled().await;
        Error::Store(store::Error::Failed)
    }

    /// Stops cleanly: requests under way end, the store is synced and closed.
    pub fn stop(self) -> BoxFuture<'static, ()> {
        Box::pin(self.end())
    }

    async fn end(mut self) {
        self.serving.stop(STOP_TIMEOUT).await;
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        let store = self.store.clone();
        if tokio::task::spawn_blocking(move || store.close()).await.is_err() {
            tracing::error!("the store did not close: it recovers at the next start");
        }
        self.endpoint.close().await;
    }
}

/// Opens the store, which reads files, on a thread that may block.
async fn open_store(config: &Config) -> Result<Arc<Store>, Error> {
    let dir = config.data_dir.join("blocks");
    let options = StoreOptions { segment_bytes: config.segment_bytes, ..StoreOptions::default() };
    let opened = tokio::task::spawn_blocking(move || Store::open(&dir, options)).await;
    // A panic there is a broken invariant: it is passed on.
    Ok(Arc::new(opened.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?))
}

/// Starts renewing the certificate.
fn spawn_renewal(tasks: &mut JoinSet<()>, endpoint: Endpoint, renewing: OwnIdentity, stop: &CancellationToken) {
    let stop = stop.clone();
    tasks.spawn(async move {
        stop.run_until_cancelled(keep_renewed(endpoint, Arc::new(renewing))).await;
    });
}

/// Starts the source of layouts.
fn spawn_source(tasks: &mut JoinSet<()>, source: LayoutSource, reporter: Reporter, stop: &CancellationToken) {
    match source {
        LayoutSource::Metad => {
            tasks.spawn(reporter.clone().send_heartbeats(stop.clone()));
            tasks.spawn(reporter.send_reports(stop.clone()));
        }
        LayoutSource::Given(mut given) => {
            let (layouts, stop) = (reporter.layouts, stop.clone());
            layouts.learn(given.borrow_and_update().clone());
            tasks.spawn(async move {
                while let Some(Ok(())) = stop.run_until_cancelled(given.changed()).await {
                    let layout = given.borrow_and_update().clone();
                    layouts.learn(layout);
                }
            });
        }
    }
}
