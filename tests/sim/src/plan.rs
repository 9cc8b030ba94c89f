//! A schedule: programs on clients, faults, and the weather on the links, all from a seed. A plan can be made smaller
//! by leaving steps out: this is how a failing one is shrunk.

use crate::network::Weather;
use crate::steps::{Fault, Step, act};
use crate::themes::{Script, Theme};
use kit::chance::Chance;

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
            let mut script = Script::about(theme, &mut chance);
            let weather = script.weather();
            let Script { clients, lanes, steps, .. } = script;
            return Self { seed, theme, clients, lanes, weather, steps };
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
