//! Block daemons: heartbeats that lead into the layout, and reports of what they hold.

use super::Server;
use crate::cluster::placement;
use crate::error::ProposeError;
use crate::fs::{Command, CommandReply, blockref, settings};
use wire::ids::BlockHash;
use wire::layout::{Layout, LayoutMember};
use wire::message::event::MetaEvent;
use wire::message::meta::{BlockdHeartbeat, MetaReply};
use wire::tls::PeerIdentity;

impl Server {
    pub(super) async fn blockd_heartbeat(
        &self,
        peer: &PeerIdentity,
        heartbeat: BlockdHeartbeat,
    ) -> Result<MetaReply, ProposeError> {
        self.shared.consensus.read_barrier().await?;
        if heartbeat.name != peer.subject.name {
            return Err(ProposeError::Refused(format!("{} reports as {}", peer.subject.name, heartbeat.name)));
        }
        let known = heartbeat.epoch;
        self.shared.liveness.heard_blockd(heartbeat.clone());
        let mut layout = settings::layout(&**self.shared.consensus.state());
        if !stands_in(&layout, &heartbeat) {
            layout = self.admit(&heartbeat).await?;
        }
        Ok(MetaReply::BlockdAlive { layout: (layout.epoch != known).then_some(layout) })
    }

    /// Makes the daemon a member of the layout, one at a time.
    async fn admit(&self, heartbeat: &BlockdHeartbeat) -> Result<Layout, ProposeError> {
        let _one_at_a_time = self.shared.layout_change.lock().await;
        let layout = settings::layout(&**self.shared.consensus.state());
        if stands_in(&layout, heartbeat) {
            return Ok(layout);
        }
        let (old, joining) = (layout.clone(), heartbeat.clone());
        let changed = tokio::task::spawn_blocking(move || with_member(&old, &joining));
        let changed = changed.await.map_err(|error| ProposeError::Refused(error.to_string()))?;
        match self.shared.propose(Command::SetLayout(changed.clone())).await? {
            CommandReply::Done => {
                tracing::info!(epoch = %changed.epoch, name = heartbeat.name, "block daemon is in the layout");
                let event = MetaEvent::LayoutChanged(changed.epoch);
                self.shared.events.tell_others(wire::ids::SessionId::default(), &event);
                Ok(changed)
            }
            _ => Err(ProposeError::Unknown),
        }
    }

    pub(super) async fn block_report(&self, blocks: &[BlockHash]) -> Result<MetaReply, ProposeError> {
        self.shared.consensus.read_barrier().await?;
        let state = self.shared.consensus.state().clone();
        let blocks = blocks.to_vec();
        let unreferenced = tokio::task::spawn_blocking(move || {
            blocks.into_iter().filter(|hash| !blockref::is_referenced(&*state, hash)).collect()
        });
        let unreferenced = unreferenced.await.map_err(|error| ProposeError::Refused(error.to_string()))?;
        Ok(MetaReply::Unreferenced(unreferenced))
    }
}

fn stands_in(layout: &Layout, heartbeat: &BlockdHeartbeat) -> bool {
    layout.member(&heartbeat.id).is_some_and(|member| {
        member.addr == heartbeat.addr && member.zone == heartbeat.zone && member.name == heartbeat.name
    })
}

/// The next layout: with the daemon, or with its new address and zone. Its points stay when it has some.
fn with_member(layout: &Layout, heartbeat: &BlockdHeartbeat) -> Layout {
    let mut next = layout.clone();
    next.epoch = layout.epoch.next();
    let member = LayoutMember {
        id: heartbeat.id,
        name: heartbeat.name.clone(),
        addr: heartbeat.addr,
        zone: heartbeat.zone.clone(),
        weight: heartbeat.weight.max(1),
        points: Vec::new(),
    };
    match next.members.iter_mut().find(|known| known.id == heartbeat.id) {
        Some(known) => {
            let points = std::mem::take(&mut known.points);
            *known = LayoutMember { points, weight: known.weight, ..member };
        }
        None => {
            // I11: readers look where blocks lay before as long as they have not been moved.
            next.previous = layout.members.clone();
            // Another daemon at the same address has lost its disk and come back under a new id: what it held is gone,
            // and counting both would count one copy twice (I9).
            next.members.retain(|known| known.addr != heartbeat.addr);
            let mut seed = [0; 8];
            seed.copy_from_slice(&heartbeat.id.0[..8]);
            let replicas = usize::from(layout.replicas);
            next.members = placement::place(next.members, member, replicas, u64::from_le_bytes(seed));
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ids::BlockdId;

    fn heartbeat(id: u8, port: u16) -> BlockdHeartbeat {
        BlockdHeartbeat {
            id: BlockdId([id; 16]),
            name: format!("blockd-{port}"),
            addr: ([127, 0, 0, 1], port).into(),
            zone: format!("zone-{port}"),
            weight: 1,
            capacity_bytes: 1,
            free_bytes: 1,
            block_count: 0,
            epoch: wire::ids::LayoutEpoch(0),
        }
    }

    #[test]
    fn a_daemon_that_lost_its_disk_takes_the_place_of_the_one_it_was() {
        let layout = Layout { replicas: 2, min_sync: 2, ..Layout::default() };
        let layout = with_member(&with_member(&layout, &heartbeat(1, 7001)), &heartbeat(2, 7002));
        let again = with_member(&layout, &heartbeat(3, 7002));
        let ids: Vec<u8> = again.members.iter().map(|member| member.id.0[0]).collect();
        assert_eq!(ids, [1, 3]);
        assert_eq!(again.epoch.0, layout.epoch.0 + 1);
    }
}
