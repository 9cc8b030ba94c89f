//! Content of writes that wait: for room in the window, for another mount's changes, or for servers that are away.
//!
//! The kernel hands a write over with its content, up to a megabyte, and hands over as many writes as programs have
//! threads. The window does not count what it has not taken yet. So what waits has a budget of its own in memory. What
//! comes beyond is put aside: a thread moves it into a file in the mount's cache directory, and it is read back when
//! the window has reserved room for it. The event loop copies the bytes into memory in either case, and waits neither
//! for room nor for the disk.
//!
//! Deadlock: nothing here is waited for but the disk, and that only by writes whose content lies there. So other
//! requests (reads, `fsync`, `close`, what recalls need) are taken from the kernel as ever. A write holds its part of
//! the budget until it ends, and waits meanwhile for the client, which knows nothing of budget and file.

use crate::spool::{Aside, Spool};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wire::FsError;

/// Bytes of content that waits in memory.
const HELD_BYTES_MAX: usize = 32 << 20;

/// Takes the content of writes that have to wait.
pub(crate) struct Payloads {
    /// Room in memory, in KiB.
    room: Arc<Semaphore>,
    spool: Option<Spool>,
}

/// Content of a write that waits.
pub(crate) struct Payload {
    len: usize,
    lies: Lies,
}

enum Lies {
    /// In memory, with its part of the budget.
    Held(Vec<u8>, Option<OwnedSemaphorePermit>),
    Aside(Arc<Aside>),
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
        Self::with(HELD_BYTES_MAX, dir.and_then(Spool::in_dir))
    }

    fn with(held_bytes_max: usize, spool: Option<Spool>) -> Self {
        Self { room: Arc::new(Semaphore::new(held_bytes_max >> 10)), spool }
    }

    /// Takes the content of a write. What fits neither into the budget nor on the local disk is in memory all the same:
    /// the kernel has handed it over. Does not wait.
    pub(crate) fn take(&self, data: &[u8]) -> Payload {
        let (len, bytes) = (data.len(), data.to_vec());
        let kib = u32::try_from(len.div_ceil(1 << 10)).unwrap_or(u32::MAX);
        let lies = match (self.room.clone().try_acquire_many_owned(kib), &self.spool) {
            (Ok(held), _) => Lies::Held(bytes, Some(held)),
            (Err(_), Some(spool)) => Lies::Aside(spool.put(bytes)),
            (Err(_), None) => Lies::Held(bytes, None),
        };
        Payload { len, lies }
    }
}

impl Payload {
    /// Number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The bytes: at once if they are in memory, otherwise when the local disk gives them back, however long that
    /// takes. Cancel-safe.
    ///
    /// # Errors
    /// `Io` when it does not.
    pub(crate) async fn content(self) -> Result<Content, FsError> {
        match self.lies {
            Lies::Held(bytes, held) => Ok(Content { bytes, _held: held }),
            Lies::Aside(aside) => {
                let bytes = aside.take().await.map_err(|error| {
                    tracing::error!(%error, "content of a write that waited on the local disk cannot be read");
                    FsError::Io
                })?;
                Ok(Content { bytes, _held: None })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::mpsc;
    use std::time::Duration;

    #[tokio::test]
    async fn what_fits_into_the_budget_is_in_memory_and_all_content_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let payloads = Payloads::with(2 << 20, Spool::in_dir(dir.path()));
        let content = |number: u8| vec![number; 1 << 20];
        let taken: Vec<Payload> = (0..20).map(|number| payloads.take(&content(number))).collect();
        let held = taken.iter().filter(|payload| matches!(payload.lies, Lies::Held(_, Some(_)))).count();
        assert_eq!(held, 2);
        assert!(taken[2..].iter().all(|payload| matches!(payload.lies, Lies::Aside(_))));
        for (number, payload) in (0..20).zip(taken) {
            assert_eq!(payload.len(), 1 << 20);
            assert!(payload.content().await.unwrap().as_ref() == content(number));
        }
        let again = payloads.take(&vec![1; 2 << 20]);
        assert!(matches!(again.lies, Lies::Held(_, Some(_))), "the budget is whole again");
    }

    #[tokio::test]
    async fn without_a_directory_or_one_that_can_be_used_nothing_is_lost() {
        let nowhere = Path::new("/nowhere/at/all");
        for payloads in [Payloads::with(0, None), Payloads::with(0, Spool::in_dir(nowhere))] {
            let taken: Vec<Payload> = (0..5).map(|number| payloads.take(&[number; 5000])).collect();
            for (number, payload) in (0..5).zip(taken) {
                assert!(payload.content().await.unwrap().as_ref() == [number; 5000]);
            }
        }
    }

    #[tokio::test]
    async fn a_disk_that_hangs_while_the_file_is_opened_keeps_nobody_waiting() {
        let (opens, opening) = mpsc::channel::<()>();
        let hang = move || -> io::Result<crate::spool::tests::Stuck> {
            let _ = opening.recv();
            Err(io::Error::other("it did not open at all"))
        };
        let payloads = Payloads::with(0, Spool::start(hang, 10, Duration::ZERO));
        for number in 0..200 {
            let payload = payloads.take(&[number; 5000]);
            assert!(payload.content().await.unwrap().as_ref() == [number; 5000]);
        }
        drop(opens);
    }
}
