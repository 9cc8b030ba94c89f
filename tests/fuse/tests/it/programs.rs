//! Ordinary programs on a mount: they must not notice that it is a mount.

use fuse::{LIMIT, need_programs, source_tree};
use kit::bins::workspace;
use kit::command::need;
use kit::{Setup, Surf, scale, sh};
use std::path::Path;

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

    git_works_on_a_repository_of_this_size => |surf: &mut Surf| {
        need_programs();
        let script = format!("git clone -q --no-hardlinks {} work && cd work && git config user.email a@b && \
            git config user.name n && base=$(git rev-parse HEAD) && git checkout -qb topic && \
            for f in $(git ls-files '*.md'); do echo line >> $f; done && git commit -qam lines && \
            echo more >> README.md && git stash -q && test -z \"$(git status --porcelain)\" && git stash pop -q && \
            git commit -qam more && git mv docs documents && git commit -qm moved && git checkout -q $base && \
            test -d docs && git merge -q --no-ff -m merged topic && test ! -e docs && git grep -q Surf && \
            git gc -q && git fsck --strict 2>&1 && mkdir ../out && git archive HEAD | tar -x -C ../out && \
            diff -r --exclude=.git . ../out && test -z \"$(git status --porcelain)\"", workspace().display());
        sh(&surf.path(), LIMIT, &script);
    };

    cargo_makes_and_builds_a_program => |surf: &mut Surf| {
        let printed = sh(&surf.path(), LIMIT, "unset CARGO_TARGET_DIR; cargo new -q --vcs none hello && cd hello && cargo build -q --offline && \
            touch src/main.rs && cargo build -q --offline && ./target/debug/hello");
        assert_eq!(printed.trim(), "Hello, world!");
    };

    sqlite_commits_one_transaction_after_the_other => |surf: &mut Surf| {
        need_programs();
        // Each syncs several times: a slow disk takes a quarter of a second for it.
        let count = scale("SQLITE_COMMITS", 200_u64);
        let script = format!("(echo 'create table t (n integer primary key, s text);'; \
            for i in $(seq {count}); do echo \"begin; insert into t values ($i, 'row $i'); commit;\"; done) > ../rows.sql; \
            sqlite3 a.db < ../rows.sql; sqlite3 a.db 'pragma integrity_check; select count(*), sum(n) from t;'; rm ../rows.sql");
        let printed = sh(&surf.path(), LIMIT, &script);
        assert_eq!(printed.trim(), format!("ok\n{count}|{}", count * (count + 1) / 2));
    };

    sqlite_serves_two_writers_with_a_write_ahead_log => |surf: &mut Surf| {
        need_programs();
        let script = "sqlite3 w.db 'pragma journal_mode=wal; create table t (n integer);' | grep -q wal; \
            write() { for i in $(seq 50); do echo \"insert into t values ($1 + $i);\"; done | \
                sqlite3 -cmd '.timeout 60000' w.db; }; \
            write 1000 & one=$!; write 2000 & two=$!; wait $one; wait $two; \
            sqlite3 w.db 'pragma integrity_check; select count(distinct n) from t; pragma wal_checkpoint(truncate);'";
        let printed = sh(&surf.path(), LIMIT, script);
        assert_eq!(printed.trim(), "ok\n100\n0|0|0");
    };

    make_builds_many_files_at_once => |surf: &mut Surf| {
        need(&["make", "gcc"]);
        let script = "for i in $(seq 40); do echo \"int f$i(void) { return $i; }\" > f$i.c; done; \
            (for i in $(seq 40); do echo \"int f$i(void);\"; done; echo 'int main(void) { return f40() - 40; }') > main.c; \
            printf 'all: app\\napp: $(patsubst %%.c,%%.o,$(wildcard *.c))\\n\\tcc -o $@ $^\\n' > Makefile; \
            make -s -j4 && ./app && make -q && touch f7.c && ! make -q && make -s -j4 && make -q";
        sh(&surf.path(), LIMIT, script);
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

    many_files_in_one_directory_are_made_listed_and_removed => |surf: &mut Surf| {
        let dir = surf.path().join("many");
        std::fs::create_dir(&dir).unwrap();
        // On the cluster, each file takes a round of three synced logs: a tenth of the files shows the same there.
        let count = scale("MANY_FILES", 20_000) / if surf.data_dir().exists() { 1 } else { 10 };
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

/// Returns the folder of the programs of Debian's PostgreSQL.
fn postgres() -> String {
    need(&["postgresql"]);
    let found = sh(Path::new("/"), LIMIT, "ls -d /usr/lib/postgresql/*/bin | tail -n 1");
    found.trim().to_owned()
}

#[test]
fn postgresql_runs_its_own_benchmark_and_finds_its_data_after_a_remount() {
    postgresql(10);
}

#[test]
#[ignore = "takes minutes: just programs"]
fn postgresql_runs_its_own_benchmark_for_minutes() {
    postgresql(180);
}

#[test]
#[ignore = "takes minutes: just programs"]
fn this_workspace_is_built_on_a_mount_and_tests_itself_there() {
    let surf = Surf::start(Setup::Cluster);
    let script = format!(
        "git clone -q {} work && cd work && cargo build --offline --workspace && cargo test --offline -p wire",
        workspace().display()
    );
    println!("{}", sh(&surf.path(), LIMIT * 9, &script));
}

/// Runs `pgbench` for this many seconds.
fn postgresql(seconds: u32) {
    let mut surf = Surf::start(Setup::Embedded);
    let programs = postgres();
    // The server refuses to run as root.
    let nobody = "setpriv --reuid=nobody --regid=nogroup --clear-groups";
    sh(&surf.path(), LIMIT, "chmod 755 . && mkdir pg && chown nobody:nogroup pg && chmod 700 pg");
    let server = |surf: &Surf, what: &str| {
        let data = surf.path().join("pg");
        let run = format!(
            "cd /; pg() {{ local program=$1; shift; {nobody} {programs}/$program \"$@\"; }}; export HOME=/tmp; D={}; {what}",
            data.display()
        );
        sh(Path::new("/"), LIMIT, &run)
    };
    let start = "pg pg_ctl -D $D/d -s -w -t 120 -o \"-k $D -c listen_addresses=''\" -l $D/log start";
    let stop = "pg pg_ctl -D $D/d -s -w -m fast stop";
    server(
        &surf,
        &format!(
            "pg initdb -D $D/d -A trust -U me >/dev/null; {start}; pg pgbench -h $D -U me -i -q postgres 2>/dev/null; \
         pg pgbench -h $D -U me -T {seconds} -c 4 -j 2 postgres || {{ {stop}; exit 1; }}; {stop}"
        ),
    );
    surf.unmount();
    surf.mount(&[]);
    let count = server(
        &surf,
        &format!("{start}; pg psql -h $D -U me -tA -c 'select count(*) from pgbench_accounts' postgres; {stop}"),
    );
    assert_eq!(count.trim(), "100000");
}
