//! The kernel's pages of an open file when another mount changes the file.

use fuse::LIMIT;
use kit::fault::Paused;
use kit::{Setup, Surf, sh, until};
use std::cell::Cell;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

/// Rounds of cutting, writing and appending a file that another mount has open.
const ROUNDS: u32 = 30;
/// Looks at the file that may be late, of four in each round.
const LATE_MAX: u32 = 2;
/// The kernel asks for attributes again after 50 ms, but the machine may be busy.
const ATTR_LIMIT: Duration = Duration::from_secs(5);
/// A change of a file waits for the kernel's pages elsewhere for a second at most.
const CHANGE_LIMIT: Duration = Duration::from_secs(3);

/// Guards I5 for descriptors: what another mount did is seen without opening anew, at once as a rule. The kernel passes
/// over an answer about attributes that a notice to it overtakes; then it takes until it asks again. A notice follows each
/// append of one's own that went elsewhere than the kernel thought, so the end is not looked at just after that.
#[test]
fn an_open_file_shows_at_once_what_another_mount_did_to_it() {
    let surf = Surf::start_alone(Setup::Cluster);
    let other = surf.mount_again(&[]);
    let sides = [surf.path().join("file"), other.path().join("file")];
    let long = vec![b'1'; 100_000];
    fs::write(&sides[0], &long).unwrap();
    let open = File::open(&sides[1]).unwrap();
    let log = File::options().append(true).open(&sides[1]).unwrap();
    let read = || {
        let mut content = vec![0; 2 * long.len()];
        let count = open.read_at(&mut content, 0).unwrap();
        content.truncate(count);
        content
    };
    let end = || (&open).seek(SeekFrom::End(0)).unwrap();
    let late = Cell::new(0);
    let shows = |what: &str, content: &[u8]| {
        if read() != content {
            late.set(late.get() + 1);
            until(what, ATTR_LIMIT, || (read() == content).then_some(()));
        }
    };
    for round in 0..ROUNDS {
        let writer = File::options().write(true).open(&sides[0]).unwrap();
        shows("what was written and closed", &long);
        writer.set_len(10).unwrap();
        assert_eq!((end(), open.metadata().unwrap().len()), (10, 10), "round {round}");
        shows("the cut", &long[..10]);
        let text = format!("round {round:04}");
        writer.write_all_at(text.as_bytes(), 0).unwrap();
        writer.sync_all().unwrap();
        shows("what was written and synced", text.as_bytes());
        assert_eq!(end(), 10, "round {round}");
        // As logs are rotated by `copytruncate`.
        writer.set_len(0).unwrap();
        (&log).write_all(b"new line\n").unwrap();
        shows("what was appended at the new end", b"new line\n");
        log.sync_all().unwrap();
        assert_eq!(fs::read(&sides[0]).unwrap(), b"new line\n", "appended elsewhere, round {round}");
        writer.write_all_at(&long, 0).unwrap();
    }
    assert!(late.get() <= LATE_MAX, "{} of {} were late", late.get(), 4 * ROUNDS);
}

/// The kernel does not drop a page while the page is being read.
#[test]
fn a_read_that_waits_for_block_daemons_holds_up_no_change_from_elsewhere_for_long() {
    let surf = Surf::start_alone(Setup::Cluster);
    let other = surf.mount_again(&["--cache-size", "0"]);
    let content = vec![b'1'; 8 << 20];
    fs::write(surf.path().join("file"), &content).unwrap();
    sh(&surf.path(), LIMIT, "sync file");
    let open = File::open(other.path().join("file")).unwrap();
    let paused: Vec<Paused> =
        surf.daemons().iter().filter(|daemon| daemon.name.starts_with("blockd")).map(|d| Paused::stop(d.pid)).collect();
    assert!(!paused.is_empty());
    thread::scope(|scope| {
        let reads = scope.spawn(|| {
            let mut byte = [0];
            open.read_at(&mut byte, 4 << 20).map(|count| byte[..count].to_vec())
        });
        let begun = Instant::now();
        let file = File::options().write(true).open(surf.path().join("file")).unwrap();
        for round in 0..3 {
            // This leaves the part that is being read. `fstat` there would wait for the read, in the kernel.
            file.set_len(content.len() as u64 - 4096 * (round + 1)).unwrap();
        }
        assert!(begun.elapsed() < CHANGE_LIMIT * 3, "{:?}", begun.elapsed());
        drop(paused);
        assert_eq!(reads.join().unwrap().unwrap(), b"1");
    });
}

/// Before the kernel drops a page that was changed through a mapping, it writes the page back.
#[test]
fn pages_that_are_changed_through_a_mapping_all_the_time_hold_up_no_change_from_elsewhere() {
    let surf = Surf::start_alone(Setup::Cluster);
    let other = surf.mount_again(&[]);
    fs::write(surf.path().join("file"), vec![b'1'; 1 << 20]).unwrap();
    let script = "import mmap, os, time\nf = os.open('file', os.O_RDWR)\nm = mmap.mmap(f, 1 << 20)\n\
                  open('ready', 'w').close()\n\
                  while not os.path.exists('stop'):\n    for page in range(0, 1 << 20, 4096): m[page] = (m[page] + 1) % 256";
    fs::write(surf.scratch().join("map.py"), script).unwrap();
    let command = format!("timeout 60 python3 -B {}", surf.scratch().join("map.py").display());
    thread::scope(|scope| {
        let maps = scope.spawn(|| sh(&other.path(), LIMIT, &command));
        until("the file is mapped", LIMIT, || other.path().join("ready").exists().then_some(()));
        let file = File::options().write(true).open(surf.path().join("file")).unwrap();
        let mut slowest = Duration::ZERO;
        for round in 0..20 {
            let begun = Instant::now();
            // This leaves the mapped part: a program that touches pages behind the end is killed.
            file.set_len((1 << 20) + round).unwrap();
            slowest = slowest.max(begun.elapsed());
        }
        fs::write(surf.path().join("stop"), "").unwrap();
        maps.join().unwrap();
        assert!(slowest < CHANGE_LIMIT, "{slowest:?}");
    });
}
