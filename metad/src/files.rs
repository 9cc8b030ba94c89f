//! The owner of a data directory, and the lock by which only one process uses it.

use crate::error::Error;
use std::fs::{self, File, TryLockError};
use std::path::Path;
use wire::durable;
use wire::ids::{ClusterId, MetadId};
use wire::sys::lock_after_a_kill;

/// First line of the file that names the owner of a data directory; the number is the version of all its formats.
const OWNER: &str = "surf metad 2";
/// The beginning of the first line in every version.
const OWNER_OF_ANY_VERSION: &str = "surf metad ";

/// Holds a data directory for this process and this node.
#[derive(Debug)]
pub struct DataDir {
    _lock: File,
    /// Whether the directory was new.
    pub is_new: bool,
}

impl DataDir {
    /// Takes the directory, making it if needed.
    ///
    /// # Errors
    /// [`Error::DataDir`] when another process uses it, or it belongs to another node or cluster, or is of another version.
    pub fn take(dir: &Path, cluster: ClusterId, id: MetadId) -> Result<Self, Error> {
        let unusable = |error| Error::DataDir(format!("{}: cannot be used ({error}): check `data_dir`", dir.display()));
        durable::make_private_dir(dir).map_err(unusable)?;
        let path = dir.join("LOCK");
        let lock = File::options().create(true).truncate(false).write(true).open(&path).map_err(unusable)?;
        match lock_after_a_kill(&lock) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::DataDir(format!(
                    "{}: another metad uses this data directory: stop that one, or check `data_dir`",
                    dir.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(Error::disk(&path, error)),
        }
        let path = dir.join("IDENTITY");
        let ours = format!("{OWNER}\ncluster {cluster}\nnode {id}\n");
        let is_new = !path.exists();
        if is_new {
            durable::replace(&path, ours.as_bytes()).map_err(|error| Error::disk(&path, error))?;
        } else {
            let found = fs::read(&path).map_err(|error| Error::disk(&path, error))?;
            let found = String::from_utf8_lossy(&found);
            let version = found.lines().next().and_then(|first| first.strip_prefix(OWNER_OF_ANY_VERSION));
            if version.is_some() && found.lines().next() != Some(OWNER) {
                return Err(Error::DataDir(format!(
                    "{}: was made by another version of Surf, and stays as it is: use the release that made it, or set the \
                     cluster up anew in empty directories",
                    dir.display()
                )));
            }
            if version.is_none() {
                return Err(Error::DataDir(format!("{}: does not name a metad: restore it", path.display())));
            }
            if found != ours {
                return Err(Error::DataDir(format!(
                    "{}: belongs to another node ({}), not to metad {id} of cluster {cluster}: check `data_dir`",
                    dir.display(),
                    found.lines().skip(1).collect::<Vec<_>>().join(", ")
                )));
            }
        }
        Ok(Self { _lock: lock, is_new })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_of_another_version_is_refused_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (cluster, path) = (ClusterId([1; 16]), dir.path().join("IDENTITY"));
        drop(DataDir::take(dir.path(), cluster, MetadId(1)).unwrap());
        let ours = fs::read_to_string(&path).unwrap();
        for version in ["surf metad 1", "surf metad 3", "surf metad 22"] {
            let theirs = ours.replace(OWNER, version);
            fs::write(&path, &theirs).unwrap();
            let error = DataDir::take(dir.path(), cluster, MetadId(1)).unwrap_err().to_string();
            assert!(error.contains("was made by another version") && error.contains("anew"), "{version}: {error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), theirs);
        }
        fs::write(&path, "nonsense").unwrap();
        let error = DataDir::take(dir.path(), cluster, MetadId(1)).unwrap_err().to_string();
        assert!(error.contains("restore it"), "{error}");
    }

    #[test]
    fn a_data_directory_belongs_to_one_node_and_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let (cluster, other) = (ClusterId([1; 16]), ClusterId([2; 16]));
        let held = DataDir::take(dir.path(), cluster, MetadId(1)).unwrap();
        assert!(held.is_new);
        let error = DataDir::take(dir.path(), cluster, MetadId(1)).unwrap_err().to_string();
        assert!(error.contains("another metad uses"), "{error}");
        drop(held);
        assert!(!DataDir::take(dir.path(), cluster, MetadId(1)).unwrap().is_new);
        for (cluster, id) in [(other, 1), (cluster, 2)] {
            let error = DataDir::take(dir.path(), cluster, MetadId(id)).unwrap_err().to_string();
            assert!(error.contains("belongs to another node"), "{error}");
        }
    }
}
