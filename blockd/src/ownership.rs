//! The owner of a data directory: the daemon's random id, and the cluster and name that it was made for.
//!
//! `blockd.id` is written once, before the first block. A directory that was made for another daemon or cluster is
//! refused: its blocks would be reported under the wrong id, and could be dropped. `blockd.lock` is held as long as the
//! daemon runs.

use crate::Error;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;
use wire::durable;
use wire::ids::{BlockdId, ClusterId};
use wire::sys::lock_after_a_kill;
use wire::tls::Identity;

/// A data directory that this process owns.
#[derive(Debug)]
pub struct Ownership {
    /// This daemon.
    pub id: BlockdId,
    _lock: File,
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

fn unusable(dir: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let dir = dir.to_owned();
    move |source| Error::UnusableDirectory { dir, source }
}

impl Ownership {
    /// Takes a directory into possession, which is made if it does not exist. Durable on return.
    ///
    /// # Errors
    /// [`Error::ForeignDirectory`], [`Error::DirectoryInUse`], or why its files cannot be used.
    pub fn take(dir: &Path, identity: &Identity) -> Result<Self, Error> {
        durable::make_private_dir(dir).map_err(unusable(dir))?;
        let lock = lock(dir)?;
        let (cluster, name) = (identity.cluster_id(), identity.subject().name.as_str());
        let path = dir.join("blockd.id");
        let id = match fs::read(&path) {
            Ok(bytes) => check(dir, &path, &String::from_utf8_lossy(&bytes), cluster, name)?,
            Err(error) if error.kind() == ErrorKind::NotFound => create(&path, cluster, name)?,
            Err(error) => return Err(io_error(&path)(error)),
        };
        Ok(Self { id, _lock: lock })
    }
}

fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("blockd.lock");
    let file = File::create(&path).map_err(unusable(dir))?;
    match lock_after_a_kill(&file) {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::DirectoryInUse { dir: dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(io_error(&path)(error)),
    }
}

fn check(dir: &Path, path: &Path, text: &str, cluster: ClusterId, name: &str) -> Result<BlockdId, Error> {
    let damaged = || Error::Damaged { path: path.to_owned(), reason: "does not name a daemon: restore it".to_owned() };
    let mut words = text.trim_end().splitn(3, ' ');
    let (Some(id), Some(owning), Some(owner)) = (words.next(), words.next(), words.next()) else {
        return Err(damaged());
    };
    let id: BlockdId = id.parse().map_err(|_| damaged())?;
    let owning: ClusterId = owning.parse().map_err(|_| damaged())?;
    if owning != cluster || owner != name {
        let owner = format!("{owner} of cluster {owning}");
        return Err(Error::ForeignDirectory { dir: dir.to_owned(), owner, me: format!("{name} of cluster {cluster}") });
    }
    Ok(id)
}

fn create(path: &Path, cluster: ClusterId, name: &str) -> Result<BlockdId, Error> {
    let id = BlockdId(rand::random());
    durable::replace(path, format!("{id} {cluster} {name}\n").as_bytes()).map_err(io_error(path))?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::tls::{ClusterCa, Role, Subject};

    #[test]
    fn a_directory_keeps_its_id_and_refuses_other_daemons() {
        let dir = tempfile::tempdir().unwrap();
        let ca = ClusterCa::create("t").unwrap();
        let identity = |name| ca.issue(&Subject::new(Role::Blockd, name)).unwrap();
        let first = Ownership::take(dir.path(), &identity("b1")).unwrap();
        assert!(matches!(Ownership::take(dir.path(), &identity("b1")), Err(Error::DirectoryInUse { .. })));
        let id = first.id;
        drop(first);
        assert_eq!(Ownership::take(dir.path(), &identity("b1")).unwrap().id, id);
        let error = Ownership::take(dir.path(), &identity("b2")).unwrap_err();
        assert!(error.to_string().contains("belongs to b1 of cluster"), "{error}");
        let other = ClusterCa::create("t").unwrap().issue(&Subject::new(Role::Blockd, "b1")).unwrap();
        assert!(matches!(Ownership::take(dir.path(), &other), Err(Error::ForeignDirectory { .. })));
    }
}
