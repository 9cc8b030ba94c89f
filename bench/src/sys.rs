//! The machine: its caches, its memory, its name.

use serde_json::{Value, json};
use std::fs;

/// Drops clean pages, dentries and inodes, so that the next reading is a cold one.
pub(crate) fn drop_caches() {
    // SAFETY: sync takes nothing and cannot fail.
    unsafe { libc::sync() };
    if let Err(error) = fs::write("/proc/sys/vm/drop_caches", "3") {
        eprintln!("caches cannot be dropped ({error}): cold rows are warm; run as root");
    }
}

/// Touches memory and gives it back.
pub(crate) fn warm_memory(gib: u64) {
    let mut touched = Vec::new();
    for _ in 0..gib {
        let mut block = vec![0_u8; 1 << 30];
        block.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        touched.push(std::hint::black_box(block));
    }
}

/// What was measured on.
pub(crate) fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let memory = read("/proc/meminfo").lines().next().unwrap_or_default().to_owned();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    json!({ "kernel": read("/proc/sys/kernel/osrelease"), "cores": cores, "memory": memory })
}
