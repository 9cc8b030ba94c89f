//! Several mounts of one cluster: the others see what one has done, whatever their caches hold.

use fuse::{LIMIT, names};
use kit::bins::bin;
use kit::chance::seed;
use kit::{Link, Setup, Surf, run, scale, sh, until};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Number of handovers of small files, if the variable of that name is not set.
const HANDOVERS: u32 = 1_500;
/// Number of files that are handed over in turn: each is in all caches when its turn comes again.
const FILES: u32 = 50;

/// Guards I5.
#[test]
fn what_one_mount_closed_another_reads_in_each_of_thousands_of_handovers() {
    let surf = Surf::start(Setup::Cluster);
    let other = surf.mount_again(&[]);
    let sides = [surf.path(), other.path()];
    for number in 0..scale("HANDOVERS", HANDOVERS) {
        let (name, content) = (format!("file-{}", number % FILES), format!("content {number}"));
        let writer = &sides[(number % 2) as usize];
        let reader = &sides[(number % 2 + 1) as usize % 2];
        fs::write(writer.join(&name), &content).unwrap();
        assert_eq!(fs::read_to_string(reader.join(&name)).unwrap(), content, "handover {number}");
    }
}

/// The kernel calls a directory dead when it has replaced it by a rename, and by that it means what it had looked up.
#[test]
fn a_directory_that_another_mount_moves_away_while_it_is_to_be_replaced_stays_alive() {
    let surf = Surf::start_behind_proxy(seed(), &[]);
    let other = surf.mount_again(&[]);
    let (here, there, proxy) = (surf.path(), other.path(), surf.proxy());
    for name in ["a", "c"] {
        fs::create_dir(here.join(name)).unwrap();
        assert!(fs::metadata(there.join(name)).unwrap().is_dir());
        assert!(fs::metadata(here.join(name)).unwrap().is_dir());
    }
    // The kernel keeps the inode as long as it is in use.
    let used = File::open(here.join("a")).unwrap();
    thread::scope(|scope| {
        proxy.set_both(&["mnt".to_owned()], &proxy.daemons(), Link::CUT);
        // It looks up in the mount's memory, and then waits for the link.
        let over = scope.spawn(|| fs::rename(here.join("c"), here.join("a")));
        // This waits until the leases of the first mount have run out.
        fs::rename(there.join("a"), there.join("d")).unwrap();
        assert!(!over.is_finished());
        proxy.heal();
        over.join().unwrap().unwrap();
    });
    fs::write(here.join("d").join("file"), "content").unwrap();
    fs::create_dir(here.join("d").join("dir")).unwrap();
    assert_eq!(fs::read_to_string(there.join("d").join("file")).unwrap(), "content");
    assert_eq!(names(&there), ["a", "d"]);
    drop(used);
}

/// Guards I5.
#[test]
fn what_one_mount_makes_moves_or_removes_others_see_at_once() {
    let surf = Surf::start(Setup::Cluster);
    let other = surf.mount_again(&[]);
    let sides = [surf.path(), other.path()];
    for round in 0..80 {
        let (here, there) = (&sides[round % 2], &sides[(round + 1) % 2]);
        let (dir, file, moved) = (format!("dir-{round}"), format!("file-{round}"), format!("moved-{round}"));
        // The other side has cached that the new names are absent, and the present ones.
        let before = names(there);
        assert_eq!(fs::metadata(there.join(&file)).unwrap_err().kind(), ErrorKind::NotFound);
        fs::create_dir(here.join(&dir)).unwrap();
        assert!(fs::metadata(there.join(&dir)).unwrap().is_dir());
        fs::write(here.join(&file), "content").unwrap();
        assert_eq!(fs::metadata(there.join(&file)).unwrap().len(), 7);
        assert_eq!(names(there).len(), before.len() + 2);
        fs::set_permissions(here.join(&file), fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(fs::metadata(there.join(&file)).unwrap().permissions().mode() & 0o777, 0o640);
        fs::rename(here.join(&file), here.join(&dir).join(&moved)).unwrap();
        assert_eq!(fs::metadata(there.join(&file)).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(names(&there.join(&dir)), [moved.as_str()]);
        fs::remove_file(there.join(&dir).join(&moved)).unwrap();
        assert_eq!(fs::metadata(here.join(&dir).join(&moved)).unwrap_err().kind(), ErrorKind::NotFound);
        fs::remove_dir(here.join(&dir)).unwrap();
        assert_eq!(fs::metadata(there.join(&dir)).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(names(there), before);
    }
}

/// `open(O_CREAT)` opens what others have made a moment ago.
#[test]
fn two_mounts_that_append_to_a_file_that_neither_has_found_make_one_with_both_lines() {
    let surf = Surf::start(Setup::Cluster);
    let other = surf.mount_again(&[]);
    let (sides, begin) = ([surf.path(), other.path()], Barrier::new(2));
    for round in 0..100 {
        thread::scope(|scope| {
            for (number, side) in sides.iter().enumerate() {
                let begin = &begin;
                scope.spawn(move || {
                    begin.wait();
                    let mut log = File::options().append(true).create(true).open(side.join(format!("log-{round}")));
                    log.as_mut().unwrap().write_all(format!("{number}\n").as_bytes()).unwrap();
                });
            }
        });
        let log = fs::read_to_string(sides[0].join(format!("log-{round}"))).unwrap();
        assert!(log == "0\n1\n" || log == "1\n0\n", "{log:?}");
    }
}

/// The holder of the lock must not read the kernel's pages.
#[test]
fn a_program_that_takes_a_lock_reads_what_was_written_under_it_before() {
    let surf = Surf::start(Setup::Cluster);
    let other = surf.mount_again(&[]);
    fs::write(surf.path().join("count"), format!("{:08}", 0)).unwrap();
    let sides = [surf.path(), other.path()];
    thread::scope(|scope| {
        for side in &sides {
            scope.spawn(move || {
                let count = File::options().read(true).write(true).open(side.join("count")).unwrap();
                for _ in 0..40 {
                    count.lock().unwrap();
                    let mut text = [0; 8];
                    count.read_exact_at(&mut text, 0).unwrap();
                    let number: u32 = std::str::from_utf8(&text).unwrap().parse().unwrap();
                    count.write_all_at(format!("{:08}", number + 1).as_bytes(), 0).unwrap();
                    count.unlock().unwrap();
                }
            });
        }
    });
    assert_eq!(fs::read_to_string(sides[0].join("count")).unwrap(), "00000080");
    assert_eq!(names(&sides[0]), ["count"]);
}

#[test]
fn an_evicted_session_gives_its_locks_back_and_its_mount_goes_on_in_a_new_one() {
    let surf = Surf::start(Setup::Cluster);
    let other = surf.mount_again(&[]);
    let sessions = || -> serde_json::Value {
        let (text, code) = surf.operate(&["session", "list", "--json"]);
        assert_eq!(code, 0, "{text}");
        serde_json::from_str(&text).unwrap()
    };
    let of_other = || {
        let sessions = sessions();
        let purpose = other.path().display().to_string();
        let found = sessions.as_array().unwrap().iter().find(|session| session["purpose"] == purpose.as_str());
        found.map(|session| session["id"].to_string())
    };
    let held = File::create(other.path().join("file")).unwrap();
    held.lock().unwrap();
    fs::write(other.path().join("unsent"), "written before").unwrap();
    let wanted = File::open(surf.path().join("file")).unwrap();
    assert!(wanted.try_lock().is_err());
    let evicted = of_other().unwrap();
    let (text, code) = surf.operate(&["session", "evict", &evicted]);
    assert_eq!(code, 0, "{text}");
    until("the lock is free", LIMIT, || wanted.try_lock().ok());
    let renewed = until("a new session", LIMIT, || of_other().filter(|id| *id != evicted));
    fs::write(other.path().join("after"), "written after").unwrap();
    let read = |name: &str| fs::read_to_string(surf.path().join(name)).unwrap();
    assert_eq!((read("unsent"), read("after")), ("written before".to_owned(), "written after".to_owned()));
    let (text, code) = surf.operate(&["session", "evict", &evicted]);
    assert!(code == 0 && text.contains("has ended"), "it was done before: {text}");
    let (text, code) = surf.operate(&["session", "evict", "7"]);
    assert!(code == 1 && text.contains("there is no session"), "{text}");
    assert_eq!(of_other(), Some(renewed));
}

/// No leader is left that would send an event.
#[test]
fn an_open_file_shows_what_others_write_after_the_leader_has_died() {
    let surf = Surf::start(Setup::Cluster);
    let other = surf.mount_again(&[]);
    fs::write(surf.path().join("file"), "before").unwrap();
    let open = File::open(other.path().join("file")).unwrap();
    let read = || {
        let mut text = [0; 6];
        open.read_exact_at(&mut text, 0).unwrap();
        text
    };
    assert_eq!(&read(), b"before");
    let leader = surf.leader();
    surf.kill_9(&leader);
    // The content is written over, so the file is never empty.
    let file = File::options().write(true).open(surf.path().join("file")).unwrap();
    file.write_all_at(b"AFTER!", 0).unwrap();
    drop(file);
    until("the open file shows it", LIMIT, || (&read() == b"AFTER!").then_some(()));
    surf.dev(&["start", &leader]);
}

/// Guards I2 and I5.
#[test]
fn no_mount_reads_old_content_while_leaders_die() {
    let surf = Surf::start(Setup::Cluster);
    let other = surf.mount_again(&[]);
    let (here, there) = (surf.path(), other.path());
    // The file has a number that only grows, and is replaced as a whole.
    let set = |number: u64| {
        fs::write(here.join("next"), number.to_string()).unwrap();
        fs::rename(here.join("next"), here.join("number")).unwrap();
    };
    set(0);
    let (done, ended, reads) = (AtomicU64::new(0), AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::SeqCst) {
                let number = done.load(Ordering::SeqCst) + 1;
                set(number);
                done.store(number, Ordering::SeqCst);
            }
        });
        let reader = scope.spawn(|| {
            let mut seen = 0;
            while !ended.load(Ordering::SeqCst) {
                let least = done.load(Ordering::SeqCst).max(seen);
                let number: u64 = match fs::read_to_string(there.join("number")) {
                    Ok(text) => text.parse().unwrap(),
                    // The file was replaced again and again, between the look-up of the name and the open.
                    Err(error) if error.raw_os_error() == Some(libc::ESTALE) => continue,
                    Err(error) => panic!("{error}"),
                };
                assert!(number >= least, "{number} was read, and {least} was there before");
                seen = number;
                reads.fetch_add(1, Ordering::SeqCst);
            }
        });
        let progress = |what: &str, reached: &AtomicU64| {
            let wanted = reached.load(Ordering::SeqCst) + 20;
            let started = Instant::now();
            while reached.load(Ordering::SeqCst) < wanted {
                if reader.is_finished() || started.elapsed() > Duration::from_secs(60) {
                    ended.store(true, Ordering::SeqCst);
                    panic!("no progress of {what}");
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        for _ in 0..3 {
            progress("the writer", &done);
            progress("the reader", &reads);
            let leader = surf.leader();
            surf.kill_9(&leader);
            progress("the writer without the leader", &done);
            progress("the reader without the leader", &reads);
            surf.dev(&["start", &leader]);
        }
        ended.store(true, Ordering::SeqCst);
    });
}

/// Guards I5.
#[test]
fn a_mount_that_was_killed_holds_up_the_others_for_its_leases_and_no_longer() {
    let surf = Surf::start(Setup::Cluster);
    let other = surf.mount_again(&[]);
    fs::write(surf.path().join("file"), "content").unwrap();
    assert_eq!(fs::read_to_string(other.path().join("file")).unwrap(), "content");
    other.kill_9();
    let started = Instant::now();
    sh(&surf.path(), LIMIT, "echo more >> file && chmod 600 file && mv file moved && mkdir dir");
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

/// Guards I1.
#[test]
fn a_file_that_another_mount_removes_before_its_creator_has_the_answer_is_created_once_and_open() {
    // `dirsync`: metad makes it.
    let surf = Surf::start_behind_proxy(seed(), &["-o", "dirsync"]);
    let other = surf.mount_again(&[]);
    let (here, there) = (surf.path(), other.path());
    fs::write(here.join("first"), "").unwrap();
    fs::remove_file(here.join("first")).unwrap();
    assert_eq!(fs::metadata(here.join("file")).unwrap_err().kind(), ErrorKind::NotFound);
    surf.proxy().set(&surf.proxy().daemons(), &["mnt"], Link::CUT);
    thread::scope(|scope| {
        let making = scope.spawn(|| File::options().read(true).write(true).create_new(true).open(here.join("file")));
        until("the file is made", LIMIT, || there.join("file").exists().then_some(()));
        fs::remove_file(there.join("file")).unwrap();
        surf.proxy().heal();
        let file = making.join().unwrap().unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        file.write_all_at(b"content", 0).unwrap();
        file.sync_all().unwrap();
        let mut content = [0; 7];
        file.read_exact_at(&mut content, 0).unwrap();
        assert_eq!(&content, b"content");
    });
    assert!(names(&here).is_empty() && names(&there).is_empty(), "{:?}", names(&there));
}

/// Guards I6.
#[test]
fn of_two_mounts_that_write_the_same_bytes_both_contents_are_kept_listed_and_decided_on() {
    let surf = Surf::start(Setup::Cluster);
    let other = surf.mount_again(&[]);
    fs::write(surf.path().join("file"), "before").unwrap();
    let open = |dir: &Path| File::options().write(true).open(dir.join("file")).unwrap();
    let (mut one, mut two) = (open(&surf.path()), open(&other.path()));
    one.write_all(b"theirs").unwrap();
    two.write_all(b"mine..").unwrap();
    one.sync_all().unwrap();
    assert_eq!(two.sync_all().unwrap_err().raw_os_error(), Some(libc::ESTALE));
    drop((one, two));
    let conflicts = |args: &[&str]| {
        let output = run(Command::new(bin("surf")).arg("conflicts").args(args), LIMIT);
        assert!(output.status.success(), "{}", output.text);
        output.text
    };
    let dir = surf.path().display().to_string();
    let listed: serde_json::Value = serde_json::from_str(&conflicts(&["list", &dir, "--json"])).unwrap();
    let [conflict] = listed.as_array().unwrap().as_slice() else { panic!("{listed}") };
    assert_eq!(conflict["file"], format!("{dir}/file"));
    assert_eq!((&conflict["mine"]["bytes"], &conflict["theirs"]["bytes"]), (&6.into(), &6.into()));
    let copy = conflict["copy"].as_str().unwrap();
    assert_eq!(fs::read_to_string(copy).unwrap(), "mine..");
    assert_eq!(fs::read_to_string(other.path().join("file")).unwrap(), "theirs");
    conflicts(&["keep", "mine", copy]);
    assert_eq!(fs::read_to_string(other.path().join("file")).unwrap(), "mine..");
    assert_eq!(names(&other.path()), ["file"]);
    assert!(conflicts(&["list", &dir]).contains("no conflicts"));
}
