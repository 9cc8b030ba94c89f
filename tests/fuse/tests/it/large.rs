//! A file larger than what the mount may hold in memory.

use kit::command::need;
use kit::{Setup, Surf, fault, scale, sh};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(600);
const MEMORY_MAX: u64 = 512 << 20;

/// Writes a file of this many GiB of pseudo-random bytes, and checks that it reads back with the same hash.
fn there_and_back(surf: &Surf, gib: u32) {
    need(&["openssl"]);
    let script = format!(
        "pass() {{ openssl enc -aes-128-ctr -nosalt -pass pass:surf -pbkdf2 </dev/zero 2>/dev/null | head -c {gib}G; }}; \
         pass | tee large | md5sum > ../written; md5sum < large > ../read; cmp ../written ../read; \
         test $(stat -c %s large) = $(({gib} << 30)); rm large ../written ../read"
    );
    // `head` ends the pipe early, which is no failure here.
    sh(&surf.path(), LIMIT, &format!("set +o pipefail; {script}"));
}

#[test]
fn several_times_the_memory_is_written_and_read_back_within_half_a_gib() {
    let surf = Surf::start(Setup::Cluster);
    there_and_back(&surf, scale("LARGE_GIB", 2));
    let peak = fault::peak_memory(surf.mount_pid());
    println!("peak memory of surfmount: {} MiB", peak >> 20);
    assert!(peak < MEMORY_MAX, "{} MiB", peak >> 20);
}

#[test]
fn one_gib_is_written_and_read_back_on_an_embedded_mount() {
    let surf = Surf::start(Setup::Embedded);
    there_and_back(&surf, 1);
}
