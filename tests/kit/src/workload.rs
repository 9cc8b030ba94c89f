//! Random system calls on few names by many threads, and the history of what they returned.
//!
//! The names lie in several *areas*, directories that no call has in common, so the histories of areas are checked
//! separately. The seed alone decides what a worker does next, but not in which order the workers' calls meet.

use crate::chance::Chance;
use crate::linear::{Event, check};
use crate::names::{Call, Names, Op, Outcome, Path, Tree};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path as FsPath, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The history of one area.
pub type History = Vec<Event<Op>>;

const TOP_NAMES: &[char] = &['a', 'b', 'c', 'd'];
const LOWER_NAMES: &[char] = &['x', 'y'];
/// Modes that let the owner do everything, and that no usual umask changes.
const MODES: &[u16] = &[0o700, 0o710, 0o740, 0o750];
/// Bytes of every whole content.
const CONTENT_BYTES: usize = 32;

/// Errors after which the call may have happened or not: the servers or the mount itself are away.
const UNKNOWN_OUTCOME_ERRORS: &[i32] = &[libc::EIO, libc::ENOTCONN, libc::ECONNABORTED, libc::EINTR, libc::ENODEV];

/// Workers and what they have done.
pub struct Workload {
    shared: Arc<Shared>,
}

struct Shared {
    areas: usize,
    seed: u64,
    began: Instant,
    stop: AtomicBool,
    /// Number of operations so far.
    numbers: AtomicU32,
    lanes: AtomicU32,
    /// The mounts on which workers work, each once.
    mounts: Mutex<Vec<PathBuf>>,
    histories: Mutex<Vec<History>>,
    /// The present call of each worker that has not ended.
    doing: Mutex<Vec<Doing>>,
}

/// A worker, and the call that it waits for.
type Doing = (String, Option<(Instant, Call)>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn area(dir: &FsPath, number: usize) -> PathBuf {
    dir.join(format!("area-{number}"))
}

impl Workload {
    /// Makes the areas in `dir`.
    ///
    /// # Panics
    /// When they cannot be made.
    #[must_use]
    pub fn new(dir: &FsPath, areas: usize, seed: u64) -> Self {
        for number in 0..areas {
            fs::create_dir(area(dir, number)).expect("an area can be made");
        }
        let shared = Shared {
            areas,
            seed,
            began: Instant::now(),
            stop: AtomicBool::new(false),
            numbers: AtomicU32::new(0),
            lanes: AtomicU32::new(0),
            mounts: Mutex::default(),
            histories: Mutex::new(vec![Vec::new(); areas]),
            doing: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Starts a thread that works in `dir`, which may be another mount of the directory with the areas. At most one
    /// worker of each mount may be a `writer`, which also writes and reads contents: written content is seen at once
    /// within a mount, but by other mounts only after the close. With `inos`, inode numbers are recorded; this is for
    /// filesystems that use no number twice.
    pub fn spawn(&self, dir: &FsPath, name: &str, writer: bool, inos: bool) {
        let shared = self.shared.clone();
        let slot = {
            let mut doing = lock(&shared.doing);
            doing.push((name.to_owned(), None));
            doing.len() - 1
        };
        let mount = {
            let mut mounts = lock(&shared.mounts);
            mounts.iter().position(|known| known == dir).unwrap_or_else(|| {
                mounts.push(dir.to_owned());
                mounts.len() - 1
            })
        };
        let worker = Worker {
            mount: mount as u32,
            dir: dir.to_owned(),
            chance: Chance::of(shared.seed, name),
            lane: shared.lanes.fetch_add(1, Ordering::SeqCst),
            slot,
            writer,
            inos,
            shared,
        };
        thread::spawn(move || worker.run());
    }

    /// Returns the number of calls that have begun.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.shared.numbers.load(Ordering::SeqCst)
    }

    /// Lets the workers end, and returns the histories of the areas.
    ///
    /// # Panics
    /// When a call does not return within `limit`; the message names it.
    #[must_use]
    pub fn stop(self, limit: Duration) -> Vec<History> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let started = Instant::now();
        // Each worker has its share until it ends.
        while Arc::strong_count(&self.shared) > 1 {
            let doing = || {
                let all = lock(&self.shared.doing);
                let hang = all.iter().filter_map(|(name, doing)| doing.map(|(since, call)| (name, since, call)));
                hang.map(|(name, since, call)| format!("{name}: {call:?} for {:?}", since.elapsed()))
                    .collect::<Vec<_>>()
            };
            assert!(started.elapsed() < limit, "calls do not return within {limit:?}: {:#?}", doing());
            thread::sleep(Duration::from_millis(10));
        }
        std::mem::take(&mut *lock(&self.shared.histories))
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

struct Worker {
    shared: Arc<Shared>,
    dir: PathBuf,
    mount: u32,
    chance: Chance,
    lane: u32,
    slot: usize,
    writer: bool,
    inos: bool,
}

impl Worker {
    fn run(mut self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            let at = self.chance.below(self.shared.areas as u64) as usize;
            let call = self.next_call();
            let number = self.shared.numbers.fetch_add(1, Ordering::SeqCst) + 1;
            lock(&self.shared.doing)[self.slot].1 = Some((Instant::now(), call));
            let start = self.now();
            let done = carry_out(&area(&self.dir, at), number, call, self.inos);
            let end = self.now();
            lock(&self.shared.doing)[self.slot].1 = None;
            let outcome = done.unwrap_or_else(|error| match error.raw_os_error() {
                Some(code) if !UNKNOWN_OUTCOME_ERRORS.contains(&code) => Outcome::Failed(code),
                _ => Outcome::Unknown,
            });
            let end = (outcome != Outcome::Unknown).then_some(end);
            let op = Op { number, mount: self.mount, call, outcome };
            let event = Event { lane: self.lane, start, end, op };
            if end.is_none() {
                // The calls that follow do not wait for it.
                self.lane = self.shared.lanes.fetch_add(1, Ordering::SeqCst);
            }
            lock(&self.shared.histories)[at].push(event);
        }
    }

    /// Returns the nanoseconds since the workload began.
    fn now(&self) -> u64 {
        self.shared.began.elapsed().as_nanos() as u64
    }

    fn next_call(&mut self) -> Call {
        let top = |chance: &mut Chance| Path { dir: None, name: *chance.pick(TOP_NAMES) };
        let lower = |chance: &mut Chance| Path { dir: Some(*chance.pick(TOP_NAMES)), name: *chance.pick(LOWER_NAMES) };
        let any = |chance: &mut Chance| if chance.happens(0.3) { lower(chance) } else { top(chance) };
        let chance = &mut self.chance;
        let mode = *chance.pick(MODES);
        // Contents are written at the top alone, and files are not moved down from there: conflict copies, which lie
        // beside their file, must not prevent the removal of a directory.
        match chance.below(if self.writer { 130 } else { 100 }) {
            0..18 => Call::Create(any(chance), mode),
            18..25 => Call::Mkdir(top(chance), mode),
            25..36 => Call::Unlink(any(chance)),
            36..42 => Call::Rmdir(top(chance)),
            42..54 => Call::Rename(top(chance), top(chance)),
            54..58 => Call::Rename(lower(chance), top(chance)),
            58..62 => Call::Rename(lower(chance), lower(chance)),
            62..69 => Call::Link(top(chance), top(chance)),
            69..71 => Call::Link(lower(chance), top(chance)),
            71..85 => Call::Stat(any(chance)),
            85..92 => Call::Chmod(any(chance), mode),
            92..100 => Call::List,
            100..115 => Call::Read(top(chance)),
            _ => Call::Write(top(chance)),
        }
    }
}

/// Carries out a call in the area at `area`.
fn carry_out(area: &FsPath, number: u32, call: Call, inos: bool) -> io::Result<Outcome> {
    let at = |path: Path| {
        let dir = path.dir.map_or_else(|| area.to_owned(), |dir| area.join(dir.to_string()));
        dir.join(path.name.to_string())
    };
    let ino = |ino: u64| inos.then_some(ino);
    let done = match call {
        Call::Create(path, mode) => {
            let file = OpenOptions::new().write(true).create_new(true).mode(u32::from(mode)).open(at(path))?;
            // The file is made, even if this question fails.
            let made = file.metadata().ok().and_then(|metadata| ino(metadata.ino()));
            return Ok(Outcome::Made(made));
        }
        Call::Mkdir(path, mode) => fs::DirBuilder::new().mode(u32::from(mode)).create(at(path)),
        Call::Unlink(path) => fs::remove_file(at(path)),
        Call::Rmdir(path) => fs::remove_dir(at(path)),
        Call::Rename(from, to) => fs::rename(at(from), at(to)),
        Call::Link(from, to) => fs::hard_link(at(from), at(to)),
        Call::Chmod(path, mode) => fs::set_permissions(at(path), fs::Permissions::from_mode(u32::from(mode))),
        Call::Stat(path) => {
            let found = fs::symlink_metadata(at(path))?;
            return Ok(Outcome::Attributes {
                ino: ino(found.ino()),
                is_dir: found.is_dir(),
                mode: (found.mode() & 0o7777) as u16,
                links: u16::try_from(found.nlink()).unwrap_or(u16::MAX),
            });
        }
        Call::List => return list(area).map(Outcome::Names),
        Call::Read(path) => {
            let mut content = Vec::new();
            File::open(at(path))?.read_to_end(&mut content)?;
            return Ok(Outcome::Content(number_in(&content)));
        }
        Call::Write(path) => {
            let file = OpenOptions::new().write(true).open(at(path))?;
            file.write_all_at(format!("{number:0width$}\n", width = CONTENT_BYTES - 1).as_bytes(), 0)?;
            close(file)
        }
    };
    done.map(|()| Outcome::Done)
}

fn list(area: &FsPath) -> io::Result<BTreeSet<char>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(area)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let mut chars = name.chars();
        // Longer names are those of conflict copies.
        if let (Some(name), None) = (chars.next(), chars.next()) {
            names.insert(name);
        }
    }
    Ok(names)
}

/// Returns the number in a content, or one that nobody wrote if the content is torn.
fn number_in(content: &[u8]) -> u32 {
    let text = || std::str::from_utf8(content).ok()?.strip_suffix('\n')?.parse().ok();
    match content.len() {
        0 => 0,
        CONTENT_BYTES => text().unwrap_or(u32::MAX),
        _ => u32::MAX,
    }
}

/// Closes a file and returns the error of `close(2)`, which dropping does not.
pub fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor is open, and nobody else has it.
    if unsafe { libc::close(file.into_raw_fd()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Checks the histories of areas that were empty at first, two at a time.
///
/// # Panics
/// When one is not linearizable; the message shows where, and says `what` was done.
pub fn check_all(histories: &[History], what: &str) {
    write_down(histories);
    let refused = Mutex::new(Vec::new());
    let next = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(history) = histories.get(next.fetch_add(1, Ordering::SeqCst) as usize) {
                    if let Err(text) = check(&Names, Tree::default(), history) {
                        lock(&refused).push(text);
                    }
                }
            });
        }
    });
    let refused = lock(&refused);
    assert!(refused.is_empty(), "{what}\n{}", refused.join("\n\n"));
}

/// Writes histories, sorted by time, to the folder in `FAULT_HISTORIES`, if that is set.
fn write_down(histories: &[History]) {
    let Some(dir) = std::env::var_os("FAULT_HISTORIES").map(PathBuf::from) else { return };
    for (number, history) in histories.iter().enumerate() {
        let mut events: Vec<_> = history.iter().collect();
        events.sort_by_key(|event| event.start);
        let lines = events.iter().map(|event| {
            let end = event.end.map_or("never".to_owned(), |end| end.to_string());
            format!("{:12} {end:>12} lane {:2} {:?}\n", event.start, event.lane, event.op)
        });
        fs::write(dir.join(format!("area-{number}.txt")), lines.collect::<String>()).expect("a history can be written");
    }
}

/// Returns how many calls had which outcome, for people.
#[must_use]
pub fn outcome_text(histories: &[History]) -> String {
    let events = || histories.iter().flatten();
    let count = |wanted: fn(&Outcome) -> bool| events().filter(|event| wanted(&event.op.outcome)).count();
    let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));
    let unknown = count(|outcome| matches!(outcome, Outcome::Unknown));
    format!("{} calls: {failed} refused, {unknown} unknown", events().count())
}
