//! The data directory of an embedded cluster: its lock, CA, identities, and the addresses used last.
//!
//! ```text
//! surf.lock      held while a process runs the cluster; marked when that process is about to end
//! ca.pem         the cluster's CA
//! NAME.pem       identity of each daemon, of the client and of the operator
//! cluster.toml   shape of the cluster, and the address that each daemon had last
//! NAME/          data of each daemon
//! ```
//! All keys are readable by their owner alone.

use crate::{EmbedOptions, Error};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use wire::durable;
use wire::quic::Endpoint;
use wire::sys::lock_after_a_kill;
use wire::tls::{ClusterCa, Identity, Role, Subject};

/// Name of the cluster, for people.
pub(crate) const CLUSTER_NAME: &str = "embedded";

/// Content of the lock's file while its holder ends.
const ENDING_MARK: &str = "ending\n";
/// How long the next mount waits for the one before to end. `umount` returns before the mount's process has ended,
/// which first stores what is under way and stops its daemons.
const ENDING_LIMIT: Duration = Duration::from_secs(60);

/// Content of `cluster.toml`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterFile {
    metads: u8,
    blockds: u8,
    #[serde(default)]
    addresses: BTreeMap<String, SocketAddr>,
}

/// A data directory that is locked while this lives.
pub(crate) struct State {
    dir: PathBuf,
    ca: ClusterCa,
    file: ClusterFile,
    lock: File,
}

fn disk(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Disk { path, source }
}

fn unusable(dir: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let dir = dir.to_owned();
    move |source| Error::Unusable { dir, source }
}

impl State {
    /// Takes the directory, making it and the CA if needed.
    pub(crate) fn take(dir: &Path, options: &EmbedOptions) -> Result<Self, Error> {
        durable::make_dir(dir).map_err(unusable(dir))?;
        let lock = lock(dir)?;
        let path = dir.join("cluster.toml");
        let file = match fs::read_to_string(&path) {
            Ok(text) => toml::from_str::<ClusterFile>(&text).map_err(|error| Error::Damaged {
                path: path.clone(),
                reason: format!("is damaged ({}): restore it", error.message().replace('\n', " ")),
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                ClusterFile { metads: options.metads, blockds: options.blockds, addresses: BTreeMap::new() }
            }
            Err(error) => return Err(disk(&path)(error)),
        };
        // Fewer metads would be no majority, and fewer blockds would miss blocks. More cannot be added this way.
        if (file.metads, file.blockds) != (options.metads, options.blockds) {
            let shape = |metads: u8, blockds: u8| format!("{metads} metads and {blockds} blockds");
            return Err(Error::Shape {
                dir: dir.to_owned(),
                found: shape(file.metads, file.blockds),
                wanted: shape(options.metads, options.blockds),
            });
        }
        let ca_path = dir.join("ca.pem");
        let ca = if ca_path.exists() {
            ClusterCa::load(&ca_path)?
        } else {
            let ca = ClusterCa::create(CLUSTER_NAME)?;
            ca.save(&ca_path)?;
            ca
        };
        Ok(Self { dir: dir.to_owned(), ca, file, lock })
    }

    /// Notes in the lock's file that the cluster ends: the next user of the directory waits for that.
    pub(crate) fn note_ending(&self) {
        // If this fails, the next user is refused, as by a cluster that goes on.
        let _ = (&self.lock).write_all(ENDING_MARK.as_bytes());
    }

    /// Data directory of a daemon.
    pub(crate) fn data_dir(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// File that holds the identity of that name.
    pub(crate) fn identity_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.pem"))
    }

    /// The identity of that name, issued at the first start.
    pub(crate) fn identity(&self, role: Role, name: &str) -> Result<Identity, Error> {
        let path = self.identity_path(name);
        if path.exists() {
            return Ok(Identity::load(&path)?);
        }
        let identity = self.ca.issue(&Subject::new(role, name))?;
        identity.save(&path)?;
        Ok(identity)
    }

    /// Binds a daemon's endpoint, driven by `runtime`, at the address it had last, because Raft's membership names it.
    /// Otherwise it takes a free port.
    pub(crate) fn bind(&mut self, name: &str, identity: &Identity, runtime: &Handle) -> Result<Endpoint, Error> {
        let recorded = self.file.addresses.get(name).copied();
        let bind = |addr| Endpoint::bind_within(addr, identity, runtime.clone());
        let endpoint = match recorded.map(bind) {
            Some(Ok(endpoint)) => endpoint,
            // Its peers expect it at this address.
            Some(Err(error)) if self.file.metads > 1 => return Err(error.into()),
            _ => bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?,
        };
        self.file.addresses.insert(name.to_owned(), endpoint.local_addr());
        Ok(endpoint)
    }

    /// The address that a daemon had last; port 0 when it never ran, or another process has the port now.
    pub(crate) fn address(&self, name: &str) -> SocketAddr {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let recorded = self.file.addresses.get(name).copied().unwrap_or(any);
        if std::net::UdpSocket::bind(recorded).is_ok() { recorded } else { any }
    }

    /// Notes where a daemon serves.
    pub(crate) fn record(&mut self, name: &str, addr: SocketAddr) {
        self.file.addresses.insert(name.to_owned(), addr);
    }

    /// Writes the shape and the addresses, complete or not at all. If they are there already, nothing is written: a cluster
    /// on a full disk starts, too.
    pub(crate) fn save(&self) -> Result<(), Error> {
        let path = self.dir.join("cluster.toml");
        let text = toml::to_string(&self.file)
            .map_err(|error| Error::Damaged { path: path.clone(), reason: error.to_string() })?;
        if fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
            return Ok(());
        }
        durable::replace(&path, text.as_bytes()).map_err(disk(&path))
    }
}

/// Takes the directory's lock, and waits for a cluster that is ending. Blocks.
fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("surf.lock");
    let open = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let mut file = open.map_err(unusable(dir))?;
    let started = Instant::now();
    loop {
        match lock_after_a_kill(&file) {
            Ok(()) => {
                file.set_len(0).map_err(disk(&path))?;
                return Ok(file);
            }
            Err(TryLockError::WouldBlock) if started.elapsed() < ENDING_LIMIT && is_ending(&mut file) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::InUse { dir: dir.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(disk(&path)(error)),
        }
    }
}

/// Reports whether the holder of the lock is about to end.
fn is_ending(file: &mut File) -> bool {
    let mut text = String::new();
    file.rewind().and_then(|()| file.read_to_string(&mut text)).is_ok_and(|_| text == ENDING_MARK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> EmbedOptions {
        EmbedOptions::default()
    }

    #[test]
    fn a_directory_in_use_is_refused_and_one_whose_user_ends_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::take(dir.path(), &options()).unwrap();
        assert!(matches!(State::take(dir.path(), &options()), Err(Error::InUse { .. })));
        state.note_ending();
        std::thread::scope(|scope| {
            let next = scope.spawn(|| State::take(dir.path(), &options()).map(|_| ()));
            // This is longer than the wait for a process that goes on.
            std::thread::sleep(Duration::from_secs(2));
            assert!(!next.is_finished(), "it waits");
            drop(state);
            next.join().unwrap().unwrap();
        });
        let again = State::take(dir.path(), &options()).unwrap();
        assert!(
            matches!(State::take(dir.path(), &options()), Err(Error::InUse { .. })),
            "the word of the first is gone"
        );
        drop(again);
    }
}
