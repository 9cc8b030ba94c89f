//! What programs may rely on, operation by operation: the sentences that `scripts/` checks, on a real mount.
#![allow(missing_docs)]

use fuse::LIMIT;
use kit::bins::workspace;
use kit::command::need;
use kit::{Setup, Surf, sh};

/// Runs a script in the mount; what it prints names the sentence that does not hold.
fn check(surf: &Surf, script: &str) {
    need(&[("python3", "python3"), ("setfacl", "acl"), ("setfattr", "attr"), ("rsync", "rsync")]);
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
