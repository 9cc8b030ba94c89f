//! The themes of plans. Most failures need several events at nearly the same time, which plans about anything seldom
//! draw: the other themes bring programs and faults together at drawn moments, and leave the rest to chance.

use crate::network::Weather;
use crate::steps::{Act, Fault, Path, Step, act};
use kit::chance::Chance;
use std::fmt::{self, Display};

/// The theme of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Theme {
    /// Any programs and faults, as chance draws them.
    Anything,
    /// Several programs write at different places of the same open files.
    Sharing,
    /// Clients that work in directories of their own look into each other's at the same moment.
    Crossing,
    /// A client that appends to a shared file is cut off for seconds, again and again, and dies soon after.
    Standstill,
    /// A client goes on working alone while it is cut off, on files that others then change.
    Away,
    /// The leading metad is deposed while a client waits there for what another client has not sent yet.
    Deposed,
}

/// All themes, and how many plans of a hundred have each.
const THEMES: &[(Theme, &str, u64)] = &[
    (Theme::Anything, "anything", 40),
    (Theme::Sharing, "sharing", 12),
    (Theme::Crossing, "crossing", 12),
    (Theme::Standstill, "standstill", 12),
    (Theme::Away, "away", 12),
    (Theme::Deposed, "deposed", 12),
];

impl Theme {
    /// Draws the theme of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut left = Chance::of(seed, "theme").below(100);
        let chosen = THEMES.iter().find(|(.., share)| {
            let here = left < *share;
            left = left.saturating_sub(*share);
            here
        });
        chosen.map_or(Self::Anything, |(theme, ..)| *theme)
    }

    /// Returns the theme of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        THEMES.iter().find(|(_, other, _)| *other == name).map(|(theme, ..)| *theme)
    }
}

impl Display for Theme {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = THEMES.iter().find(|(theme, ..)| theme == self).map_or("", |(_, name, _)| name);
        formatter.write_str(name)
    }
}

/// A plan being written.
pub(crate) struct Script<'a> {
    chance: &'a mut Chance,
    pub clients: usize,
    pub lanes: usize,
    pub steps: Vec<Step>,
}

/// Directories that clients work in alone.
const OWN: [char; 3] = ['d', 'e', 'f'];

fn top(name: char) -> Path {
    Path { dir: None, name }
}

fn within(dir: char, name: char) -> Path {
    Path { dir: Some(dir), name }
}

impl<'a> Script<'a> {
    /// Begins a plan with this theme, which is not `Anything`.
    pub fn about(theme: Theme, chance: &'a mut Chance) -> Self {
        let (clients, lanes) = (2 + usize::from(chance.happens(0.25)), 1 + usize::from(chance.happens(0.5)));
        let mut script = Self { chance, clients, lanes, steps: Vec::new() };
        match theme {
            Theme::Anything => {}
            Theme::Sharing => script.sharing(),
            Theme::Crossing => script.crossing(),
            Theme::Standstill => script.standstill(),
            Theme::Away => script.away(),
            Theme::Deposed => script.deposed(),
        }
        script
    }

    /// Draws the weather, in which nothing is lost.
    pub fn weather(&mut self) -> Weather {
        Weather {
            delay_us: *self.chance.pick(&[300, 3_000, 20_000]),
            late: *self.chance.pick(&[0.0, 0.05, 0.3]),
            late_ms: *self.chance.pick(&[20, 100, 300]),
            ..Weather::default()
        }
    }

    fn other(&mut self, client: usize) -> usize {
        (client + 1 + self.chance.below(self.clients as u64 - 1) as usize) % self.clients
    }

    fn act(&mut self, (client, lane): (usize, usize), pause_ms: u64, act: Act) {
        self.steps.push(Step::Act { client, lane, pause_ms, act });
    }

    /// Adds an act at this time, or as soon as the program is done with its earlier ones.
    fn act_at(&mut self, program: (usize, usize), at_ms: u64, act: Act) {
        self.act(program, 0, Act::Until(at_ms));
        self.act(program, 0, act);
    }

    fn fault(&mut self, at_ms: u64, fault: Fault) {
        self.steps.push(Step::Fault { at_ms, fault });
    }

    /// Adds another act now and then.
    fn digress(&mut self, program: (usize, usize)) {
        if self.chance.happens(0.1) {
            let (pause_ms, other) = (self.chance.below(100), act(self.chance));
            self.act(program, pause_ms, other);
        }
    }

    /// Makes a client create a directory of its own, and files in it.
    fn settle(&mut self, client: usize, names: &[char]) {
        let pause = self.chance.below(30);
        self.act((client, 0), pause, Act::Mkdir(OWN[client]));
        for name in names {
            let pause = self.chance.below(4);
            self.act((client, 0), pause, Act::Save(within(OWN[client], *name)));
        }
    }

    /// Makes a client change something in its directory by itself: after this it holds a delegation there again.
    fn return_home(&mut self, client: usize, at_ms: u64) {
        self.act_at((client, 0), at_ms, Act::Save(within(OWN[client], 'x')));
    }

    fn put(&mut self) -> Act {
        Act::Put { slot: self.chance.below(3), large: self.chance.happens(0.1) }
    }

    /// Draws a change of a directory or of a file in it.
    fn change(&mut self, dir: char, names: &[char]) -> Act {
        let name = *self.chance.pick(names);
        let path = within(dir, name);
        match self.chance.below(10) {
            0..3 => Act::Unlink(path),
            3..6 => Act::Save(path),
            6..8 => Act::Rename(path, within(dir, *self.chance.pick(&['x', 'y', 'a']))),
            8 => Act::Truncate(path),
            _ => Act::Open(path),
        }
    }

    /// Draws a look at a directory or at a file in it.
    fn look(&mut self, dir: char, names: &[char]) -> Act {
        let name = *self.chance.pick(names);
        match self.chance.below(10) {
            0..5 => Act::Stat(within(dir, name)),
            5..8 => Act::Read(within(dir, name)),
            _ => Act::List(Some(dir)),
        }
    }

    fn sharing(&mut self) {
        self.lanes = 2;
        let files = [top('a'), top(*self.chance.pick(&['a', 'a', 'b']))];
        for client in 0..self.clients {
            for lane in 0..self.lanes {
                let file = *self.chance.pick(&files);
                self.act((client, lane), 0, Act::Open(file));
                let slot = self.chance.below(3);
                for _ in 0..8 + self.chance.below(8) {
                    let pause = *self.chance.pick(&[1, 4, 4, 30, 300, 900]);
                    let pause = self.chance.below(pause);
                    let slot = if self.chance.happens(0.7) { slot } else { self.chance.below(3) };
                    let act = match self.chance.below(20) {
                        0..11 => Act::Put { slot, large: self.chance.happens(0.1) },
                        11..16 => Act::Fsync,
                        16 => Act::Close,
                        17..19 => Act::Open(file),
                        _ => Act::Read(file),
                    };
                    self.act((client, lane), pause, act);
                }
            }
        }
    }

    fn crossing(&mut self) {
        const NAMES: &[char] = &['a', 'b', 'c', 'g'];
        for client in 0..self.clients {
            self.settle(client, NAMES);
        }
        for round in 0..2 + self.chance.below(2) {
            let begun = 2_000 + round * 5_000;
            let meet = begun + 2_600 + self.chance.below(1_500);
            for (client, own) in OWN.into_iter().enumerate().take(self.clients) {
                let met = self.other(client);
                self.act((client, 0), 0, Act::Until(begun));
                for _ in 0..1 + self.chance.below(3) {
                    let look = self.look(OWN[met], NAMES);
                    self.act((client, 0), 0, look);
                }
                // Late enough after others have looked to get delegations again.
                let home = begun + 2_200 + self.chance.below(300);
                self.return_home(client, home);
                let before = self.chance.below(90);
                self.act((client, 0), 0, Act::Until(meet - before));
                for _ in 0..1 + self.chance.below(3) {
                    let change = self.change(own, NAMES);
                    self.act((client, 0), 0, change);
                }
                self.digress((client, 0));
                let late = *self.chance.pick(&[1, 1, 3, 20]);
                let late = self.chance.below(late);
                self.act((client, 0), 0, Act::Until(meet + late));
                let look = self.look(OWN[met], &['a', 'b', 'c', 'x']);
                self.act((client, 0), 0, look);
                if self.lanes > 1 {
                    let (late, look) = (self.chance.below(20), self.look(OWN[met], NAMES));
                    self.act_at((client, 1), meet + late, look);
                }
            }
        }
    }

    fn standstill(&mut self) {
        self.lanes = 2;
        let log = top('l');
        let victim = self.chance.below(self.clients as u64) as usize;
        let cut = 2_000 + self.chance.below(1_000);
        for client in 0..self.clients {
            self.act((client, 0), 0, Act::OpenToAppend(log));
            for _ in 0..1 + self.chance.below(3) {
                let pause = self.chance.below(300);
                let put = self.put();
                self.act((client, 0), pause, put);
                self.act((client, 0), 0, Act::Fsync);
            }
            self.digress((client, 0));
            self.settle_beside(client);
        }
        let lasts = 2_600 + self.chance.below(3_500);
        let client = victim;
        self.fault(cut, Fault::Cut { client, ms: lasts });
        // Around the beginning of the cut: entries that wait for others to be sent are not sent themselves.
        for lane in [1, 0] {
            let before = self.chance.below(150);
            self.act((client, lane), 0, Act::Until(cut - before));
            for _ in 0..1 + self.chance.below(3) {
                let pause = *self.chance.pick(&[1, 60, 900]);
                let pause = self.chance.below(pause);
                let act = if lane == 0 {
                    Act::Put { slot: 0, large: self.chance.happens(0.1) }
                } else {
                    self.change(OWN[client], &['a', 'b', 'x'])
                };
                self.act((client, lane), pause, act);
            }
        }
        let (back, power) = (*self.chance.pick(&[50, 50, 2_000]), self.chance.happens(0.3));
        let gap = *self.chance.pick(&[40, 200, 1_000, 2_500]);
        let gap = 5 + self.chance.below(gap);
        let dies = if self.chance.happens(0.6) {
            let again = 500 + self.chance.below(6_000);
            self.fault(cut + lasts + gap, Fault::Cut { client, ms: again });
            cut + lasts + gap + self.chance.below(again)
        } else {
            cut + lasts + gap
        };
        self.fault(dies, Fault::Crash { client, power, ms: back });
        for client in 0..self.clients {
            let at = cut + self.chance.below(lasts + 4_000);
            self.act_at((client, 0), at, Act::OpenToAppend(log));
            for _ in 0..1 + self.chance.below(3) {
                let pause = self.chance.below(1_500);
                self.act((client, 0), pause, Act::Put { slot: 0, large: false });
                self.act((client, 0), 0, Act::Fsync);
            }
            self.digress((client, 0));
            self.act((client, 0), 0, Act::Read(log));
        }
    }

    /// Does what [`Script::settle`] does, by the second program.
    fn settle_beside(&mut self, client: usize) {
        self.act((client, 1), 0, Act::Mkdir(OWN[client]));
        for name in ['a', 'b'] {
            self.act((client, 1), 0, Act::Save(within(OWN[client], name)));
        }
    }

    fn away(&mut self) {
        const NAMES: &[char] = &['a', 'b', 'c'];
        let client = self.chance.below(self.clients as u64) as usize;
        let dir = OWN[client];
        self.settle(client, NAMES);
        let cut = 4_500 + self.chance.below(1_000);
        let lasts = *self.chance.pick(&[4_000, 7_000, 9_000, 12_000, 35_000]);
        self.fault(cut, Fault::Cut { client, ms: lasts });
        self.return_home(client, cut - 1_200);
        for _ in 0..self.chance.below(3) {
            let look = self.look(dir, NAMES);
            self.act((client, 0), 10, look);
        }
        let at = cut.saturating_sub(100) + self.chance.below(1_000);
        self.act((client, 0), 0, Act::Until(at));
        for _ in 0..1 + self.chance.below(4) {
            let (pause, change) = (self.chance.below(400), self.change(dir, NAMES));
            self.act((client, 0), pause, change);
            if matches!(change, Act::Open(_)) {
                let put = self.put();
                self.act((client, 0), 0, put);
                self.act((client, 0), 0, Act::Close);
            }
        }
        for other in (0..self.clients).filter(|other| *other != client) {
            let (early, look) = (500 + self.chance.below(1_000), self.look(dir, NAMES));
            self.act_at((other, 0), early, look);
            let at = cut + 2_000 + self.chance.below(lasts);
            self.act((other, 0), 0, Act::Until(at));
            for _ in 0..1 + self.chance.below(3) {
                let (pause, name) = (self.chance.below(500), *self.chance.pick(NAMES));
                self.act((other, 0), pause, Act::Open(within(dir, name)));
                let put = self.put();
                self.act((other, 0), 0, put);
                let end = *self.chance.pick(&[Act::Fsync, Act::Close]);
                self.act((other, 0), 0, end);
                self.digress((other, 0));
            }
        }
        for any in 0..self.clients {
            let look = self.look(dir, NAMES);
            self.act_at((any, 0), cut + lasts + 500, look);
        }
    }

    fn deposed(&mut self) {
        const NAMES: &[char] = &['a', 'b', 'c'];
        let client = self.chance.below(self.clients as u64) as usize;
        let dir = OWN[client];
        self.settle(client, NAMES);
        for round in 0..1 + self.chance.below(2) {
            let falls = 4_500 + round * 16_000 + self.chance.below(1_000);
            let with = self.other(client);
            let ms = *self.chance.pick(&[1_500, 3_000, 6_000, 9_000]);
            let fault = match self.chance.below(8) {
                0..5 => Fault::Split { client: with, ms },
                5..7 => Fault::DeposeLeader { ms },
                _ => Fault::KillLeader { ms },
            };
            self.fault(falls, fault);
            for other in (0..self.clients).filter(|other| *other != client) {
                let at = falls - 3_500 + self.chance.below(500);
                self.act((other, 0), 0, Act::Until(at));
                for _ in 0..1 + self.chance.below(2) {
                    let look = self.look(dir, NAMES);
                    self.act((other, 0), 0, look);
                }
                // The metad does not know yet that it does not lead any more.
                let at = falls.saturating_sub(60) + self.chance.below(700);
                self.act((other, 0), 0, Act::Until(at));
                for _ in 0..1 + self.chance.below(3) {
                    let pause = *self.chance.pick(&[1, 20, 1_500]);
                    let (pause, look) = (self.chance.below(pause), self.look(dir, &['a', 'b', 'c', 'x']));
                    self.act((other, 0), pause, look);
                    self.digress((other, 0));
                }
            }
            let home = falls - 700 - self.chance.below(300);
            self.return_home(client, home);
            let at = falls - self.chance.below(120);
            self.act((client, 0), 0, Act::Until(at));
            for _ in 0..2 + self.chance.below(4) {
                let (pause, change) = (*self.chance.pick(&[1, 30, 1_500]), self.change(dir, NAMES));
                let pause = self.chance.below(pause);
                self.act((client, 0), pause, change);
                if matches!(change, Act::Open(_)) {
                    let put = self.put();
                    self.act((client, 0), 0, put);
                    let end = *self.chance.pick(&[Act::Fsync, Act::Close, Act::Close]);
                    self.act((client, 0), 0, end);
                }
            }
        }
    }
}
