//! Changes that a mount had made and not sent when it was killed: the journal on its machine's disk (I8).

use fuse::{LIMIT, names, random};
use kit::bins::bin;
use kit::chance::seed;
use kit::fault::files_below;
use kit::mounts::{abort, is_mounted};
use kit::{Link, Surf, run, sh, until};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A change is in the journal a second later. A disk that is busy with syncs of others gets more time.
const JOURNAL_BOUND: Duration = Duration::from_secs(1);
const SLOW_DISK_LIMIT: Duration = Duration::from_secs(10);

fn segments(surf: &Surf) -> Vec<PathBuf> {
    let is_segment = |path: &PathBuf| {
        let holds = |name: &OsStr| name == "shared" || name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        path.file_name().is_some_and(holds) && path.parent().is_some_and(|dir| dir.ends_with("journal"))
    };
    files_below(&surf.cache_dir()).into_iter().filter(is_segment).collect()
}

/// Waits until the journal holds these bytes.
fn until_journaled(surf: &Surf, bytes: &[u8]) {
    let started = Instant::now();
    let holds = |path: &PathBuf| fs::read(path).is_ok_and(|held| held.windows(bytes.len()).any(|part| part == bytes));
    until("it is in the journal", SLOW_DISK_LIMIT, || segments(surf).iter().any(holds).then_some(()));
    if started.elapsed() > JOURNAL_BOUND {
        println!("the journal took {:?}", started.elapsed());
    }
}

/// Bytes that a search in the journal finds only in the content that has them.
const MARK: &[u8] = b"these bytes stand nowhere else, as far as anybody knows";

/// Makes a tree in which only this mount works.
fn begin(surf: &Surf) -> PathBuf {
    let dir = surf.path().join("dir");
    fs::create_dir(&dir).unwrap();
    for name in ["kept", "moved", "removed", "appended", "rewritten"] {
        fs::write(dir.join(name), "before").unwrap();
    }
    File::open(&dir).unwrap().sync_all().unwrap();
    dir
}

/// Works in the tree, and returns a file that is still open.
fn work(dir: &Path) -> File {
    fs::create_dir(dir.join("made")).unwrap();
    for number in 0..30 {
        fs::write(dir.join(format!("made/file-{number}")), format!("{number}").repeat(number * 50)).unwrap();
    }
    fs::write(dir.join("large"), random(7, 3 << 20)).unwrap();
    fs::rename(dir.join("moved"), dir.join("made/file-0")).unwrap();
    fs::remove_file(dir.join("removed")).unwrap();
    File::options().append(true).open(dir.join("appended")).unwrap().write_all(b" and after").unwrap();
    for content in ["once", "twice", "thrice"] {
        let file = File::options().write(true).open(dir.join("rewritten")).unwrap();
        file.write_all_at(content.as_bytes(), 2).unwrap();
    }
    fs::set_permissions(dir.join("kept"), PermissionsExt::from_mode(0o640)).unwrap();
    symlink("made/file-3", dir.join("link")).unwrap();
    let open = File::create(dir.join("open")).unwrap();
    open.write_all_at(MARK, 0).unwrap();
    open
}

/// Returns a mount that has ended while servers were away, with all its work in the journal. The servers are back.
fn ended_while_servers_were_away() -> (Surf, PathBuf) {
    let mut surf = Surf::start_behind_proxy(seed(), &[]);
    let dir = begin(&surf);
    surf.proxy().isolate("mnt");
    drop(work(&dir));
    surf.unmount();
    assert!(!segments(&surf).is_empty());
    surf.proxy().heal();
    (surf, dir)
}

/// Checks that everything is there, once.
fn check(dir: &Path) {
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    assert_eq!(names(dir), ["appended", "kept", "large", "link", "made", "open", "rewritten"]);
    assert_eq!(names(&dir.join("made")).len(), 30);
    for number in 1..30 {
        assert_eq!(read(&format!("made/file-{number}")), format!("{number}").repeat(number * 50));
    }
    assert_eq!(read("made/file-0"), "before");
    assert!(fs::read(dir.join("large")).unwrap() == random(7, 3 << 20));
    assert_eq!(read("appended"), "before and after");
    assert_eq!(read("rewritten"), "bethrice");
    assert_eq!(fs::metadata(dir.join("kept")).unwrap().permissions().mode() & 0o7777, 0o640);
    assert_eq!(read("link"), "333".repeat(50));
    assert_eq!(fs::read(dir.join("open")).unwrap(), MARK);
}

/// Guards I8.
#[test]
fn what_a_killed_mount_had_done_while_servers_were_away_is_there_after_the_next_mount() {
    let mut surf = Surf::start_behind_proxy(seed(), &[]);
    let dir = begin(&surf);
    surf.proxy().isolate("mnt");
    let open = work(&dir);
    until_journaled(&surf, MARK);
    surf.kill_mount();
    drop(open);
    surf.proxy().heal();
    let other = surf.mount_again(&[]);
    assert_eq!(names(&other.path().join("dir")).len(), 5, "nobody else can know");
    surf.mount(&[]);
    check(&surf.path().join("dir"));
    check(&other.path().join("dir"));
    until("nothing is left in the journal", LIMIT, || segments(&surf).is_empty().then_some(()));
    // The journal was sent once: the next mount finds the tree as it is now, not as it was then.
    fs::write(dir.join("open"), "later").unwrap();
    surf.unmount();
    surf.mount(&[]);
    assert_eq!(fs::read_to_string(dir.join("open")).unwrap(), "later");
}

/// Guards I8: the metads accept changes, but content has nowhere to go.
#[test]
fn what_is_written_while_no_block_daemon_can_be_reached_is_in_the_journal_though_commits_wait_for_them() {
    let mut surf = Surf::start_behind_proxy(seed(), &[]);
    let dir = begin(&surf);
    let mut daemons = surf.proxy().daemons();
    daemons.retain(|name| name.starts_with("blockd"));
    surf.proxy().set_both(&["mnt"], &daemons, Link::CUT);
    // This is more than waits before it is committed in the background.
    let large = File::create(dir.join("streamed")).unwrap();
    for part in 0..40 {
        large.write_all_at(&random(part, 1 << 20), part << 20).unwrap();
    }
    until_journaled(&surf, &random(39, 1 << 20)[..100]);
    large.write_all_at(MARK, 40 << 20).unwrap();
    until_journaled(&surf, MARK);
    surf.kill_mount();
    drop(large);
    surf.proxy().heal();
    surf.mount(&[]);
    let streamed = fs::read(dir.join("streamed")).unwrap();
    for part in 0..40_u64 {
        assert!(streamed[(part as usize) << 20..][..1 << 20] == random(part, 1 << 20), "part {part}");
    }
    assert_eq!(&streamed[40 << 20..], MARK);
}

/// Guards I8: no mount has a delegation on such a file, so what is written to it does not wait in the queue as a rule.
#[test]
fn what_is_written_to_files_that_others_use_too_is_in_the_journal_when_servers_are_away() {
    let mut surf = Surf::start_behind_proxy(seed(), &[]);
    let other = surf.mount_again(&[]);
    let (here, there) = (begin(&surf), other.path().join("dir"));
    let used: Vec<File> = ["rewritten", "appended"].map(|name| File::open(there.join(name)).unwrap()).into();
    let written = File::options().write(true).open(here.join("rewritten")).unwrap();
    let mut appended = File::options().append(true).open(here.join("appended")).unwrap();
    surf.proxy().isolate("mnt");
    written.write_all_at(b"and written", 7).unwrap();
    appended.write_all(MARK).unwrap();
    until_journaled(&surf, b"and written");
    until_journaled(&surf, MARK);
    surf.kill_mount();
    drop((written, appended, used));
    surf.proxy().heal();
    File::options().append(true).open(there.join("appended")).unwrap().write_all(b" elsewhere").unwrap();
    surf.mount(&[]);
    for dir in [&here, &there] {
        assert_eq!(fs::read(dir.join("rewritten")).unwrap(), b"before\0and written");
        let found: Vec<Vec<u8>> = names(dir)
            .into_iter()
            .filter(|name| name.starts_with("appended"))
            .map(|name| fs::read(dir.join(name)).unwrap())
            .collect();
        let has = |part: &[u8]| found.iter().filter(|held| held.windows(part.len()).any(|held| held == part)).count();
        assert_eq!((has(MARK), has(b" elsewhere")), (1, 1), "appended once each: {found:?}");
    }
}

/// Guards I1 and I8: each attempt gets a little further, and may not know how far.
#[test]
fn a_mount_that_is_killed_while_it_sends_the_journal_leaves_the_rest_to_the_next_one() {
    let mut surf = Surf::start_behind_proxy(seed(), &[]);
    let dir = begin(&surf);
    surf.proxy().isolate("mnt");
    // This makes several batches.
    for number in 0..300 {
        let name = format!("{number:03}");
        fs::write(dir.join(&name), name.repeat(10)).unwrap();
        fs::rename(dir.join(&name), dir.join(format!("{name}-moved"))).unwrap();
    }
    let mut appended = File::options().append(true).open(dir.join("appended")).unwrap();
    for number in 0..50 {
        appended.write_all(format!(" {number}").as_bytes()).unwrap();
    }
    drop(appended);
    fs::write(dir.join("last"), MARK).unwrap();
    until_journaled(&surf, MARK);
    surf.kill_mount();
    surf.proxy().heal();
    for milliseconds in [40, 80, 120, 160, 200, 250, 300, 400] {
        let mut command = Command::new(bin("surfmount"));
        command.arg("--cluster").arg(surf.bundle()).arg("--cache-dir").arg(surf.cache_dir()).arg(surf.path());
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
        abort(&surf.path());
    }
    surf.mount(&[]);
    let listed = names(&dir);
    let others: Vec<_> = listed.iter().filter(|name| !name.ends_with("-moved")).collect();
    assert_eq!(others, ["appended", "kept", "last", "moved", "removed", "rewritten"]);
    assert_eq!(listed.len(), 306);
    for number in 0..300 {
        let name = format!("{number:03}");
        assert_eq!(fs::read_to_string(dir.join(format!("{name}-moved"))).unwrap(), name.repeat(10));
    }
    let numbers: String = (0..50).map(|number| format!(" {number}")).collect();
    assert_eq!(fs::read_to_string(dir.join("appended")).unwrap(), format!("before{numbers}"));
}

/// Guards I1 and I8: the answers do not arrive, so the mount cannot know that all its changes were applied.
#[test]
fn what_metad_had_applied_before_the_mount_was_killed_is_not_applied_again() {
    let mut surf = Surf::start_behind_proxy(seed(), &[]);
    let other = surf.mount_again(&[]);
    let dir = begin(&surf);
    // Requests arrive while the connections accept them without answers.
    surf.proxy().set(&surf.proxy().daemons(), &["mnt"], Link::CUT);
    fs::create_dir(dir.join("made")).unwrap();
    File::options().append(true).open(dir.join("appended")).unwrap().write_all(b" and after").unwrap();
    fs::rename(dir.join("moved"), dir.join("made/moved")).unwrap();
    fs::write(dir.join("moved"), MARK).unwrap();
    until_journaled(&surf, MARK);
    surf.kill_mount();
    surf.proxy().heal();
    surf.mount(&[]);
    for dir in [dir, other.path().join("dir")] {
        let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
        assert_eq!(names(&dir), ["appended", "kept", "made", "moved", "removed", "rewritten"]);
        assert_eq!(names(&dir.join("made")), ["moved"]);
        assert_eq!(read("appended"), "before and after");
        assert_eq!((read("made/moved").as_bytes(), read("moved").as_bytes()), (&b"before"[..], MARK));
    }
}

/// Guards I6 and I8.
#[test]
fn what_is_in_the_journal_stands_beside_what_others_did_before_it_was_sent() {
    let mut surf = Surf::start_behind_proxy(seed(), &[]);
    let other = surf.mount_again(&[]);
    let here = begin(&surf);
    let there = other.path().join("dir");
    surf.proxy().isolate("mnt");
    fs::write(here.join("same"), "here").unwrap();
    for (name, content) in [("rewritten", &b"written here"[..]), ("removed", MARK)] {
        let file = File::options().write(true).open(here.join(name)).unwrap();
        file.write_all_at(content, 0).unwrap();
    }
    until_journaled(&surf, MARK);
    surf.kill_mount();
    surf.proxy().heal();
    fs::write(there.join("same"), "there").unwrap();
    fs::remove_file(there.join("removed")).unwrap();
    fs::write(there.join("rewritten"), "there").unwrap();
    surf.mount(&[]);
    let copy_of = |name: &str| {
        let start = format!("{name}.conflict-");
        let found: Vec<String> = names(&there).into_iter().filter(|name| name.starts_with(&start)).collect();
        assert_eq!(found.len(), 1, "{name}: {:?}", names(&there));
        fs::read_to_string(there.join(&found[0])).unwrap()
    };
    assert_eq!(copy_of("same"), "here");
    assert_eq!(copy_of("rewritten"), "written here");
    assert_eq!(copy_of("removed").as_bytes(), MARK);
    for name in ["same", "rewritten"] {
        assert_eq!(fs::read_to_string(there.join(name)).unwrap(), "there");
    }
    assert_eq!(fs::metadata(here.join("removed")).unwrap_err().kind(), ErrorKind::NotFound);
}

/// Guards I8: ending a mount does not wait for servers that are away.
#[test]
fn a_mount_ends_while_servers_are_away_and_the_next_one_sends_what_it_could_not() {
    let (mut surf, dir) = ended_while_servers_were_away();
    // A read-only mount leaves the journal to the next one.
    surf.mount(&["-o", "ro"]);
    assert_eq!(names(&dir).len(), 5);
    surf.unmount();
    surf.mount(&[]);
    check(&dir);
    surf.unmount();
    assert!(segments(&surf).is_empty());
}

/// Guards I8.
#[test]
fn what_a_full_cluster_cannot_take_is_set_aside_and_sent_when_there_is_room() {
    let (mut surf, dir) = ended_while_servers_were_away();
    let disks: Vec<PathBuf> = (1..=3).map(|number| surf.daemon(&format!("blockd-{number}")).data_dir).collect();
    let on_disks = |surf: &Surf, script: &str| {
        for disk in &disks {
            sh(&surf.scratch(), LIMIT, &script.replace("DISK", &disk.display().to_string()));
        }
    };
    for number in 1..=3 {
        surf.dev(&["stop", &format!("blockd-{number}")]);
    }
    // This is less than a block daemon leaves free.
    on_disks(&surf, "mv DISK DISK.was && mkdir DISK && mount -t tmpfs -o size=500m none DISK && cp -a DISK.was/. DISK");
    for number in 1..=3 {
        surf.dev(&["start", &format!("blockd-{number}")]);
    }
    let set_aside = |surf: &Surf| {
        let is_set_aside = |path: &PathBuf| path.components().any(|part| part.as_os_str() == "journal.kept-1");
        files_below(&surf.cache_dir()).into_iter().filter(is_set_aside).count()
    };
    for _ in 0..2 {
        surf.mount(&[]);
        assert!(set_aside(&surf) > 0, "it stays while there is no room");
        // There is no other way to make room.
        fs::create_dir(surf.path().join("works")).unwrap();
        fs::remove_dir(surf.path().join("works")).unwrap();
        surf.unmount();
    }
    on_disks(&surf, "mount -o remount,size=2000m DISK");
    surf.mount(&[]);
    check(&dir);
    assert_eq!(set_aside(&surf), 0, "and is gone when all of it is sent");
}

#[test]
fn a_journal_of_another_identity_or_one_that_is_damaged_is_refused_and_nothing_of_it_is_lost() {
    let mut surf = Surf::start_behind_proxy(seed(), &[]);
    let dir = begin(&surf);
    surf.proxy().isolate("mnt");
    fs::write(dir.join("first"), "before that").unwrap();
    until_journaled(&surf, b"before that");
    fs::write(dir.join("new"), MARK).unwrap();
    until_journaled(&surf, MARK);
    surf.kill_mount();
    surf.proxy().heal();
    let refused = |surf: &Surf, reason: &str| {
        let mut command = Command::new(bin("surfmount"));
        command.arg("--cluster").arg(surf.bundle()).arg("--cache-dir").arg(surf.cache_dir()).arg(surf.path());
        let output = run(&mut command, LIMIT);
        assert!(!output.status.success() && !is_mounted(&surf.path()), "{}", output.text);
        assert!(output.text.contains(reason) && output.text.lines().count() == 1, "{}", output.text);
    };
    let segment = segments(&surf).pop().unwrap();
    let owner = segment.parent().and_then(Path::parent).unwrap().join("owner");
    let ours = fs::read_to_string(&owner).unwrap();
    fs::write(&owner, ours.replace("\nclient ", "\nclient another ")).unwrap();
    refused(&surf, "belongs to");
    fs::write(&owner, ours).unwrap();
    let whole = fs::read(&segment).unwrap();
    let mut damaged = whole.clone();
    damaged[30] ^= 1;
    fs::write(&segment, damaged).unwrap();
    refused(&surf, "is damaged at byte 0");
    fs::write(&segment, [&whole[..], b"torn"].concat()).unwrap();
    surf.mount(&[]);
    assert_eq!(fs::read(dir.join("new")).unwrap(), MARK);
    assert_eq!(fs::read_to_string(dir.join("first")).unwrap(), "before that");
}
