//! A mount that works in its own memory where nobody else looks, and the outcome of its changes when it is cut off.

use fuse::{LIMIT, names};
use kit::chance::seed;
use kit::{Surf, mounts, until};
use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Waits for the conflict copy of a name, and returns it.
fn conflict_of(dir: &Path, name: &str) -> PathBuf {
    let start = format!("{name}.conflict-");
    until(&format!("a conflict copy of {name}"), LIMIT, || {
        names(dir).into_iter().find(|name| name.starts_with(&start)).map(|name| dir.join(name))
    })
}

/// Guards I6, for names and for content.
#[test]
fn what_a_mount_did_while_it_was_cut_off_stands_beside_what_others_did_meanwhile() {
    let surf = Surf::start_behind_proxy(seed(), &[]);
    let other = surf.mount_again(&[]);
    let (here, there) = (surf.path().join("dir"), other.path().join("dir"));
    fs::create_dir(&here).unwrap();
    for number in 0..10 {
        fs::write(here.join(format!("file-{number}")), "before").unwrap();
    }
    fs::create_dir(here.join("gone")).unwrap();
    fs::create_dir(here.join("empty")).unwrap();
    let opened = File::open(&here).unwrap();
    opened.sync_all().unwrap();
    mounts::answered(&surf.path(), LIMIT);
    surf.proxy().isolate("mnt");
    // Nobody else has looked: this needs no server.
    fs::write(here.join("same"), "here").unwrap();
    let written = File::options().write(true).open(here.join("file-3")).unwrap();
    written.write_all_at(b"WRITTEN", 0).unwrap();
    drop(written);
    fs::create_dir(here.join("both")).unwrap();
    fs::write(here.join("both/inside"), "here").unwrap();
    fs::rename(here.join("file-4"), here.join("target")).unwrap();
    fs::write(here.join("chosen"), "here").unwrap();
    // metad must know that a file is open before it is replaced.
    mounts::answered(&surf.path(), LIMIT);
    fs::rename(here.join("file-6"), here.join("chosen")).unwrap();
    fs::remove_file(here.join("file-5")).unwrap();
    fs::remove_file(here.join("file-7")).unwrap();
    fs::write(here.join("saved"), "here").unwrap();
    fs::rename(here.join("saved"), here.join("file-8")).unwrap();
    fs::rename(here.join("file-9"), here.join("moved here")).unwrap();
    fs::write(here.join("gone/made"), "here").unwrap();
    fs::remove_dir(here.join("empty")).unwrap();
    fs::set_permissions(here.join("file-1"), Permissions::from_mode(0o600)).unwrap();

    // Waits until the leases of the other mount have run out.
    assert_eq!(fs::metadata(there.join("same")).unwrap_err().kind(), ErrorKind::NotFound);
    fs::write(there.join("same"), "there").unwrap();
    fs::remove_file(there.join("file-3")).unwrap();
    fs::create_dir(there.join("both")).unwrap();
    fs::write(there.join("both/other"), "there").unwrap();
    fs::write(there.join("target"), "there").unwrap();
    fs::write(there.join("chosen"), "there").unwrap();
    fs::remove_file(there.join("file-5")).unwrap();
    fs::write(there.join("file-5"), "there").unwrap();
    for name in ["file-7", "file-8"] {
        let file = File::options().write(true).open(there.join(name)).unwrap();
        file.write_all_at(b"there", 1).unwrap();
        file.sync_all().unwrap();
    }
    fs::rename(there.join("file-9"), there.join("moved there")).unwrap();
    fs::remove_dir(there.join("gone")).unwrap();
    fs::write(there.join("empty/made"), "there").unwrap();
    fs::set_permissions(there.join("file-1"), Permissions::from_mode(0o640)).unwrap();
    surf.proxy().heal();

    let read = |path: PathBuf| fs::read_to_string(path).unwrap();
    assert_eq!(read(conflict_of(&there, "same")), "here");
    assert_eq!(read(conflict_of(&there, "file-3")), "WRITTEN");
    assert_eq!(read(conflict_of(&there, "both").join("inside")), "here");
    assert_eq!(read(conflict_of(&there, "target")), "before");
    // Others have written in place: neither a removal nor a replacement that comes late removes that.
    assert_eq!(read(conflict_of(&there, "file-8")), "here");
    assert_eq!(read(conflict_of(&other.path(), "made")), "here");
    // Both the file that was made under the name and the one that was moved there stay: nobody can say any more which
    // replaced which.
    let copies = until("two conflict copies", LIMIT, || {
        let mut copies = names(&there);
        copies.retain(|name| name.starts_with("chosen.conflict-"));
        (copies.len() == 2).then_some(copies)
    });
    let mut contents: Vec<String> = copies.iter().map(|name| read(there.join(name))).collect();
    contents.sort();
    assert_eq!(contents, ["before", "here"]);
    for name in ["same", "both/other", "target", "chosen", "file-5"] {
        assert_eq!(read(there.join(name)), "there", "{name}");
    }
    for name in ["file-7", "file-8"] {
        assert_eq!(read(there.join(name)), "bthere", "{name}");
    }
    assert_eq!(read(there.join("empty/made")), "there");
    assert_eq!(read(there.join("moved there")), "before");
    for name in ["file-3", "gone", "moved here"] {
        assert_eq!(fs::symlink_metadata(there.join(name)).unwrap_err().kind(), ErrorKind::NotFound, "{name}");
    }
    // The later change to arrive counts; the changes of this mount come in several batches.
    let mode = || fs::metadata(there.join("file-1")).unwrap().permissions().mode() & 0o777;
    until("the rights are those that were set here", LIMIT, || (mode() == 0o600).then_some(()));
    // Each descriptor that was open when changes came to nothing reports that, once.
    assert_eq!(opened.sync_all().unwrap_err().raw_os_error(), Some(libc::ESTALE));
    opened.sync_all().unwrap();
    // The mount that was cut off goes on by itself, and shows the same as the other one.
    until("both mounts list the same", LIMIT, || (names(&here) == names(&there)).then_some(()));
    fs::write(here.join("after"), "here").unwrap();
    assert_eq!(read(there.join("after")), "here");
}

/// Guards I6: the policy `fail` applies only while the writer can still get an error.
#[test]
fn what_close_has_acknowledged_is_never_refused() {
    let surf = Surf::start_behind_proxy(seed(), &["-o", "conflict=fail"]);
    let other = surf.mount_again(&[]);
    let (here, there) = (surf.path().join("dir"), other.path().join("dir"));
    fs::create_dir(&here).unwrap();
    fs::write(here.join("file"), "before").unwrap();
    File::open(&here).unwrap().sync_all().unwrap();
    let write = |dir: &Path, content: &[u8]| {
        let file = File::options().write(true).open(dir.join("file")).unwrap();
        file.write_all_at(content, 0).unwrap();
    };
    surf.proxy().isolate("mnt");
    write(&here, b"HERE..");
    // Waits until the leases of the other mount have run out.
    write(&there, b"THERE.");
    surf.proxy().heal();
    assert_eq!(fs::read_to_string(conflict_of(&there, "file")).unwrap(), "HERE..");
    assert_eq!(fs::read_to_string(there.join("file")).unwrap(), "THERE.");
}

/// Guards I6 and I8.
#[test]
fn a_mount_that_was_away_until_its_session_had_expired_loses_only_its_lock_and_reports_that() {
    let surf = Surf::start_behind_proxy(seed(), &[]);
    let other = surf.mount_again(&[]);
    let (here, there) = (surf.path(), other.path());
    let open = |path: PathBuf| File::options().read(true).write(true).open(path).unwrap();
    fs::write(here.join("shared"), "before").unwrap();
    fs::create_dir(here.join("dir")).unwrap();
    fs::write(here.join("dir/file"), "before").unwrap();
    let locked = open(here.join("shared"));
    locked.lock().unwrap();
    locked.sync_all().unwrap();
    surf.proxy().isolate("mnt");
    fs::write(here.join("dir/unsent"), "here").unwrap();
    fs::rename(here.join("dir/file"), here.join("dir/moved")).unwrap();
    locked.write_all_at(b"HERE", 0).unwrap();

    // Waits until the session that holds the lock has expired.
    let taken = open(there.join("shared"));
    taken.lock().unwrap();
    taken.write_all_at(b"THERE!", 0).unwrap();
    taken.sync_all().unwrap();
    surf.proxy().heal();

    // A program that goes on as if it held the lock gets an error, and nothing that it writes gets into the file.
    let refused = |done: std::io::Result<()>| done.is_err_and(|error| error.raw_os_error() == Some(libc::ESTALE));
    until("the lock is known to be lost", LIMIT, || refused(locked.read_exact_at(&mut [0; 6], 0)).then_some(()));
    assert!(refused(locked.write_all_at(b"LATE", 0)) && refused(locked.set_len(0)));
    // This commits what was written, unless the background was first: then that has met the conflict.
    if let Err(error) = locked.unlock() {
        assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
    }
    drop(taken);
    locked.lock().unwrap();
    let mut content = [0; 6];
    locked.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(&content, b"THERE!");
    locked.write_all_at(b"THEN", 0).unwrap();
    locked.unlock().unwrap();

    let read = |path: PathBuf| fs::read_to_string(path).unwrap();
    assert_eq!(read(there.join("shared")), "THENE!");
    assert_eq!(read(conflict_of(&there, "shared")), "HEREE!");
    until("unsent changes have arrived", LIMIT, || (names(&there.join("dir")) == ["moved", "unsent"]).then_some(()));
    assert_eq!((read(there.join("dir/unsent")), read(there.join("dir/moved"))), ("here".into(), "before".into()));
    assert_eq!(names(&here), names(&there));
}

/// Guards I5 and I8.
#[test]
fn changes_that_two_mounts_have_not_sent_when_the_leader_dies_are_seen_by_the_first_to_look() {
    let surf = Surf::start_behind_proxy(seed(), &[]);
    let (two, looking) = (surf.mount_again(&[]), surf.mount_again(&[]));
    let dirs = [surf.path().join("one"), two.path().join("two")];
    for dir in &dirs {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("first"), "first").unwrap();
        File::open(dir).unwrap().sync_all().unwrap();
    }
    let leader = surf.leader();
    surf.proxy().isolate(&leader);
    // Nobody else has looked: this needs no server, and this leader never hears of it.
    for dir in &dirs {
        for number in 0..50 {
            fs::write(dir.join(format!("file-{number}")), number.to_string()).unwrap();
        }
        fs::rename(dir.join("file-7"), dir.join("moved")).unwrap();
        fs::remove_file(dir.join("first")).unwrap();
    }
    surf.kill_9(&leader);
    surf.proxy().heal();
    for name in ["one", "two"] {
        let dir = looking.path().join(name);
        let found = names(&dir);
        assert_eq!(found.len(), 50, "{found:?}");
        assert!(!found.contains(&"first".to_owned()) && !found.contains(&"file-7".to_owned()), "{found:?}");
        assert_eq!(fs::read_to_string(dir.join("moved")).unwrap(), "7");
        assert_eq!(fs::read_to_string(dir.join("file-49")).unwrap(), "49");
    }
    surf.dev(&["start", &leader]);
}

/// Nobody waits for changes at which nobody else looks, and anybody who looks a moment later sees them.
#[test]
fn a_tree_that_one_mount_unpacks_is_complete_when_another_looks_and_when_it_is_mounted_again() {
    let mut surf = Surf::start(kit::Setup::Cluster);
    let other = surf.mount_again(&[]);
    let (here, there) = (surf.path().join("tree"), other.path().join("tree"));
    for dir in 0..20 {
        let dir = here.join(format!("dir-{dir}"));
        fs::create_dir_all(&dir).unwrap();
        for number in 0..50 {
            fs::write(dir.join(format!("file-{number}")), format!("{number}").repeat(number * 20)).unwrap();
        }
        fs::rename(dir.join("file-7"), dir.join("file-8")).unwrap();
        fs::remove_file(dir.join("file-9")).unwrap();
    }
    let check = |tree: &Path| {
        for dir in names(tree) {
            let dir = tree.join(dir);
            assert_eq!(names(&dir).len(), 48);
            for number in [0_usize, 6, 10, 49] {
                let content = fs::read_to_string(dir.join(format!("file-{number}"))).unwrap();
                assert_eq!(content, format!("{number}").repeat(number * 20));
            }
            assert_eq!(fs::metadata(dir.join("file-8")).unwrap().len(), 140);
        }
        assert_eq!(names(tree).len(), 20);
    };
    check(&there);
    check(&here);
    surf.unmount();
    surf.mount(&[]);
    check(&here);
}
