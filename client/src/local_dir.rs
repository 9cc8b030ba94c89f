//! A mount's own directory on the local disk, for the journal and the cache of blocks.
//!
//! ```text
//! BASE/CLUSTER-MOUNT/    cluster's id, and a hash of the mount point: the same mount finds its directory again
//!     lock               locked as long as a process uses the directory
//!     owner              the owner of the directory, as text
//!     journal/           operations that are not acknowledged yet (`journal`)
//!     blocks/            cached blocks (`block::disk`)
//! ```
//! Two clusters never share a directory, whatever their names, nor do two mounts. Another identity of the same cluster
//! is refused: the content was read, or is to be written, with the rights of the first one.

pub(crate) mod set_aside;

use crate::{ClientConfig, Error};
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::spawn_blocking;
use wire::bundle::Bundle;
use wire::durable;
use wire::sys::lock_after_a_kill;

/// First line of the file that names a directory's owner; the number is the version of the directory's format.
const OWNER: &str = "surf client 4";
/// The beginning of the first line in every version.
const OWNER_OF_ANY_VERSION: &str = "surf client ";
/// `umount` returns before the mount's process has ended, which stores its content first: a mount that follows at once
/// waits this long for it. When servers are away, the process gives up what it cannot store after some ten seconds.
const ENDING_LIMIT: Duration = Duration::from_secs(15);
/// If a directory cannot be opened in this time, including the wait for another mount's end, its disk hangs.
const OPEN_LIMIT: Duration = Duration::from_secs(25);
/// Folder of the journal in use.
pub(crate) const JOURNAL: &str = "journal";
/// Folders with content that only the owner may read.
const OWNERS_FOLDERS: [&str; 2] = [JOURNAL, "blocks"];
/// Digits of the hash that stands for the mount point.
const MOUNT_DIGITS: usize = 16;

/// A directory that belongs to this mount alone while this value lives.
#[derive(Debug)]
pub struct LocalDir {
    path: PathBuf,
    _lock: File,
}

impl LocalDir {
    /// Opens the directory that this configuration asks for, if any. If the disk fails or hangs, the mount goes on
    /// without it, with a warning. A directory that belongs to another mount, or cannot be identified, is an error.
    ///
    /// # Errors
    /// As [`LocalDir::open`].
    pub(crate) async fn of(config: &ClientConfig) -> Result<Option<Arc<Self>>, Error> {
        let wanted = config.disk_cache_bytes > 0 || config.journal;
        let Some(base) = config.cache_dir.clone().filter(|_| wanted) else { return Ok(None) };
        let key = config.cache_key.as_ref().unwrap_or(&config.purpose).clone();
        let (bundle, path) = (config.bundle.clone(), base.clone());
        let opening = spawn_blocking(move || Self::open(&path, &bundle, &key));
        let error = match tokio::time::timeout(OPEN_LIMIT, opening).await {
            Ok(Ok(Ok(local))) => return Ok(Some(Arc::new(local))),
            Ok(Ok(Err(Error::Local { path, source }))) if config.cache_dir_is_default || !is_mistake(&source) => {
                io::Error::new(source.kind(), format!("{}: {source}", path.display()))
            }
            Ok(Ok(Err(error))) => return Err(error),
            Ok(Err(ended)) => io::Error::other(ended),
            Err(_) => ErrorKind::TimedOut.into(),
        };
        tracing::warn!(
            path = %base.display(), %error,
            "the cache directory cannot be used: mounting without it, so that what is done in the last moments before this \
             process is killed is lost unless it was synced"
        );
        Ok(None)
    }

    /// Opens the directory below `base` of the mount `purpose` of this cluster. Creates both if needed, readable by
    /// their owner alone. Blocks, for some seconds if another mount is ending: not for a runtime thread.
    ///
    /// # Errors
    /// [`Error::LocalInUse`], [`Error::LocalForeign`], or [`Error::Local`] when the disk refuses.
    pub fn open(base: &Path, bundle: &Bundle, purpose: &str) -> Result<Self, Error> {
        let path = base.join(dir_name(bundle, purpose));
        durable::make_dir(&path).map_err(failed(&path))?;
        // Even a directory that somebody else has made is ours alone from now on, or cannot be used.
        fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(failed(&path))?;
        let lock = lock(&path)?;
        let owner = Owner::of(bundle, purpose);
        match fs::read(path.join("owner")) {
            Ok(found) => {
                let found = String::from_utf8_lossy(&found);
                if owner.takes_over(&path, &found) {
                    match fs::remove_file(path.join("journal/id")) {
                        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(&path)(error)),
                        _ => {}
                    }
                    owner.write(&path).map_err(failed(&path))?;
                } else {
                    owner.check(&path, &found)?;
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => owner.write(&path).map_err(failed(&path))?,
            Err(error) => return Err(failed(&path.join("owner"))(error)),
        }
        Ok(Self { path, _lock: lock })
    }

    /// Returns where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Local { path, source }
}

/// Returns whether another directory would help, rather than another disk.
fn is_mistake(error: &io::Error) -> bool {
    use ErrorKind::{AlreadyExists, InvalidFilename, InvalidInput, NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), AlreadyExists | InvalidFilename | InvalidInput | NotADirectory | NotFound | PermissionDenied)
}

fn dir_name(bundle: &Bundle, purpose: &str) -> String {
    let mount = blake3::hash(purpose.as_bytes()).to_hex();
    format!("{}-{}", bundle.identity.cluster_id(), &mount[..MOUNT_DIGITS])
}

fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = opened.map_err(failed(&path))?;
    let started = Instant::now();
    loop {
        match lock_after_a_kill(&file) {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if started.elapsed() < ENDING_LIMIT => {}
            Err(TryLockError::WouldBlock) => return Err(Error::LocalInUse { dir: dir.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(failed(&path)(error)),
        }
    }
}

/// The content of the file `owner`.
struct Owner {
    /// The owner in one line, for messages.
    words: String,
    text: String,
}

impl Owner {
    fn of(bundle: &Bundle, purpose: &str) -> Self {
        let (cluster, name) = (bundle.identity.cluster_id(), &bundle.identity.subject().name);
        // Quoted: a mount point may hold any character but NUL, a line break included.
        let text = format!("{OWNER}\ncluster {cluster}\nclient {name:?}\nmount {purpose:?}\n");
        Self { words: words(&text), text }
    }

    /// Returns whether the directory belongs to another owner, in this version's format, who has left nothing here.
    fn takes_over(&self, dir: &Path, found: &str) -> bool {
        // A journal's number alone is of no use to anybody.
        let is_left =
            |file: io::Result<fs::DirEntry>| file.is_ok_and(|file| file.file_name().as_bytes().starts_with(b"id"));
        let is_empty = |folder: &&str| {
            fs::read_dir(dir.join(folder))
                .map_or_else(|error| error.kind() == ErrorKind::NotFound, |mut files| files.all(is_left))
        };
        let nothing_is_set_aside = || set_aside::list(dir).is_ok_and(|folders| folders.is_empty());
        let is_same_version = found.starts_with(&format!("{OWNER}\n"));
        found != self.text && is_same_version && OWNERS_FOLDERS.iter().all(is_empty) && nothing_is_set_aside()
    }

    fn check(&self, dir: &Path, found: &str) -> Result<(), Error> {
        if found == self.text {
            return Ok(());
        }
        let owner = if found.starts_with(&format!("{OWNER}\n")) {
            words(found)
        } else if found.starts_with(OWNER_OF_ANY_VERSION) {
            "another version of Surf, which alone can send what is left in it".to_owned()
        } else {
            "nobody that its file `owner` names".to_owned()
        };
        Err(Error::LocalForeign { dir: dir.to_owned(), owner, me: self.words.clone() })
    }

    /// Writes the file. It is durable on return: content that is stored here later must not outlive the name of its
    /// owner.
    fn write(&self, dir: &Path) -> io::Result<()> {
        durable::replace(&dir.join("owner"), self.text.as_bytes())
    }
}

/// Returns the lines of `owner` after the first one, in one line.
fn words(text: &str) -> String {
    text.lines().skip(1).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::bundle;
    use wire::tls::ClusterCa;

    #[test]
    fn a_directory_belongs_to_one_mount_of_one_cluster_by_one_identity() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().join("not/there/yet");
        let (ca, other) = (ClusterCa::create("t").unwrap(), ClusterCa::create("t").unwrap());
        let held = LocalDir::open(&base, &bundle(&ca, "one"), "/mnt").unwrap();
        let path = held.path().to_owned();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        for (bundle, mount) in [(bundle(&ca, "one"), "/mnt2"), (bundle(&other, "one"), "/mnt")] {
            assert_ne!(LocalDir::open(&base, &bundle, mount).unwrap().path(), path);
        }
        let error = LocalDir::open(&base, &bundle(&ca, "one"), "/mnt").unwrap_err();
        assert!(matches!(error, Error::LocalInUse { .. }), "{error}");
        drop(held);
        assert_eq!(LocalDir::open(&base, &bundle(&ca, "one"), "/mnt").unwrap().path(), path);
        fs::create_dir(path.join("journal")).unwrap();
        fs::write(path.join("journal/1"), "").unwrap();
        let error = LocalDir::open(&base, &bundle(&ca, "two"), "/mnt").unwrap_err();
        assert!(matches!(error, Error::LocalForeign { .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains("client \"one\"") && said.contains("client \"two\"") && !said.contains('\n'), "{said}");
        fs::rename(path.join("journal/1"), path.join("journal/id")).unwrap();
        fs::create_dir(path.join("journal.kept-1")).unwrap();
        let error = LocalDir::open(&base, &bundle(&ca, "two"), "/mnt").unwrap_err();
        assert!(
            matches!(error, Error::LocalForeign { .. }),
            "a journal set aside is sent with its own client's rights: {error}"
        );
        fs::remove_dir(path.join("journal.kept-1")).unwrap();
        LocalDir::open(&base, &bundle(&ca, "two"), "/mnt").expect("the other one has left nothing here");
        assert!(!path.join("journal/id").exists());
    }

    #[test]
    fn a_mount_that_is_ending_is_waited_for() {
        let base = tempfile::tempdir().unwrap();
        let bundle = bundle(&ClusterCa::create("t").unwrap(), "one");
        let ending = LocalDir::open(base.path(), &bundle, "/mnt").unwrap();
        let ends = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(1500));
            drop(ending);
        });
        LocalDir::open(base.path(), &bundle, "/mnt").unwrap();
        ends.join().unwrap();
    }

    #[test]
    fn a_directory_of_another_version_or_of_nobody_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let bundle = bundle(&ClusterCa::create("t").unwrap(), "one");
        let path = LocalDir::open(base.path(), &bundle, "/a\nb").unwrap().path().to_owned();
        let owner = fs::read_to_string(path.join("owner")).unwrap();
        assert_eq!(owner.lines().count(), 4, "{owner}");
        fs::create_dir(path.join("blocks")).unwrap();
        fs::write(path.join("blocks/1"), "").unwrap();
        for (text, said) in [("surf client 1\nx", "another version"), ("", "nobody"), (&owner[..20], "belongs to")] {
            fs::write(path.join("owner"), text).unwrap();
            let error = LocalDir::open(base.path(), &bundle, "/a\nb").unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_place_that_cannot_be_used_is_named() {
        let base = tempfile::tempdir().unwrap();
        let file = base.path().join("file");
        fs::write(&file, "").unwrap();
        let bundle = bundle(&ClusterCa::create("t").unwrap(), "one");
        let error = LocalDir::open(&file, &bundle, "/mnt").unwrap_err();
        assert!(matches!(error, Error::Local { .. }) && error.to_string().contains("/file"), "{error}");
    }
}
