//! Space that is allocated behind the end of sled's file.
//!
//! To sled, a write that fails for lack of space is the end: it accepts nothing more until it is opened anew. So before each
//! batch more space is allocated than the batch can take, and this is what waits when the disk is full. What is allocated
//! does not change the file's length, so sled does not know of it.

use crate::reserve::{Reserve, is_out_of_space};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use wire::sys::allocate_ahead;

/// What waits for room, for people.
pub(super) const WHAT: &str = "the state";
/// Space in any case: what sled gathers before it writes, and what it moves while it compacts.
const AHEAD_BYTES_MIN: u64 = 8 << 20;
/// The most that is allocated.
const AHEAD_BYTES_MAX: u64 = 64 << 20;
/// How much more than its batches sled writes: it writes whole nodes now and then, and moves them later.
const BYTES_PER_BYTE: u64 = 4;
/// What a change of a key costs beside its bytes.
const BYTES_PER_KEY: u64 = 1 << 10;

/// The file that grows.
pub(super) struct Ahead {
    file: File,
    reserve: Arc<Reserve>,
    /// A write was given up, because the node stops. Later ones would leave a gap: none is made.
    is_given_up: AtomicBool,
}

fn path_in(sled: &Path) -> PathBuf {
    sled.join("db")
}

/// Allocates what opening takes, and removes what an opening that found no room has left.
pub(super) fn prepare(sled: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(sled) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "generating") {
            fs::remove_file(path)?;
        }
    }
    match File::options().write(true).open(path_in(sled)) {
        Ok(file) => allocate_ahead(&file, file.metadata()?.len(), AHEAD_BYTES_MIN).map(|_| ()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

impl Ahead {
    /// Opens the file of a database that is open.
    pub(super) fn of(sled: &Path, reserve: &Arc<Reserve>) -> io::Result<Self> {
        let file = File::options().write(true).open(path_in(sled))?;
        Ok(Self { file, reserve: reserve.clone(), is_given_up: AtomicBool::new(false) })
    }

    pub(super) fn reserve(&self) -> &Arc<Reserve> {
        &self.reserve
    }

    /// Allocates what a batch of so many bytes and keys may take. Waits while the disk is full. Returns false when the
    /// node stops: the batch is then not to be written, and no later one. Where space cannot be allocated, or the disk
    /// fails, the write itself tells.
    pub(super) fn secure(&self, bytes: u64, keys: u64) -> bool {
        let needed = AHEAD_BYTES_MIN
            .saturating_add(bytes.saturating_mul(BYTES_PER_BYTE))
            .saturating_add(keys.saturating_mul(BYTES_PER_KEY))
            .min(AHEAD_BYTES_MAX);
        while !self.is_given_up.load(Ordering::Relaxed) {
            let allocated = self.file.metadata().and_then(|found| allocate_ahead(&self.file, found.len(), needed));
            match allocated {
                Err(error) if is_out_of_space(&error) => {
                    if !self.reserve.await_space(WHAT) {
                        self.is_given_up.store(true, Ordering::Relaxed);
                    }
                }
                Ok(_) | Err(_) => return true,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn space_is_allocated_behind_the_end_until_the_node_stops_for_lack_of_it() {
        let dir = tempfile::tempdir().unwrap();
        prepare(&dir.path().join("nothing")).unwrap();
        let (db, leftover) = (dir.path().join("db"), dir.path().join("snap.01.generating"));
        fs::write(&db, b"content").unwrap();
        fs::write(&leftover, b"half").unwrap();
        prepare(dir.path()).unwrap();
        assert!(!leftover.exists());
        let ahead = Ahead::of(dir.path(), &Reserve::none(dir.path())).unwrap();
        assert!(ahead.secure(AHEAD_BYTES_MIN, 0));
        let found = fs::metadata(&db).unwrap();
        assert_eq!(found.len(), 7);
        // A filesystem that cannot allocate has nothing there.
        assert!(found.blocks() * 512 > 5 * AHEAD_BYTES_MIN || found.blocks() * 512 < AHEAD_BYTES_MIN);
        ahead.is_given_up.store(true, Ordering::Relaxed);
        assert!(!ahead.secure(0, 0), "a write that comes after one that was given up would leave a gap");
    }
}
