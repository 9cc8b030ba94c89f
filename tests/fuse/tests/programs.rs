//! Ordinary programs on a mount: they must not notice that it is one.
#![allow(missing_docs)]

use fuse::{LIMIT, need_programs, source_tree};
use kit::{Setup, Surf, sh};

/// Makes one test per set-up.
macro_rules! on_both {
    ($($name:ident => $body:expr;)*) => {
        mod embedded {
            use super::*;
            $(#[test] fn $name() { $body(&mut Surf::start(Setup::Embedded)) })*
        }
        mod cluster {
            use super::*;
            $(#[test] fn $name() { $body(&mut Surf::start(Setup::Cluster)) })*
        }
    };
}

on_both! {
    a_source_tree_is_unpacked_as_it_was_packed => |surf: &mut Surf| {
        let scratch = surf.scratch();
        let tar = source_tree(&scratch);
        sh(&scratch, LIMIT, &format!("mkdir local && tar -xf {} -C local", tar.display()));
        sh(&surf.path(), LIMIT, &format!("mkdir tree && tar -xf {} -C tree", tar.display()));
        sh(&surf.path(), LIMIT, &format!("diff -r tree {}/local", scratch.display()));
        surf.unmount();
        surf.mount(&[]);
        sh(&surf.path(), LIMIT, &format!("diff -r tree {}/local && rm -r tree && test -z \"$(ls -A)\"", scratch.display()));
    };

    git_clones_commits_and_finds_no_damage => |surf: &mut Surf| {
        need_programs();
        let made = surf.scratch();
        sh(&made, LIMIT, "git init -q origin && cd origin && git config user.email a@b && git config user.name n && \
            for i in $(seq 200); do mkdir -p d$((i % 7)); seq $((i * 10)) > d$((i % 7))/f$i; done && \
            git add . && git commit -qm one");
        let script = format!("git clone -q {}/origin work && cd work && git config user.email a@b && \
            git config user.name n && seq 5 >> d1/f1 && git mv d2/f2 d3/moved && git commit -qam two && \
            git checkout -qb other HEAD~1 && git merge -q master 2>/dev/null || git merge -q main; \
            git fsck --strict && test -z \"$(git status --porcelain)\" && git gc -q && git fsck", made.display());
        sh(&surf.path(), LIMIT, &script);
    };

    cargo_makes_and_builds_a_program => |surf: &mut Surf| {
        let printed = sh(&surf.path(), LIMIT, "cargo new -q --vcs none hello && cd hello && cargo build -q --offline && \
            touch src/main.rs && cargo build -q --offline && ./target/debug/hello");
        assert_eq!(printed.trim(), "Hello, world!");
    };

    sqlite_commits_a_thousand_transactions => |surf: &mut Surf| {
        need_programs();
        let script = "(echo 'create table t (n integer primary key, s text);'; \
            for i in $(seq 1000); do echo \"begin; insert into t values ($i, 'row $i'); commit;\"; done) > ../rows.sql; \
            sqlite3 a.db < ../rows.sql; sqlite3 a.db 'pragma integrity_check; select count(*), sum(n) from t;'; rm ../rows.sql";
        let printed = sh(&surf.path(), LIMIT, script);
        assert_eq!(printed.trim(), "ok\n1000|500500");
    };

    rsync_copies_there_and_back => |surf: &mut Surf| {
        need_programs();
        let scratch = surf.scratch();
        sh(&scratch, LIMIT, "mkdir -p from/a/b && seq 100000 > from/a/big && ln -s ../big from/a/b/link && \
            ln from/a/big from/a/b/hard && chmod 640 from/a/big && touch -d '2001-02-03 04:05:06.789' from/a/big");
        let script = format!("rsync -aH {0}/from/ to/ && rsync -aH to/ {0}/back/ && \
            test -z \"$(rsync -aHni --delete {0}/from/ {0}/back/)\"", scratch.display());
        sh(&surf.path(), LIMIT, &script);
    };

    a_hundred_thousand_files_in_one_directory_are_made_listed_and_removed => |surf: &mut Surf| {
        let dir = surf.path().join("many");
        std::fs::create_dir(&dir).unwrap();
        // The cluster pays a round of three synced logs per file: there a tenth shows the same.
        let count = if surf.data_dir().exists() { 100_000 } else { 10_000 };
        let workers: Vec<_> = (0..8).map(|worker| {
            let dir = dir.clone();
            std::thread::spawn(move || {
                for number in (worker..count).step_by(8) {
                    std::fs::File::create(dir.join(format!("file-{number}"))).unwrap();
                }
            })
        }).collect();
        for worker in workers {
            worker.join().unwrap();
        }
        let listed: std::collections::HashSet<_> =
            std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(listed.len(), count);
        sh(&surf.path(), LIMIT * 3, "find many -type f -print0 | xargs -0 -P8 -n500 rm; rmdir many; test -z \"$(ls -A)\"");
    };
}
