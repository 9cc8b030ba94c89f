//! The block layout: which daemons own which arcs of the ring (I11).
//!
//! Kept by metad in Raft, copied to every daemon and client. [`Layout::owners`] is pure, so that all who hold the same
//! epoch find the same owners without asking anyone.

use crate::ids::{BlockHash, BlockdId, LayoutEpoch, Point};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// A block daemon within the layout.
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
    /// Its points on the ring.
    pub points: Vec<Point>,
}

/// Members and their points at one epoch.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Layout {
    /// Grows with each change.
    pub epoch: LayoutEpoch,
    /// Replicas that each block is to have, 1 to 5.
    pub replicas: u8,
    /// Replicas that must have synced a block before it is acknowledged (I9), 1 to `replicas`.
    pub min_sync: u8,
    /// Members, ordered by id.
    pub members: Vec<LayoutMember>,
    /// Members of the layout before, while blocks still move: readers look in the new place and then in the old.
    pub previous: Vec<LayoutMember>,
}

impl Layout {
    /// The distinct daemons that hold `hash`, in order of responsibility: the owner of the first point clockwise from
    /// the hash, then the next distinct ones, in distinct zones while there are enough. Shorter than `replicas` when
    /// the layout has fewer members.
    #[must_use]
    pub fn owners(&self, hash: &BlockHash) -> Vec<&LayoutMember> {
        owners_among(&self.members, usize::from(self.replicas), hash)
    }

    /// Where else a block may lie: the owners in the layout before, while blocks still move.
    #[must_use]
    pub fn previous_owners(&self, hash: &BlockHash) -> Vec<&LayoutMember> {
        owners_among(&self.previous, usize::from(self.replicas), hash)
    }

    /// The member with this id.
    #[must_use]
    pub fn member(&self, id: &BlockdId) -> Option<&LayoutMember> {
        self.members.iter().find(|member| member.id == *id)
    }
}

/// All points of `members` clockwise from `hash`, each with its member's index.
fn clockwise(members: &[LayoutMember], from: Point) -> Vec<(u128, usize)> {
    let mut points: Vec<(u128, usize)> = members
        .iter()
        .enumerate()
        .flat_map(|(index, member)| member.points.iter().map(move |point| (from.distance_to(*point), index)))
        .collect();
    points.sort_unstable();
    points
}

fn owners_among<'a>(members: &'a [LayoutMember], replicas: usize, hash: &BlockHash) -> Vec<&'a LayoutMember> {
    let mut order: Vec<usize> = Vec::with_capacity(members.len());
    for (_, index) in clockwise(members, hash.point()) {
        if !order.contains(&index) {
            order.push(index);
        }
    }
    // First pass: distinct zones; second: whoever is next, when there are fewer zones than replicas.
    let mut chosen: Vec<usize> = Vec::with_capacity(replicas);
    for &index in &order {
        if chosen.len() < replicas && chosen.iter().all(|&other| members[other].zone != members[index].zone) {
            chosen.push(index);
        }
    }
    for &index in &order {
        if chosen.len() < replicas && !chosen.contains(&index) {
            chosen.push(index);
        }
    }
    chosen.into_iter().map(|index| &members[index]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u8, zone: &str, points: &[u128]) -> LayoutMember {
        LayoutMember {
            id: BlockdId([id; 16]),
            name: format!("blockd-{id}"),
            addr: SocketAddr::from(([127, 0, 0, 1], 1000 + u16::from(id))),
            zone: zone.to_owned(),
            weight: 1,
            points: points.iter().map(|point| Point(*point)).collect(),
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
