//! Heartbeats of block daemons and signs of life of sessions, in memory only: a new leader gives everybody the full
//! time.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use wire::cert::Certificate;
use wire::ids::{BlockdId, SessionId};
use wire::layout::{Layout, LayoutMember};
use wire::message::admin::{BlockdHealth, BlockdState};
use wire::message::block::RepairReport;
use wire::message::meta::BlockdHeartbeat;
use wire::op::StatFs;
use wire::revoked::Refusals;
use wire::tls::{PeerIdentity, Subject};

/// A daemon that missed this many heartbeats may have died; single ones are lost now and then.
const SUSPECT_HEARTBEATS: u32 = 2;
/// A daemon that is silent for this long is down, unless its heartbeats are so rare that it could only just be suspect.
const DOWN_AFTER: Duration = Duration::from_secs(10);

/// A daemon that this node has not heard yet is waited for so long when a question is about all daemons: longer than
/// the usual interval of heartbeats.
const FIRST_HEARTBEAT_LIMIT: Duration = Duration::from_secs(3);

/// When each daemon and session was last heard.
#[derive(Default)]
pub struct Liveness {
    blockds: Mutex<Blockds>,
    /// Notified at each heartbeat.
    heartbeat: Notify,
    sessions: Mutex<HashMap<SessionId, Heard>>,
}

/// When a session was heard, and by which certificate; by none if it is only waited for.
struct Heard {
    at: Instant,
    by: Option<(Subject, Certificate)>,
}

#[derive(Default)]
struct Blockds {
    heard: HashMap<BlockdId, (Instant, BlockdHeartbeat)>,
    /// Since when this node has led and waited for daemons that it has not heard.
    missed_since: HashMap<BlockdId, Instant>,
}

impl Liveness {
    /// Records a heartbeat of a block daemon.
    pub fn heard_blockd(&self, heartbeat: BlockdHeartbeat) {
        self.blockds.lock().heard.insert(heartbeat.id, (Instant::now(), heartbeat));
        self.heartbeat.notify_waiters();
    }

    /// Waits until this node has heard each owner of the layout, or has waited long enough for those that it has not:
    /// a new leader knows nothing of them at first.
    pub async fn wait_heard(&self, layout: &Layout) {
        loop {
            let heartbeat = self.heartbeat.notified();
            tokio::pin!(heartbeat);
            heartbeat.as_mut().enable();
            let now = Instant::now();
            let waits_until = {
                let mut blockds = self.blockds.lock();
                let Blockds { heard, missed_since } = &mut *blockds;
                let unheard = layout.owning().filter(|owner| !heard.contains_key(&owner.id));
                unheard.map(|owner| *missed_since.entry(owner.id).or_insert(now) + FIRST_HEARTBEAT_LIMIT).max()
            };
            match waits_until {
                Some(until) if until > now => {
                    let _ = timeout_at(until, heartbeat).await;
                }
                _ => return,
            }
        }
    }

    /// Records that a session is alive, as this peer has shown.
    pub fn heard_session(&self, id: SessionId, peer: &PeerIdentity) {
        let (mut sessions, at) = (self.sessions.lock(), Instant::now());
        let is_same = |by: &(Subject, Certificate)| {
            (by.1.key, by.1.issued, by.1.issuer)
                == (peer.certificate.key, peer.certificate.issued, peer.certificate.issuer)
        };
        match sessions.get_mut(&id) {
            Some(heard) if heard.by.as_ref().is_some_and(is_same) => heard.at = at,
            _ => {
                let by = Some((peer.subject.clone(), peer.certificate.clone()));
                sessions.insert(id, Heard { at, by });
            }
        }
    }

    /// Returns the sessions whose certificates are refused.
    pub fn refused_sessions(&self, refusals: &Refusals) -> Vec<SessionId> {
        let sessions = self.sessions.lock();
        let is_refused = |heard: &Heard| heard.by.as_ref().is_some_and(|(subject, by)| refusals.refuse(subject, by));
        sessions.iter().filter(|(_, heard)| is_refused(heard)).map(|(id, _)| *id).collect()
    }

    /// Returns the certificates for which sessions were heard that are for this role and name.
    pub fn certificates(&self, of: &Subject) -> Vec<Certificate> {
        let sessions = self.sessions.lock();
        let shown = sessions.values().filter_map(|heard| heard.by.as_ref());
        let is_of_it = |(subject, _): &&(Subject, Certificate)| subject.role == of.role && subject.name == of.name;
        shown.filter(is_of_it).map(|(_, certificate)| certificate.clone()).collect()
    }

    /// Returns what was shown for each session that was heard.
    pub fn shown(&self) -> HashMap<SessionId, (Subject, Certificate)> {
        let sessions = self.sessions.lock();
        sessions.iter().filter_map(|(id, heard)| Some((*id, heard.by.clone()?))).collect()
    }

    /// Forgets a session that has ended.
    pub fn forget_session(&self, id: SessionId) {
        self.sessions.lock().remove(&id);
    }

    /// Returns those of these sessions that were not heard for `ttl`. A session that was never heard here counts as
    /// heard now.
    pub fn silent_sessions(&self, all: &[SessionId], ttl: Duration) -> Vec<SessionId> {
        let mut heard = self.sessions.lock();
        heard.retain(|id, _| all.contains(id));
        let now = Instant::now();
        let waited =
            |heard: &mut HashMap<SessionId, Heard>, id| now - heard.entry(id).or_insert(Heard { at: now, by: None }).at;
        all.iter().copied().filter(|id| waited(&mut heard, *id) > ttl).collect()
    }

    /// Forgets when sessions were heard. Call it when this node cannot know that it leads: earlier signs of life must
    /// not count when it leads again.
    pub fn forget_sessions(&self) {
        self.sessions.lock().clear();
    }

    /// Returns the members that are not out and were silent for longer than the layout allows, the longest silent one
    /// first. A member that was never heard here is waited for from the first call on.
    pub fn silent_blockds(&self, layout: &Layout) -> Vec<BlockdId> {
        let limit = Duration::from_millis(layout.down_after_ms);
        let mut blockds = self.blockds.lock();
        let Blockds { heard, missed_since } = &mut *blockds;
        heard.retain(|id, _| layout.member(id).is_some());
        missed_since.retain(|id, _| layout.member(id).is_some() && !heard.contains_key(id));
        let now = Instant::now();
        let mut last = |id: &BlockdId| match heard.get(id) {
            Some((at, _)) => *at,
            None => *missed_since.entry(*id).or_insert(now),
        };
        let waited = layout
            .members
            .iter()
            .filter(|member| !member.out && !member.drained)
            .map(|member| (last(&member.id), member.id));
        let mut silent: Vec<_> = waited.filter(|(last, _)| now.duration_since(*last) > limit).collect();
        silent.sort_unstable();
        silent.into_iter().map(|(_, id)| id).collect()
    }

    /// Forgets the heartbeats before this time, as [`Liveness::forget_sessions`] forgets sessions. A later one was heard
    /// by a node that led.
    pub fn forget_blockds(&self, before: Instant) {
        let mut blockds = self.blockds.lock();
        blockds.heard.retain(|_, (at, _)| *at >= before);
        blockds.missed_since.clear();
    }

    /// Returns whether each owner holds all blocks that it should hold under the current owners.
    pub fn all_done(&self, layout: &Layout) -> bool {
        let blockds = self.blockds.lock();
        let is_done = |member: &LayoutMember| {
            blockds.heard.get(&member.id).is_some_and(|(_, beat)| beat.repair.done >= layout.placement)
        };
        layout.owning().all(is_done)
    }

    /// Returns the members that have reported that they are empty, and that the layout does not call drained yet.
    pub fn emptied(&self, layout: &Layout) -> Vec<BlockdId> {
        let states = self.blockds(layout);
        let members = layout.members.iter().zip(states);
        let is_news =
            |(member, state): &(&LayoutMember, BlockdState)| !member.drained && state.health == BlockdHealth::Drained;
        members.filter(is_news).map(|(member, _)| member.id).collect()
    }

    /// Returns the state of each member of the layout.
    pub fn blockds(&self, layout: &Layout) -> Vec<BlockdState> {
        let blockds = self.blockds.lock();
        let state = |member: &LayoutMember| match blockds.heard.get(&member.id) {
            Some((at, heartbeat)) => {
                let silent = at.elapsed();
                BlockdState {
                    health: health(layout, member, silent, heartbeat),
                    heard_ms: Some(u64::try_from(silent.as_millis()).unwrap_or(u64::MAX)),
                    free_bytes: heartbeat.free_bytes,
                    capacity_bytes: heartbeat.capacity_bytes,
                    repair: heartbeat.repair,
                }
            }
            None => BlockdState {
                health: match (member.drained, member.out) {
                    (true, _) => BlockdHealth::Drained,
                    (false, true) => BlockdHealth::Out,
                    (false, false) => BlockdHealth::Suspect,
                },
                heard_ms: None,
                free_bytes: 0,
                capacity_bytes: 0,
                repair: RepairReport::default(),
            },
        };
        layout.members.iter().map(state).collect()
    }

    /// Returns the capacity as files see it: that of the owners, divided by the copies made of each block.
    pub fn statfs(&self, layout: &Layout, inodes: u64) -> StatFs {
        let copies = u64::from(layout.replicas.max(1)).min(layout.owning().count().max(1) as u64);
        let blockds = self.blockds(layout);
        let owning = || layout.members.iter().zip(&blockds).filter(|(member, _)| member.is_owner());
        // A block daemon may report any figures.
        let sum = |of: fn(&BlockdState) -> u64| owning().fold(0_u64, |sum, (_, blockd)| sum.saturating_add(of(blockd)));
        StatFs {
            total_bytes: sum(|blockd| blockd.capacity_bytes) / copies,
            free_bytes: sum(|blockd| blockd.free_bytes) / copies,
            inodes,
        }
    }
}

fn health(layout: &Layout, member: &LayoutMember, silent: Duration, heartbeat: &BlockdHeartbeat) -> BlockdHealth {
    let every = Duration::from_millis(heartbeat.every_ms);
    let is_silent = silent > every * SUSPECT_HEARTBEATS + every / 2;
    if member.drained && is_silent {
        BlockdHealth::Drained
    } else if member.out {
        BlockdHealth::Out
    } else if silent > DOWN_AFTER.max(every * (SUSPECT_HEARTBEATS + 1)) {
        BlockdHealth::Down
    } else if is_silent {
        BlockdHealth::Suspect
    } else if member.failed {
        BlockdHealth::Failed
    } else if member.draining {
        let is_empty = layout.is_final() && heartbeat.repair.done >= layout.placement && heartbeat.repair.empty;
        if is_empty { BlockdHealth::Drained } else { BlockdHealth::Draining }
    } else {
        BlockdHealth::Up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_a_new_leader_never_heard_of_gets_a_full_grace() {
        let liveness = Liveness::default();
        let all = [SessionId(1), SessionId(2)];
        assert!(liveness.silent_sessions(&all, Duration::from_secs(60)).is_empty());
        assert_eq!(liveness.silent_sessions(&all, Duration::ZERO).len(), 2);
        liveness.forget_sessions();
        assert!(liveness.silent_sessions(&all, Duration::from_secs(60)).is_empty());
    }

    fn member(id: u8) -> LayoutMember {
        let (name, addr) = (format!("blockd-{id}"), ([127, 0, 0, 1], 1).into());
        LayoutMember { out: id == 3, ..LayoutMember::new(BlockdId([id; 16]), name, addr, id.to_string()) }
    }

    #[test]
    fn a_block_daemon_that_a_new_leader_never_heard_of_gets_a_full_grace() {
        let liveness = Liveness::default();
        let members = vec![member(1), member(2), member(3)];
        let mut layout = Layout { members, down_after_ms: 60_000, ..Layout::default() };
        assert!(liveness.silent_blockds(&layout).is_empty());
        layout.down_after_ms = 0;
        assert_eq!(liveness.silent_blockds(&layout), [BlockdId([1; 16]), BlockdId([2; 16])], "the third is out");
        liveness.forget_blockds(Instant::now());
        layout.down_after_ms = 60_000;
        assert!(liveness.silent_blockds(&layout).is_empty());
    }

    #[test]
    fn a_drained_daemon_may_be_switched_off() {
        let liveness = Liveness::default();
        let mut emptied = member(1);
        (emptied.draining, emptied.drained) = (true, true);
        let layout = Layout { members: vec![emptied, member(2)], down_after_ms: 0, ..Layout::default() };
        let _heard_from_now_on = liveness.silent_blockds(&layout);
        assert_eq!(liveness.silent_blockds(&layout), [BlockdId([2; 16])]);
        assert_eq!(liveness.blockds(&layout)[0].health, BlockdHealth::Drained);
    }

    fn heartbeat(id: u8) -> BlockdHeartbeat {
        BlockdHeartbeat {
            id: BlockdId([id; 16]),
            name: format!("blockd-{id}"),
            addr: ([127, 0, 0, 1], 1).into(),
            zone: id.to_string(),
            weight: 1,
            capacity_bytes: 100,
            free_bytes: 50,
            block_count: 0,
            epoch: wire::ids::LayoutEpoch(1),
            every_ms: 2_000,
            repair: RepairReport::default(),
            failed: false,
            revoked: wire::revoked::ListMark::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_shows_as_silent_once_it_missed_two_heartbeats_and_before_it_missed_three() {
        let layout = Layout { members: vec![member(1)], down_after_ms: 600_000, ..Layout::default() };
        for every_ms in [50, 1_000, 60_000] {
            let (liveness, every) = (Liveness::default(), Duration::from_millis(every_ms));
            let health = || liveness.blockds(&layout)[0].health;
            liveness.heard_blockd(BlockdHeartbeat { every_ms, ..heartbeat(1) });
            tokio::time::advance(every * 2 + every / 4).await;
            assert_eq!(health(), BlockdHealth::Up, "the second one may be on its way");
            tokio::time::advance(every / 2).await;
            assert_eq!(health(), BlockdHealth::Suspect, "every {every:?}");
            tokio::time::advance(DOWN_AFTER.max(every)).await;
            assert_eq!(health(), BlockdHealth::Down, "every {every:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn capacity_is_answered_when_all_owners_were_heard_or_had_time_to_report() {
        let liveness = Liveness::default();
        let layout = Layout { members: vec![member(1), member(2)], replicas: 1, ..Layout::default() };
        let begun = Instant::now();
        let reports = async {
            for id in [1, 2] {
                tokio::time::sleep(Duration::from_millis(900)).await;
                liveness.heard_blockd(heartbeat(id));
            }
        };
        tokio::join!(liveness.wait_heard(&layout), reports);
        assert_eq!((liveness.statfs(&layout, 0).total_bytes, begun.elapsed().as_millis()), (200, 1_800));
        liveness.forget_blockds(Instant::now() + Duration::from_millis(1));
        liveness.wait_heard(&layout).await;
        let waited = begun.elapsed().as_millis() - 1_800;
        assert_eq!(waited, FIRST_HEARTBEAT_LIMIT.as_millis(), "a daemon that is away is not waited for any longer");
        liveness.wait_heard(&layout).await;
        assert_eq!(begun.elapsed().as_millis() - 1_800, waited, "nor by the next who asks");
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_that_comes_while_leadership_is_being_asked_for_is_not_forgotten() {
        let liveness = Liveness::default();
        let layout = Layout { members: vec![member(1), member(2)], replicas: 1, ..Layout::default() };
        liveness.heard_blockd(heartbeat(1));
        tokio::time::advance(Duration::from_millis(10)).await;
        let asked = Instant::now();
        tokio::time::advance(Duration::from_millis(10)).await;
        liveness.heard_blockd(heartbeat(2));
        liveness.forget_blockds(asked);
        let heard = liveness.blockds(&layout).iter().map(|state| state.heard_ms.is_some()).collect::<Vec<_>>();
        assert_eq!(heard, [false, true]);
    }
}
