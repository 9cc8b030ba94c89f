//! The steps of a schedule: what programs do, and what goes wrong.

use kit::chance::Chance;
use std::time::Duration;

/// A name in the top directory, or in a directory there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Path {
    /// The directory's name; `None` for the top one.
    pub dir: Option<char>,
    /// The last name.
    pub name: char,
}

/// The next act of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// Opens a file, making it if it is not there; the file that was open before is closed.
    Open(Path),
    /// Opens a file for appending, making it if it is not there.
    OpenToAppend(Path),
    /// Writes to the open file, at this slot, or at its end.
    Put {
        /// The slot, which determines the offset.
        slot: u64,
        /// Whether it is more than metadata holds inline.
        large: bool,
    },
    /// `fsync` of the open file.
    Fsync,
    /// Closes the open file.
    Close,
    /// Writes a new file and renames it over this one, as editors do.
    Save(Path),
    /// Opens, reads everything, closes.
    Read(Path),
    /// Looks the name up.
    Stat(Path),
    /// Lists the top directory, or this directory in it.
    List(Option<char>),
    /// Removes a file.
    Unlink(Path),
    /// Renames a file over another one, if that is there.
    Rename(Path, Path),
    /// Makes a directory in the top one.
    Mkdir(char),
    /// Removes a directory in the top one.
    Rmdir(char),
    /// Cuts a file to nothing.
    Truncate(Path),
    /// Takes a lock on a file for a while.
    Lock(Path),
    /// Waits until everything that was done is known to metad.
    Sync,
    /// Waits until this many milliseconds from the start.
    Until(u64),
}

/// A fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A client's links are cut for a while.
    Cut {
        /// The client.
        client: usize,
        /// Milliseconds.
        ms: u64,
    },
    /// A client's process is killed, or its machine loses its power; it comes back after a while.
    Crash {
        /// The client.
        client: usize,
        /// Whether the machine loses its power, not only the process.
        power: bool,
        /// Milliseconds until it is back.
        ms: u64,
    },
    /// The leading metad is killed, and started again after a while.
    KillLeader {
        /// Milliseconds.
        ms: u64,
    },
    /// The leading metad loses its peers, but not its clients, for a while.
    DeposeLeader {
        /// Milliseconds.
        ms: u64,
    },
    /// The leading metad and one client lose all other metads, and the other clients lose the leading metad, for a
    /// while.
    Split {
        /// The client that stays with the leader.
        client: usize,
        /// Milliseconds.
        ms: u64,
    },
    /// The block daemon is away for a while.
    NoBlocks {
        /// Milliseconds.
        ms: u64,
    },
}

impl Fault {
    /// Returns how long it lasts.
    #[must_use]
    pub fn lasts(self) -> Duration {
        let (Self::Cut { ms, .. }
        | Self::Crash { ms, .. }
        | Self::KillLeader { ms }
        | Self::DeposeLeader { ms }
        | Self::Split { ms, .. }
        | Self::NoBlocks { ms }) = self;
        Duration::from_millis(ms)
    }
}

/// A step of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A program acts, some time after its last act.
    Act {
        /// The client.
        client: usize,
        /// The program on this client.
        lane: usize,
        /// Milliseconds after the program's last act.
        pause_ms: u64,
        /// The act.
        act: Act,
    },
    /// A fault begins at this time.
    Fault {
        /// Milliseconds from the start.
        at_ms: u64,
        /// The fault.
        fault: Fault,
    },
}

fn path(chance: &mut Chance) -> Path {
    Path { dir: chance.happens(0.3).then_some('d'), name: *chance.pick(&['a', 'a', 'b', 'l']) }
}

/// Draws any act that a program may do.
pub(crate) fn act(chance: &mut Chance) -> Act {
    let path = path(chance);
    match chance.below(40) {
        0..5 if path.name == 'l' => Act::OpenToAppend(path),
        0..5 => Act::Open(path),
        5 => Act::OpenToAppend(path),
        6..14 => Act::Put { slot: chance.below(3), large: chance.happens(0.2) },
        14..17 => Act::Fsync,
        17..21 => Act::Close,
        21..23 => Act::Save(path),
        23..27 => Act::Read(path),
        27..29 => Act::Stat(path),
        29 => Act::List(path.dir),
        30..32 => Act::Unlink(path),
        32..34 => {
            let to = Path { name: *chance.pick(&['a', 'b']), ..path };
            let elsewhere = if path.dir.is_some() { None } else { Some('d') };
            Act::Rename(path, if chance.happens(0.2) { Path { dir: elsewhere, ..to } } else { to })
        }
        34 => Act::Mkdir('d'),
        35 => Act::Rmdir('d'),
        36 => Act::Truncate(path),
        37..39 => Act::Lock(path),
        _ => Act::Sync,
    }
}
