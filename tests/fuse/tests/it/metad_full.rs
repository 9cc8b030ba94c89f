//! The disks of metads fill: what takes space is refused, what makes room goes on, and when there is room again everything
//! does, without a restart.

use crate::fsck::until_clean;
use crate::healing::cluster_with;
use fuse::{LIMIT, names};
use kit::{Surf, sh, until};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Files that are synced before a disk fills.
const KEPT: [&str; 5] = ["kept", "first", "second", "third", "fourth"];

fn mount_small(surf: &Surf, dir: &Path, mib: u32) {
    let dir = dir.display();
    sh(&surf.scratch(), LIMIT, &format!("mkdir -p {dir} && mount -t tmpfs -o size={mib}m none {dir}"));
}

/// Leaves this many KiB of a disk free.
fn fill(surf: &Surf, disk: &Path, left_kib: u64) {
    let disk = disk.display();
    let free = format!("$(df --output=avail -B1024 {disk} | tail -n 1)");
    sh(&surf.scratch(), LIMIT, &format!("fallocate -l $(({free} - {left_kib}))KiB {disk}/ballast"));
}

/// Makes files of a few bytes, which lie in the metadata, and syncs them.
fn make_kept(surf: &Surf) {
    for name in KEPT {
        let mut file = File::create(surf.path().join(name)).expect("a file can be made");
        file.write_all(name.as_bytes()).and_then(|()| file.sync_all()).expect("it can be written and synced");
    }
}

/// Tries to make a file, which is removed again. Returns whether there was room.
fn has_room(surf: &Surf) -> bool {
    let path = surf.path().join("more");
    match File::create(&path) {
        Ok(_) => {
            fs::remove_file(path).expect("it can be removed");
            true
        }
        Err(error) if error.kind() == ErrorKind::StorageFull => false,
        Err(error) => panic!("a file cannot be made: {error}"),
    }
}

fn until_short(surf: &Surf) {
    until("new files are refused", LIMIT, || (!has_room(surf)).then_some(()));
    let refused = fs::create_dir(surf.path().join("dir")).expect_err("there is no room");
    assert_eq!(refused.kind(), ErrorKind::StorageFull);
}

fn until_ample(surf: &Surf) {
    until("files can be made again", LIMIT, || has_room(surf).then_some(()));
}

/// Checks that what was synced is there, but for what was removed.
fn check_kept(surf: &Surf, kept: &[&str]) {
    let mut wanted = kept.to_vec();
    wanted.sort_unstable();
    assert_eq!(names(&surf.path()), wanted);
    for name in kept {
        assert_eq!(fs::read_to_string(surf.path().join(name)).expect("it can be read"), *name);
    }
}

/// Guards I7.
#[test]
fn an_embedded_mount_on_a_full_disk_lets_files_be_removed_is_mounted_again_and_goes_on_when_there_is_room() {
    // A block daemon leaves half a gigabyte free.
    let mut surf = Surf::start_embedded_by(|surf| mount_small(surf, &surf.data_dir(), 1100));
    let disk = surf.data_dir();
    make_kept(&surf);
    fill(&surf, &disk, 8 << 10);
    until_short(&surf);
    fs::remove_file(surf.path().join("first")).expect("a file can be removed");
    check_kept(&surf, &["kept", "second", "third", "fourth"]);

    surf.kill_mount();
    surf.mount(&[]);
    until_short(&surf);
    fs::remove_file(surf.path().join("second")).expect("a file can be removed");
    check_kept(&surf, &["kept", "third", "fourth"]);
    fs::remove_file(disk.join("ballast")).expect("the ballast can be removed");
    until_ample(&surf);
    File::create(surf.path().join("third")).and_then(|file| file.sync_all()).expect("a file can be cut");
    fs::write(surf.path().join("third"), "third").expect("a file can be written");
    surf.unmount();
    surf.mount(&[]);
    check_kept(&surf, &["kept", "third", "fourth"]);
}

/// Guards I7.
#[test]
fn a_cluster_whose_metads_have_full_disks_goes_on_by_itself_and_they_start_on_them() {
    let surf = cluster_with(3, 0, "600", |surf| {
        for number in 1..=3 {
            mount_small(surf, &surf.daemon(&format!("metad-{number}")).data_dir, 200);
        }
    });
    let metads: Vec<String> = (1..=3).map(|number| format!("metad-{number}")).collect();
    let disks: Vec<PathBuf> = metads.iter().map(|name| surf.daemon(name).data_dir).collect();
    let empty = || disks.iter().for_each(|disk| fs::remove_file(disk.join("ballast")).expect("it can be removed"));
    make_kept(&surf);
    disks.iter().for_each(|disk| fill(&surf, disk, 64));
    until_short(&surf);
    fs::remove_file(surf.path().join("first")).expect("a file can be removed");
    // Another mount knows only what was acknowledged.
    let other = surf.mount_again(&[]);
    assert_eq!(names(&other.path()).len(), KEPT.len() - 1);
    empty();
    until_ample(&surf);

    disks.iter().for_each(|disk| fill(&surf, disk, 64));
    until_short(&surf);
    metads.iter().for_each(|name| surf.kill_9(name));
    metads.iter().for_each(|name| surf.dev(&["start", name]));
    until_short(&surf);
    fs::remove_file(surf.path().join("second")).expect("a file can be removed");
    check_kept(&surf, &["kept", "third", "fourth"]);
    empty();
    until_ample(&surf);
    disks.iter().for_each(|disk| {
        until("each has its reserve again", LIMIT, || disk.join("reserve").exists().then_some(()));
    });
    check_kept(&surf, &["kept", "third", "fourth"]);
    until_clean(&surf, &[]);
}
