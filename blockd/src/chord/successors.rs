//! The successor list (Zave §III): the next members clockwise, nearest first.
//!
//! Invariants, asserted when a list is built: never empty; strictly ordered clockwise from its owner; at most r
//! entries; the owner itself appears only as the last entry, and then the list holds the whole ring.

use wire::message::block::Member;

/// A successor list. Never changed in place, only replaced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Successors {
    entries: Vec<Member>,
}

impl Successors {
    /// Builds the longest ordered beginning of `entries`, at most `limit` of them. An entry that is not further
    /// clockwise than the one before has come around the ring: the entries behind it are known already. Empty input
    /// means being alone.
    #[must_use]
    pub fn build(owner: Member, entries: impl IntoIterator<Item = Member>, limit: usize) -> Self {
        let mut list: Vec<Member> = Vec::with_capacity(limit);
        let mut reached = 0;
        for entry in entries {
            if list.len() == limit {
                break;
            }
            if entry.point == owner.point {
                list.push(owner);
                break;
            }
            let distance = owner.point.distance_to(entry.point);
            if distance <= reached {
                break;
            }
            reached = distance;
            list.push(entry);
        }
        if list.is_empty() {
            list.push(owner);
        }
        Self { entries: list }
    }

    /// Its entries.
    #[must_use]
    pub fn entries(&self) -> &[Member] {
        &self.entries
    }

    /// The first successor; the owner itself when it is alone.
    #[must_use]
    pub fn first(&self) -> Member {
        self.entries[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ids::{BlockdId, Point};

    fn member(point: u128) -> Member {
        Member { point: Point(point), id: BlockdId([0; 16]), addr: ([127, 0, 0, 1], 1).into() }
    }

    fn points(list: &Successors) -> Vec<u128> {
        list.entries().iter().map(|entry| entry.point.0).collect()
    }

    #[test]
    fn a_list_ends_where_the_ring_has_come_around() {
        let build = |entries: &[u128], limit| {
            points(&Successors::build(member(10), entries.iter().map(|point| member(*point)), limit))
        };
        assert_eq!(build(&[20, 30, 5], 4), [20, 30, 5], "5 lies behind zero, before 10");
        assert_eq!(build(&[20, 30, 10, 20], 4), [20, 30, 10], "ends with its owner");
        assert_eq!(build(&[20, 30, 20], 4), [20, 30]);
        assert_eq!(build(&[20, 30, 15], 4), [20, 30], "15 has been passed");
        assert_eq!(build(&[20, 30, 40, 50], 2), [20, 30]);
        assert_eq!(build(&[], 2), [10], "alone");
    }
}
