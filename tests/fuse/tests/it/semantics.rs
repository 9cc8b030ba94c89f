//! Promises to programs, operation by operation: the sentences that `scripts/` checks, on a real mount.

use fuse::LIMIT;
use kit::bins::workspace;
use kit::command::need;
use kit::{Setup, Surf, sh};
use std::fs;

/// Runs a script in the mount; its output names the sentence that does not hold.
fn check(surf: &Surf, script: &str) {
    need(&["python3", "acl", "attr", "rsync"]);
    let scripts = workspace().join("tests/fuse/scripts");
    // Users without rights walk through the mount's root.
    let run = format!("chmod 755 . && mkdir {script} && cd {script} && python3 -B {}/{script}.py", scripts.display());
    println!("{}", sh(&surf.path(), LIMIT, &run));
}

/// Makes one test per script and set-up.
macro_rules! sentences {
    ($($name:ident => $script:literal;)*) => {
        mod embedded {
            use super::*;
            $(#[test] fn $name() { check(&Surf::start(Setup::Embedded), $script) })*
        }
        mod cluster {
            use super::*;
            $(#[test] fn $name() { check(&Surf::start(Setup::Cluster), $script) })*
        }
    };
}

sentences! {
    content_is_read_as_it_was_written_in_every_way_that_linux_has => "content";
    names_links_and_times_are_as_on_a_local_filesystem => "names";
    rights_acls_and_attributes_are_kept_and_obeyed => "rights";
    locks_exclude_wait_and_end_with_their_owners => "locks";
}

#[test]
fn numbers_and_generations_of_inodes_survive_a_remount() {
    let mut surf = Surf::start(Setup::Embedded);
    let list = "find . -printf '%i %P %n %m %s %T@\\n' | sort";
    sh(&surf.path(), LIMIT, "mkdir -p a/b && echo x > a/b/f && ln a/b/f g && ln -s g h && mkfifo p");
    let before = sh(&surf.path(), LIMIT, list);
    surf.unmount();
    surf.mount(&[]);
    assert_eq!(sh(&surf.path(), LIMIT, list), before);
}

#[test]
fn files_are_opened_by_handle_after_a_remount_as_an_nfs_server_does() {
    need(&["python3"]);
    let mut surf = Surf::start(Setup::Embedded);
    let (script, saved) = (workspace().join("tests/fuse/scripts/handles.py"), surf.scratch().join("handles"));
    let handles =
        |command: &str, rest: &str| format!("python3 -B {} {command} {} {rest}", script.display(), saved.display());
    sh(&surf.path(), LIMIT, "mkdir -p a/b && printf kept > a/b/f && printf gone > g");
    sh(&surf.path(), LIMIT, &handles("save", "a/b/f a/b g"));
    // The kernel asks again for inodes that it has dropped.
    sh(&surf.path(), LIMIT, "sync && echo 2 > /proc/sys/vm/drop_caches");
    assert_eq!(sh(&surf.path(), LIMIT, &handles("open", ".")), "kept\nb\ngone\n");
    surf.unmount();
    surf.mount(&[]);
    sh(&surf.path(), LIMIT, "rm g");
    assert_eq!(sh(&surf.path(), LIMIT, &handles("open", ".")), "kept\nb\nStale file handle\n");
}

#[test]
fn what_was_made_a_moment_ago_is_opened_by_handle_though_the_kernel_has_forgotten_it() {
    need(&["python3"]);
    let surf = Surf::start(Setup::Embedded);
    let script = workspace().join("tests/fuse/scripts/handles.py");
    for round in 0..10 {
        let run = format!("mkdir {round} && python3 -B {} fresh {round} .", script.display());
        assert_eq!(sh(&surf.path(), LIMIT, &run), "written\ndeep\nfresh\n");
    }
}

#[test]
fn the_size_of_the_filesystem_is_right_as_soon_as_it_is_mounted() {
    let mut surf = Surf::start(Setup::Embedded);
    let size = |surf: &Surf| sh(&surf.path(), LIMIT, "stat -f -c %b .").trim().parse::<u64>().unwrap();
    for _ in 0..4 {
        assert!(size(&surf) > 0);
        surf.unmount();
        surf.mount(&[]);
    }
    assert!(size(&surf) > 0);
}

/// Starts an embedded mount whose data are on a disk of this many MiB.
fn embedded_on_a_disk_of(mib: u32) -> Surf {
    let mut surf = Surf::start(Setup::Embedded);
    surf.unmount();
    let data = surf.data_dir().display().to_string();
    sh(&surf.scratch(), LIMIT, &format!("rm -r {data} && mkdir {data} && mount -t tmpfs -o size={mib}m none {data}"));
    surf.mount(&[]);
    surf
}

#[test]
fn a_full_disk_is_reported_and_destroys_nothing_that_was_there() {
    need(&["python3"]);
    // There is room for two segments above the half gigabyte that a block daemon leaves free.
    let mut surf = embedded_on_a_disk_of(1200);
    let script = "head -c 50M /dev/urandom > kept && sha256sum kept > sum && mkdir dir && touch dir/f && echo old > replaced; \
        ! LC_ALL=C dd if=/dev/urandom of=big bs=1M count=2000 conv=fsync 2> ../dd; grep 'No space left' ../dd; \
        ! (head -c 4M /dev/urandom > more) 2> ../more; \
        test $(df --output=avail -B1M . | tail -n 1) -lt 100; \
        python3 -B $SCRIPTS/full.py; \
        mv dir/f g && rmdir dir && ln -s g s && chmod 600 g && rm big more small moved && sha256sum -c sum";
    let scripts = workspace().join("tests/fuse/scripts").display().to_string();
    sh(&surf.path(), LIMIT, &script.replace("$SCRIPTS", &scripts));
    surf.unmount();
    surf.mount(&[]);
    sh(
        &surf.path(),
        LIMIT,
        "sha256sum -c sum && test \"$(cat replaced; ls | xargs)\" = $'old\\ng kept replaced s sum'",
    );
}

/// There is no other mount through which somebody could make room.
#[test]
fn a_full_embedded_mount_can_be_mounted_again_and_has_what_was_synced() {
    need(&["python3"]);
    let mut surf = embedded_on_a_disk_of(1100);
    let scripts = workspace().join("tests/fuse/scripts").display().to_string();
    let synced = sh(&surf.path(), LIMIT, &format!("python3 -B {scripts}/fill.py"));
    // The mount may end with the error that not all could be stored.
    surf.kill_mount();
    surf.mount(&[]);
    for name in synced.split_whitespace() {
        assert_eq!(fs::metadata(surf.path().join(name)).unwrap().len(), 700_000, "{name}");
    }
    assert!(synced.split_whitespace().count() > 100, "{synced}");
    sh(&surf.path(), LIMIT, "rm fill* && test -z \"$(ls)\" && mkdir works && rmdir works");
}
