//! Surf's daemons inside one process: for the mount without a cluster, for tests and for benchmarks.
//!
//! Runs the same `metad::Node` and `blockd::Node` as the daemons, on loopback QUIC with mutual TLS. Their CA is made in
//! the data directory at the first start. A directory belongs to one process at a time.
//!
//! Stop order: block daemons first, because they report to metads; then metads; then the lock on the directory.

#![forbid(unsafe_code)]

mod error;
mod options;
mod state;

pub use error::Error;
pub use options::EmbedOptions;

use state::{CLUSTER_NAME, State};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::runtime::{Handle, Runtime};
use wire::bundle::Bundle;
use wire::ids::MetadId;
use wire::message::meta::{MetaReply, MetaRequest};
use wire::quic::Endpoint;
use wire::tls::{Identity, Role};

/// A cluster that does not serve after this time has a problem that waiting does not mend.
const START_LIMIT: Duration = Duration::from_secs(60);
/// A running metad answers in far less.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// Pause between looks whether the cluster serves.
const ASK_PAUSE: Duration = Duration::from_millis(10);
/// Raft timing of a metad without peers: there is nobody whose silence could be misread.
const ALONE_HEARTBEAT_MS: u64 = 50;
/// Likewise, an election that nobody else can win may begin soon.
const ALONE_ELECTION_MS: u64 = 150;

/// The code behind a boxed future is compiled in this crate, once, and not again in each program and test that awaits
/// it.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A running cluster. Dropping it without [`Embedded::stop`] ends it as a crash would.
pub struct Embedded {
    metads: Vec<metad::Node>,
    blockds: Vec<blockd::Node>,
    client: Bundle,
    admin: Bundle,
    _threads: Threads,
    /// Dropped last: holds the lock on the directory.
    state: State,
}

impl Embedded {
    /// Starts the cluster of `data_dir`, which is made if needed. It serves on return. Must be called within a
    /// multi-threaded runtime.
    ///
    /// # Errors
    /// Why it does not start: the directory is in use, or damaged, or a daemon refuses.
    pub fn start(data_dir: &Path, options: EmbedOptions) -> Boxed<'static, Result<Self, Error>> {
        Box::pin(Self::begin(data_dir.to_owned(), options))
    }

    async fn begin(dir: PathBuf, options: EmbedOptions) -> Result<Self, Error> {
        let threads = metad::runtime().map_err(|source| Error::Disk { path: dir.clone(), source })?;
        let threads = Threads(Some(threads));
        let runtime = threads.handle();
        let (mut state, prepared, options) = blocking(move || {
            let mut state = State::take(&dir, &options)?;
            let prepared = prepare(&mut state, &options, &runtime)?;
            Ok((state, prepared, options))
        })
        .await?;
        let addrs: Vec<SocketAddr> = prepared.metads.values().map(|metad| metad.endpoint.local_addr()).collect();
        let metads = start_metads(&state, prepared.metads, &options, &threads.handle()).await?;
        let blockds = start_blockds(&mut state, prepared.blockds, &addrs).await?;
        let bundle = |identity| Bundle { cluster: CLUSTER_NAME.to_owned(), metads: addrs.clone(), identity };
        let (client, admin) = (bundle(prepared.client), bundle(prepared.admin));
        let state = blocking(move || state.save().map(|()| state)).await?;
        let cluster = Self { metads, blockds, client, admin, _threads: threads, state };
        cluster.wait_until_it_serves().await?;
        Ok(cluster)
    }

    /// What a client needs to enter the cluster.
    #[must_use]
    pub fn bundle(&self) -> &Bundle {
        &self.client
    }

    /// What an operator needs to enter the cluster.
    #[must_use]
    pub fn admin_bundle(&self) -> &Bundle {
        &self.admin
    }

    /// Waits until a daemon has failed for good, such as after a failed sync. Cancel-safe.
    pub async fn failed(&self) -> Error {
        let mut failures: Vec<Boxed<'_, blockd::Error>> =
            self.blockds.iter().map(|node| Box::pin(node.failed()) as _).collect();
        std::future::poll_fn(move |cx| {
            for failure in &mut failures {
                if let Poll::Ready(error) = failure.as_mut().poll(cx) {
                    return Poll::Ready(Error::Blockd(error));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Notes that the cluster is about to be stopped: the next user of its directory then waits instead of being
    /// refused.
    pub fn note_ending(&self) {
        self.state.note_ending();
    }

    /// Stops cleanly. Clients must be shut down before: this does not wait for what they have not flushed.
    pub fn stop(self) -> Boxed<'static, ()> {
        Box::pin(self.end())
    }

    async fn end(self) {
        for blockd in self.blockds {
            blockd.stop().await;
        }
        for metad in self.metads {
            metad.stop().await;
        }
    }

    /// Waits for a leader, and for every block daemon to be in the layout.
    async fn wait_until_it_serves(&self) -> Result<(), Error> {
        let endpoint = Endpoint::bind(SocketAddr::from(([127, 0, 0, 1], 0)), &self.admin.identity)?;
        let started = Instant::now();
        let mut reason = String::from("no metad answered");
        while started.elapsed() < START_LIMIT {
            for addr in &self.admin.metads {
                let peer = endpoint.peer(*addr, Role::Metad);
                match peer.request::<_, MetaReply>(&MetaRequest::GetLayout, &[], ASK_LIMIT).await {
                    Ok((MetaReply::Layout(layout), _)) if layout.members.len() >= self.blockds.len() => {
                        endpoint.close().await;
                        return Ok(());
                    }
                    Ok((MetaReply::Layout(layout), _)) => {
                        reason = format!("{} of {} blockds have joined", layout.members.len(), self.blockds.len());
                    }
                    Ok(_) => reason = "no metad leads".to_owned(),
                    Err(error) => reason = error.to_string(),
                }
            }
            tokio::time::sleep(ASK_PAUSE).await;
        }
        Err(Error::NotServing { limit_s: START_LIMIT.as_secs(), reason })
    }
}

/// The runtime of the metads, see [`metad::runtime`].
struct Threads(Option<Runtime>);

impl Threads {
    fn handle(&self) -> Handle {
        self.0.as_ref().expect("taken when dropped").handle().clone()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // A plain drop would wait, which no asynchronous caller may do.
            runtime.shutdown_background();
        }
    }
}

/// Everything that must exist before the first daemon starts.
struct Prepared {
    metads: BTreeMap<MetadId, PreparedMetad>,
    blockds: Vec<Identity>,
    client: Identity,
    admin: Identity,
}

struct PreparedMetad {
    name: String,
    endpoint: Endpoint,
}

fn prepare(state: &mut State, options: &EmbedOptions, runtime: &Handle) -> Result<Prepared, Error> {
    let mut metads = BTreeMap::new();
    for id in 1..=u64::from(options.metads) {
        let name = format!("metad-{id}");
        let identity = state.identity(Role::Metad, &name)?;
        let endpoint = state.bind(&name, &identity, runtime)?;
        metads.insert(MetadId(id), PreparedMetad { name, endpoint });
    }
    let blockds = (1..=options.blockds)
        .map(|number| state.identity(Role::Blockd, &format!("blockd-{number}")))
        .collect::<Result<_, _>>()?;
    // Before any daemon starts, its address must be recorded: a metad that founded its cluster must find it again.
    state.save()?;
    let client = state.identity(Role::Client, "client")?;
    let admin = state.identity(Role::Admin, "admin")?;
    Ok(Prepared { metads, blockds, client, admin })
}

async fn start_metads(
    state: &State,
    prepared: BTreeMap<MetadId, PreparedMetad>,
    options: &EmbedOptions,
    runtime: &Handle,
) -> Result<Vec<metad::Node>, Error> {
    let initial: toml::Table =
        prepared.iter().map(|(id, metad)| (id.to_string(), metad.endpoint.local_addr().to_string().into())).collect();
    let mut nodes = Vec::with_capacity(prepared.len());
    for (id, metad) in prepared {
        let config = metad_config(state, id, &metad, &initial, options)?;
        nodes.push(joined(runtime.spawn(metad::Node::start_on(config, metad.endpoint))).await?);
    }
    Ok(nodes)
}

/// The configuration in the form of metad's own file, which holds the defaults.
fn metad_config(
    state: &State,
    id: MetadId,
    metad: &PreparedMetad,
    initial: &toml::Table,
    options: &EmbedOptions,
) -> Result<metad::config::Config, Error> {
    let text = |path: &Path| toml::Value::from(path.to_string_lossy().into_owned());
    let mut table = toml::Table::new();
    table.insert("id".to_owned(), i64::try_from(id.0).unwrap_or(i64::MAX).into());
    table.insert("cluster".to_owned(), CLUSTER_NAME.into());
    table.insert("listen".to_owned(), metad.endpoint.local_addr().to_string().into());
    table.insert("data_dir".to_owned(), text(&state.data_dir(&metad.name)));
    table.insert("identity".to_owned(), text(&state.identity_path(&metad.name)));
    table.insert("initial".to_owned(), toml::Value::Table(initial.clone()));
    table.insert("replicas".to_owned(), i64::from(options.replicas).into());
    let file: metad::config::ConfigFile =
        table.try_into().map_err(|error: toml::de::Error| metad::error::Error::Config(error.message().to_owned()))?;
    let mut config = file.check()?;
    if options.metads == 1 {
        config.tuning.heartbeat_ms = ALONE_HEARTBEAT_MS;
        config.tuning.election_ms = ALONE_ELECTION_MS;
    }
    Ok(config)
}

async fn start_blockds(
    state: &mut State,
    identities: Vec<Identity>,
    metads: &[SocketAddr],
) -> Result<Vec<blockd::Node>, Error> {
    let mut nodes = Vec::with_capacity(identities.len());
    for identity in identities {
        let name = identity.subject().name.clone();
        let listen = state.address(&name);
        let config = blockd::Config::new(&name, listen, &state.data_dir(&name), metads.to_vec());
        let node = blockd::Node::start(config, identity).await?;
        state.record(&name, node.local_addr());
        nodes.push(node);
    }
    Ok(nodes)
}

/// Runs file work on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    joined(tokio::task::spawn_blocking(work)).await
}

/// Awaits a task, and passes its panic on.
async fn joined<T>(task: tokio::task::JoinHandle<T>) -> T {
    match task.await {
        Ok(result) => result,
        // A panic is a broken invariant: it goes on here.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_second_process_is_refused_and_a_restart_finds_the_same_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let first = Embedded::start(dir.path(), EmbedOptions::default()).await.unwrap();
        let cluster = first.bundle().identity.cluster_id();
        let error = Embedded::start(dir.path(), EmbedOptions::default()).await.err().unwrap();
        assert!(matches!(error, Error::InUse { .. }), "{error}");
        first.stop().await;
        let shape = EmbedOptions { metads: 3, ..EmbedOptions::default() };
        let error = Embedded::start(dir.path(), shape).await.err().unwrap();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
        let second = Embedded::start(dir.path(), EmbedOptions::default()).await.unwrap();
        assert_eq!(second.bundle().identity.cluster_id(), cluster);
        second.stop().await;
    }
}
