//! A disk with a volatile write cache, as a FUSE file system: when the power fails, it forgets, tears and reorders
//! whatever was not synced.
//!
//! Daemons have their data directories on it. [`VolatileDisk::power_loss`] draws one of the states that a crash may
//! leave: everything that was synced is there. Each other sector has any of the contents that it had since the file's
//! last sync, lengths are any of those that the file had, and changes of names that were not synced happened or not, as
//! [`NameModel`] says. A sync makes durable what POSIX wants and nothing more, and costs nothing: the disk below is
//! never synced, so rounds are fast. [`VolatileDisk::slow_down`] makes it a slow disk.
//!
//! The file system is served by threads of the test's own process, which must not use it through the kernel: a killed
//! process waits for such a use, and nobody would answer it.

mod entries;
mod sectors;
mod serve;
#[cfg(test)]
mod tests;
mod volume;

pub use entries::NameModel;
pub use volume::Stake;

use crate::mounts::{abort, device_of, is_mounted};
use crate::watchdog::Watchdog;
use fuser::{BackgroundSession, Config, MountOption, Session};
use serve::{Served, lock};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use volume::Volume;

/// Threads that answer the kernel.
const EVENT_LOOPS: usize = 2;

/// A mounted disk. Dropping it unmounts; its files stay in the backing directory.
pub struct VolatileDisk {
    path: PathBuf,
    volume: Arc<Mutex<Volume>>,
    sync_ms: Arc<AtomicU64>,
    session: Option<BackgroundSession>,
    watchdog: Option<Watchdog>,
}

/// Returns a script that ends a connection. Nothing else helps when the test is killed while a thread of it waits for a
/// mount whose process waits for this disk: the test's end of the connection stays open as long as the thread waits.
fn end_connection(minor: u32, path: &Path) -> String {
    format!(
        "ctl=$(mktemp -d) && mount -t fusectl none $ctl && echo 1 > $ctl/{minor}/abort; umount -l '{}'; umount $ctl; rmdir $ctl",
        path.display()
    )
}

impl VolatileDisk {
    /// Mounts an empty disk at a directory, which is made if it is not there. The contents lie in files below
    /// `backing`, an empty directory that is made, too.
    ///
    /// # Errors
    /// When a directory cannot be made, or FUSE is not available.
    pub fn mount(path: &Path, backing: &Path, model: NameModel) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        fs::create_dir_all(backing)?;
        let volume = Arc::new(Mutex::new(Volume::new(backing, model)));
        let mut disk = Self { path: path.to_owned(), volume, sync_ms: Arc::default(), session: None, watchdog: None };
        disk.attach()?;
        Ok(disk)
    }

    fn attach(&mut self) -> io::Result<()> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("volatile-disk".to_owned()), MountOption::DefaultPermissions];
        config.n_threads = Some(EVENT_LOOPS);
        config.clone_fd = true;
        let served = Served { volume: self.volume.clone(), sync_ms: self.sync_ms.clone() };
        let session = Session::new(served, &self.path, &config)?;
        self.watchdog = device_of(&self.path).map(|minor| Watchdog::new(&end_connection(minor, &self.path)));
        self.session = Some(session.spawn()?);
        Ok(())
    }

    fn detach(&mut self) {
        // Every request that the kernel still has ends with an error, and so do the threads.
        abort(&self.path);
        if let Some(session) = self.session.take() {
            // An aborted connection ends with an error or without one.
            let _ = session.join();
        }
        self.watchdog = None;
    }

    /// Lets each sync take so much longer from now on.
    pub fn slow_down(&self, by: Duration) {
        self.sync_ms.store(by.as_millis() as u64, Ordering::Relaxed);
    }

    /// Loses the power and comes back: the disk has one of the states that are possible, as the seed decides, and is
    /// mounted again. No process may use it meanwhile. Returns what was at stake.
    ///
    /// # Errors
    /// When the backing directory fails, or the disk cannot be mounted again.
    pub fn power_loss(&mut self, seed: u64) -> io::Result<Stake> {
        self.detach();
        let stake = lock(&self.volume).lose(seed)?;
        self.attach()?;
        Ok(stake)
    }

    /// Changes all files of this name, whichever directory they are in, and syncs them. The mount must not have cached
    /// them: call this after [`VolatileDisk::power_loss`].
    ///
    /// # Errors
    /// When the backing directory fails.
    pub fn edit(&self, name: &str, change: impl Fn(&str) -> String) -> io::Result<()> {
        let mut volume = lock(&self.volume);
        for ino in volume.find(OsStr::new(name)) {
            let len = volume.node(ino)?.size();
            let text = volume.read(ino, 0, len as usize)?;
            let changed = change(&String::from_utf8_lossy(&text));
            volume.resize(ino, changed.len() as u64)?;
            volume.write(ino, 0, changed.as_bytes())?;
            volume.sync(ino)?;
        }
        Ok(())
    }

    /// Whether the disk is mounted.
    #[must_use]
    pub fn is_mounted(&self) -> bool {
        is_mounted(&self.path)
    }
}

impl Drop for VolatileDisk {
    fn drop(&mut self) {
        self.detach();
    }
}
