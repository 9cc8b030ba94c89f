//! `cluster.json`: what a development cluster consists of.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use wire::sys::effective_uid;

/// Kind of a daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Metadata daemon.
    Metad,
    /// Block daemon.
    Blockd,
}

impl Kind {
    /// Name of its program.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Kind::Metad => "metad",
            Kind::Blockd => "blockd",
        }
    }
}

/// One daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Daemon {
    /// Its name, such as `metad-1`.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// Process id; 0 when it was stopped. A running process with this id is ours only if [`super::is_running`] says so.
    pub pid: u32,
    /// Where it serves. Never changes.
    pub address: SocketAddr,
    /// Its data.
    pub data_dir: PathBuf,
    /// Its configuration.
    pub config: PathBuf,
    /// Its log.
    pub log: PathBuf,
}

/// The whole file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterFile {
    /// Name of the cluster.
    pub cluster: String,
    /// Replicas that it was made with.
    pub replicas: u8,
    /// What a mount needs.
    pub client_bundle: PathBuf,
    /// What an operator needs.
    pub admin_bundle: PathBuf,
    /// The daemons, metads first.
    pub daemons: Vec<Daemon>,
}

impl ClusterFile {
    /// How many daemons of a kind there are.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        self.daemons.iter().filter(|daemon| daemon.kind == kind).count()
    }

    /// The daemon of that name.
    pub fn daemon(&mut self, name: &str) -> Result<&mut Daemon> {
        let names: Vec<String> = self.daemons.iter().map(|daemon| daemon.name.clone()).collect();
        let found = self.daemons.iter_mut().find(|daemon| daemon.name == name);
        found.with_context(|| format!("there is no daemon {name:?}; there are {}", names.join(", ")))
    }
}

/// Checks that a directory is this user's. In places that all may write to, such as /tmp, another user can make it first, and
/// put links there.
fn check_owner(path: &Path, owner: u32, own: u32) -> Result<()> {
    if owner != own {
        bail!("--dir {}: belongs to the user {owner}, not to {own}: choose a directory of your own", path.display());
    }
    Ok(())
}

/// The directory, locked against other commands while this lives.
pub struct DevDir {
    path: PathBuf,
    _lock: File,
}

impl DevDir {
    /// Takes the directory, which must hold a cluster unless `create`.
    pub fn take(path: &Path, create: bool) -> Result<Self> {
        if create {
            wire::durable::make_dir(path).with_context(|| format!("--dir {}: cannot be made", path.display()))?;
        } else {
            // Leaves no lock behind where there is nothing to lock.
            required(path)?;
        }
        let shown = path.display();
        let path = path.canonicalize().with_context(|| format!("{shown}: there is no such directory"))?;
        check_owner(&path, fs::metadata(&path)?.uid(), effective_uid())?;
        let lock = File::options().create(true).append(true).open(path.join("dev.lock"));
        let lock = lock.with_context(|| format!("{}: cannot be written", path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                bail!("{}: another `surf dev` works on this cluster: wait until it has ended", path.display())
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Its absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cluster in it, if there is one.
    pub fn load(&self) -> Result<Option<ClusterFile>> {
        read(&self.path)
    }

    /// The cluster in it.
    pub fn require(&self) -> Result<ClusterFile> {
        required(&self.path)
    }

    /// Replaces the file, complete or not at all.
    pub fn save(&self, cluster: &ClusterFile) -> Result<()> {
        let path = self.path.join("cluster.json");
        let text = serde_json::to_vec_pretty(cluster).with_context(|| path.display().to_string())?;
        wire::durable::replace(&path, &text).with_context(|| path.display().to_string())
    }
}

fn read(dir: &Path) -> Result<Option<ClusterFile>> {
    let path = dir.join("cluster.json");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let cluster = serde_json::from_str(&text);
    Ok(Some(cluster.with_context(|| {
        format!("{}: is damaged; restore it, or choose another --dir to begin anew", path.display())
    })?))
}

/// The cluster in `dir`, for commands that only look.
pub fn required(dir: &Path) -> Result<ClusterFile> {
    let none = || format!("{}: there is no cluster here; make one with `surf dev up`", dir.display());
    read(dir)?.with_context(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_another_user_has_made_is_refused() {
        assert!(check_owner(Path::new("x"), 0, 0).is_ok());
        let refused = check_owner(Path::new("x"), 1_000, 0).unwrap_err().to_string();
        assert!(refused.contains("belongs to the user 1000"), "{refused}");
    }
}
