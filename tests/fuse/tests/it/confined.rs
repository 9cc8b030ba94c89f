//! Mounts of clients whose certificates confine them: they work as any other within their bounds.

use crate::tokens::enroll_as_client;
use fuse::{LIMIT, names};
use kit::{Setup, Surf, sh};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

fn tree(root: &Path) {
    for dir in ["home/alice", "elsewhere"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::write(root.join("home/alice/letter"), "dear").unwrap();
    fs::write(root.join("elsewhere/secret"), "mine").unwrap();
    fs::hard_link(root.join("elsewhere/secret"), root.join("elsewhere/link")).unwrap();
}

#[test]
fn a_mount_of_a_subtree_works_as_a_filesystem_of_its_own_and_sees_nothing_else() {
    let surf = Surf::start(Setup::Cluster);
    tree(&surf.path());
    enroll_as_client(&surf, "home.bundle", &["--path", "/home"]);
    let other = surf.mount_again(&[]);
    let (whole, home) = (surf.path(), other.path());
    assert_eq!(names(&home), ["alice"]);
    assert_eq!(fs::read_to_string(home.join("alice/letter")).unwrap(), "dear");
    // Above the root is what is above the mount point.
    let above = fs::metadata(home.join("..")).unwrap();
    assert_eq!((above.dev(), above.ino()), {
        let real = fs::metadata(home.parent().unwrap()).unwrap();
        (real.dev(), real.ino())
    });
    assert_eq!(names(&home.join("alice/..")), ["alice"]);
    sh(&home, LIMIT, "df . && ls -la . alice && find . && stat . ./alice/..");
    // Ordinary work, with blocks.
    let script = "mkdir -p a/b && head -c 3000000 /dev/urandom > a/b/f && cp a/b/f g && cmp a/b/f g && mv a/b/f a/h && \
                  ln g a/link && cmp g a/link && rm g && test $(stat -c %h a/link) = 1 && ln -s h a/s && cmp a/s a/link && \
                  truncate -s 10 a/h && test $(stat -c %s a/h) = 10 && \
                  tar cf t.tar a && mkdir x && tar xf t.tar -C x && diff -r a x/a && rm -r a x t.tar && test ! -e a";
    sh(&home, LIMIT, script);
    fs::write(home.join("alice/long"), vec![7; 300_000]).unwrap();
    assert_eq!(fs::read(whole.join("home/alice/long")).unwrap(), vec![7; 300_000]);
    // What one side does, the other one sees, as long as it lies within.
    fs::write(whole.join("home/alice/reply"), "yours").unwrap();
    assert_eq!(fs::read_to_string(home.join("alice/reply")).unwrap(), "yours");
    fs::hard_link(whole.join("elsewhere/secret"), whole.join("home/shared")).unwrap();
    assert_eq!(fs::read_to_string(home.join("shared")).unwrap(), "mine");
    fs::remove_file(whole.join("home/shared")).unwrap();
    assert_eq!(fs::metadata(home.join("shared")).unwrap_err().kind(), ErrorKind::NotFound);
    // Symlinks are resolved by the client's kernel.
    symlink("/elsewhere/secret", home.join("absolute")).unwrap();
    symlink("../elsewhere/secret", home.join("relative")).unwrap();
    for link in ["absolute", "relative"] {
        assert_eq!(fs::metadata(home.join(link)).unwrap_err().kind(), ErrorKind::NotFound);
    }
    drop(other);
    assert_eq!(surf.operate(&["fsck"]).1, 0);
}

#[test]
fn a_directory_that_others_move_out_of_a_subtree_disappears_with_all_that_is_in_it_and_comes_back() {
    let surf = Surf::start(Setup::Cluster);
    tree(&surf.path());
    fs::create_dir_all(surf.path().join("home/alice/a/b")).unwrap();
    fs::write(surf.path().join("home/alice/a/b/deep"), "deep").unwrap();
    enroll_as_client(&surf, "home.bundle", &["--path", "/home"]);
    let other = surf.mount_again(&[]);
    let (whole, home) = (surf.path(), other.path());
    for round in 0..5 {
        let deep = home.join("alice/a/b/deep");
        assert_eq!(fs::read_to_string(&deep).unwrap(), "deep");
        let open = File::open(&deep).unwrap();
        fs::rename(whole.join("home/alice"), whole.join("elsewhere/alice")).unwrap();
        assert_eq!(fs::metadata(&deep).unwrap_err().kind(), ErrorKind::NotFound, "round {round}");
        assert!(fs::read_dir(home.join("alice/a")).is_err());
        assert!(open.metadata().is_err());
        assert_eq!(names(&home), Vec::<String>::new());
        fs::rename(whole.join("elsewhere/alice"), whole.join("home/alice")).unwrap();
    }
    assert_eq!(names(&home), ["alice"]);
}

#[test]
fn a_mount_whose_certificate_only_reads_a_subtree_changes_nothing() {
    let surf = Surf::start(Setup::Cluster);
    tree(&surf.path());
    enroll_as_client(&surf, "reader.bundle", &["--path", "/home", "--read-only"]);
    let other = surf.mount_again(&[]);
    assert_eq!(fs::read_to_string(other.path().join("alice/letter")).unwrap(), "dear");
    let denied = fs::write(other.path().join("new"), "x").unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::ReadOnlyFilesystem);
    assert!(fs::remove_file(other.path().join("alice/letter")).is_err());
    assert!(!surf.path().join("home/new").exists());
}

#[test]
fn root_of_a_squashed_mount_is_nobody() {
    let surf = Surf::start(Setup::Cluster);
    tree(&surf.path());
    let (whole, mode) = (surf.path(), fs::Permissions::from_mode);
    fs::set_permissions(whole.join("home"), mode(0o777)).unwrap();
    fs::write(whole.join("home/private"), "of root").unwrap();
    fs::set_permissions(whole.join("home/private"), mode(0o600)).unwrap();
    fs::write(whole.join("home/public"), "for all").unwrap();
    enroll_as_client(&surf, "squashed.bundle", &["--path", "/home", "--squash", "root"]);
    let other = surf.mount_again(&[]);
    let home = other.path();
    fs::write(home.join("made"), "by root").unwrap();
    let made = fs::metadata(home.join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (65_534, 65_534));
    assert_eq!(fs::read_to_string(home.join("made")).unwrap(), "by root");
    assert_eq!(fs::read_to_string(home.join("public")).unwrap(), "for all");
    let denied = |kind| matches!(kind, ErrorKind::PermissionDenied);
    assert!(denied(fs::read(home.join("private")).unwrap_err().kind()));
    assert!(denied(fs::write(home.join("public"), "x").unwrap_err().kind()));
    assert!(denied(File::options().append(true).open(home.join("public")).unwrap_err().kind()));
    assert!(denied(fs::set_permissions(home.join("public"), mode(0o777)).unwrap_err().kind()));
    assert!(denied(std::os::unix::fs::chown(home.join("made"), Some(0), None).unwrap_err().kind()));
    assert!(denied(fs::write(home.join("alice/new"), "x").unwrap_err().kind()));
    assert_eq!(fs::read_to_string(whole.join("home/public")).unwrap(), "for all");
    // Nor may it remove, move, or cut what is in a directory of another user, whether the mount has it open or not.
    let theirs = whole.join("home/theirs");
    fs::create_dir(&theirs).unwrap();
    fs::write(theirs.join("f"), "of 1234").unwrap();
    for path in [theirs.clone(), theirs.join("f")] {
        std::os::unix::fs::chown(&path, Some(1234), Some(1234)).unwrap();
    }
    let theirs = home.join("theirs");
    let _open = File::open(theirs.join("f")).unwrap();
    assert!(denied(fs::remove_file(theirs.join("f")).unwrap_err().kind()));
    assert!(denied(fs::rename(theirs.join("f"), home.join("f")).unwrap_err().kind()));
    assert!(denied(fs::rename(home.join("made"), theirs.join("f")).unwrap_err().kind()));
    assert!(denied(kit::truncate(&theirs.join("f"), 0).unwrap_err().kind()));
    assert_eq!(fs::read_to_string(whole.join("home/theirs/f")).unwrap(), "of 1234");
    // What is open, it may cut.
    let made = File::options().write(true).open(home.join("made")).unwrap();
    made.set_len(2).unwrap();
    assert_eq!(fs::read_to_string(home.join("made")).unwrap(), "by");
}

#[test]
fn all_users_of_a_mount_that_makes_them_one_are_that_one() {
    let surf = Surf::start(Setup::Cluster);
    tree(&surf.path());
    let (whole, mode) = (surf.path(), fs::Permissions::from_mode);
    fs::set_permissions(whole.join("home"), mode(0o755)).unwrap();
    std::os::unix::fs::chown(whole.join("home"), Some(1234), Some(1234)).unwrap();
    enroll_as_client(&surf, "all.bundle", &["--path", "/home", "--squash", "all:1234:1234"]);
    let other = surf.mount_again(&[]);
    let mut file = File::create(other.path().join("made")).unwrap();
    file.write_all(b"by somebody").unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::metadata(other.path().join("made")).unwrap().uid(), 1234);
    // Its kernel does not know whose rights it has, and does not stand in the way.
    fs::set_permissions(other.path().join("made"), mode(0o600)).unwrap();
    assert_eq!(fs::read_to_string(other.path().join("made")).unwrap(), "by somebody");
    assert!(fs::write(other.path().join("alice/new"), "x").is_err(), "that is root's");
    assert_eq!(fs::read_to_string(whole.join("home/made")).unwrap(), "by somebody");
}

#[test]
fn a_mount_of_a_subtree_reads_its_part_of_what_was_packed_with_other_files_and_writes_what_others_have_too() {
    let surf = Surf::start(Setup::Cluster);
    let whole = surf.path();
    tree(&whole);
    // Small files that are written together share blocks.
    let content = |number: u8| [number; 9_000];
    for number in 0..20 {
        for dir in ["home/alice", "elsewhere"] {
            fs::write(whole.join(dir).join(format!("small{number}")), content(number)).unwrap();
        }
    }
    let large: Vec<u8> = (0..6_000_000_u32).map(|n| (n / 7) as u8).collect();
    fs::write(whole.join("home/alice/large"), &large).unwrap();
    fs::write(whole.join("elsewhere/large"), &large).unwrap();
    // A file of which parts of blocks are left.
    sh(
        &whole.join("home/alice"),
        LIMIT,
        "cp large cut && printf new | dd of=cut bs=1 seek=1000000 conv=notrunc status=none && sync cut",
    );
    enroll_as_client(&surf, "home.bundle", &["--path", "/home"]);
    let other = surf.mount_again(&[]);
    let home = other.path().join("alice");
    for number in 0..20 {
        assert_eq!(fs::read(home.join(format!("small{number}"))).unwrap(), content(number));
    }
    assert_eq!(fs::read(home.join("large")).unwrap(), large);
    sh(
        &home,
        LIMIT,
        "cmp -n 1000000 large cut && cmp -i 1000003 large cut && dd if=cut bs=1 skip=1000000 count=3 status=none | grep -q new",
    );
    // The same content as a file that it does not see, which is stored once.
    let mut file = File::create(home.join("copy")).unwrap();
    file.write_all(&large).unwrap();
    file.sync_all().unwrap();
    sh(&home, LIMIT, "cp large again && sync again && cmp large again");
    assert_eq!(fs::read(whole.join("home/alice/copy")).unwrap(), large);
    assert_eq!(fs::read(whole.join("home/alice/again")).unwrap(), large);
    drop(other);
    assert_eq!(surf.operate(&["fsck"]).1, 0);
}
