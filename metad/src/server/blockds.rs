//! Block daemons: heartbeats, by which they join the layout, and reports of what they hold.

use super::{Server, validate};
use crate::cluster::{placement, watch};
use crate::error::ProposeError;
use crate::fs::{blockref, cert, retention, settings, tickets};
use wire::ids::{BlockHash, LayoutEpoch};
use wire::layout::{Layout, LayoutMember};
use wire::message::cert::AuditEvent;
use wire::message::meta::{BlockdHeartbeat, MetaReply};
use wire::tls::PeerIdentity;

/// Blocks looked at for one page of those that something refers to.
const REFERENCED_PAGE: usize = 1024;

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
        let (known, known_revoked) = (heartbeat.epoch, heartbeat.revoked);
        self.refuse_if_behind(&heartbeat.name, known)?;
        self.shared.liveness.heard_blockd(heartbeat.clone());
        let mut layout = settings::layout(&**self.shared.consensus.state());
        if !stands_in(&layout, &heartbeat) {
            layout = self.admit(peer, heartbeat, layout).await?;
        }
        let state = &**self.shared.consensus.state();
        // This node's own list may be a moment behind the state: then it is sent once more than it has to be.
        let own = self.shared.endpoint.refusals().mark();
        let is_current = own == known_revoked && own.version == cert::version(state);
        let revoked = (!is_current).then(|| cert::revocations(state));
        let (tickets, now) = (tickets::keys(state), self.shared.clock.now());
        Ok(MetaReply::BlockdAlive { layout: (layout.epoch != known).then_some(layout), revoked, tickets, now })
    }

    /// Makes the daemon a member of the layout, or an owner again. Where too many changes are under way, the layout
    /// stays as it is, and the daemon's next heartbeat asks again.
    async fn admit(
        &self,
        peer: &PeerIdentity,
        heartbeat: BlockdHeartbeat,
        layout: Layout,
    ) -> Result<Layout, ProposeError> {
        let name = heartbeat.name.clone();
        // Another daemon may have joined since the heartbeat was checked.
        let may_join = |now: &Layout| !stands_in(now, &heartbeat) && validate::heartbeat(now, &heartbeat).is_ok();
        let step = |now: &Layout| if may_join(now) { with_member(now, &heartbeat) } else { None };
        Ok(match watch::change(&self.shared, step).await? {
            Some(changed) => {
                tracing::info!(epoch = %changed.epoch, name, "block daemon is in the layout");
                if layout.members.iter().all(|member| member.name != name) {
                    self.shared.note(peer, AuditEvent::BlockdJoined, format!("blockd {name}")).await;
                }
                changed
            }
            None => layout,
        })
    }

    /// I11: a later leader knows every epoch that a block daemon can have learned. Where a daemon knows a later one,
    /// this cluster is a copy of the past, and another cluster has gone on: what this one knows does not count any
    /// more.
    fn refuse_if_behind(&self, name: &str, known: LayoutEpoch) -> Result<(), ProposeError> {
        let epoch = settings::layout(&**self.shared.consensus.state()).epoch;
        if known <= epoch {
            return Ok(());
        }
        tracing::error!(name, %known, %epoch, "a block daemon belongs to a cluster that was recovered elsewhere: stop this metad");
        Err(ProposeError::Refused(format!("{name} knows a layout of epoch {known}, and the last one here is {epoch}")))
    }

    pub(super) async fn block_report(
        &self,
        peer: &PeerIdentity,
        epoch: LayoutEpoch,
        blocks: &[BlockHash],
    ) -> Result<MetaReply, ProposeError> {
        self.shared.consensus.read_barrier().await?;
        self.refuse_if_behind(&peer.subject.name, epoch)?;
        let state = self.shared.consensus.state().clone();
        let (blocks, now) = (blocks.to_vec(), self.shared.clock.now());
        let unreferenced = tokio::task::spawn_blocking(move || retention::unreferenced(&*state, now, blocks));
        let unreferenced = unreferenced.await.map_err(|error| ProposeError::Refused(error.to_string()))?;
        Ok(MetaReply::Unreferenced(unreferenced))
    }

    pub(super) async fn referenced(
        &self,
        peer: &PeerIdentity,
        epoch: LayoutEpoch,
        from: BlockHash,
        last: BlockHash,
    ) -> Result<MetaReply, ProposeError> {
        self.shared.consensus.read_barrier().await?;
        self.refuse_if_behind(&peer.subject.name, epoch)?;
        let state = self.shared.consensus.state().clone();
        let page = tokio::task::spawn_blocking(move || blockref::referenced(&*state, from, last, REFERENCED_PAGE));
        let (blocks, next) = page.await.map_err(|error| ProposeError::Refused(error.to_string()))?;
        Ok(MetaReply::Referenced { blocks, next })
    }
}

fn stands_in(layout: &Layout, heartbeat: &BlockdHeartbeat) -> bool {
    layout.member(&heartbeat.id).is_some_and(|member| {
        !member.out
            && member.failed == heartbeat.failed
            && member.addr == heartbeat.addr
            && (member.zone == heartbeat.zone || !member.drained)
            && member.name == heartbeat.name
    })
}

/// Returns the next layout: with the daemon, with its new address and zone, or with it back from being out. It retains
/// its points if it has any.
fn with_member(layout: &Layout, heartbeat: &BlockdHeartbeat) -> Option<Layout> {
    let mut members = layout.members.clone();
    let member = LayoutMember {
        weight: heartbeat.weight.max(1),
        failed: heartbeat.failed,
        ..LayoutMember::new(heartbeat.id, &heartbeat.name, heartbeat.addr, &heartbeat.zone)
    };
    if let Some(known) = members.iter_mut().find(|known| known.id == heartbeat.id) {
        *known = LayoutMember {
            points: std::mem::take(&mut known.points),
            weight: known.weight,
            // The owners of a block depend on zones: a new zone would change owners at once, before anybody has moved
            // the blocks.
            zone: if known.drained { member.zone.clone() } else { std::mem::take(&mut known.zone) },
            draining: known.draining,
            drained: known.drained,
            successor: known.successor.take(),
            ..member
        };
        // A failed disk does not wait for others' changes: they would wait for it.
        return if heartbeat.failed { Some(layout.with_members_anyway(members)) } else { layout.with_members(members) };
    }
    // A daemon at the same address has lost its disk and come back under a new id. What it held is gone, and counting
    // both would count one copy twice (I9). It takes over the points, so that nothing else moves.
    if let Some(lost) = members.iter_mut().find(|known| known.addr == heartbeat.addr) {
        let (points, weight, draining) = (std::mem::take(&mut lost.points), lost.weight, lost.draining);
        *lost = LayoutMember { points, weight, draining, ..member };
        return layout.with_members(members);
    }
    if members.iter().any(|leaving| leaving.successor.as_deref() == Some(&member.name)) {
        return layout.with_successor(&member);
    }
    let mut seed = [0; 8];
    seed.copy_from_slice(&heartbeat.id.0[..8]);
    let replicas = usize::from(layout.replicas);
    layout.with_members(placement::place(members, member, replicas, u64::from_le_bytes(seed)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Node;
    use crate::config::Config;
    use crate::raft::Tuning;
    use std::net::SocketAddr;
    use std::time::Duration;
    use wire::ids::{BlockdId, MetadId};
    use wire::message::meta::MetaRequest;
    use wire::quic::Endpoint;
    use wire::tls::{ClusterCa, Role, Subject};

    const LIMIT: Duration = Duration::from_secs(30);

    #[tokio::test(flavor = "multi_thread")]
    async fn a_daemon_looks_for_referenced_blocks_once_at_a_time_and_no_other_waits_for_it() {
        let (ca, dir) = (ClusterCa::create("test").unwrap(), tempfile::tempdir().unwrap());
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let endpoint = |role, name: &str| Endpoint::bind(any, &ca.issue(&Subject::new(role, name)).unwrap()).unwrap();
        let own = endpoint(Role::Metad, "metad-1");
        let config = Config {
            id: MetadId(1),
            cluster: "test".to_owned(),
            listen: own.local_addr(),
            data_dir: dir.path().join("metad-1"),
            identity: ca.issue(&Subject::new(Role::Metad, "metad-1")).unwrap(),
            issuer: None,
            issuer_file: None,
            initial: [(MetadId(1), own.local_addr())].into(),
            replicas: 1,
            min_sync: 1,
            gc_grace: Duration::from_secs(600),
            tuning: Tuning { cache_bytes: 16 << 20, log_file_bytes: 1 << 20, ..Tuning::default() },
        };
        let node = Node::start_on(config, own).await.unwrap();
        let (one, two) = (endpoint(Role::Blockd, "one"), endpoint(Role::Blockd, "two"));
        let asks = async |daemon: &Endpoint| {
            let (epoch, from, last) = (LayoutEpoch(0), BlockHash([0; 32]), BlockHash([0xff; 32]));
            let request = MetaRequest::Referenced { epoch, from, last };
            let peer = daemon.peer(node.local_addr(), Role::Metad);
            loop {
                match peer.request::<_, MetaReply>(&request, &[], LIMIT).await {
                    // It is about to lead.
                    Ok((MetaReply::NotLeader(_), _)) => tokio::task::yield_now().await,
                    answered => break answered.map(|(reply, _)| reply),
                }
            }
        };
        let is_page = |reply: &MetaReply| matches!(reply, MetaReply::Referenced { .. });
        assert!(is_page(&asks(&one).await.unwrap()));
        let scanning = node.shared.scans.take("one");
        assert!(matches!(asks(&one).await, Err(wire::Error::Busy { .. })));
        assert!(is_page(&asks(&two).await.unwrap()));
        let another = node.shared.scans.take("another");
        assert!(matches!(asks(&two).await, Err(wire::Error::Busy { .. })), "enough are at it");
        drop((scanning, another));
        for daemon in [&one, &one, &two] {
            assert!(is_page(&asks(daemon).await.unwrap()), "the one before has ended");
        }
        node.stop().await;
    }

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
            every_ms: 1000,
            repair: wire::message::block::RepairReport::default(),
            failed: false,
            revoked: wire::revoked::ListMark::default(),
        }
    }

    #[test]
    fn a_daemon_that_lost_its_disk_takes_the_place_of_the_one_it_was() {
        let layout = Layout { replicas: 2, min_sync: 2, ..Layout::default() };
        let layout = with_member(&with_member(&layout, &heartbeat(1, 7001)).unwrap(), &heartbeat(2, 7002)).unwrap();
        let again = with_member(&layout, &heartbeat(3, 7002)).unwrap();
        let ids: Vec<u8> = again.members.iter().map(|member| member.id.0[0]).collect();
        assert_eq!(ids, [1, 3]);
        assert_eq!(again.members[1].points, layout.members[1].points);
        assert_eq!((again.epoch, again.placement), (layout.epoch.next(), layout.epoch.next()));
    }

    #[test]
    fn a_daemon_that_returns_owns_its_old_points_again() {
        let layout = Layout { replicas: 2, min_sync: 1, ..Layout::default() };
        let layout = with_member(&with_member(&layout, &heartbeat(1, 7001)).unwrap(), &heartbeat(2, 7002)).unwrap();
        let out = layout.taken_out(&BlockdId([2; 16]));
        assert!(!stands_in(&out, &heartbeat(2, 7002)));
        let back = with_member(&out, &heartbeat(2, 7002)).unwrap();
        assert_eq!(back.members, layout.members);
        assert!(back.older.iter().any(|older| older.owners == [BlockdId([1; 16])]), "who owned meanwhile is a source");
    }

    /// Guards I11.
    #[test]
    fn another_zone_counts_only_once_a_daemon_is_drained() {
        let layout = with_member(&Layout { replicas: 2, ..Layout::default() }, &heartbeat(1, 7001)).unwrap();
        let layout = with_member(&layout, &heartbeat(2, 7002)).unwrap();
        let moved = BlockdHeartbeat { zone: "other".to_owned(), ..heartbeat(2, 7002) };
        assert!(stands_in(&layout, &moved), "it owns blocks by its first zone");
        let elsewhere = BlockdHeartbeat { addr: ([127, 0, 0, 1], 7003).into(), ..moved.clone() };
        let changed = with_member(&layout, &elsewhere).unwrap();
        assert_eq!(changed.member(&moved.id).unwrap().zone, heartbeat(2, 7002).zone);
        let drained = layout.drained(&moved.id, true).unwrap().finished().emptied(&moved.id).unwrap();
        assert!(!stands_in(&drained, &moved));
        assert_eq!(with_member(&drained, &moved).unwrap().member(&moved.id).unwrap().zone, "other");
    }

    #[test]
    fn a_daemon_whose_disk_has_failed_owns_nothing_until_it_reports_a_working_disk() {
        let layout = Layout { replicas: 2, min_sync: 1, ..Layout::default() };
        let layout = with_member(&with_member(&layout, &heartbeat(1, 7001)).unwrap(), &heartbeat(2, 7002)).unwrap();
        let failed = BlockdHeartbeat { failed: true, ..heartbeat(2, 7002) };
        assert!(!stands_in(&layout, &failed));
        let without = with_member(&layout, &failed).unwrap();
        assert!(stands_in(&without, &failed) && without.owning().count() == 1 && !without.is_final());
        let again = with_member(&without, &heartbeat(2, 7002)).unwrap();
        assert_eq!(again.owning().count(), 2);
    }
}
