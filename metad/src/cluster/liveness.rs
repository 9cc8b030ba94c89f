//! Heartbeats of block daemons and signs of life of sessions. In memory only: a new leader starts with a full grace.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;
use wire::ids::{BlockdId, SessionId};
use wire::layout::Layout;
use wire::message::meta::BlockdHeartbeat;
use wire::op::StatFs;

/// What was last heard of whom.
#[derive(Default)]
pub struct Liveness {
    blockds: Mutex<HashMap<BlockdId, (Instant, BlockdHeartbeat)>>,
    sessions: Mutex<HashMap<SessionId, Instant>>,
}

impl Liveness {
    /// A block daemon has reported.
    pub fn heard_blockd(&self, heartbeat: BlockdHeartbeat) {
        self.blockds.lock().insert(heartbeat.id, (Instant::now(), heartbeat));
    }

    /// A session has shown that it lives.
    pub fn heard_session(&self, id: SessionId) {
        self.sessions.lock().insert(id, Instant::now());
    }

    /// Of these sessions, those not heard of for `ttl`. One that was never heard of here is heard of now.
    pub fn silent_sessions(&self, all: &[SessionId], ttl: Duration) -> Vec<SessionId> {
        let mut heard = self.sessions.lock();
        heard.retain(|id, _| all.contains(id));
        let now = Instant::now();
        all.iter().copied().filter(|id| now - *heard.entry(*id).or_insert(now) > ttl).collect()
    }

    /// This node does not lead, or cannot know that it does: what it heard earlier must not count when it leads again.
    pub fn forget_sessions(&self) {
        self.sessions.lock().clear();
    }

    /// Per member of the layout: milliseconds since its last heartbeat, free bytes, capacity.
    pub fn blockds(&self, layout: &Layout) -> Vec<(Option<u64>, u64, u64)> {
        let heard = self.blockds.lock();
        let state = |id: &BlockdId| match heard.get(id) {
            Some((at, heartbeat)) => {
                let ms = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
                (Some(ms), heartbeat.free_bytes, heartbeat.capacity_bytes)
            }
            None => (None, 0, 0),
        };
        layout.members.iter().map(|member| state(&member.id)).collect()
    }

    /// Capacity as files see it: what the daemons have, divided by the copies made of each block.
    pub fn statfs(&self, layout: &Layout, inodes: u64) -> StatFs {
        let copies = u64::from(layout.replicas.max(1)).min(layout.members.len().max(1) as u64);
        let blockds = self.blockds(layout);
        StatFs {
            total_bytes: blockds.iter().map(|(_, _, capacity)| capacity).sum::<u64>() / copies,
            free_bytes: blockds.iter().map(|(_, free, _)| free).sum::<u64>() / copies,
            inodes,
        }
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
}
