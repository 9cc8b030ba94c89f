//! Several mounts of one cluster while links fail, daemons die and mounts are killed.
//!
//! All traffic goes through a proxy (`kit::proxy`). Faults come at random for `FAULT_SECONDS` per test; `FAULT_SEED`
//! decides everything that is random, and a test that fails prints it. The same seed makes the same calls and faults,
//! but not always the same failure, because the timing of processes and the kernel varies.
//!
//! The tests check only promises to programs: what others see once a call has returned, and what an `fsync` that has
//! returned covers.

use fuse::LIMIT;
use kit::bins::bin;
use kit::chance::seed;
use kit::mounts::is_mounted;
use kit::surf::Another;
use kit::workload::{Workload, check_all, outcome_text};
use kit::{Chance, Link, Proxy, Surf, run, scale, until};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long each test makes faults if `FAULT_SECONDS` is not set.
const FAULT_SECONDS: u64 = 8;
/// Calls that waited for servers go on within this time once the servers are back, on a slow machine.
const RESUME_LIMIT: Duration = Duration::from_secs(60);
/// A connection is given up after 5 s without an answer: after a longer cut it must be made anew.
const LONG_CUT: Duration = Duration::from_secs(7);

fn fault_time() -> Duration {
    Duration::from_secs(scale("FAULT_SECONDS", FAULT_SECONDS))
}

/// Prints the seed when the test fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("again with: FAULT_SEED={} FAULT_SECONDS={}", self.0, fault_time().as_secs());
        }
    }
}

/// Something that fails for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// The leading metad dies and is started again.
    LeaderDies,
    /// The leading metad and the others do not hear each other; mounts hear all.
    LeaderCutOff,
    /// Neither the other metads nor mounts hear the leading metad, and it does not hear them.
    LeaderGone,
    /// Others hear the leading metad, and it does not hear them.
    LeaderDeaf,
    /// The leading metad hears others, and they do not hear it.
    LeaderMute,
    /// A blockd dies and is started again.
    BlockdDies,
    /// A blockd and everybody else do not hear each other.
    BlockdCutOff,
    /// Every link loses, doubles, delays and reorders.
    BadLinks,
    /// Mounts are far from the daemons.
    SlowMounts,
    /// A mount and all daemons do not hear each other, for less time than leases have.
    MountCutOff,
    /// A mount and all daemons do not hear each other, for more time than leases have.
    MountCutOffForLong,
    /// A mount hears others, and is not heard.
    MountMute,
    /// A mount is heard, and does not hear others.
    MountDeaf,
    /// A mount is killed, and mounted again.
    MountDies,
}

const OF_SERVERS: &[Fault] = &[
    Fault::LeaderDies,
    Fault::LeaderCutOff,
    Fault::LeaderGone,
    Fault::LeaderDeaf,
    Fault::LeaderMute,
    Fault::BadLinks,
    Fault::SlowMounts,
];
const OF_MOUNTS: &[Fault] =
    &[Fault::MountCutOff, Fault::MountCutOffForLong, Fault::MountMute, Fault::MountDeaf, Fault::BadLinks];
const OF_ALL: &[Fault] = &[
    Fault::MountDies,
    Fault::MountCutOff,
    Fault::LeaderDies,
    Fault::BlockdDies,
    Fault::MountDies,
    Fault::BlockdCutOff,
    Fault::LeaderCutOff,
    Fault::MountCutOffForLong,
    Fault::BadLinks,
];

/// Makes faults, one after the other, and ends each.
struct Faults<'a> {
    surf: &'a Surf,
    others: &'a mut [Another],
    /// How they are mounted.
    args: &'a [&'a str],
    chance: Chance,
    made: Vec<Fault>,
}

impl<'a> Faults<'a> {
    fn new(surf: &'a Surf, others: &'a mut [Another], seed: u64) -> Self {
        Self { surf, others, args: &[], chance: Chance::of(seed, "faults"), made: Vec::new() }
    }

    /// Makes faults of these kinds for the test's time: each once if there is time, in a random order.
    fn run(&mut self, kinds: &[Fault]) {
        let ended = Instant::now() + fault_time();
        let mut left = Vec::new();
        while Instant::now() < ended {
            if kinds.is_empty() {
                thread::sleep(fault_time() / 2);
                return;
            }
            if left.is_empty() {
                left = kinds.to_vec();
            }
            let fault = left.swap_remove(self.chance.below(left.len() as u64) as usize);
            self.make(fault);
            self.surf.proxy().heal();
            self.made.push(fault);
        }
    }

    fn make(&mut self, fault: Fault) {
        let proxy = self.surf.proxy();
        let mounts: Vec<String> = [vec!["mnt".to_owned()], self.others.iter().map(Another::name).collect()].concat();
        let mount = self.chance.pick(&mounts).clone();
        let daemons = proxy.daemons();
        let everybody = [daemons.clone(), mounts.clone()].concat();
        let blockd = format!("blockd-{}", 1 + self.chance.below(3));
        match fault {
            Fault::LeaderDies => {
                let leader = self.surf.leader();
                self.surf.kill_9(&leader);
                self.last(1..3);
                self.surf.dev(&["start", &leader]);
            }
            Fault::LeaderCutOff => {
                proxy.isolate(&self.surf.leader());
                self.last(2..4);
            }
            Fault::LeaderGone => {
                let leader = self.surf.leader();
                proxy.isolate(&leader);
                proxy.set_both(&[leader], &mounts, Link::CUT);
                self.last(2..4);
            }
            Fault::LeaderDeaf => {
                proxy.set(&daemons, &[self.surf.leader()], Link::CUT);
                self.last(2..4);
            }
            Fault::LeaderMute => {
                proxy.set(&[self.surf.leader()], &daemons, Link::CUT);
                self.last(2..4);
            }
            Fault::BlockdDies => {
                self.surf.kill_9(&blockd);
                self.last(1..3);
                self.surf.dev(&["start", &blockd]);
            }
            Fault::BlockdCutOff => {
                proxy.set_both(&[blockd], &everybody, Link::CUT);
                self.last(1..4);
            }
            Fault::BadLinks => {
                proxy.set(&everybody, &everybody, Link::BAD);
                self.last(2..4);
            }
            Fault::SlowMounts => {
                proxy.set_both(&mounts, &daemons, Link::slow(Duration::from_millis(20)));
                self.last(1..3);
            }
            Fault::MountCutOff => {
                proxy.isolate(&mount);
                self.last(1..3);
            }
            Fault::MountCutOffForLong => {
                proxy.isolate(&mount);
                thread::sleep(LONG_CUT);
            }
            Fault::MountMute => {
                proxy.set(&[mount], &daemons, Link::CUT);
                self.last(1..8);
            }
            Fault::MountDeaf => {
                proxy.set(&daemons, &[mount], Link::CUT);
                self.last(1..8);
            }
            Fault::MountDies => {
                let at = self.chance.below(self.others.len() as u64) as usize;
                self.others[at].kill();
                self.surf.mount_killed(&mut self.others[at], self.args);
                self.last(1..2);
            }
        }
    }

    /// Lets the fault last this many seconds and a part of one.
    fn last(&mut self, seconds: std::ops::Range<u64>) {
        let whole = seconds.start + self.chance.below(seconds.end - seconds.start);
        thread::sleep(Duration::from_millis(whole * 1000 + self.chance.below(1000)));
    }
}

/// A thread whose end is awaited with a limit: a call that hangs on a mount ends when the mount goes.
struct Task<T>(JoinHandle<T>);

impl<T: Send + 'static> Task<T> {
    fn new(work: impl FnOnce() -> T + Send + 'static) -> Self {
        Self(thread::spawn(work))
    }

    fn end(self, what: &str, limit: Duration) -> T {
        until(what, limit, || self.0.is_finished().then_some(()));
        self.0.join().unwrap_or_else(|_| panic!("{what}: the thread has failed"))
    }
}

/// Checks the history of two workers on each of the mounts, with these arguments, while faults of these kinds happen.
fn linearizable_during(kinds: &[Fault], args: &[&str]) {
    let seed = Seed(seed());
    let surf = Surf::start_behind_proxy(seed.0, args);
    let mut others = [surf.mount_again(args), surf.mount_again(args)];
    let workload = Workload::new(&surf.path(), 3, seed.0);
    for (number, dir) in [surf.path(), others[0].path(), others[1].path()].iter().enumerate() {
        workload.spawn(dir, &format!("first-{number}"), true, true);
        workload.spawn(dir, &format!("second-{number}"), false, true);
    }
    let mut faults = Faults::new(&surf, &mut others, seed.0);
    faults.args = args;
    faults.run(kinds);
    let made = faults.made;
    // The workers go on after the last fault.
    let before = workload.count();
    until("calls after the faults", RESUME_LIMIT, || (workload.count() > before + 200).then_some(()));
    let histories = workload.stop(RESUME_LIMIT);
    println!("{}; {made:?}; {:?}", outcome_text(&histories), surf.proxy().counts());
    check_all(&histories, &format!("{made:?}"));
}

/// Guards I2 and I5.
#[test]
fn what_three_mounts_do_is_linearizable_without_any_fault() {
    linearizable_during(&[], &[]);
}

/// Guards I2 and I5.
#[test]
fn what_three_mounts_do_is_linearizable_while_leaders_die_and_servers_are_cut_off() {
    linearizable_during(OF_SERVERS, &[]);
}

/// Guards I2 and I5. Only with `dirsync`: if a mount could not send changes made under delegations while it was cut
/// off, others wait for it no longer than for its leases.
#[test]
fn what_three_synchronous_mounts_do_is_linearizable_while_mounts_are_cut_off() {
    linearizable_during(OF_MOUNTS, &["-o", "dirsync"]);
}

/// Guards I1 and I2.
#[test]
fn what_a_soft_mount_has_given_up_on_happens_once_or_never() {
    let seed = Seed(seed());
    let surf = Surf::start_behind_proxy(seed.0, &[]);
    let mut others = [surf.mount_again(&["-o", "soft=1"])];
    let (dirs, soft) = ([surf.path(), others[0].path()], others[0].name());
    let mut faults = Faults::new(&surf, &mut others, seed.0);
    let ended = Instant::now() + fault_time();
    // What was given up on may happen at any later time: a history with much of it could not be searched.
    for round in 0.. {
        if Instant::now() >= ended {
            break;
        }
        once_or_never(&mut faults, (&dirs, &soft), (seed.0, round), ended.min(Instant::now() + ROUND));
    }
}

/// Time of faults of which one history is.
const ROUND: Duration = Duration::from_secs(10);

/// Checks the history of two workers on a mount and one on a soft mount, which is cut off until this moment.
fn once_or_never(
    faults: &mut Faults,
    ([hard, soft_dir], soft): (&[PathBuf; 2], &str),
    (seed, round): (u64, u64),
    ended: Instant,
) {
    let surf = faults.surf;
    let name = format!("round-{round}");
    fs::create_dir(hard.join(&name)).unwrap();
    let workload = Workload::new(&hard.join(&name), 6, seed.wrapping_add(round));
    for number in 0..2 {
        workload.spawn(&hard.join(&name), &format!("hard-{number}"), false, true);
    }
    workload.spawn(&soft_dir.join(&name), "soft", false, true);
    while Instant::now() < ended {
        let (daemons, soft) = (surf.proxy().daemons(), [soft]);
        // Its requests arrive and the answers do not; or neither arrives.
        surf.proxy().set(&daemons, &soft, Link::CUT);
        if faults.chance.happens(0.3) {
            surf.proxy().set(&soft, &daemons, Link::CUT);
        }
        faults.last(2..4);
        surf.proxy().heal();
        faults.last(1..2);
    }
    let histories = workload.stop(RESUME_LIMIT);
    println!("{}; {:?}", outcome_text(&histories), surf.proxy().counts());
    check_all(&histories, "a soft mount was cut off");
}

/// Bytes of each write in place, several pages each: more than a commit has inline.
const SLOT_BYTES: usize = 8192;
/// Bytes of the smallest unit of a write, a part of a page.
const CELL_BYTES: usize = 16;
/// Places of each writer in the file that all writers write.
const SLOTS: u64 = 4;

/// The outcome of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// `fsync` has succeeded.
    Acknowledged,
    /// `fsync` has reported a conflict: it is in a copy.
    Conflicted,
    /// It may be there.
    Unknown,
}

#[derive(Default)]
struct Written {
    /// Lines that were appended.
    lines: Vec<(String, Fate)>,
    /// For each place, the writes there, in order.
    slots: HashMap<u64, Vec<(String, Fate)>>,
}

/// Appends to one file and writes its places in another one, and syncs each. Others write to both files, too.
struct Writer {
    dir: PathBuf,
    number: u64,
    chance: Chance,
    written: Written,
    next: u64,
    synced: Arc<AtomicU64>,
}

impl Writer {
    fn run(mut self, stop: &AtomicBool) -> Written {
        while !stop.load(Ordering::SeqCst) {
            // This fails while the mount is dead, and is tried again once it is there.
            if let (Ok(log), Ok(slots)) = (self.open("log", true), self.open("slots", false)) {
                self.work(&log, &slots, stop);
            } else {
                thread::sleep(Duration::from_millis(20));
            }
        }
        self.written
    }

    fn open(&self, name: &str, append: bool) -> io::Result<File> {
        File::options().write(true).append(append).open(self.dir.join(name))
    }

    /// Writes until something fails, or it is time to open the files anew.
    fn work(&mut self, log: &File, slots: &File, stop: &AtomicBool) {
        while !stop.load(Ordering::SeqCst) && !self.chance.happens(0.05) {
            self.next += 1;
            let len = if self.chance.happens(0.3) { 9_008 } else { 64 };
            let fate = if self.chance.happens(0.5) {
                let line = self.record(len);
                let fate = fate({ log }.write_all(line.as_bytes()).and_then(|()| log.sync_all()));
                self.written.lines.push((line, fate));
                fate
            } else {
                let slot = self.number * SLOTS + self.chance.below(SLOTS);
                let content = self.record(SLOT_BYTES);
                let at = slot * SLOT_BYTES as u64;
                let fate = fate(slots.write_all_at(content.as_bytes(), at).and_then(|()| slots.sync_all()));
                self.written.slots.entry(slot).or_default().push((content, fate));
                fate
            };
            if fate != Fate::Acknowledged {
                return;
            }
            self.synced.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Returns cells of a line each, no two of which are alike: each names the writer, the write, and the cell in it.
    /// The kernel may send one append in parts, which may be committed apart; parts end between cells.
    fn record(&mut self, len: usize) -> String {
        (0..len / CELL_BYTES).map(|cell| format!("{} {:06} {cell:06}\n", self.number, self.next)).collect()
    }
}

fn fate(result: io::Result<()>) -> Fate {
    match result {
        Ok(()) => Fate::Acknowledged,
        Err(error) if error.raw_os_error() == Some(libc::ESTALE) => Fate::Conflicted,
        Err(_) => Fate::Unknown,
    }
}

/// Reads the file and its conflict copies.
fn with_copies(dir: &Path, name: &str) -> Vec<Vec<u8>> {
    let mut names = vec![name.to_owned()];
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.extend(entries.filter(|entry| entry.starts_with(&format!("{name}.conflict-"))));
    names.iter().map(|name| fs::read(dir.join(name)).unwrap()).collect()
}

/// Guards I1, I6 and I7.
#[test]
fn what_was_synced_is_in_the_file_or_a_conflict_copy_whatever_links_and_mounts_fail() {
    let seed = Seed(seed());
    let surf = Surf::start_behind_proxy(seed.0, &[]);
    let mut others = [surf.mount_again(&[]), surf.mount_again(&[])];
    for name in ["log", "slots"] {
        File::create(surf.path().join(name)).and_then(|file| file.sync_all()).unwrap();
    }
    let (stop, synced) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let dirs = [surf.path(), others[0].path(), others[1].path()];
    // Each mount has two writers, so that writers also share a mount.
    let writers: Vec<_> = (0..6)
        .map(|number| {
            let (stop, synced) = (stop.clone(), synced.clone());
            let chance = Chance::of(seed.0, &format!("writer-{number}"));
            let dir = dirs[number as usize % dirs.len()].clone();
            let writer = Writer { dir, number, chance, written: Written::default(), next: 0, synced };
            Task::new(move || writer.run(&stop))
        })
        .collect();
    let mut faults = Faults::new(&surf, &mut others, seed.0);
    faults.run(OF_ALL);
    let made = faults.made;
    let before = synced.load(Ordering::SeqCst);
    until("writes after the faults", RESUME_LIMIT, || (synced.load(Ordering::SeqCst) > before + 20).then_some(()));
    stop.store(true, Ordering::SeqCst);
    let all: Vec<Written> = writers.into_iter().map(|writer| writer.end("a writer", RESUME_LIMIT)).collect();
    println!("{} synced; {made:?}; {:?}", synced.load(Ordering::SeqCst), surf.proxy().counts());
    for dir in [surf.path(), others[0].path()] {
        check_lines(&with_copies(&dir, "log"), &all, &made);
        check_slots(&with_copies(&dir, "slots"), &all, &made);
    }
}

fn check_lines(files: &[Vec<u8>], all: &[Written], made: &[Fault]) {
    let appended = all.iter().flat_map(|written| &written.lines);
    let known: HashMap<&str, Fate> =
        appended.flat_map(|(lines, fate)| lines.lines().map(|line| (line, *fate))).collect();
    let mut found = HashSet::new();
    for (index, file) in files.iter().enumerate() {
        let text = String::from_utf8_lossy(file);
        let mut here = HashSet::new();
        for line in text.lines() {
            let start = &line.chars().take(40).collect::<String>();
            assert!(known.contains_key(line), "{made:?}: nobody appended what is in file {index}: {start:?}");
            // A mount that is killed while servers are away and a commit is under way leaves it in its journal: the next
            // mount cannot know whether it arrived. If it did, it is in a conflict copy again, beside or behind itself.
            let is_first = here.insert(line);
            let in_doubt = index > 0 && made.contains(&Fault::MountDies);
            assert!(is_first || in_doubt, "{made:?}: appended twice in file {index}: {start:?}");
        }
        found.extend(here.into_iter().map(str::to_owned));
    }
    for (line, fate) in known.iter().filter(|(_, fate)| **fate != Fate::Unknown) {
        assert!(found.contains(*line), "{made:?}: {fate:?} and lost: {line:?}");
    }
}

fn check_slots(files: &[Vec<u8>], all: &[Written], made: &[Fault]) {
    for (slot, written) in all.iter().flat_map(|written| &written.slots) {
        // A write after the last that was synced may be there instead.
        let Some(last) = written.iter().rposition(|(_, fate)| *fate == Fate::Acknowledged) else { continue };
        let at = *slot as usize * SLOT_BYTES;
        let is_there = files
            .iter()
            .filter_map(|file| file.get(at..at + SLOT_BYTES))
            .any(|content| written[last..].iter().any(|(text, _)| text.as_bytes() == content));
        let first = files[0].get(at..(at + 40).min(files[0].len())).map(String::from_utf8_lossy);
        let wanted = &written[last].0[..40];
        assert!(is_there, "{made:?}: place {slot}: acknowledged and lost: {wanted:?}; there is {first:?}");
    }
}

/// Guards I1 and I5.
#[test]
fn mounts_go_on_by_themselves_after_no_server_could_be_reached() {
    let seed = Seed(seed());
    let surf = Surf::start_behind_proxy(seed.0, &[]);
    let other = surf.mount_again(&[]);
    let (here, there) = (surf.path(), other.path());
    let mut open = File::create(here.join("open")).unwrap();
    open.write_all(b"before\n").unwrap();
    open.sync_all().unwrap();
    let begin = |round: u32| {
        let (here, there) = (here.clone(), there.clone());
        let writing = Task::new(move || fs::write(here.join(format!("file-{round}")), format!("content {round}")));
        let making = Task::new(move || fs::create_dir(there.join(format!("dir-{round}"))));
        (writing, making)
    };
    let mut end = |round: u32, (writing, making): (Task<io::Result<()>>, Task<io::Result<()>>)| {
        writing.end("a file that was being written", RESUME_LIMIT).unwrap();
        making.end("a directory that was being made", RESUME_LIMIT).unwrap();
        assert_eq!(fs::read_to_string(there.join(format!("file-{round}"))).unwrap(), format!("content {round}"));
        assert!(fs::metadata(here.join(format!("dir-{round}"))).unwrap().is_dir());
        open.write_all(format!("round {round}\n").as_bytes()).unwrap();
        open.sync_all().unwrap();
        assert!(fs::read_to_string(there.join("open")).unwrap().ends_with(&format!("round {round}\n")));
    };
    let mounts = ["mnt".to_owned(), other.name()];
    surf.proxy().set_both(&mounts, &surf.proxy().daemons(), Link::CUT);
    let waiting = begin(1);
    thread::sleep(LONG_CUT);
    assert!(surf.proxy().counts().cut > 0);
    surf.proxy().heal();
    end(1, waiting);
    for daemon in surf.daemons() {
        surf.kill_9(&daemon.name);
    }
    let waiting = begin(2);
    surf.up(3, 3);
    end(2, waiting);
}

#[test]
fn a_mount_is_unmounted_while_no_server_can_be_reached_and_ends_once_they_are_back() {
    let seed = Seed(seed());
    let surf = Surf::start_behind_proxy(seed.0, &[]);
    let mut other = surf.mount_again(&[]);
    fs::write(other.path().join("file"), "content").unwrap();
    surf.proxy().set_both(&[other.name()], &surf.proxy().daemons(), Link::CUT);
    let umount = run(Command::new("umount").arg(other.path()), Duration::from_secs(20));
    assert!(umount.status.success(), "{}", umount.text);
    assert!(!is_mounted(&other.path()));
    surf.proxy().heal();
    let status = until("the mount's process has ended", RESUME_LIMIT, || other.ended());
    assert!(status.success(), "{status}");
    assert_eq!(fs::read_to_string(surf.path().join("file")).unwrap(), "content");
}

#[test]
fn a_soft_mount_gives_up_in_its_time_and_goes_on_when_servers_are_back() {
    /// The time in `-o soft=`.
    const SOFT_TIME: Duration = Duration::from_secs(2);
    /// Time beyond it: a write and a sync send several requests, each with its own limit, and the machine may be slow.
    const ALLOWANCE: Duration = Duration::from_secs(10);
    let seed = Seed(seed());
    let surf = Surf::start_behind_proxy(seed.0, &["-o", "soft=2"]);
    let other = surf.mount_again(&[]);
    let dir = surf.path();
    fs::write(dir.join("file"), "content").unwrap();
    let file = File::options().write(true).open(dir.join("file")).unwrap();
    let mut large = File::create(dir.join("large")).unwrap();
    surf.proxy().set_both(&["mnt"], &surf.proxy().daemons(), Link::CUT);
    let gives_up = |name: &str, call: Task<io::Result<()>>| {
        let started = Instant::now();
        let result = call.end(name, RESUME_LIMIT);
        let took = started.elapsed();
        println!("{name}: {result:?} after {took:?}");
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EIO), "{name}");
        assert!(took < SOFT_TIME + ALLOWANCE, "{name} took {took:?}");
    };
    let [made, absent, old, new] = ["made", "absent", "file", "new"].map(|name| dir.join(name));
    gives_up("create", Task::new(move || File::create(made).map(drop)));
    gives_up("stat", Task::new(move || fs::metadata(absent).map(drop)));
    gives_up("rename", Task::new(move || fs::rename(old, new)));
    // More than a mount holds in memory.
    gives_up("write", Task::new(move || (0..300).try_for_each(|_| large.write_all(&[7; 1 << 20]))));
    gives_up("sync", Task::new(move || file.write_all_at(b"CONTENT", 0).and_then(|()| file.sync_all())));
    surf.proxy().heal();
    until("the mount works again", RESUME_LIMIT, || fs::write(dir.join("later"), "later").ok());
    assert_eq!(fs::read_to_string(other.path().join("later")).unwrap(), "later");
}

/// Guards I1: answers do not arrive, so the mount does not know that the changes that it has given up on were applied.
#[test]
fn what_a_soft_mount_has_written_while_answers_were_lost_is_there_once() {
    let seed = Seed(seed());
    let surf = Surf::start_behind_proxy(seed.0, &["-o", "soft=2"]);
    let other = surf.mount_again(&[]);
    let (here, there) = (surf.path(), other.path());
    for name in ["appended", "written", "alone"] {
        fs::write(here.join(name), "before").unwrap();
    }
    // Others use the first two files as well, but not the third one.
    for name in ["appended", "written"] {
        assert_eq!(fs::read_to_string(there.join(name)).unwrap(), "before");
    }
    let mut appended = File::options().append(true).open(here.join("appended")).unwrap();
    let mut alone = File::options().append(true).open(here.join("alone")).unwrap();
    let written = File::options().write(true).open(here.join("written")).unwrap();
    surf.proxy().set(&surf.proxy().daemons(), &["mnt"], Link::CUT);
    appended.write_all(b" after").unwrap();
    alone.write_all(b" after").unwrap();
    written.write_all_at(b"BEFORE", 0).unwrap();
    for file in [&appended, &written, &alone] {
        assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO));
    }
    surf.proxy().heal();
    for file in [&appended, &written, &alone] {
        until("it can be synced", RESUME_LIMIT, || file.sync_all().ok());
    }
    let read = |name: &str| fs::read_to_string(there.join(name)).unwrap();
    assert_eq!((read("appended"), read("written")), ("before after".to_owned(), "BEFORE".to_owned()));
    assert_eq!(read("alone"), "before after");
    assert_eq!(fuse::names(&there), ["alone", "appended", "written"]);
}

/// The kernel lets a program wait uninterruptibly for an answer.
#[test]
fn a_program_that_waits_for_servers_that_are_away_can_be_killed() {
    let seed = Seed(seed());
    let mut surf = Surf::start_behind_proxy(seed.0, &[]);
    fs::create_dir(surf.path().join("dir")).unwrap();
    surf.unmount();
    surf.mount(&[]);
    let dir = surf.path().join("dir");
    // The directory is known, but not its content.
    assert!(fs::metadata(&dir).unwrap().is_dir());
    surf.proxy().isolate("mnt");
    for program in ["ls", "stat", "touch"] {
        let target = if program == "ls" { dir.clone() } else { dir.join("absent") };
        let mut child = Command::new(program).arg(target).spawn().unwrap();
        // The program waits in the kernel's FUSE client. If the mount supports no interrupts, only a deadly signal
        // wakes it: `D`.
        let of_child = |file| fs::read_to_string(format!("/proc/{}/{file}", child.id()));
        until(&format!("{program} waits for the mount"), Duration::from_secs(60), || {
            let state = of_child("stat").unwrap();
            let sleeps = state.contains(") S ") || state.contains(") D ");
            // This is what remains if the kernel's stack may not be read.
            (sleeps && of_child("stack").map_or(true, |stack| stack.contains("fuse_"))).then_some(())
        });
        assert!(child.try_wait().unwrap().is_none(), "{program} waits for servers, and has not ended");
        child.kill().unwrap();
        until(&format!("{program} is gone"), Duration::from_secs(10), || child.try_wait().unwrap());
    }
    surf.proxy().heal();
}

/// The other tests rely on this.
#[test]
fn everything_between_mounts_and_daemons_goes_through_the_proxy() {
    let seed = Seed(seed());
    let surf = Surf::start_behind_proxy(seed.0, &[]);
    let other = surf.mount_again(&[]);
    for daemon in surf.daemons() {
        let is_metad = daemon.name.starts_with("metad");
        let config = daemon.data_dir.with_file_name(if is_metad { "metad.toml" } else { "blockd.toml" });
        let mentions = fs::read_to_string(config).unwrap().matches(&daemon.address).count();
        assert_eq!(mentions, 1, "{} has its own address only where it listens", daemon.name);
    }
    let leader = || {
        let mut command = Command::new(bin("surf"));
        let output = run(command.args(["dev", "status", "--json", "--dir"]).arg(surf.cluster_dir()), LIMIT);
        serde_json::from_str::<serde_json::Value>(&output.text).unwrap()["leader"].clone()
    };
    // Each sender is known by its name, and each path goes through a front: nothing works any more when all are cut.
    let (daemons, mounts) = (surf.proxy().daemons(), ["mnt".to_owned(), other.name()]);
    let everybody = [&daemons[..], &mounts, &[Proxy::OTHERS.to_owned()]].concat();
    surf.proxy().set(&everybody, &everybody, Link::CUT);
    let before = surf.proxy().counts();
    assert!(leader().is_null());
    let after = surf.proxy().counts();
    assert_eq!(
        (after.passed, after.delayed),
        (before.passed, before.delayed),
        "{} have passed",
        after.passed - before.passed
    );
    assert!(after.cut > before.cut);
    surf.proxy().heal();
    until("a leader is known again", RESUME_LIMIT, || leader().is_string().then_some(()));
    // Content goes the same way.
    let mut chance = Chance::new(seed.0);
    let content: Vec<u8> = (0..9 << 17).flat_map(|_| chance.number().to_le_bytes()).collect();
    fs::write(surf.path().join("large"), &content).unwrap();
    let passed = surf.proxy().counts().passed;
    assert!(fs::read(other.path().join("large")).unwrap() == content);
    assert!(surf.proxy().counts().passed - passed > 1000, "9 MiB have passed");
}
