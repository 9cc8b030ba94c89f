//! Tests take turns on a machine, because those that measure, or have deadlines, would starve each other on few cores.

use std::fs::File;

/// A test's turn, until it is dropped.
pub(crate) struct Turn {
    _dir: File,
}

impl Turn {
    /// Waits until no other Surf runs or, for a patient one, until only patient ones run.
    pub(crate) fn take(pace: Pace) -> Self {
        // This locks the directory itself: a separate file would be left behind.
        let dir = File::open(std::env::temp_dir()).expect("the directory of temporary files is there");
        let locked = match pace {
            Pace::Alone => dir.lock(),
            Pace::Patient => dir.lock_shared(),
        };
        locked.expect("a directory can be locked");
        Self { _dir: dir }
    }
}

/// What a test wants of the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// To itself: something in it happens by the clock.
    Alone,
    /// A part is enough.
    Patient,
}
