//! A schedule: programs on clients, faults, and the weather on the links, all from a seed. A plan can be made smaller
//! by leaving steps out: this is how a failing one is shrunk.

use crate::network::Weather;
use crate::themes::{Script, Theme};
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

/// A schedule.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed. It also decides what happens to each message.
    pub seed: u64,
    /// What the plan is about.
    pub theme: Theme,
    /// How many clients there are.
    pub clients: usize,
    /// Programs per client.
    pub lanes: usize,
    /// What happens to messages while the programs run.
    pub weather: Weather,
    /// Acts in the order of their programs, and faults.
    pub steps: Vec<Step>,
}

/// The faults of a plan about anything.
#[derive(Clone, Copy, Debug)]
struct Mood {
    cut: u64,
    crash: u64,
    leader: u64,
    blocks: u64,
    stormy: bool,
}

const MOODS: &[Mood] = &[
    Mood { cut: 0, crash: 0, leader: 0, blocks: 0, stormy: false },
    Mood { cut: 0, crash: 0, leader: 0, blocks: 0, stormy: true },
    Mood { cut: 0, crash: 0, leader: 3, blocks: 0, stormy: false },
    Mood { cut: 3, crash: 0, leader: 0, blocks: 0, stormy: false },
    Mood { cut: 2, crash: 3, leader: 0, blocks: 1, stormy: false },
    Mood { cut: 2, crash: 2, leader: 2, blocks: 2, stormy: true },
];

/// Faults begin within this time.
const FAULTS_WITHIN_MS: u64 = 12_000;

impl Plan {
    /// Returns the plan of a seed, whose theme is drawn, too.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self::about(Theme::of(seed), seed)
    }

    /// Returns the plan of a seed for this theme.
    #[must_use]
    pub fn about(theme: Theme, seed: u64) -> Self {
        let mut chance = Chance::of(seed, "plan");
        if theme != Theme::Anything {
            return Script::about(theme, &mut chance).plan(seed);
        }
        let mood = *chance.pick(MOODS);
        let clients = 2 + usize::from(chance.happens(0.3));
        let lanes = 1 + usize::from(chance.happens(0.4));
        let mut steps = Vec::new();
        for client in 0..clients {
            for lane in 0..lanes {
                let acts = 6 + chance.below(12);
                for _ in 0..acts {
                    let (pause_ms, act) = (pause(&mut chance), act(&mut chance));
                    steps.push(Step::Act { client, lane, pause_ms, act });
                }
            }
        }
        steps.extend(faults(&mut chance, mood, clients));
        Self { seed, theme, clients, lanes, weather: weather(&mut chance, mood.stormy), steps }
    }

    /// Returns a plan with only some of the steps.
    #[must_use]
    pub fn only(&self, included: &[bool]) -> Self {
        let steps = self.steps.iter().zip(included).filter(|(_, included)| **included).map(|(step, _)| *step).collect();
        Self { steps, ..self.clone() }
    }
}

fn pause(chance: &mut Chance) -> u64 {
    match chance.below(20) {
        0..9 => chance.below(4),
        9..15 => chance.below(150),
        15..18 => chance.below(1_500),
        18 => chance.below(4_000),
        _ => chance.below(9_000),
    }
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

fn weather(chance: &mut Chance, stormy: bool) -> Weather {
    if !stormy {
        let (delay_us, late) = (*chance.pick(&[300, 3_000]), *chance.pick(&[0.0, 0.05]));
        return Weather { delay_us, late, late_ms: 100, ..Weather::default() };
    }
    Weather {
        delay_us: *chance.pick(&[500, 20_000]),
        late: *chance.pick(&[0.05, 0.3]),
        late_ms: *chance.pick(&[300, 2_500]),
        lost: *chance.pick(&[0.0, 0.02, 0.1]),
        doubled: *chance.pick(&[0.0, 0.05, 0.3]),
        broken: *chance.pick(&[0.0, 0.01, 0.05]),
    }
}

fn faults(chance: &mut Chance, mood: Mood, clients: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    let some = |chance: &mut Chance, most: u64| if most == 0 { 0 } else { chance.below(most) + 1 };
    let mut add = |chance: &mut Chance, fault| {
        let at_ms = chance.below(FAULTS_WITHIN_MS);
        steps.push(Step::Fault { at_ms, fault });
    };
    for _ in 0..some(chance, mood.cut) {
        let (client, ms) = (chance.below(clients as u64) as usize, *chance.pick(&[800, 4_000, 8_000, 15_000, 45_000]));
        add(chance, Fault::Cut { client, ms });
    }
    for _ in 0..some(chance, mood.crash) {
        let (client, power) = (chance.below(clients as u64) as usize, chance.happens(0.4));
        let ms = *chance.pick(&[50, 2_000, 12_000]);
        add(chance, Fault::Crash { client, power, ms });
    }
    for _ in 0..some(chance, mood.leader) {
        let ms = *chance.pick(&[500, 3_000, 9_000]);
        let killed = chance.happens(0.5);
        add(chance, if killed { Fault::KillLeader { ms } } else { Fault::DeposeLeader { ms } });
    }
    for _ in 0..some(chance, mood.blocks) {
        let ms = *chance.pick(&[500, 3_000, 10_000]);
        add(chance, Fault::NoBlocks { ms });
    }
    steps
}
