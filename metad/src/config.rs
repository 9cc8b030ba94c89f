//! Configuration of a metad: defaults here, then the TOML file, then environment and flags.

use crate::error::Error;
use crate::raft::Tuning;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use wire::ids::MetadId;
use wire::issuer::IssuerKey;
use wire::limits::GC_GRACE_MIN_MS;
use wire::settings;
use wire::tls::{Identity, Role};

/// File with the renewed identity of a node, in its data directory.
pub const IDENTITY_FILE: &str = "identity.pem";

/// The configuration file. Unknown keys are refused: a misspelt option must not be an ignored one.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// Number of this node within its cluster, from 1. Never given to another node, also not after it was wiped.
    pub id: u64,
    /// Name of the cluster, for people.
    pub cluster: String,
    /// Address to serve on.
    pub listen: SocketAddr,
    /// Directory for log, snapshot and state.
    pub data_dir: PathBuf,
    /// PEM file with CA certificate, own certificate (role metad) and key.
    pub identity: PathBuf,
    /// PEM file with certificate and key of an issuer, as `surf cluster issuer` makes it. With it, this node signs
    /// certificates for join tokens while it leads.
    pub issuer: Option<PathBuf>,
    /// Nodes that found the cluster together, as `"ID" = "ADDRESS"`. The same on each of them; left out on a node that
    /// is added later with `surf cluster add`.
    #[serde(default)]
    pub initial: BTreeMap<String, SocketAddr>,
    /// Replicas of each block, 1 to 5. Takes effect when the cluster is founded.
    #[serde(default = "one")]
    pub replicas: u8,
    /// Replicas that must have synced a block before it is acknowledged. Default: 1 of 1, 2 of 2 and more.
    pub min_sync: Option<u8>,
    /// Seconds for which a block without references stays, in case it is referred to again (default 600).
    #[serde(default = "ten_minutes")]
    pub gc_grace_s: u64,
    /// Log entries after which a snapshot is taken (default 200000).
    pub snapshot_entries: Option<u64>,
    /// MiB of memory for the state (default 128).
    pub cache_mib: Option<u64>,
    /// MiB of each file of the log (default 16). Nine of them are written when the log is made.
    pub log_file_mib: Option<u64>,
    /// MiB of the disk that are kept for going on when it is full, 0 for none (default 64). While less than this is free
    /// beside them, what takes space is refused.
    pub reserve_mib: Option<u64>,
}

/// Largest `cache_mib`: a pebibyte, more than any machine has.
const CACHE_MIB_MAX: u64 = 1 << 30;
/// Largest `log_file_mib`.
const LOG_FILE_MIB_MAX: u64 = 1024;
/// Largest `reserve_mib`: a tebibyte, far more than any metad needs to go on.
const RESERVE_MIB_MAX: u64 = 1 << 20;

fn one() -> u8 {
    1
}

fn ten_minutes() -> u64 {
    600
}

/// A configuration that was checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Number of this node.
    pub id: MetadId,
    /// Name of the cluster.
    pub cluster: String,
    /// Address to serve on.
    pub listen: SocketAddr,
    /// Directory for log, snapshot and state.
    pub data_dir: PathBuf,
    /// The identity of this node.
    pub identity: Identity,
    /// With what it signs certificates of newcomers, and renewals.
    pub issuer: Option<Arc<IssuerKey>>,
    /// Where that is. Operators may put another one there while the node runs.
    pub issuer_file: Option<PathBuf>,
    /// Nodes that found the cluster; empty for a node that joins later.
    pub initial: BTreeMap<MetadId, SocketAddr>,
    /// Replicas of each block.
    pub replicas: u8,
    /// Replicas synced before a block is acknowledged.
    pub min_sync: u8,
    /// Time for which unreferenced blocks stay.
    pub gc_grace: Duration,
    /// Raft's behaviour.
    pub tuning: Tuning,
}

impl ConfigFile {
    /// Reads a file.
    ///
    /// # Errors
    /// One line that names the file and what is wrong with it.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::Config(format!("{}: cannot be read ({error}): name the file with --config", path.display()))
        })?;
        settings::from_toml(&text).map_err(|reason| Error::Config(format!("{}: {reason}", path.display())))
    }

    /// Checks the values and loads the identity.
    ///
    /// # Errors
    /// Names the values that contradict each other.
    pub fn check(self) -> Result<Config, Error> {
        let wrong = |text: &str| Err(Error::Config(text.to_owned()));
        let identity = Identity::load(&self.identity)?;
        if identity.subject().role != Role::Metad {
            return Err(Error::Config(format!(
                "{} has the role {}, metad needs one with the role metad: check `identity`",
                self.identity.display(),
                identity.subject().role
            )));
        }
        let issuer = match &self.issuer {
            Some(path) => {
                let issuer = IssuerKey::load(path)?;
                // What was renewed knows of a new CA.
                let renewed = Identity::load(&self.data_dir.join(IDENTITY_FILE));
                let known = renewed.map_or_else(|_| identity.clone(), |renewed| identity.clone().or_later(renewed));
                match issuer.check(path, &known) {
                    Ok(()) => Some(Arc::new(issuer)),
                    // It may be of a CA that this node does not know yet, or not any more, so the node starts without it. It is
                    // looked at again while the node runs.
                    Err(error) => {
                        tracing::warn!(%error, "this metad signs nothing until its issuer is of a CA that it trusts");
                        None
                    }
                }
            }
            None => None,
        };
        let mut initial = BTreeMap::new();
        for (id, addr) in &self.initial {
            let Ok(id) = id.parse::<u64>() else { return wrong("`initial` has keys that are not numbers") };
            initial.insert(MetadId(id), *addr);
        }
        let id = MetadId(self.id);
        if id.0 == 0 {
            return wrong("`id` starts at 1");
        }
        if !initial.is_empty() && !initial.contains_key(&id) {
            return wrong("`initial` does not name this node's own `id`");
        }
        let min_sync = self.min_sync.unwrap_or(self.replicas.min(2));
        if !(1..=5).contains(&self.replicas) || !(1..=self.replicas).contains(&min_sync) {
            return wrong("`replicas` is 1 to 5, `min_sync` is 1 to `replicas`");
        }
        if self.gc_grace_s < GC_GRACE_MIN_MS / 1000 {
            return Err(Error::Config(format!(
                "`gc_grace_s` is at least {}: blocks that are being written have no references yet",
                GC_GRACE_MIN_MS / 1000
            )));
        }
        let mut tuning = Tuning::default();
        tuning.snapshot_entries = self.snapshot_entries.unwrap_or(tuning.snapshot_entries).max(1);
        if let Some(mib) = self.cache_mib {
            if mib > CACHE_MIB_MAX {
                return Err(Error::Config(format!("`cache_mib` is {mib}; it is at most {CACHE_MIB_MAX}")));
            }
            tuning.cache_bytes = mib << 20;
        }
        if let Some(mib) = self.log_file_mib {
            if !(1..=LOG_FILE_MIB_MAX).contains(&mib) {
                return Err(Error::Config(format!("`log_file_mib` is {mib}; it is 1 to {LOG_FILE_MIB_MAX}")));
            }
            tuning.log_file_bytes = mib << 20;
        }
        if let Some(mib) = self.reserve_mib {
            if mib > RESERVE_MIB_MAX {
                return Err(Error::Config(format!("`reserve_mib` is {mib}; it is at most {RESERVE_MIB_MAX}")));
            }
            tuning.reserve_bytes = mib << 20;
        }
        Ok(Config {
            id,
            cluster: self.cluster,
            listen: self.listen,
            data_dir: self.data_dir,
            identity,
            issuer,
            issuer_file: self.issuer,
            initial,
            replicas: self.replicas,
            min_sync,
            gc_grace: Duration::from_secs(self.gc_grace_s),
            tuning,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::tls::{ClusterCa, Subject};

    #[test]
    fn a_misspelt_option_is_refused_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metad.toml");
        std::fs::write(&path, "id = 1\ncluster = \"c\"\nlisen = \"127.0.0.1:1\"\n").unwrap();
        let error = ConfigFile::load(&path).unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("lisen"), "{error}");
    }

    #[test]
    fn sizes_that_no_machine_has_room_for_are_refused_and_do_not_become_small_ones() {
        let dir = tempfile::tempdir().unwrap();
        let identity = ClusterCa::create("t").unwrap().issue(&Subject::new(Role::Metad, "metad-1")).unwrap();
        identity.save(&dir.path().join("metad.pem")).unwrap();
        let check = |key: &str, mib: u64| {
            let identity = dir.path().join("metad.pem");
            let text = format!(
                "id = 1\ncluster = \"c\"\nlisten = \"127.0.0.1:1\"\ndata_dir = \"x\"\nidentity = {identity:?}\n{key} = {mib}"
            );
            let path = dir.path().join("metad.toml");
            std::fs::write(&path, text).unwrap();
            ConfigFile::load(&path).unwrap().check().map(|config| config.tuning)
        };
        assert_eq!(check("cache_mib", 64).unwrap().cache_bytes, 64 << 20);
        assert_eq!(check("log_file_mib", 4).unwrap().log_file_bytes, 4 << 20);
        assert_eq!(check("reserve_mib", 0).unwrap().reserve_bytes, 0);
        assert_eq!(check("reserve_mib", 8).unwrap().reserve_bytes, 8 << 20);
        // As many MiB as 2^64 bytes, and one more.
        let beyond = (1 << 44) + 1;
        for (key, mib) in
            [("cache_mib", beyond), ("log_file_mib", beyond), ("log_file_mib", 0), ("reserve_mib", beyond)]
        {
            let error = check(key, mib).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{error}");
        }
    }
}
