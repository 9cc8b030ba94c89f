//! The block layout: which daemons own which arcs of the ring (I11).
//!
//! metad stores the layout in Raft and copies it to every daemon and client. [`Layout::owners`] (in [`ring`]) is a pure
//! function: all that hold the same epoch find the same owners without asking anyone.
//!
//! A layout is *final* when every block that is referred to lies where the layout says. After a change of owners it is
//! not final: the earlier owner sets stay in [`Layout::older`] and are searched as well, until each owner has reported
//! that it holds what it owes. [`changes`] has the steps from one layout to the next, [`ring`] the arcs between points.

pub mod changes;
pub mod ring;

use crate::ids::{BlockdId, LayoutEpoch, Point};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// A block daemon within the layout. It owns its arcs unless it is draining, out or failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LayoutMember {
    /// The daemon.
    pub id: BlockdId,
    /// Its name in the certificate, for people.
    pub name: String,
    /// Where it serves.
    pub addr: SocketAddr,
    /// Failure domain: replicas lie in distinct zones while there are enough.
    pub zone: String,
    /// Share of the ring, relative to the other members.
    pub weight: u32,
    /// Its points on the ring. They stay the same while it owns nothing, unless its weight is changed.
    pub points: Vec<Point>,
    /// An operator empties it: it serves what it has, and owns nothing.
    pub draining: bool,
    /// It was silent for too long. It owns nothing until it returns.
    pub out: bool,
    /// It was emptied: it holds no block that is still needed, whether it runs or not.
    pub drained: bool,
    /// Its disk has failed: it serves what it has, and owns nothing.
    pub failed: bool,
    /// Name of the future daemon that will take over what it owns.
    pub successor: Option<String>,
}

impl LayoutMember {
    /// A daemon that has just joined: an owner, with no points yet.
    #[must_use]
    pub fn new(id: BlockdId, name: impl Into<String>, addr: SocketAddr, zone: impl Into<String>) -> Self {
        Self {
            id,
            name: name.into(),
            addr,
            zone: zone.into(),
            weight: 1,
            points: Vec::new(),
            draining: false,
            out: false,
            drained: false,
            failed: false,
            successor: None,
        }
    }

    /// Reports whether blocks belong to this daemon.
    #[must_use]
    pub fn is_owner(&self) -> bool {
        !self.draining && !self.out && !self.failed
    }
}

/// Who owned the ring in an earlier layout from which blocks may still have to be copied.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OlderLayout {
    /// Epoch at which these owners were set.
    pub placement: LayoutEpoch,
    /// Replicas that each block had.
    pub replicas: u8,
    /// The owners, ordered by id.
    pub owners: Vec<BlockdId>,
    /// The points that members had whose weights were changed since, ordered by id. Others have those of
    /// [`Layout::members`].
    pub points: Vec<(BlockdId, Vec<Point>)>,
}

/// Members and their points at one epoch.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Layout {
    /// Grows with each change.
    pub epoch: LayoutEpoch,
    /// Epoch of the last change that gave blocks other owners. What was stored for an older one is not acknowledged.
    pub placement: LayoutEpoch,
    /// Replicas that each block is to have, 1 to 5.
    pub replicas: u8,
    /// Replicas that must have synced a block before it is acknowledged (I9), 1 to `replicas`.
    pub min_sync: u8,
    /// A daemon that is silent for longer is taken out, in milliseconds.
    pub down_after_ms: u64,
    /// Members, ordered by id, including those that are draining or out.
    pub members: Vec<LayoutMember>,
    /// Owner sets before this one, oldest first, from which blocks may still have to be copied. Empty when this is
    /// final.
    pub older: Vec<OlderLayout>,
}

impl Layout {
    /// The member with this id.
    #[must_use]
    pub fn member(&self, id: &BlockdId) -> Option<&LayoutMember> {
        self.members.iter().find(|member| member.id == *id)
    }

    /// Reports whether every block that is referred to lies where this layout says.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.older.is_empty()
    }

    /// The members to which blocks belong, ordered by id.
    pub fn owning(&self) -> impl Iterator<Item = &LayoutMember> {
        self.members.iter().filter(|member| member.is_owner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::BlockHash;

    pub(super) fn member(id: u8, zone: &str, points: &[u128]) -> LayoutMember {
        let addr = SocketAddr::from(([127, 0, 0, 1], 1000 + u16::from(id)));
        LayoutMember {
            points: points.iter().map(|point| Point(*point)).collect(),
            ..LayoutMember::new(BlockdId([id; 16]), format!("blockd-{id}"), addr, zone)
        }
    }

    fn at(point: u128) -> BlockHash {
        let mut hash = [0_u8; 32];
        hash[..16].copy_from_slice(&point.to_be_bytes());
        BlockHash(hash)
    }

    #[test]
    fn owners_are_distinct_and_in_distinct_zones_while_there_are_enough() {
        let layout = Layout {
            replicas: 2,
            min_sync: 1,
            members: vec![member(1, "a", &[10, 40]), member(2, "a", &[20]), member(3, "b", &[30])],
            ..Layout::default()
        };
        let names = |hash| layout.owners(&hash).iter().map(|m| m.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(at(5)), ["blockd-1", "blockd-3"], "blockd-2 shares blockd-1's zone");
        assert_eq!(names(at(10)), ["blockd-1", "blockd-3"], "a point owns itself");
        assert_eq!(names(at(50)), ["blockd-1", "blockd-3"], "the ring wraps around");
        assert_eq!(names(at(25)), ["blockd-3", "blockd-1"]);
    }

    #[test]
    fn with_too_few_zones_replicas_are_still_distinct_daemons() {
        let layout = Layout {
            replicas: 3,
            min_sync: 2,
            members: vec![member(1, "a", &[10]), member(2, "a", &[20])],
            ..Layout::default()
        };
        assert_eq!(layout.owners(&at(0)).len(), 2);
    }
}
