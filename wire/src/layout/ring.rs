//! The points of a layout in order, and the arcs between them, on each of which all owner sets are constant.

use super::{Layout, LayoutMember, OlderLayout};
use crate::ids::{BlockHash, BlockdId, Point};
use serde::{Deserialize, Serialize};

/// Points from `first` to `last`, both included, without passing zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Span {
    /// First point.
    pub first: Point,
    /// Last point.
    pub last: Point,
}

impl Span {
    /// The smallest name of a block in it.
    #[must_use]
    pub fn first_hash(self) -> BlockHash {
        let mut hash = [0; 32];
        hash[..16].copy_from_slice(&self.first.0.to_be_bytes());
        BlockHash(hash)
    }

    /// The largest name of a block in it.
    #[must_use]
    pub fn last_hash(self) -> BlockHash {
        let mut hash = [0xff; 32];
        hash[..16].copy_from_slice(&self.last.0.to_be_bytes());
        BlockHash(hash)
    }

    /// Reports whether a block's place lies in it.
    #[must_use]
    pub fn contains(self, hash: &BlockHash) -> bool {
        (self.first..=self.last).contains(&hash.point())
    }
}

/// A layout whose points are sorted once, for many look-ups. Members are named by their index in the layout.
pub struct Ring<'a> {
    layout: &'a Layout,
    points: Vec<(Point, usize)>,
    /// The points at the time of each older layout, if members had others then.
    older: Vec<Option<Vec<(Point, usize)>>>,
}

impl<'a> Ring<'a> {
    /// Sorts the points of all members.
    #[must_use]
    pub fn new(layout: &'a Layout) -> Self {
        let at_the_time = |older: &'a OlderLayout| {
            let had = |member: &'a LayoutMember| {
                older.points.iter().find(|(id, _)| *id == member.id).map_or(&member.points[..], |(_, had)| &had[..])
            };
            (!older.points.is_empty()).then(|| sorted_points(layout, had))
        };
        let points = sorted_points(layout, |member| &member.points);
        Self { layout, points, older: layout.older.iter().map(at_the_time).collect() }
    }

    /// All members in the order of their first points clockwise from `point`, which itself counts.
    #[must_use]
    pub fn clockwise(&self, point: Point) -> Vec<usize> {
        self.clockwise_of(&self.points, point)
    }

    fn clockwise_of(&self, points: &[(Point, usize)], point: Point) -> Vec<usize> {
        let start = points.partition_point(|(at, _)| *at < point);
        let mut order = Vec::with_capacity(self.layout.members.len());
        for (_, index) in points[start..].iter().chain(&points[..start]) {
            if !order.contains(index) {
                order.push(*index);
                if order.len() == self.layout.members.len() {
                    break;
                }
            }
        }
        order
    }

    /// The owners of a point, in order of responsibility.
    #[must_use]
    pub fn owners(&self, point: Point) -> Vec<usize> {
        let order = self.clockwise(point);
        self.choose(&order, self.layout.replicas, LayoutMember::is_owner)
    }

    /// The owners of a point in the layouts that are not final, oldest first, each of them once.
    #[must_use]
    pub fn older_owners(&self, point: Point) -> Vec<usize> {
        let now = self.clockwise(point);
        let mut all = Vec::new();
        for (OlderLayout { replicas, owners, .. }, points) in self.layout.older.iter().zip(&self.older) {
            let then = points.as_ref().map(|points| self.clockwise_of(points, point));
            let order = then.as_ref().unwrap_or(&now);
            for index in self.choose(order, *replicas, |member| owns_in(owners, &member.id)) {
                if !all.contains(&index) {
                    all.push(index);
                }
            }
        }
        all
    }

    /// The arcs between neighbouring points, also of older layouts, as spans: the one that passes zero is cut there.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        let all = std::iter::once(&self.points).chain(self.older.iter().flatten());
        let mut ends: Vec<Point> = all.flatten().map(|(point, _)| *point).collect();
        ends.sort_unstable();
        ends.dedup();
        if ends.is_empty() {
            return Vec::new();
        }
        if ends.last() != Some(&Point(u128::MAX)) {
            ends.push(Point(u128::MAX));
        }
        let firsts = std::iter::once(Point(0)).chain(ends.iter().map(|end| Point(end.0.wrapping_add(1))));
        firsts.zip(&ends).map(|(first, last)| Span { first, last: *last }).collect()
    }

    fn choose(&self, order: &[usize], replicas: u8, may: impl Fn(&LayoutMember) -> bool) -> Vec<usize> {
        let (replicas, members) = (usize::from(replicas), &self.layout.members);
        let order = || order.iter().copied().filter(|index| may(&members[*index]));
        // The first pass takes distinct zones; the second takes the next member, when there are fewer zones than
        // replicas.
        let mut chosen: Vec<usize> = Vec::with_capacity(replicas);
        for index in order() {
            if chosen.len() == replicas {
                return chosen;
            }
            if chosen.iter().all(|other| members[*other].zone != members[index].zone) {
                chosen.push(index);
            }
        }
        for index in order() {
            if chosen.len() < replicas && !chosen.contains(&index) {
                chosen.push(index);
            }
        }
        chosen
    }
}

/// Returns the points that the members have by `points_of`, in order, with the index of each one's member.
fn sorted_points<'a>(layout: &'a Layout, points_of: impl Fn(&'a LayoutMember) -> &'a [Point]) -> Vec<(Point, usize)> {
    let of = |(index, member)| points_of(member).iter().map(move |point| (*point, index));
    let mut points: Vec<_> = layout.members.iter().enumerate().flat_map(of).collect();
    points.sort_unstable();
    points
}

impl Layout {
    /// The distinct daemons that hold `hash`, in order of responsibility: the owner of the first point clockwise from
    /// the hash, then the next distinct ones, in distinct zones while there are enough. Shorter than `replicas` when
    /// the layout has fewer owners.
    #[must_use]
    pub fn owners(&self, hash: &BlockHash) -> Vec<&LayoutMember> {
        self.named(Ring::new(self).owners(hash.point()))
    }

    /// The block's owners in earlier layouts, which may hold it while blocks still move.
    #[must_use]
    pub fn older_owners(&self, hash: &BlockHash) -> Vec<&LayoutMember> {
        let ring = Ring::new(self);
        let now = ring.owners(hash.point());
        self.named(ring.older_owners(hash.point()).into_iter().filter(|index| !now.contains(index)).collect())
    }

    /// Returns the owners of `hash`, and all other members in the order in which they may have it: first its owners in
    /// earlier layouts, then the others clockwise, which may stand in for owners without room.
    #[must_use]
    pub fn owners_and_others(&self, hash: &BlockHash) -> (Vec<&LayoutMember>, Vec<&LayoutMember>) {
        let (ring, point) = (Ring::new(self), hash.point());
        let owners = ring.owners(point);
        let mut others = Vec::with_capacity(self.members.len());
        for index in ring.older_owners(point).into_iter().chain(ring.clockwise(point)) {
            if !owners.contains(&index) && !others.contains(&index) {
                others.push(index);
            }
        }
        (self.named(owners), self.named(others))
    }

    /// All members in the order in which they are responsible for `hash`: the next one stands in for an owner that is
    /// full.
    #[must_use]
    pub fn clockwise(&self, hash: &BlockHash) -> Vec<&LayoutMember> {
        self.named(Ring::new(self).clockwise(hash.point()))
    }

    fn named(&self, indexes: Vec<usize>) -> Vec<&LayoutMember> {
        indexes.into_iter().map(|index| &self.members[index]).collect()
    }
}

fn owns_in(owners: &[BlockdId], id: &BlockdId) -> bool {
    owners.binary_search(id).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::tests::member;
    use super::*;

    #[test]
    fn spans_cover_the_ring_once_and_have_constant_owners() {
        let members = vec![member(1, "a", &[10, u128::MAX]), member(2, "b", &[20]), member(3, "c", &[30, 31])];
        let layout = Layout { replicas: 2, min_sync: 1, members, ..Layout::default() };
        let ring = Ring::new(&layout);
        let spans = ring.spans();
        assert_eq!((spans[0].first, spans.last().unwrap().last), (Point(0), Point(u128::MAX)));
        for pair in spans.windows(2) {
            assert_eq!(pair[0].last.0 + 1, pair[1].first.0);
        }
        for span in spans {
            assert_eq!(ring.owners(span.first), ring.owners(span.last));
            assert!(span.contains(&span.first_hash()) && span.contains(&span.last_hash()));
        }
        assert!(Ring::new(&Layout::default()).spans().is_empty());
    }
}
