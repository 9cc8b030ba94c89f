//! Content of writes that wait: for room in the window, for another mount's changes, or for servers that are away.
//!
//! The kernel hands a write over with its content, up to a megabyte, and hands over as many writes as programs have
//! threads. The window does not count what it has not taken yet. So what waits has a budget of its own in memory. What
//! comes beyond goes into a file without a name in the mount's cache directory, and is read back when the write's turn
//! has come, at the cost of the window. The event loop copies the bytes in either case, into memory or into the page
//! cache of the local disk: it waits for nobody.
//!
//! Deadlock: nothing here is waited for. A write that finds the budget used up goes to the file at once, so other
//! requests (reads, `fsync`, `close`, what recalls need) are taken from the kernel as ever. A write holds its part until
//! it ends, and waits meanwhile for the client alone, which knows nothing of budget and file.

use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use wire::FsError;

/// Bytes of content that waits in memory.
const HELD_BYTES_MAX: usize = 32 << 20;
/// Places in the file begin at multiples of this: the longest write.
pub(crate) const PLACE_BYTES: u64 = 1 << 20;

/// Takes the content of writes that have to wait.
pub(crate) struct Payloads {
    /// Room in memory, in KiB.
    room: Arc<Semaphore>,
    overflow: Option<Arc<Overflow>>,
}

/// Content of a write that waits.
pub(crate) enum Payload {
    /// In memory, with its part of the budget.
    Held(Vec<u8>, Option<OwnedSemaphorePermit>),
    /// In the file.
    Stored { place: Place, len: usize },
}

/// Content that a write is about to use.
pub(crate) struct Content {
    bytes: Vec<u8>,
    _held: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Content {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Payloads {
    /// What does not fit into memory goes into a file in this directory, if there is one and its disk allows that.
    pub(crate) fn new(dir: Option<&Path>) -> Self {
        Self::with(HELD_BYTES_MAX, dir)
    }

    fn with(held_bytes_max: usize, dir: Option<&Path>) -> Self {
        let overflow = dir.and_then(|dir| {
            let opened = Overflow::open(dir);
            let warn = |error: &io::Error| {
                tracing::warn!(dir = %dir.display(), %error, "content of writes that wait stays in memory, whatever it takes");
            };
            opened.inspect_err(warn).ok()
        });
        Self { room: Arc::new(Semaphore::new(held_bytes_max >> 10)), overflow: overflow.map(Arc::new) }
    }

    /// Takes the content of a write. What fits neither into the budget nor on the local disk is in memory all the same:
    /// the kernel has handed it over.
    pub(crate) fn take(&self, data: &[u8]) -> Payload {
        let kib = u32::try_from(data.len().div_ceil(1 << 10)).unwrap_or(u32::MAX);
        if let Ok(held) = self.room.clone().try_acquire_many_owned(kib) {
            return Payload::Held(data.to_vec(), Some(held));
        }
        match self.overflow.as_ref().and_then(|overflow| overflow.store(data)) {
            Some(place) => Payload::Stored { place, len: data.len() },
            None => Payload::Held(data.to_vec(), None),
        }
    }
}

impl Payload {
    /// Number of bytes.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Held(bytes, _) => bytes.len(),
            Self::Stored { len, .. } => *len,
        }
    }

    /// The bytes. Cancel-safe.
    ///
    /// # Errors
    /// `Io` when the local disk does not give them back.
    pub(crate) async fn content(self) -> Result<Content, FsError> {
        match self {
            Self::Held(bytes, held) => Ok(Content { bytes, _held: held }),
            Self::Stored { place, len } => {
                let read = spawn_blocking(move || place.read(len)).await.map_err(|_| FsError::Io)?;
                let bytes = read.map_err(|error| {
                    tracing::error!(%error, "content of a write that waited on the local disk cannot be read");
                    FsError::Io
                })?;
                Ok(Content { bytes, _held: None })
            }
        }
    }
}

/// The file. It has no name, so it is gone with the process.
struct Overflow {
    file: File,
    places: Mutex<Places>,
    /// The disk has refused something, which was logged.
    has_failed: AtomicBool,
}

/// Which places of the file are in use: all below `end` that are not free.
#[derive(Default)]
struct Places {
    free: BTreeSet<u64>,
    end: u64,
}

impl Places {
    fn take(&mut self) -> u64 {
        self.free.pop_first().unwrap_or_else(|| {
            self.end += 1;
            self.end - 1
        })
    }

    /// Gives a place back. Returns the number of places that the file must still have.
    fn give_back(&mut self, place: u64) -> u64 {
        self.free.insert(place);
        while self.end > 0 && self.free.remove(&(self.end - 1)) {
            self.end -= 1;
        }
        self.end
    }
}

/// A place in the file, given back when this is dropped.
pub(crate) struct Place {
    overflow: Arc<Overflow>,
    number: u64,
}

impl Overflow {
    fn open(dir: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        let file = match options.clone().custom_flags(libc::O_TMPFILE).open(dir) {
            Ok(file) => file,
            // Not every filesystem has files without names.
            Err(_) => {
                let path = dir.join(format!("waiting-{}", std::process::id()));
                let file = options.create_new(true).open(&path)?;
                std::fs::remove_file(&path)?;
                file
            }
        };
        Ok(Self { file, places: Mutex::default(), has_failed: AtomicBool::new(false) })
    }

    fn store(self: &Arc<Self>, data: &[u8]) -> Option<Place> {
        if data.len() as u64 > PLACE_BYTES {
            return None;
        }
        let number = self.places.lock().take();
        let place = Place { overflow: self.clone(), number };
        match self.file.write_all_at(data, number * PLACE_BYTES) {
            Ok(()) => Some(place),
            Err(error) => {
                if !self.has_failed.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "content of writes that wait has no room on the local disk, and stays in memory");
                }
                None
            }
        }
    }
}

impl Place {
    fn read(&self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.overflow.file.read_exact_at(&mut bytes, self.number * PLACE_BYTES)?;
        Ok(bytes)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Under the lock: a place that is taken meanwhile must not be cut off.
        let mut places = self.overflow.places.lock();
        let before = places.end;
        let left = places.give_back(self.number);
        if left < before
            && let Err(error) = self.overflow.file.set_len(left * PLACE_BYTES)
        {
            tracing::debug!(%error, "the local disk keeps the space of content that has waited");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(number: u8, len: usize) -> Vec<u8> {
        vec![number; len]
    }

    #[tokio::test]
    async fn what_fits_into_the_budget_is_in_memory_and_what_does_not_is_in_the_file_until_it_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let payloads = Payloads::with(2 << 20, Some(dir.path()));
        let taken: Vec<Payload> = (0..20).map(|number| payloads.take(&content(number, 1 << 20))).collect();
        let in_memory = taken.iter().filter(|payload| matches!(payload, Payload::Held(..))).count();
        assert_eq!(in_memory, 2);
        let overflow = payloads.overflow.as_ref().unwrap();
        assert_eq!(overflow.file.metadata().unwrap().len(), 18 << 20);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nobody finds it");
        for (number, payload) in (0..20).zip(taken) {
            assert_eq!(payload.len(), 1 << 20);
            assert!(payload.content().await.unwrap().as_ref() == content(number, 1 << 20));
        }
        assert_eq!(overflow.file.metadata().unwrap().len(), 0, "the disk gets its space back");
        assert!(matches!(payloads.take(&content(1, 2 << 20)), Payload::Held(_, Some(_))), "the budget is whole again");
    }

    #[tokio::test]
    async fn places_are_used_again_and_no_content_is_mixed_up() {
        let dir = tempfile::tempdir().unwrap();
        let payloads = Payloads::with(0, Some(dir.path()));
        let mut taken: Vec<(u8, Payload)> =
            (0..10).map(|number| (number, payloads.take(&content(number, 5000)))).collect();
        for number in 10..60 {
            // From all sides, so that the file has holes.
            let (old, payload) = taken.remove(usize::from(number) * 7 % taken.len());
            assert!(payload.content().await.unwrap().as_ref() == content(old, 5000));
            taken.push((number, payloads.take(&content(number, 5000))));
        }
        assert!(payloads.overflow.as_ref().unwrap().places.lock().end <= 10);
        for (number, payload) in taken {
            assert!(payload.content().await.unwrap().as_ref() == content(number, 5000));
        }
    }

    #[tokio::test]
    async fn without_a_directory_or_room_on_its_disk_nothing_is_lost() {
        let payloads = Payloads::with(1 << 20, None);
        let taken: Vec<Payload> = (0..5).map(|number| payloads.take(&content(number, 1 << 20))).collect();
        for (number, payload) in (0..5).zip(taken) {
            assert!(payload.content().await.unwrap().as_ref() == content(number, 1 << 20));
        }
        // A file that cannot be written.
        let dir = tempfile::tempdir().unwrap();
        let mut payloads = Payloads::with(0, Some(dir.path()));
        let mut overflow = Overflow::open(dir.path()).unwrap();
        overflow.file = File::open("/dev/null").unwrap();
        payloads.overflow = Some(Arc::new(overflow));
        let payload = payloads.take(&content(9, 5000));
        assert!(payload.content().await.unwrap().as_ref() == content(9, 5000));
    }
}
