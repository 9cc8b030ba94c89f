//! A place on the local disk for content of writes that wait.
//!
//! One thread does all that touches the disk, and owns the file. A write that puts content aside hands the thread a
//! reference and goes on: the content is in memory until the thread has written it. So a disk that is slow, full or
//! hung costs memory, and never time. Only what lies on the disk has to be waited for, by the write that it belongs to.

use crate::sys;
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Places in the file begin at multiples of this many bytes: the longest write.
pub(crate) const PLACE_BYTES: u64 = 1 << 20;
/// Most places in use: 1 GiB.
const PLACES_MAX: u64 = 1 << 10;
/// The disk keeps at least this many bytes free, for the journal, and for daemons on it: twice what a block daemon
/// leaves free by itself.
const FREE_BYTES_MIN: u64 = 1 << 30;
/// While the disk takes longer than this for one step, nothing is put aside.
const STEP_LIMIT: Duration = Duration::from_secs(5);
/// Nor is it for this long after such a step has ended.
const PAUSE_AFTER_SLOW_STEP: Duration = Duration::from_secs(60);

/// What the thread does with the disk. All of it may take any time.
pub(crate) trait Disk {
    /// Writes into a place.
    fn write(&mut self, place: u64, bytes: &[u8]) -> io::Result<()>;
    /// Reads this many bytes from the beginning of a place.
    fn read(&mut self, place: u64, len: usize) -> io::Result<Vec<u8>>;
    /// Gives the space of a place back. `is_last`: no place is in use now.
    fn free(&mut self, place: u64, is_last: bool) -> io::Result<()>;
}

/// The spool. Its thread ends when this and all that was put aside are gone.
pub(crate) struct Spool {
    queue: Arc<Queue>,
    step_limit: Duration,
    rest: Duration,
}

/// Content that was put aside.
pub(crate) struct Aside(Mutex<Lies>);

enum Lies {
    Memory(Arc<Vec<u8>>),
    Disk(Stored),
    /// Nowhere: it was taken.
    Taken,
}

#[derive(Default)]
struct Queue {
    jobs: Mutex<Jobs>,
    /// Notified when there is something to do, or nothing will come any more.
    woken: Condvar,
}

#[derive(Default)]
struct Jobs {
    /// Done first: somebody waits for it, or it makes space.
    urgent: VecDeque<Urgent>,
    /// At most `PLACES_MAX`. What is gone or taken meanwhile is skipped.
    stores: VecDeque<Weak<Aside>>,
    /// When the step began that the thread is at.
    busy_since: Option<Instant>,
    usable: Usable,
    /// Nothing comes any more, except from places in use.
    ended: bool,
}

/// Whether content is put aside.
#[derive(Default, PartialEq, Eq, Debug)]
enum Usable {
    #[default]
    Yes,
    /// A step takes too long.
    Overdue,
    /// Such a step ended at this time.
    Since(Instant),
    /// There is no file.
    Never,
}

enum Urgent {
    Read { stored: Stored, reply: oneshot::Sender<io::Result<Vec<u8>>> },
    Free(u64),
}

enum Job {
    Urgent(Urgent),
    Store(Weak<Aside>),
}

/// Content in the file.
struct Stored {
    place: Place,
    len: usize,
    /// Of the content: a disk may give something else back.
    hash: blake3::Hash,
}

/// A place in the file, given back when this is dropped.
struct Place {
    queue: Arc<Queue>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.push(Urgent::Free(self.number));
    }
}

impl Queue {
    fn push(&self, job: Urgent) {
        self.jobs.lock().urgent.push_back(job);
        self.woken.notify_one();
    }

    /// Waits for the next job. `None` when nothing will come any more.
    fn next(&self, places_in_use: bool) -> Option<Job> {
        let mut jobs = self.jobs.lock();
        jobs.busy_since = None;
        if jobs.usable == Usable::Overdue {
            jobs.usable = Usable::Since(Instant::now());
        }
        loop {
            let urgent = jobs.urgent.pop_front().map(Job::Urgent);
            if let Some(job) = urgent.or_else(|| jobs.stores.pop_front().map(Job::Store)) {
                jobs.busy_since = Some(Instant::now());
                return Some(job);
            }
            if jobs.ended && !places_in_use {
                return None;
            }
            self.woken.wait(&mut jobs);
        }
    }

    fn turn_off(&self) {
        let mut jobs = self.jobs.lock();
        jobs.usable = Usable::Never;
        jobs.stores.clear();
    }
}

impl Jobs {
    /// Reports whether content is put aside now. When a step turns out to take too long, what waits stays in memory.
    fn is_usable(&mut self, step_limit: Duration, rest: Duration) -> bool {
        let is_overdue = self.busy_since.is_some_and(|since| since.elapsed() > step_limit);
        match self.usable {
            Usable::Yes | Usable::Since(_) if is_overdue => {
                if self.usable == Usable::Yes {
                    warn(&ErrorKind::TimedOut.into());
                }
                self.usable = Usable::Overdue;
                self.stores.clear();
            }
            Usable::Since(ended) if ended.elapsed() >= rest => self.usable = Usable::Yes,
            _ => {}
        }
        self.usable == Usable::Yes
    }
}

impl Spool {
    /// Begins with a file without a name in this directory, which its thread makes.
    pub(crate) fn in_dir(dir: &Path) -> Option<Self> {
        let path = dir.to_owned();
        let named =
            |error: io::Error, path: &Path| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let open = move || SpoolFile::open(&path).map_err(|error| named(error, &path));
        Self::start(open, PLACES_MAX, STEP_LIMIT)
    }

    /// Begins with a disk that `open` returns, which may take any time.
    pub(crate) fn start<D: Disk>(
        open: impl FnOnce() -> io::Result<D> + Send + 'static,
        places_max: u64,
        step_limit: Duration,
    ) -> Option<Self> {
        let queue = Arc::new(Queue::default());
        queue.jobs.lock().busy_since = Some(Instant::now());
        let given = queue.clone();
        let started = std::thread::Builder::new().name("surf-spool".to_owned()).spawn(move || match open() {
            Ok(disk) => Worker { disk, places: Places::new(places_max), queue: given, has_warned: false }.run(),
            Err(error) => {
                given.turn_off();
                warn(&error);
            }
        });
        started.inspect_err(warn).ok().map(|_| Self { queue, step_limit, rest: PAUSE_AFTER_SLOW_STEP })
    }

    /// Puts content aside, onto the disk as soon as that takes it. Does not wait.
    pub(crate) fn put(&self, content: Vec<u8>) -> Arc<Aside> {
        let aside = Arc::new(Aside(Mutex::new(Lies::Memory(Arc::new(content)))));
        let mut jobs = self.queue.jobs.lock();
        if jobs.is_usable(self.step_limit, self.rest) && (jobs.stores.len() as u64) < PLACES_MAX {
            jobs.stores.push_back(Arc::downgrade(&aside));
            self.queue.woken.notify_one();
        }
        aside
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.queue.jobs.lock().ended = true;
        self.queue.woken.notify_one();
    }
}

fn warn(error: &io::Error) {
    tracing::warn!(%error, "content of writes that wait cannot lie on the local disk: what was not put there stays in memory");
}

impl Aside {
    /// Takes the content, from memory at once. Cancel-safe in that nothing stays behind.
    ///
    /// # Errors
    /// What the disk answers, or that it has given something else back.
    pub(crate) async fn take(&self) -> io::Result<Vec<u8>> {
        let lies = std::mem::replace(&mut *self.0.lock(), Lies::Taken);
        match lies {
            // The thread may be writing it.
            Lies::Memory(content) => Ok(Arc::unwrap_or_clone(content)),
            Lies::Disk(stored) => {
                let (reply, answer) = oneshot::channel();
                let queue = stored.place.queue.clone();
                queue.push(Urgent::Read { stored, reply });
                answer.await.unwrap_or_else(|_| Err(io::Error::other("the spool's thread has ended")))
            }
            Lies::Taken => Err(io::Error::other("it was taken before")),
        }
    }

    /// Returns the content, if it is in memory.
    fn in_memory(&self) -> Option<Arc<Vec<u8>>> {
        match &*self.0.lock() {
            Lies::Memory(content) => Some(content.clone()),
            _ => None,
        }
    }

    /// Notes that the content is on the disk, too. The place is given back if nobody needs it any more.
    fn note_stored(&self, stored: Stored) {
        let mut lies = self.0.lock();
        if matches!(*lies, Lies::Memory(_)) {
            *lies = Lies::Disk(stored);
        }
    }
}

/// The thread.
struct Worker<D> {
    disk: D,
    places: Places,
    queue: Arc<Queue>,
    /// The disk has refused something, which was logged.
    has_warned: bool,
}

impl<D: Disk> Worker<D> {
    fn run(mut self) {
        while let Some(job) = self.queue.next(self.places.in_use() > 0) {
            match job {
                // The reader that waited for it is gone.
                Job::Urgent(Urgent::Read { reply, .. }) if reply.is_closed() => {}
                Job::Urgent(Urgent::Read { stored, reply }) => {
                    let _ = reply.send(self.read(&stored));
                }
                Job::Urgent(Urgent::Free(number)) => self.free(number),
                Job::Store(aside) => self.store(&aside),
            }
        }
    }

    fn store(&mut self, aside: &Weak<Aside>) {
        let Some(content) = aside.upgrade().and_then(|aside| aside.in_memory()) else { return };
        let Some(number) = self.places.take() else { return self.refuse(&full("its part is used up")) };
        match self.disk.write(number, &content) {
            Ok(()) => {
                let place = Place { queue: self.queue.clone(), number };
                if let Some(aside) = aside.upgrade() {
                    aside.note_stored(Stored { place, len: content.len(), hash: blake3::hash(&content) });
                }
            }
            Err(error) => {
                self.free(number);
                self.refuse(&error);
            }
        }
    }

    fn read(&mut self, stored: &Stored) -> io::Result<Vec<u8>> {
        let content = self.disk.read(stored.place.number, stored.len)?;
        if blake3::hash(&content) != stored.hash {
            return Err(io::Error::new(ErrorKind::InvalidData, "the local disk gives something else back"));
        }
        Ok(content)
    }

    fn refuse(&mut self, error: &io::Error) {
        if !self.has_warned {
            self.has_warned = true;
            warn(error);
        }
    }

    fn free(&mut self, number: u64) {
        self.places.give_back(number);
        if let Err(error) = self.disk.free(number, self.places.in_use() == 0) {
            tracing::debug!(%error, "the local disk keeps the space of content that has waited");
        }
    }
}

fn full(why: &str) -> io::Error {
    io::Error::new(ErrorKind::StorageFull, why)
}

/// Which places are in use: all below `end` that are not free.
struct Places {
    free: BTreeSet<u64>,
    end: u64,
    max: u64,
}

impl Places {
    fn new(max: u64) -> Self {
        Self { free: BTreeSet::new(), end: 0, max }
    }

    fn in_use(&self) -> u64 {
        self.end - self.free.len() as u64
    }

    fn take(&mut self) -> Option<u64> {
        if let Some(place) = self.free.pop_first() {
            return Some(place);
        }
        (self.end < self.max).then(|| {
            self.end += 1;
            self.end - 1
        })
    }

    fn give_back(&mut self, place: u64) {
        self.free.insert(place);
    }
}

/// The file. It has no name, so it is gone with the process.
struct SpoolFile {
    file: File,
    /// The disk keeps this many bytes free.
    free_min: u64,
}

impl SpoolFile {
    fn open(dir: &Path) -> io::Result<Self> {
        let unnamed = options().custom_flags(libc::O_TMPFILE).open(dir);
        // Not every filesystem has files without names.
        let file = unnamed.or_else(|_| open_and_remove(&dir.join(format!("waiting-{}", std::process::id()))))?;
        Ok(Self { file, free_min: FREE_BYTES_MIN })
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

/// Makes a file and takes its name away. One that a killed process has left there goes.
fn open_and_remove(path: &Path) -> io::Result<File> {
    let remove = || match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    remove()?;
    let file = options().create_new(true).open(path)?;
    remove()?;
    Ok(file)
}

impl Disk for SpoolFile {
    fn write(&mut self, place: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() as u64 > PLACE_BYTES {
            return Err(ErrorKind::InvalidInput.into());
        }
        if sys::free_bytes(&self.file)? < self.free_min.saturating_add(PLACE_BYTES) {
            return Err(full("the rest of the disk is kept free for the journal, and for daemons"));
        }
        self.file.write_all_at(bytes, place * PLACE_BYTES)
    }

    fn read(&mut self, place: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, place * PLACE_BYTES)?;
        Ok(bytes)
    }

    fn free(&mut self, place: u64, is_last: bool) -> io::Result<()> {
        // Not every filesystem can punch holes.
        if is_last { self.file.set_len(0) } else { sys::punch(&self.file, place * PLACE_BYTES, PLACE_BYTES) }
    }
}

#[cfg(test)]
#[path = "spool_tests.rs"]
pub(crate) mod tests;
