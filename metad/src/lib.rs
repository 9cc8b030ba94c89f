//! metad: Surf's metadata daemon.
//!
//! [`Node`] is a metad. `raft` holds the log that all nodes agree on, `fs` turns it into a filesystem's metadata,
//! `store` holds the metadata on disk, `reserve` the space to go on with when the disk is full, `server` answers requests, `lease` lets clients answer from their caches, and
//! `cluster` supervises the block daemons. [`recovery`] makes a new cluster from a backup or from a single survivor.

#![forbid(unsafe_code)]

mod checks;
pub mod cluster;
pub mod config;
pub mod consensus;
pub mod error;
pub mod files;
pub mod fs;
mod in_place;
pub mod lease;
mod own_identity;
mod own_issuer;
pub mod raft;
pub mod recovery;
mod refused;
mod reserve;
pub mod server;
mod shared;
pub mod store;

pub use shared::Shared;

use cluster::gc;
use cluster::revocations;
use cluster::watch;
use config::Config;
use error::Error;
use fs::{Command, settings};
use futures::future::BoxFuture;
use own_identity::OwnIdentity;
use raft::Raft;
use server::Server;
use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;
use tokio::time::timeout;
use wire::quic::renew::keep_renewed;
use wire::quic::{Endpoint, ServerHandle};

/// How long requests under way may take to end when the node stops.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// Pause between checks whether this node has to write the cluster's first entry.
const INIT_PAUSE: Duration = Duration::from_millis(50);

/// Raft is one task: more workers than this only answer reads.
const WORKERS_MAX: usize = 8;

/// Makes the threads of a metad. A request is answered after a chain of short steps (network, Raft, state, and back),
/// and each change of threads costs more than a step. So the socket is driven here too, and only large machines have
/// several workers.
///
/// # Errors
/// When threads cannot be started.
pub fn runtime() -> io::Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let workers = (cores / 2).clamp(1, WORKERS_MAX);
    Builder::new_multi_thread().worker_threads(workers).thread_name("metad").enable_all().build()
}

/// A running metad.
///
/// Its futures are boxed: code behind a boxed future is compiled once, in this crate, and not again in each program and
/// test that awaits it.
pub struct Node {
    shared: Arc<Shared>,
    server: ServerHandle,
    tasks: JoinSet<()>,
    _data_dir: files::DataDir,
}

impl Node {
    /// Takes the data directory, opens what it holds, and serves. Must be called within a [`runtime`].
    ///
    /// # Errors
    /// One line for an operator, who can mend the cause.
    pub fn start(config: Config) -> BoxFuture<'static, Result<Self, Error>> {
        Box::pin(Self::bind_and_open(config))
    }

    async fn bind_and_open(config: Config) -> Result<Self, Error> {
        // Before the port: an operator who starts a node twice is to read about the node, not about its port.
        let data_dir = take_data_dir(&config)?;
        let identity = own_identity::latest(config.identity.clone(), &config.data_dir);
        let (listen, identity, runtime) = (config.listen, &identity, Handle::current());
        // Without an issuer, there is nothing that a newcomer could get.
        let has_issuer = config.issuer.is_some() || config.issuer_file.is_some();
        let endpoint = if has_issuer {
            Endpoint::bind_for_newcomers(listen, identity, runtime)?
        } else {
            Endpoint::bind_within(listen, identity, runtime)?
        };
        Self::start_in(data_dir, config, endpoint).await
    }

    /// Starts on an endpoint that is already bound.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_on(config: Config, endpoint: Endpoint) -> BoxFuture<'static, Result<Self, Error>> {
        Box::pin(async move { Self::start_in(take_data_dir(&config)?, config, endpoint).await })
    }

    async fn start_in(data_dir: files::DataDir, config: Config, endpoint: Endpoint) -> Result<Self, Error> {
        let raft = Arc::new(Raft::start(config.id, &config.data_dir, endpoint.clone(), &config.tuning).await?);
        let shared = Arc::new(Shared::new(config, raft.clone(), endpoint.clone()));
        // Nobody is served before this node knows whom to trust and to refuse.
        if let Some(identity) = revocations::learn_trust(&shared) {
            revocations::keep(&shared, &identity);
        }
        revocations::learn(&shared);
        let server = endpoint.serve(Arc::new(Server { shared: shared.clone() }), &Handle::current());
        if !shared.config.initial.is_empty() {
            raft.found(&shared.config.initial).await?;
        }
        let mut tasks = JoinSet::new();
        tasks.spawn(init(shared.clone()));
        tasks.spawn(gc::run(shared.clone()));
        tasks.spawn(gc::reap(shared.clone()));
        tasks.spawn(gc::settle_cuts(shared.clone()));
        tasks.spawn(server::expire_silent(shared.clone()));
        tasks.spawn(watch::run(shared.clone()));
        tasks.spawn(revocations::run(shared.clone()));
        tasks.spawn(revocations::end_sessions(shared.clone()));
        tasks.spawn(keep_renewed(endpoint.clone(), Arc::new(OwnIdentity::new(shared.clone()))));
        // A node that was started without one takes none: it does not listen for newcomers.
        if let Some(file) = shared.config.issuer_file.clone() {
            tasks.spawn(own_issuer::watch(shared.issuer.clone(), file, endpoint.clone()));
        }
        tasks.spawn(end_with_consensus(shared.clone()));
        Ok(Self { shared, server, tasks, _data_dir: data_dir })
    }

    /// Returns the address on which it serves.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.endpoint.local_addr()
    }

    /// Returns whether this node believes that it leads.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.shared.consensus.leads()
    }

    /// Stops background work first, then requests, Raft, the state, and last the network: this shows peers at once that
    /// the node is gone.
    pub fn stop(self) -> BoxFuture<'static, ()> {
        Box::pin(self.end())
    }

    async fn end(mut self) {
        self.tasks.shutdown().await;
        self.server.stop(STOP_LIMIT).await;
        self.shared.batcher.close();
        self.shared.changes.close();
        self.shared.consensus.stop().await;
        // Requests that waited for Raft have their answers now.
        if timeout(STOP_LIMIT, self.shared.changes.wait()).await.is_err() {
            tracing::warn!("changes under way did not end: their clients ask again elsewhere");
        }
        self.shared.endpoint.close().await;
    }
}

/// Ends the process when the node can take part no more: it would hang, and answer nobody.
async fn end_with_consensus(shared: Arc<Shared>) {
    let reason = shared.consensus.failed().await;
    tracing::error!(reason, "metad cannot go on; stopping");
    std::process::exit(74)
}

fn take_data_dir(config: &Config) -> Result<files::DataDir, Error> {
    let taken = files::DataDir::take(&config.data_dir, config.identity.cluster_id(), config.id)?;
    recovery::finish(&config.data_dir, false)?;
    Ok(taken)
}

/// Writes the cluster's first entry, if this node is the first to lead.
async fn init(shared: Arc<Shared>) {
    loop {
        if settings::cluster(&**shared.consensus.state()).is_some() {
            return;
        }
        if shared.consensus.leads() && shared.consensus.read_barrier().await.is_ok() {
            let (replicas, min_sync) = (shared.config.replicas, shared.config.min_sync);
            let cluster = shared.config.cluster.clone();
            // If another leader proposes it too, the second proposal changes nothing.
            let _ = shared.propose(Command::Init { cluster, replicas, min_sync }).await;
        }
        tokio::time::sleep(INIT_PAUSE).await;
    }
}
