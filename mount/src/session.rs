//! The life of a mount: cluster, client and kernel begin in this order, and end in the reverse order.
//!
//! Whatever ends the mount (a signal, `umount`, a failed disk), first everything written is stored, then the mount
//! goes, then the requests under way, then the client's session, last an embedded cluster. Each step is bounded except
//! the first, which a second signal ends.

use crate::error::Error;
use crate::fuse::{self, Shared, Surf};
use crate::guard::{self, Guard};
use crate::inodes::Trust;
use crate::notify::{self, Kernel};
use crate::options::{Options, Source};
use crate::payloads::Payloads;
use crate::sys;
use client::{Client, ClientConfig};
use embed::{EmbedOptions, Embedded};
use fuser::{MountOption, Session};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::bundle::Bundle;
use wire::tls::{Role, Squash};

/// Event loops of the kernel's requests, each with a device handle of its own: two halve a round trip.
const EVENT_LOOPS: usize = 2;
/// How long requests under way may take once the mount is gone.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How long programs may use open files once the mount is detached: they were waited for already.
const LEFT_OPEN_LIMIT: Duration = Duration::from_secs(1);

/// Key of the cache of an embedded cluster's mount, in place of the mount point.
const EMBEDDED_KEY: &str = "embedded";

/// The cluster that is mounted: a remote one, or one within this process.
enum Cluster {
    Remote(Box<Bundle>),
    Embedded(Box<Embedded>),
}

impl Cluster {
    async fn find(source: &Source) -> Result<Self, Error> {
        Ok(match source {
            Source::Bundle(path) => {
                let bundle = Bundle::load(path)?;
                bundle.require(path, Role::Client)?;
                Self::Remote(Box::new(bundle))
            }
            Source::Embedded(dir) => Self::Embedded(Box::new(Embedded::start(dir, EmbedOptions::default()).await?)),
        })
    }

    fn bundle(&self) -> &Bundle {
        match self {
            Self::Remote(bundle) => bundle,
            Self::Embedded(embedded) => embedded.bundle(),
        }
    }

    fn trust(&self) -> Trust {
        match self {
            Self::Remote(_) => Trust::Leases,
            Self::Embedded(_) => Trust::Alone,
        }
    }

    /// Waits until a daemon within this process has failed.
    async fn failed(&self) -> Error {
        match self {
            Self::Remote(_) => std::future::pending().await,
            Self::Embedded(embedded) => embedded.failed().await.into(),
        }
    }

    /// Notes that the mount is gone, and that the cluster within this process goes next.
    fn note_ending(&self) {
        if let Self::Embedded(embedded) = self {
            embedded.note_ending();
        }
    }

    async fn stop(self) {
        if let Self::Embedded(embedded) = self {
            embedded.stop().await;
        }
    }
}

/// Signals that end a mount.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> Result<Self, Error> {
        let on = |kind| signal(kind).map_err(Error::system("signals cannot be handled"));
        Ok(Self([on(SignalKind::terminate())?, on(SignalKind::interrupt())?, on(SignalKind::hangup())?]))
    }

    async fn next(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Mounts, calls `mounted`, and returns when the mount is gone and everything is stored.
///
/// # Errors
/// The reason why it was not mounted, or what was not stored.
pub(crate) async fn run(options: &Options, mounted: impl FnOnce()) -> Result<(), Error> {
    // From here on signals end the mount in an orderly way.
    let mut signals = Signals::new()?;
    let cluster = Cluster::find(&options.source).await?;
    let mut config = ClientConfig::new(cluster.bundle().clone(), &options.mount_point.display().to_string());
    config.bundle_file = options.source.bundle_file();
    config.soft_timeout = options.soft_timeout;
    config.on_conflict = options.on_conflict;
    config.flush_on_close = options.flush_on_close;
    config.block_bytes = options.block_bytes.unwrap_or(config.block_bytes);
    config.cache_dir.clone_from(&options.cache_dir);
    config.cache_dir_is_default = options.cache_dir_is_default;
    config.disk_cache_bytes = options.disk_cache_bytes;
    config.journal = !options.read_only;
    config.access_times = options.access_times;
    config.write_back = !options.synchronous;
    // An embedded cluster has one mount at a time, at any mount point.
    config.cache_key = matches!(options.source, Source::Embedded(_)).then(|| EMBEDDED_KEY.to_owned());
    let connected = tokio::select! {
        connected = Client::connect(config) => connected.map_err(Error::from),
        // Entries of the journal that were not sent yet stay there.
        () = signals.next() => Err(Error::Interrupted),
    };
    let client = match connected {
        Ok(client) => client,
        Err(error) => {
            cluster.stop().await;
            return Err(error);
        }
    };
    let outcome = match Mounted::start(&client, &cluster, options) {
        Ok(mount) => {
            mounted();
            mount.run(&client, &cluster, &mut signals).await
        }
        Err(error) => Err(error),
    };
    // A cluster within this process that has failed takes nothing more, however often it is asked.
    let patience = if outcome.is_err() { END_LIMIT } else { Duration::MAX };
    let closed = tokio::select! {
        closed = tokio::time::timeout(patience, client.shutdown()) => match closed {
            Ok(closed) => closed.map_err(Error::Unsaved),
            Err(_) => {
                tracing::error!("what was not stored before the failure may be lost");
                Ok(())
            }
        },
        () = signals.next() => Err(Error::GaveUp),
    };
    cluster.stop().await;
    outcome.and(closed)
}

/// A mount that stands.
struct Mounted {
    guard: Guard,
    shared: Arc<Shared>,
    /// Requests under way.
    requests: TaskTracker,
    notices: JoinHandle<()>,
    stop: CancellationToken,
    /// Completes when the kernel has ended the connection.
    ended: oneshot::Receiver<()>,
}

impl Mounted {
    /// Mounts, and answers the kernel on threads of its own until the mount is gone.
    fn start(client: &Arc<Client>, cluster: &Cluster, options: &Options) -> Result<Self, Error> {
        let path = &options.mount_point;
        let payloads = Payloads::new(options.cache_dir.as_deref().filter(|_| !options.read_only));
        let shared = Shared::new(client.clone(), cluster.trust(), payloads);
        let requests = TaskTracker::new();
        let surf = Surf::new(shared.clone(), Handle::current(), requests.clone());
        let config = kernel_config(&cluster.bundle().cluster, options, client.squash());
        let session = Session::new(surf, path, &config).map_err(|error| refused(path, &error))?;
        let guard = Guard::new(path);
        let stop = CancellationToken::new();
        let kernel = Kernel { notifier: session.notifier(), nodes: shared.nodes };
        shared.connected(kernel.clone());
        let notices = notify::run(client.clone(), kernel, stop.clone());
        let notices = tokio::spawn(notices);
        let (report, ended) = oneshot::channel();
        let serving = std::thread::Builder::new().name("surf-fuse".to_owned()).spawn(move || {
            if let Err(error) = session.run() {
                tracing::debug!(%error, "the kernel's connection ended");
            }
            // Nobody listens any more if the end was not waited for.
            let _ = report.send(());
        });
        serving.map_err(Error::system("a thread cannot be started"))?;
        raise_readahead(path);
        Ok(Self { guard, shared, requests, notices, stop, ended })
    }

    async fn run(mut self, client: &Client, cluster: &Cluster, signals: &mut Signals) -> Result<(), Error> {
        let outcome = tokio::select! {
            () = signals.next() => Ok(()),
            _ = &mut self.ended => Ok(()),
            error = cluster.failed() => Err(error),
        };
        cluster.note_ending();
        // All content is stored before the mount goes: a lost connection to the kernel then loses nothing.
        let stored = if outcome.is_err() {
            // A failed disk stores nothing more.
            Ok(())
        } else {
            tokio::select! {
                stored = client.store_all() => stored.map_err(Error::Unsaved),
                () = signals.next() => Err(Error::GaveUp),
            }
        };
        self.end().await;
        outcome.and(stored)
    }

    async fn end(self) {
        let guard = self.guard;
        if let Err(error) = tokio::task::spawn_blocking(move || drop(guard)).await {
            tracing::error!(%error, "unmounting failed");
        }
        // This is immediate when the mount was ended from outside.
        if !self.ended.is_terminated() && tokio::time::timeout(LEFT_OPEN_LIMIT, self.ended).await.is_err() {
            tracing::warn!("programs still use files of the mount: they will find it gone");
        }
        self.requests.close();
        if tokio::time::timeout(END_LIMIT, self.requests.wait()).await.is_err() {
            tracing::warn!(count = self.requests.len(), "requests are left unanswered");
        }
        if tokio::time::timeout(END_LIMIT, self.shared.release_all()).await.is_err() {
            tracing::warn!(
                "servers that are away are not waited for: files were open, and not all of them are committed"
            );
        }
        self.stop.cancel();
        match tokio::time::timeout(END_LIMIT, self.notices).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the task that tells the kernel of changes failed"),
            Err(_) => tracing::warn!("the kernel does not take notice of changes any more"),
        }
    }
}

fn kernel_config(name: &str, options: &Options, squash: Squash) -> fuser::Config {
    let mut config = fuser::Config::default();
    config.mount_options = vec![
        MountOption::FSName(name.to_owned()),
        // `Subtype` is dropped when root mounts.
        MountOption::CUSTOM("subtype=surf".to_owned()),
    ];
    if !fuse::is_left_to_metad(squash) {
        config.mount_options.push(MountOption::DefaultPermissions);
    }
    config.mount_options.extend(options.kernel.iter().cloned());
    config.acl = options.acl;
    config.n_threads = Some(EVENT_LOOPS);
    config.clone_fd = true;
    config
}

/// Advice for a refused mount.
fn refused(path: &Path, error: &io::Error) -> Error {
    let reason = if sys::is_root() {
        format!("{error}: is this a container without CAP_SYS_ADMIN, or without access to /dev/fuse?")
    } else if sys::is_installed("fusermount3") {
        format!("{error}: fusermount3 refuses; -o allow_other needs `user_allow_other` in /etc/fuse.conf")
    } else {
        "users other than root need fusermount3: install the package fuse3".to_owned()
    };
    Error::Refused { path: path.to_owned(), reason }
}

/// By default, the kernel reads 128 KiB ahead, and only root may raise it.
fn raise_readahead(path: &Path) {
    let Some(device) = guard::device_at(path) else { return };
    let raised =
        std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), (fuse::READAHEAD_BYTES >> 10).to_string());
    if let Err(error) = raised {
        tracing::debug!(%error, "the kernel keeps its own readahead");
    }
}
