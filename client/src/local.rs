//! A mount's own directory on the disk of its machine: for the cache of blocks, and whatever else is the mount's alone.
//!
//! ```text
//! BASE/CLUSTER-MOUNT/    cluster's id, and a hash of the mount point: the same mount finds its own again
//!     lock               held as long as a process uses the directory
//!     owner              whose it is, as text
//! ```
//! Two clusters never share one, whatever they are called, nor do two mounts. Another identity of the same cluster is
//! refused: what lies here was read, or is to be written, with the rights of the first one.

use crate::Error;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wire::bundle::Bundle;
use wire::sys::lock_of_the_living;

/// First line of the file that says whose a directory is; the number is the version of what lies in it.
const OWNER: &str = "surf client 1";
/// What the first line of every version begins with.
const OWNER_OF_ANY_VERSION: &str = "surf client ";
/// `umount` returns before the mount's process has ended, which stores what is under way first: whoever mounts again at
/// once waits so long for it.
const ENDING: Duration = Duration::from_secs(5);
/// Digits of the hash that stands for the mount point.
const MOUNT_DIGITS: usize = 16;

/// A directory that is this mount's alone while this lives.
#[derive(Debug)]
pub struct LocalDir {
    path: PathBuf,
    _lock: File,
}

impl LocalDir {
    /// Takes the directory below `base` of the mount `purpose` of this cluster, making both if needed, readable by their
    /// owner alone. Blocks, some seconds for a mount that is ending: not for a runtime thread.
    ///
    /// # Errors
    /// [`Error::LocalInUse`], [`Error::LocalForeign`], or [`Error::Local`] when the disk refuses.
    pub fn open(base: &Path, bundle: &Bundle, purpose: &str) -> Result<Self, Error> {
        let path = base.join(dir_name(bundle, purpose));
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed(&path))?;
        // Also one that somebody else has made is ours alone from now on, or cannot be used.
        fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(failed(&path))?;
        let lock = lock(&path)?;
        let owner = Owner::of(bundle, purpose);
        match fs::read(path.join("owner")) {
            Ok(found) => owner.check(&path, &String::from_utf8_lossy(&found))?,
            Err(error) if error.kind() == ErrorKind::NotFound => owner.write(&path).map_err(failed(&path))?,
            Err(error) => return Err(failed(&path.join("owner"))(error)),
        }
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Local { path, source }
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
        match lock_of_the_living(&file) {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if started.elapsed() < ENDING => {}
            Err(TryLockError::WouldBlock) => return Err(Error::LocalInUse { dir: dir.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(failed(&path)(error)),
        }
    }
}

/// What the file `owner` says.
struct Owner {
    /// One line for a person.
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

    fn check(&self, dir: &Path, found: &str) -> Result<(), Error> {
        if found == self.text {
            return Ok(());
        }
        let owner = if found.starts_with(&format!("{OWNER}\n")) {
            words(found)
        } else if found.starts_with(OWNER_OF_ANY_VERSION) {
            "another version of Surf".to_owned()
        } else {
            "nobody that its file `owner` names".to_owned()
        };
        Err(Error::LocalForeign { dir: dir.to_owned(), owner, me: self.words.clone() })
    }

    /// Durable on return: what is kept here later must not outlive the knowledge whose it is.
    fn write(&self, dir: &Path) -> io::Result<()> {
        let (path, partial) = (dir.join("owner"), dir.join("owner.partial"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(self.text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, &path)?;
        File::open(dir)?.sync_all()
    }
}

/// The lines of `owner` after the first one, in one line.
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
        let error = LocalDir::open(&base, &bundle(&ca, "two"), "/mnt").unwrap_err();
        assert!(matches!(error, Error::LocalForeign { .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains("client \"one\"") && said.contains("client \"two\"") && !said.contains('\n'), "{said}");
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
        for (text, said) in [("surf client 2\nx", "another version"), ("", "nobody"), (&owner[..20], "belongs to")] {
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
