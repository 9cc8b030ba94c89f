//! Problems for an operator, in the order of urgency.

use super::blockd::{is_slow, states};
use crate::output;
use std::time::Duration;
use wire::message::admin::{BlockdHealth, ClusterStatus};

/// Problems and notes for an operator.
pub struct Health {
    /// Problems, one line each; empty when all is well.
    pub problems: Vec<String>,
    /// What may be done, but is not a problem.
    pub notes: Vec<String>,
    /// Something cannot be read or written, or may be lost with the next failure.
    pub is_critical: bool,
}

/// Sum of what the block daemons have found and still have to do.
#[derive(Clone, Copy, Default)]
pub struct Work {
    /// Copies that owners lack and others have.
    pub lacking_blocks: u64,
    /// Their bytes.
    pub lacking_bytes: u64,
    /// Copies that lie where they do not belong.
    pub misplaced_blocks: u64,
    /// Their bytes.
    pub misplaced_bytes: u64,
    /// Copies beyond the number that blocks should have, while every block has that number.
    pub surplus_blocks: u64,
    /// Copies found damaged and not replaced yet.
    pub damaged_blocks: u64,
    /// Blocks that something refers to, and of which no daemon that can be reached has a copy.
    pub missing_blocks: u64,
    /// Bytes per second that are copied now.
    pub bytes_per_s: u64,
    /// Time until the slowest daemon has what it lacks, at its present rate; `None` when one that lacks something copies
    /// nothing now.
    pub left_s: Option<u64>,
}

impl Work {
    /// Sums up.
    #[must_use]
    pub fn of(status: &ClusterStatus) -> Self {
        let mut work = Self::default();
        let mut left = Some(0);
        // One that lies must not make the sum of the others' figures wrap around.
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        for (_, state) in states(status).filter(|(_, state)| state.health != BlockdHealth::Out) {
            let repair = state.repair;
            add(&mut work.lacking_blocks, repair.lacking_blocks);
            add(&mut work.lacking_bytes, repair.lacking_bytes);
            add(&mut work.misplaced_blocks, repair.misplaced_blocks);
            add(&mut work.misplaced_bytes, repair.misplaced_bytes);
            add(&mut work.damaged_blocks, repair.damaged_blocks);
            // The last words of a daemon that is silent are old, and another one counts for it.
            if matches!(state.health, BlockdHealth::Up | BlockdHealth::Suspect) {
                add(&mut work.missing_blocks, repair.missing_blocks);
            }
            add(&mut work.bytes_per_s, repair.bytes_per_s);
            if repair.lacking_bytes > 0 {
                let own = repair.lacking_bytes.checked_div(repair.bytes_per_s);
                left = left.zip(own).map(|(left, own)| left.max(own));
            }
        }
        work.surplus_blocks = if status.layout.is_final() { work.misplaced_blocks } else { 0 };
        work.left_s = left;
        work
    }
}

impl Health {
    /// Looks for problems.
    #[must_use]
    pub fn of(status: &ClusterStatus) -> Self {
        let mut health = Self { problems: metads(status), notes: Vec::new(), is_critical: false };
        health.blockds(status);
        health.blocks(status);
        health.deletion(status);
        health
    }

    fn blockds(&mut self, status: &ClusterStatus) {
        for (member, state) in states(status) {
            let (name, addr) = (&member.name, member.addr);
            let silent = state.heard_ms.map(|ms| output::duration(Duration::from_millis(ms)));
            match (state.health, silent) {
                (BlockdHealth::Up, _) if is_slow(status, (member, state)) => {
                    let took = output::duration(Duration::from_micros(state.repair.sync_us.unwrap_or(0)));
                    let what = "far more than the others: look at its disk; `surf blockd drain` empties it";
                    self.problems.push(format!("{name} ({addr}) is slow: it takes {took} to sync, {what}"));
                }
                (BlockdHealth::Up | BlockdHealth::Draining, _) => {}
                (BlockdHealth::Suspect | BlockdHealth::Down, None) => {
                    self.problems.push(format!("{name} ({addr}) was not heard of"));
                }
                (BlockdHealth::Suspect, Some(s)) => {
                    self.problems.push(format!("{name} ({addr}) has missed heartbeats for {s}"));
                }
                (BlockdHealth::Down, Some(s)) if status.layout.may_take_out(&member.id) => {
                    self.problems.push(format!("{name} ({addr}) is silent for {s}"));
                }
                (BlockdHealth::Down, Some(s)) => {
                    let what = "others do not take over, because it may have the last copies of blocks, or too few \
                                daemons would be left: start it; if it is lost, add others and `surf blockd remove` it";
                    self.problems.push(format!("{name} ({addr}) is silent for {s}; {what}"));
                }
                (BlockdHealth::Out, _) => {
                    let what = "is out: others take over what it held; start it, or `surf blockd remove` it";
                    self.problems.push(format!("{name} ({addr}) {what}"));
                }
                (BlockdHealth::Drained, _) => {
                    self.notes.push(format!("{name} ({addr}) is drained: switch it off, then `surf blockd remove` it"));
                }
                (BlockdHealth::Failed, _) => {
                    let what = "has a disk that failed: others copy what it holds; replace the disk when they have all";
                    self.problems.push(format!("{name} ({addr}) {what}"));
                }
            }
        }
        let (owners, layout) = (status.layout.owning().count(), &status.layout);
        if owners < usize::from(layout.replicas) {
            self.problems.push(format!("degraded: {owners} blockds cannot hold {} replicas", layout.replicas));
        }
        let alive = |health| matches!(health, BlockdHealth::Up | BlockdHealth::Suspect);
        let living = states(status).filter(|(member, state)| member.is_owner() && alive(state.health)).count();
        if living < usize::from(layout.min_sync) {
            self.problems.push(format!("{living} blockds are too few to store a block: {} must", layout.min_sync));
            self.is_critical = true;
        }
        // Once the layout is final, others have what the daemons that are out held.
        let is_gone = |health| match health {
            BlockdHealth::Down => true,
            BlockdHealth::Out => !layout.is_final(),
            _ => false,
        };
        let gone = states(status).filter(|(_, state)| is_gone(state.health)).count();
        if gone >= usize::from(layout.replicas) {
            self.problems
                .push(format!("{gone} blockds are away at once: blocks that lie on them alone cannot be read"));
            self.is_critical = true;
        }
    }

    fn blocks(&mut self, status: &ClusterStatus) {
        let work = Work::of(status);
        if work.missing_blocks > 0 {
            self.problems.push(format!(
                "{} blocks cannot be read, because no daemon that answers has them: start those that are away, or see \
                 `surf fsck` for the files",
                work.missing_blocks
            ));
            self.is_critical = true;
        }
        if work.lacking_blocks > 0 {
            self.problems.push(format!("{} copies of blocks are lacking and are being made", work.lacking_blocks));
        } else if !status.layout.is_final() {
            self.problems.push("blocks are compared after a change of the daemons".to_owned());
        }
        if work.damaged_blocks > 0 {
            self.problems.push(format!("{} copies are damaged and not replaced yet", work.damaged_blocks));
        }
    }
}

impl Health {
    fn deletion(&mut self, status: &ClusterStatus) {
        if let Some(stop) = &status.deletion_stopped {
            let (reason, since) = (&stop.reason, output::time(stop.since));
            self.problems.push(format!(
                "no block is deleted since {since} ({reason}): look whether all is there, then `surf metad resume-deletion`"
            ));
        }
        for pin in &status.pins {
            self.notes.push(format!("blocks of {} are kept until {}", pin.name, output::time(pin.until)));
        }
    }
}

/// A metad answers the leader ten times a second.
const METAD_SILENT: Duration = Duration::from_secs(1);

fn metads(status: &ClusterStatus) -> Vec<String> {
    let mut problems = Vec::new();
    let voters = status.metads.iter().filter(|(_, _, voter, _)| *voter).count();
    if voters.is_multiple_of(2) {
        problems.push(format!("{voters} metads vote: an odd number bears as many failures with one node less"));
    }
    for ((id, addr, _, matched), heard_ms) in status.metads.iter().zip(&status.metads_heard_ms) {
        let silent = heard_ms.map(Duration::from_millis).filter(|ago| *ago > METAD_SILENT);
        if *id == status.leader {
            continue;
        } else if *matched == 0 {
            problems.push(format!("metad-{id} ({addr}) does not follow"));
        } else if let Some(ago) = silent {
            problems.push(format!("metad-{id} ({addr}) has not answered for {}: start it", output::duration(ago)));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metad_that_has_stopped_is_named_though_the_leader_remembers_what_it_had() {
        let metad = |id: u64| (MetadId(id), ([127, 0, 0, 1], 7000).into(), true, 40);
        let of = |heard_ms| ClusterStatus {
            metads: vec![metad(1), metad(2), metad(3)],
            metads_heard_ms: vec![None, Some(90), heard_ms],
            ..status(&[])
        };
        assert!(metads(&of(Some(120))).is_empty());
        let problems = metads(&of(Some(4_000)));
        assert!(problems.len() == 1 && problems[0].contains("metad-3"), "{problems:?}");
    }
    use wire::ids::{BlockdId, LayoutEpoch, MetadId};
    use wire::layout::{Layout, LayoutMember, OlderLayout};
    use wire::message::admin::BlockdState;
    use wire::message::block::RepairReport;
    use wire::op::StatFs;

    fn status(healths: &[BlockdHealth]) -> ClusterStatus {
        let addr = ([127, 0, 0, 1], 7101).into();
        let state = |health| BlockdState {
            health,
            heard_ms: Some(20_000),
            free_bytes: 1,
            capacity_bytes: 1,
            repair: RepairReport::default(),
        };
        let member = |(at, health): (usize, &BlockdHealth)| LayoutMember {
            out: *health == BlockdHealth::Out,
            ..LayoutMember::new(BlockdId([at as u8; 16]), format!("blockd-{at}"), addr, "zone")
        };
        ClusterStatus {
            cluster: "test".to_owned(),
            leader: MetadId(1),
            term: 1,
            applied: 1,
            metads: vec![(MetadId(1), addr, true, 1)],
            metads_heard_ms: vec![None],
            metads_ever: vec![MetadId(1)],
            layout: Layout {
                replicas: 2,
                min_sync: 1,
                members: healths.iter().enumerate().map(member).collect(),
                ..Layout::default()
            },
            blockds: healths.iter().map(|health| state(*health)).collect(),
            sessions: Vec::new(),
            statfs: StatFs::default(),
            deletion_stopped: None,
            pins: Vec::new(),
        }
    }

    #[test]
    fn as_many_daemons_away_as_there_are_replicas_are_critical_until_others_have_what_they_hold() {
        use BlockdHealth::{Down, Out, Up};
        assert!(Health::of(&status(&[Up; 5])).problems.is_empty());
        assert!(!Health::of(&status(&[Up, Up, Up, Up, Down])).is_critical);
        let critical = Health::of(&status(&[Up, Up, Up, Down, Down]));
        assert!(critical.is_critical && critical.problems.last().unwrap().contains("cannot be read"));
        let mut moving = status(&[Up, Up, Up, Out, Down]);
        let says_why = |status: &ClusterStatus| {
            Health::of(status).problems.iter().any(|line| line.contains("others do not take over"))
        };
        assert!(!says_why(&moving));
        assert!(!Health::of(&moving).is_critical, "others have what the first one held");
        let owners = moving.layout.members.iter().map(|member| member.id).collect();
        moving.layout.older.push(OlderLayout { placement: LayoutEpoch(1), replicas: 2, owners, points: Vec::new() });
        assert!(Health::of(&moving).is_critical, "not all of it yet");
        assert!(says_why(&moving), "it has the last copies of what the first one held");
        assert!(Health::of(&status(&[Down, Down, Down])).is_critical);
    }

    #[test]
    fn a_disk_that_is_far_slower_than_the_others_needs_attention_and_a_slow_cluster_does_not() {
        use BlockdHealth::{Down, Up};
        let with = |times: &[Option<u64>]| {
            let mut status = status(&vec![Up; times.len()]);
            status
                .blockds
                .iter_mut()
                .zip(times)
                .for_each(|(blockd, ms)| blockd.repair.sync_us = ms.map(|ms| ms * 1000));
            status
        };
        let slow = |status: &ClusterStatus| states(status).map(|one| is_slow(status, one)).collect::<Vec<_>>();
        let status = with(&[Some(5), Some(2000), Some(8)]);
        assert_eq!(slow(&status), [false, true, false]);
        let health = Health::of(&status);
        assert!(!health.is_critical && health.problems.len() == 1, "{:?}", health.problems);
        assert!(health.problems[0].starts_with("blockd-1 ") && health.problems[0].contains("slow"));
        for alike in [[Some(900), Some(2000), Some(400)], [Some(1), Some(99), Some(1)], [None, Some(2000), None]] {
            assert_eq!(slow(&with(&alike)), [false; 3], "{alike:?}");
        }
        let mut away = status.clone();
        away.blockds[1].health = Down;
        assert_eq!(slow(&away), [false; 3], "it is worse than slow");
    }

    #[test]
    fn blocks_that_nobody_has_are_critical_but_not_by_the_word_of_daemons_that_are_away() {
        use BlockdHealth::{Out, Up};
        let mut missing = status(&[Up, Up, Out]);
        missing.blockds[2].repair.missing_blocks = 4;
        assert!(!Health::of(&missing).is_critical, "what one that is out last said is old");
        missing.blockds[1].health = BlockdHealth::Down;
        missing.blockds[1].repair.missing_blocks = 5;
        assert_eq!(Work::of(&missing).missing_blocks, 0);
        missing.blockds[0].repair.missing_blocks = 3;
        let health = Health::of(&missing);
        assert!(health.is_critical && health.problems.iter().any(|line| line.starts_with("3 blocks cannot be read")));
        // A daemon that lies does not erase what others report.
        missing.blockds[1].health = Up;
        missing.blockds[1].repair.missing_blocks = u64::MAX - 2;
        assert!(Health::of(&missing).is_critical);
    }
}
