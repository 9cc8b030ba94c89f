//! surfmount: mounts Surf with FUSE.
//!
//! `options` says what is wanted, `guard` looks after the mount point, `fuse` translates requests, `notify` tells the
//! kernel what others changed.

mod fuse;
mod guard;
mod handles;
mod notify;
mod options;
mod sys;

use anyhow::{Context, bail};
use clap::Parser;
use client::{Client, ClientConfig};
use embed::{EmbedOptions, Embedded};
use fuser::{MountOption, Session, SessionACL};
use guard::Guard;
use options::{Flags, MountOptions, default_data_dir};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use sys::{Forked, Parent};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use wire::bundle::Bundle;

/// While several clients share a cluster, the kernel believes attributes and names for this long.
const SHARED_TTL: Duration = Duration::from_secs(1);
/// The embedded cluster has no other client.
const ALONE_TTL: Duration = Duration::from_secs(3600);
/// Event loops of the kernel's requests.
const EVENT_LOOPS: usize = 2;
/// How long the kernel's last requests may take once the mount is gone.
const END_LIMIT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let flags = Flags::parse();
    match start(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("surfmount: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(mut flags: Flags) -> anyhow::Result<()> {
    let mut parent = None;
    if flags.daemon {
        // The background process must mean the same places.
        for path in [Some(&mut flags.mountpoint), flags.cluster.as_mut(), flags.data_dir.as_mut()].into_iter().flatten()
        {
            *path = std::path::absolute(&*path)?;
        }
        match sys::detach().context("cannot go to the background")? {
            Forked::Parent(Ok(())) => return Ok(()),
            Forked::Parent(Err(reason)) => bail!("{reason}"),
            Forked::Child(pipe) => parent = Some(pipe),
        }
    }
    match (run(&flags, &mut parent), parent) {
        (Err(error), Some(parent)) => {
            parent.failed(&format!("{error:#}"));
            Err(error)
        }
        (outcome, _) => outcome,
    }
}

fn run(flags: &Flags, parent: &mut Option<Parent>) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&flags.log).context("--log")?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let options = MountOptions::parse(&flags.options)?;
    if !Path::new("/dev/fuse").exists() {
        bail!("/dev/fuse is missing: load the kernel module with `modprobe fuse`");
    }
    let path = guard::prepare(&flags.mountpoint)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(mount(flags, &options, path, parent));
    // Every task that matters was waited for.
    runtime.shutdown_background();
    outcome
}

/// The cluster that is mounted: somewhere, or within this process.
enum Cluster {
    Remote(Box<Bundle>),
    Embedded(Box<Embedded>),
}

impl Cluster {
    async fn find(flags: &Flags) -> anyhow::Result<Self> {
        if let Some(path) = &flags.cluster {
            return Ok(Self::Remote(Box::new(Bundle::load(path)?)));
        }
        let dir = match &flags.data_dir {
            Some(dir) => dir.clone(),
            None => default_data_dir()?,
        };
        Ok(Self::Embedded(Box::new(Embedded::start(&dir, EmbedOptions::default()).await?)))
    }

    fn bundle(&self) -> &Bundle {
        match self {
            Self::Remote(bundle) => bundle,
            Self::Embedded(embedded) => embedded.bundle(),
        }
    }

    async fn stop(self) {
        if let Self::Embedded(embedded) = self {
            embedded.stop().await;
        }
    }
}

async fn mount(
    flags: &Flags,
    options: &MountOptions,
    path: PathBuf,
    parent: &mut Option<Parent>,
) -> anyhow::Result<()> {
    // From here on signals end the mount in order.
    let mut signals = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()]
        .map(|kind| signal(kind).expect("these signals can be handled"));
    let cluster = Cluster::find(flags).await?;
    let mut config = ClientConfig::new(cluster.bundle().clone(), &path.display().to_string());
    config.soft_timeout = options.soft_timeout;
    config.on_conflict = options.on_conflict;
    let client = match Client::connect(config).await {
        Ok(client) => client,
        Err(error) => {
            cluster.stop().await;
            return Err(error.into());
        }
    };
    let served = serve(&client, &cluster, options, &path);
    let (guard, mut ended) = match served {
        Ok(served) => served,
        Err(error) => {
            let _ = client.shutdown().await;
            cluster.stop().await;
            return Err(error);
        }
    };
    announce(&path, parent);
    let [terminate, interrupt, hangup] = &mut signals;
    let outside = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        _ = hangup.recv() => false,
        _ = &mut ended => true,
    };
    // What was written is safe before the mount goes: a lost connection to the kernel then loses nothing.
    let flushed = client.sync_all().await;
    let unmounting = tokio::task::spawn_blocking(move || drop(guard));
    let _ = unmounting.await;
    if !outside && tokio::time::timeout(END_LIMIT, ended).await.is_err() {
        tracing::warn!("programs still use the mount; leaving them behind");
    }
    let closed = client.shutdown().await;
    cluster.stop().await;
    flushed.and(closed).context("not everything that was written could be stored")
}

/// Mounts, and answers the kernel on threads of its own until the mount is gone.
fn serve(
    client: &Arc<Client>,
    cluster: &Cluster,
    options: &MountOptions,
    path: &Path,
) -> anyhow::Result<(Guard, oneshot::Receiver<()>)> {
    let ttl = if matches!(cluster, Cluster::Embedded(_)) { ALONE_TTL } else { SHARED_TTL };
    let mut config = fuser::Config::default();
    config.mount_options = vec![
        MountOption::FSName(cluster.bundle().cluster.clone()),
        MountOption::CUSTOM("subtype=surf".to_owned()),
        MountOption::DefaultPermissions,
        if options.read_only { MountOption::RO } else { MountOption::RW },
    ];
    if sys::is_root() {
        // As any local filesystem: fuser would switch both off. What -o says comes later and wins.
        config.mount_options.extend([MountOption::Suid, MountOption::Dev]);
    }
    config.mount_options.extend(options.kernel.iter().cloned());
    config.acl = if sys::is_root() { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(EVENT_LOOPS);
    config.clone_fd = true;
    let surf = fuse::Surf::new(client.clone(), ttl, tokio::runtime::Handle::current());
    let session = Session::new(surf, path, &config).map_err(|error| mount_error(path, &error))?;
    let guard = Guard::new(path.to_owned());
    notify::start(client, session.notifier())?;
    let (report, ended) = oneshot::channel();
    std::thread::Builder::new().name("fuse".to_owned()).spawn(move || {
        if let Err(error) = session.run() {
            tracing::debug!(%error, "the kernel's connection ended");
        }
        let _ = report.send(());
    })?;
    // Asks the filesystem for its root, so only once it answers.
    raise_readahead(path);
    Ok((guard, ended))
}

fn mount_error(path: &Path, error: &std::io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        std::io::ErrorKind::NotFound => ": fusermount3 is missing, install the package fuse3",
        std::io::ErrorKind::PermissionDenied => ": no right to mount; run as root, or install the package fuse3",
        _ => "",
    };
    anyhow::anyhow!("{}: cannot be mounted: {error}{hint}", path.display())
}

/// The kernel reads 128 KiB ahead unless told otherwise, which only root may.
fn raise_readahead(path: &Path) {
    let raised = sys::device_of(path).and_then(|(major, minor)| {
        let kib = (fuse::READAHEAD_BYTES >> 10).to_string();
        std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib)
    });
    if let Err(error) = raised {
        tracing::debug!(%error, "the kernel keeps its own readahead");
    }
}

/// Tells whoever waits that the mount stands.
fn announce(path: &Path, parent: &mut Option<Parent>) {
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    match parent.take() {
        Some(parent) => {
            parent.succeeded();
            if let Err(error) = sys::leave_terminal() {
                tracing::debug!(%error, "the terminal is kept");
            }
        }
        None => println!("Surf is mounted on {}; Ctrl-C unmounts it", path.display()),
    }
}
