# Daily commands. Each is plain cargo or shell, and works without `just`.

# List the recipes.
default:
    @just --list

# Install what mounting and testing need beyond building (Debian, root): FUSE's helper, and programs that tests run.
setup:
    .ci/setup

# Mount with an embedded cluster; Ctrl-C unmounts. More flags may follow: `just run /mnt/surf -o ro`.
run mountpoint="/mnt/surf" *flags:
    cargo run --release -- {{mountpoint}} {{flags}}

# Start three metads, three blockds and two mounts of them, below DIR; `just demo-down` ends them.
demo dir="$HOME/surf-demo":
    cargo build --release --workspace --bins
    target/release/surf dev up --dir {{dir}}/cluster --metad 3 --blockd 3 --replicas 3
    target/release/surfmount --daemon --cluster {{dir}}/cluster/client.bundle {{dir}}/mount-1
    target/release/surfmount --daemon --cluster {{dir}}/cluster/client.bundle {{dir}}/mount-2
    target/release/surf dev status --dir {{dir}}/cluster

# End the demo; its data stays for the next one.
demo-down dir="$HOME/surf-demo":
    -umount {{dir}}/mount-1
    -umount {{dir}}/mount-2
    target/release/surf dev down --dir {{dir}}/cluster

# Run every test. A part of a name may follow. `cargo nextest run`, if it is installed, does the same with a line per test.
test *filter:
    cargo test --workspace --locked -- {{filter}}

# Run the long forms of the tests that .ci/run bounds by the clock: random cases, faults, chaos, handovers, fsx, sizes,
# programs. Takes hours.
long:
    PROPTEST_CASES=100000 cargo test --release --workspace --lib --bins --locked
    just faults 600
    just chaos
    just power
    SURF_TEST_MINUTES=1440 FSCK_SECONDS=300 cargo test -p fuse --test it --locked -- --nocapture a_busy_cluster
    just handovers 100000
    just fsx 100000
    just sizes
    just programs

# Run what .ci/run does with less: a million files in a metad, a hundred thousand on mounts, a file of many GiB.
sizes:
    METAD_FILES=1000000 cargo test --release -p metad --test million --locked -- --nocapture
    SURF_TEST_MINUTES=1440 MANY_FILES=100000 LARGE_GIB=20 cargo test --release -p fuse --test it --locked -- --nocapture files_in_one_directory several_times_the_memory
    SURF_TEST_MINUTES=1440 SQLITE_COMMITS=1000 cargo test --release -p fuse --test it --locked -- --nocapture sqlite_commits
    SURF_TEST_MINUTES=1440 SESSIONS=500 cargo test --release -p fuse --test it --locked -- --nocapture many_sessions

# Run only the end-to-end tests on real mounts.
test-fuse *filter:
    cargo test -p fuse --locked -- --nocapture {{filter}}

# Run fsx with so many operations for every setting and seed, on both set-ups (fewer on the file of several chunks).
fsx operations="100000":
    SURF_TEST_MINUTES=1440 FSX_OPERATIONS={{operations}} cargo test --release -p fuse --test it --locked -- --nocapture fsx

# Run the tests in which mounts, links and servers fail, for so many seconds each; a seed may follow.
faults seconds="600" seed="":
    SURF_TEST_MINUTES=1440 FAULT_SECONDS={{seconds}} FAULT_SEED={{seed}} cargo test -p fuse --test it --locked -- --nocapture --test-threads 1 faults::

# Bring a whole cluster into random trouble, schedule after schedule, for so many hours; a seed may follow.
chaos hours="1" seed="":
    SURF_TEST_MINUTES=1440 CHAOS_SECONDS=$(({{hours}} * 3600)) FAULT_SEED={{seed}} cargo test -p fuse --test it --locked -- --nocapture chaos::

# Take the power from whole nodes, round after round, for so many seconds each on a cluster and an embedded one; a seed may follow.
power seconds="3600" seed="":
    SURF_TEST_MINUTES=1440 POWER_SECONDS={{seconds}} FAULT_SEED={{seed}} cargo test -p fuse --test it --locked -- --nocapture --test-threads 1 power::

# Simulate schedules of clients and metads for so many seconds, from a seed on; a failing schedule is shrunk.
simulate seconds="3600" first="1000000":
    cargo run --release -p sim -- {{first}} 18446744073709551615 {{seconds}}

# Show one schedule by its seed, with everything that it does.
simulate-seed seed:
    cargo run --release -p sim -- --seed {{seed}}

# Hand so many small files from mount to mount; the other mount reads each at once.
handovers count="100000":
    SURF_TEST_MINUTES=1440 HANDOVERS={{count}} cargo test --release -p fuse --test it --locked -- --nocapture handovers

# Run programs that take minutes: this workspace built on a mount, PostgreSQL under load.
programs:
    SURF_TEST_MINUTES=1440 cargo test --release -p fuse --test it --locked -- --ignored --nocapture programs::

# Run every target of tests/fuzzing, or one, for so many seconds each: under libFuzzer where there is `cargo fuzz`, otherwise by a
# simple runner. An input that finds a fault is written into tests/fuzzing/regressions, where every later test run tries it.
fuzz seconds="60" target="":
    #!/usr/bin/env bash
    set -euo pipefail
    if ! cargo +nightly fuzz --version >/dev/null 2>&1; then
        export CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true
        exec cargo run --release --locked -p fuzzing -- run {{seconds}} {{target}}
    fi
    cd fuzz
    given={{target}} inputs=../tests/fuzzing
    for target in ${given:-$(ls fuzz_targets | sed 's/\.rs$//')}; do
        mkdir -p "corpus/$target" "$inputs/regressions/$target"
        # No sanitizer: nearly all of the code is safe, and the checks of a debug build are on.
        cargo +nightly fuzz run -s none --fuzz-dir . "$target" "corpus/$target" "$inputs/corpus/$target" "$inputs/regressions/$target" -- \
            -max_total_time={{seconds}} -max_len=16384 -rss_limit_mb=1024 -timeout=20 -print_final_stats=1 \
            -artifact_prefix="$inputs/regressions/$target/"
        rmdir --ignore-fail-on-non-empty "$inputs/regressions/$target"
    done

# Write the corpus of tests/fuzzing anew, after a format has changed.
fuzz-corpus:
    cargo run --locked -p fuzzing -- corpus

# Check format and lints, as .ci/run does.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Let the tools correct what they can.
fix:
    cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
    cargo fmt --all

# Run benchmarks; arguments go to the program.
bench *args:
    cargo run --release -p bench -- {{args}}

# Measure the table of docs/performance.md: the disk, the null file system, Surf both ways, MooseFS, GlusterFS (root, Debian).
# Missing packages of the last two are installed. Takes an hour or more; `just bench-peers --quick --runs 1` takes minutes.
bench-peers *args:
    cargo build --release --workspace --bins
    target/release/bench --install --columns ext4,null,embedded,cluster,moosefs,glusterfs {{args}}

# Build the reference of all crates, private items included, as .ci/run checks it.
doc:
    RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' cargo doc --workspace --no-deps --document-private-items

# Check licences, duplicates, sources and known vulnerabilities of other crates (deny.toml). Needs the network for the list of
# vulnerabilities. The first run builds cargo-deny.
deny:
    test -x target/tools/bin/cargo-deny || cargo install --locked --quiet --root target/tools cargo-deny
    target/tools/bin/cargo-deny check

# Run everything that must pass before a change is accepted.
ci:
    .ci/run
