//! Tests take turns on a machine, because those that measure, or have deadlines, would starve each other on few cores.

use std::fs::File;

/// A test's turn, until it is dropped.
pub(crate) struct Turn {
    _dir: File,
}

impl Turn {
    /// Waits until no other test has the machine to itself and, if this one wants that, until no other runs.
    pub(crate) fn take(share: Share) -> Self {
        // This locks the directory itself: a separate file would be left behind.
        let dir = File::open(std::env::temp_dir()).expect("the directory of temporary files is there");
        let locked = match share {
            Share::Whole => dir.lock(),
            Share::Part => dir.lock_shared(),
        };
        locked.expect("a directory can be locked");
        Self { _dir: dir }
    }
}

/// How much of the machine a test needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// All of it: something in the test happens by the clock.
    Whole,
    /// A part of it.
    Part,
}
