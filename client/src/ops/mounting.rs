//! Beginning and ending a mount.

use crate::block::disk::DiskCache;
use crate::block::layout::Layouts;
use crate::journal::Journal;
use crate::journal::disk::{Disk, FOLDER, LocalDisk};
use crate::journal::writer::{self, WhichEntries, Writer};
use crate::kernel::Notice;
use crate::known::Known;
use crate::known::held_locks::HeldLocks;
use crate::known::leased::LeasedSession;
use crate::local_dir::set_aside;
use crate::meta::rpc::Rpc;
use crate::network::Network;
use crate::renewal::OwnIdentity;
use crate::work::Work;
use crate::{CLOSE_LIMIT, Client, ClientConfig, Error, LocalDir, compose};
use futures::future::BoxFuture;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::Instant;
use wire::FsError;
use wire::ids::Ino;
use wire::quic::Endpoint;
use wire::quic::renew::keep_renewed;
use wire::tls::Squash;

/// Time limit for opening the first session.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// When servers are away, the end of a mount takes no longer than this.
const LEAVE_AFTER: Duration = Duration::from_secs(5);
/// Time between checks whether anything is being stored.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Client {
    /// Opens a session.
    ///
    /// # Errors
    /// [`Error`]: an option makes no sense, the identity is refused, or nobody answers.
    pub fn connect(config: ClientConfig) -> BoxFuture<'static, Result<Arc<Self>, Error>> {
        // Boxed, so that the background work is compiled in this crate, and not again in each program.
        Box::pin(Self::join_cluster(config))
    }

    async fn join_cluster(config: ClientConfig) -> Result<Arc<Self>, Error> {
        config.check()?;
        // This comes first, so that a directory in use is reported before a session is opened.
        let local = LocalDir::of(&config).await?;
        let Some(dir) = local.clone().filter(|_| config.journal) else {
            return Self::join_with(config, local, None).await;
        };
        Self::send_set_aside(&config, &dir).await;
        let journal = journal_in_use(&dir).await?;
        let joined = Self::join_with(config.clone(), local.clone(), journal.clone()).await;
        let (Err(Error::ReplayFull { .. }), Some(full)) = (&joined, journal) else { return joined };
        set_journal_aside(&full, &dir).await?;
        Self::join_with(config, local, journal_in_use(&dir).await?).await
    }

    /// Tries to send the journals that were set aside. A journal that cannot be sent stays.
    async fn send_set_aside(config: &ClientConfig, local: &Arc<LocalDir>) {
        let looked = local.clone();
        let folders = match on_disk(local, move || set_aside::list(looked.path())).await {
            Ok(folders) => folders,
            Err(error) => return tracing::warn!(%error, "the journals that were set aside cannot be listed"),
        };
        for folder in folders {
            let path = set_aside::path_of(local, &folder);
            if let Err(error) = Self::send_one_set_aside(config.clone(), local.clone(), &folder).await {
                // Later journals must not be sent before this one.
                return tracing::error!(
                    kept = %path.display(), %error, "what an earlier mount could not store is still set aside"
                );
            }
            tracing::warn!(kept = %path.display(), "what an earlier mount could not store is in the cluster now");
        }
    }

    async fn send_one_set_aside(config: ClientConfig, local: Arc<LocalDir>, folder: &str) -> Result<(), Error> {
        let journal = open_journal(&local, folder).await?;
        let client = Self::join_with(config, None, Some(journal)).await?;
        let left = |reason| Error::Replay { dir: set_aside::path_of(&local, folder), reason };
        client.shutdown().await.map_err(|error| left(error.to_string()))?;
        if client.left.load(Ordering::Relaxed) || !client.writeback.is_empty() {
            return Err(left("servers have gone away".to_owned()));
        }
        let (sent, folder) = (local.clone(), folder.to_owned());
        on_disk(&local, move || set_aside::remove(&sent, &folder)).await
    }

    /// Joins the cluster with this journal, and a cache of blocks in this directory.
    async fn join_with(
        config: ClientConfig,
        local: Option<Arc<LocalDir>>,
        journal: Option<Arc<Journal>>,
    ) -> Result<Arc<Self>, Error> {
        let cache = local.filter(|_| config.disk_cache_bytes > 0).and_then(|local| {
            let started = DiskCache::start(local, config.disk_cache_bytes);
            started.inspect_err(|error| tracing::warn!(%error, "mounting without a cache of blocks on disk")).ok()
        });
        let local: SocketAddr = match config.bundle.metads.first() {
            Some(SocketAddr::V6(addr)) if addr.ip().is_loopback() => ([0, 0, 0, 0, 0, 0, 0, 1], 0).into(),
            Some(SocketAddr::V6(_)) => ([0_u16; 8], 0).into(),
            Some(addr) if addr.ip().is_loopback() => ([127, 0, 0, 1], 0).into(),
            _ => ([0, 0, 0, 0], 0).into(),
        };
        let endpoint = Endpoint::bind(local, &config.bundle.identity).map_err(Error::Refused)?;
        let (metads, file) = (config.bundle.metads.clone(), config.bundle_file.clone());
        let renewing = OwnIdentity::new(endpoint.clone(), metads, file);
        renewing.renew_if_ended(CONNECT_LIMIT).await.map_err(|error| connect_error(&config, error))?;
        // By a clock that is behind, one has not ended that has: it is renewed once a metad says so. This task ends with the
        // attempt, and the client has its own.
        let mut meanwhile = JoinSet::new();
        meanwhile.spawn(keep_renewed(endpoint.clone(), renewing.clone()));
        let client = Self::start(config, Arc::new(endpoint.clone()), journal, cache).await?;
        client.tasks.lock().spawn(keep_renewed(endpoint, renewing));
        Ok(client)
    }

    /// Opens a session over a network other than QUIC, with a journal on this disk if there is one, and without a cache
    /// of blocks on disk.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_over(
        config: ClientConfig,
        network: Arc<dyn Network>,
        journal: Option<Arc<dyn Disk>>,
    ) -> Result<Arc<Self>, Error> {
        config.check()?;
        let journal = journal.map(Journal::open).transpose()?.map(Arc::new);
        Self::start(config, network, journal, None).await
    }

    async fn start(
        config: ClientConfig,
        network: Arc<dyn Network>,
        journal: Option<Arc<Journal>>,
        cache: Option<DiskCache>,
    ) -> Result<Arc<Self>, Error> {
        let host = hostname();
        let work = Work::new(tokio::runtime::Handle::current(), config.soft_timeout);
        // An earlier client that used this directory is dead: its requests must not arrive any more.
        let resumes = journal.as_ref().and_then(|journal| journal.session());
        let rpc = Rpc::new(network.clone(), config.bundle.metads.clone(), config.soft_timeout);
        let caches = (Arc::<Known>::default(), Arc::<HeldLocks>::default());
        let names = (host.as_str(), config.purpose.as_str());
        let opened = LeasedSession::open(rpc, names, resumes, caches.clone(), work.parts(), CONNECT_LIMIT).await;
        let (session, opened) = opened.map_err(|error| connect_error(&config, error))?;
        let (session, layouts) = (Arc::new(session), Arc::new(Layouts::new(opened.layout)));
        let (client, parts) = compose(config, (host, work), network, (session, layouts), caches, (journal, cache));
        parts.start(opened.ttl, &mut client.tasks.lock());
        if let Some(replayer) = parts.replayer {
            if let Err(error) = replayer.run().await {
                client.end().await;
                return Err(error);
            }
            if client.config.write_back
                && let Some(writer) = &client.journal_writer
            {
                // From now on, entries that wait for too long are written to the journal.
                client.writeback.note_journal_works(true);
                client.tasks.lock().spawn(writer::run(writer.clone()));
            }
        }
        Ok(client)
    }

    /// Returns the runtime that drives the client's socket: for operations on metadata, which wait for messages and do
    /// little else.
    #[must_use]
    pub fn network(&self) -> tokio::runtime::Handle {
        self.network.runtime()
    }

    /// Returns the directory that is this client's root.
    #[must_use]
    pub fn root(&self) -> Ino {
        self.session.root()
    }

    /// Returns whose rights the users of this client have.
    #[must_use]
    pub fn squash(&self) -> Squash {
        self.session.bounds().squash
    }

    /// Returns whether metad wants to know for whom this client asks: it is confined.
    #[must_use]
    pub fn is_confined(&self) -> bool {
        self.session.bounds().are_set()
    }

    /// Returns how many questions and changes went to metad.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.session.requests()
    }

    /// Returns a receiver of later changes by other sessions. Best effort: a slow receiver misses some, and gets an
    /// error that says so.
    #[must_use]
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.kernel.notices()
    }

    /// Commits everything and ends the session. When the servers are away, the journal is left to the next client with
    /// the same directory.
    ///
    /// # Errors
    /// Returns what could not be committed; the session is ended all the same.
    pub fn shutdown(&self) -> BoxFuture<'_, Result<(), FsError>> {
        Box::pin(self.leave_cluster())
    }

    async fn leave_cluster(&self) -> Result<(), FsError> {
        let stored = self.store_all().await;
        // Not waited for when the servers are away.
        let _ = tokio::time::timeout(CLOSE_LIMIT, self.accessed.store()).await;
        self.end_journal().await;
        self.end().await;
        stored
    }

    /// Commits all uncommitted content of all files. If nothing could be committed for some time and there is a
    /// journal, leaves the content in it.
    ///
    /// # Errors
    /// Returns the first failure; the others are tried all the same.
    pub async fn store_all(&self) -> Result<(), FsError> {
        match &self.journal_writer {
            None => self.sync_all().await,
            Some(_) if self.left.load(Ordering::Relaxed) => Ok(()),
            Some(writer) => tokio::select! {
                biased;
                stored = self.sync_all() => stored,
                () = self.all_journaled(writer) => {
                    tracing::warn!(
                        journal = %writer.journal().dir().display(),
                        "the servers are away: what they do not know is in the journal, and the next mount sends it"
                    );
                    Ok(())
                }
            },
        }
    }

    /// Returns once nothing was stored for a while, and everything is in the journal.
    async fn all_journaled(&self, writer: &Writer) {
        let (mut seen, mut since) = (None, Instant::now());
        loop {
            let now = (self.writeback.acknowledged(), self.committer.window().held());
            if seen != Some(now) {
                (seen, since) = (Some(now), Instant::now());
            } else if since.elapsed() >= LEAVE_AFTER {
                let left =
                    self.flusher.unqueued_files().iter().filter(|file| !self.flusher.leave_content(file)).count();
                if left == 0 && writer.write(WhichEntries::All).await.is_ok() {
                    self.left.store(true, Ordering::Relaxed);
                    return;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Ends the journal, if everything is sent. What is not sent stays in it.
    async fn end_journal(&self) {
        let Some(writer) = &self.journal_writer else { return };
        let left = self.left.load(Ordering::Relaxed);
        if left {
            // Content that was written after everything else was left in the journal.
            for file in self.flusher.unqueued_files() {
                self.flusher.leave_content(&file);
            }
        }
        let acknowledged = self.writeback.acknowledged();
        if self.writeback.is_empty() {
            return writer.end(acknowledged, CLOSE_LIMIT).await;
        }
        let written = writer.write(WhichEntries::All).await;
        // The content of the picture went into the queue, if it was left.
        let written = if written.is_ok() && left { writer.drop_picture().await } else { written };
        if let Err(error) = written {
            tracing::error!(%error, "what the cluster does not know could not be written into the journal");
        }
    }

    /// Ends everything at once, as the death of the process would: nothing is stored or reported.
    pub fn abandon(&self) {
        self.work.abandon();
        self.tasks.lock().abort_all();
    }

    async fn end(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.shutdown().await;
        // Committed content needs no waiting; content that could not be committed is given up.
        self.work.end(CLOSE_LIMIT).await;
        self.fetcher.close().await;
        self.session.close(CLOSE_LIMIT).await;
        self.network.close().await;
    }
}

impl Drop for Client {
    /// Ends the background tasks, and with them the work that waits for them.
    fn drop(&mut self) {
        self.work.abandon();
    }
}

/// Opens the journal in this folder of the directory.
async fn open_journal(local: &Arc<LocalDir>, folder: &str) -> Result<Arc<Journal>, Error> {
    let (opened, folder) = (local.clone(), folder.to_owned());
    let opening = on_disk(local, move || Ok(Journal::open(Arc::new(LocalDisk::open(opened, &folder)?))));
    opening.await.flatten().map(Arc::new)
}

/// Opens the journal in use; `None`, with a warning, if the disk refuses.
async fn journal_in_use(local: &Arc<LocalDir>) -> Result<Option<Arc<Journal>>, Error> {
    match open_journal(local, FOLDER).await {
        Ok(journal) => Ok(Some(journal)),
        Err(error @ Error::Local { .. }) => {
            tracing::warn!(%error, "mounting without a journal");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Sets aside a journal for which the cluster has no room, so that the mount can go on with an empty one.
async fn set_journal_aside(journal: &Journal, dir: &Arc<LocalDir>) -> Result<(), Error> {
    // The client that has just failed may still be writing to it.
    journal.wait_idle().await;
    let local = dir.clone();
    let path = on_disk(dir, move || set_aside::add(&local)).await?;
    tracing::error!(
        kept = %path.display(),
        "the cluster is full: what the last mount could not store is set aside, and each mount tries again; remove files, wait \
         until their space is free again (gc_grace_s), then mount again"
    );
    Ok(())
}

/// Works on the directory where blocking is allowed.
async fn on_disk<T: Send + 'static>(
    local: &LocalDir,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other).flatten();
    done.map_err(|source| Error::Local { path: local.path().to_owned(), source })
}

fn connect_error(config: &ClientConfig, error: wire::Error) -> Error {
    match error {
        wire::Error::NotSent { reason, .. } => {
            let tried: Vec<String> = config.bundle.metads.iter().map(ToString::to_string).collect();
            Error::Unreachable { tried: tried.join(", "), last: reason }
        }
        error => Error::Refused(error),
    }
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String =
        name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(64).collect();
    if name.is_empty() { "host".to_owned() } else { name }
}
