//! Wall clocks that are set while processes run. The machine's own clock is left alone: a small library that is loaded
//! into the processes (`clock.c`) answers for it.

use crate::command::run;
use crate::surf::Surf;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// How long the library may take to be built.
const BUILD_LIMIT: Duration = Duration::from_secs(60);

/// The wall clocks of the processes of a [`Surf`].
pub struct Clocks {
    /// Has a file for each process, named by its id.
    dir: PathBuf,
}

impl Clocks {
    /// Gives each process that is started from now on a clock of its own, which first shows the machine's time.
    ///
    /// # Panics
    /// When the library cannot be built.
    #[must_use]
    pub fn of(surf: &Surf) -> Self {
        let (library, dir) = (surf.scratch().join("clock.so"), surf.scratch().join("clocks"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/clock.c");
        let built =
            run(Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source), BUILD_LIMIT);
        assert!(built.status.success(), "cc {source}: {}", built.text);
        fs::create_dir(&dir).expect("a directory can be made");
        surf.set_env("LD_PRELOAD", &library);
        surf.set_env("SURF_TEST_CLOCKS", &dir);
        Self { dir }
    }

    /// Sets the clock of a process to the machine's time and so many seconds, or before it when negative.
    ///
    /// # Panics
    /// When the process does not have a clock of its own.
    pub fn set(&self, pid: u32, ahead_s: i64) {
        let file = File::options().write(true).open(self.dir.join(pid.to_string()));
        let file = file.expect("the process has loaded the library");
        file.write_all_at(&ahead_s.to_ne_bytes(), 0).expect("a file can be written");
    }
}
