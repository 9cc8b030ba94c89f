//! Where a new block daemon's points lie on the ring.
//!
//! Random points alone balance badly: with 64 of them a daemon's share varies by an eighth. So candidates are drawn and
//! moved about until the expected load of all, replicas counted, is as close to the weights as possible. The points of
//! existing daemons stay: only blocks that the newcomer takes over move.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wire::ids::Point;
use wire::layout::LayoutMember;

/// Points of a daemon of full weight. More points balance better and make the layout larger.
const POINTS: usize = 64;
/// Rounds of moving one point.
const ROUNDS: usize = 600;

/// Returns the share of all block copies that each member is expected to hold. The shares sum up to the number of
/// copies.
#[must_use]
pub fn shares(members: &[LayoutMember], replicas: usize) -> Vec<f64> {
    let mut ring: Vec<(u128, usize)> = members
        .iter()
        .enumerate()
        .flat_map(|(index, member)| member.points.iter().map(move |point| (point.0, index)))
        .collect();
    ring.sort_unstable();
    let mut shares = vec![0.0; members.len()];
    for (at, (point, _)) in ring.iter().enumerate() {
        let before = ring[(at + ring.len() - 1) % ring.len()].0;
        let arc = point.wrapping_sub(before) as f64 / u128::MAX as f64;
        let mut owners: Vec<usize> = Vec::with_capacity(replicas);
        for step in 0..ring.len() {
            let owner = ring[(at + step) % ring.len()].1;
            if !owners.contains(&owner) {
                owners.push(owner);
                if owners.len() == replicas.min(members.len()) {
                    break;
                }
            }
        }
        for owner in owners {
            shares[owner] += arc;
        }
    }
    shares
}

/// Returns how far the worst member is from the share of its weight; 0.1 means ten percent.
#[must_use]
pub fn imbalance(members: &[LayoutMember], replicas: usize) -> f64 {
    let weights: f64 = members.iter().map(|member| f64::from(member.weight)).sum();
    let copies = replicas.min(members.len()) as f64;
    shares(members, replicas)
        .iter()
        .zip(members)
        .map(|(share, member)| (share / (copies * f64::from(member.weight) / weights) - 1.0).abs())
        .fold(0.0, f64::max)
}

/// Gives `newcomer` its points within `members`, which it joins. The result depends only on the arguments and `seed`.
#[must_use]
pub fn place(
    mut members: Vec<LayoutMember>,
    mut newcomer: LayoutMember,
    replicas: usize,
    seed: u64,
) -> Vec<LayoutMember> {
    let mut random = StdRng::seed_from_u64(seed);
    let heaviest = members.iter().map(|member| member.weight).max().unwrap_or(0).max(newcomer.weight).max(1);
    let count = (POINTS * newcomer.weight as usize / heaviest as usize).max(1);
    newcomer.points = (0..count).map(|_| Point(random.random())).collect();
    let id = newcomer.id;
    members.push(newcomer);
    members.sort_by_key(|member| member.id);
    let index = members.iter().position(|member| member.id == id).expect("the newcomer was just added");
    let mut best = imbalance(&members, replicas);
    if members.len() > replicas.max(1) {
        for _ in 0..ROUNDS {
            let moved = random.random_range(0..count);
            let before = members[index].points[moved];
            members[index].points[moved] = Point(random.random());
            let now = imbalance(&members, replicas);
            if now < best {
                best = now;
            } else {
                members[index].points[moved] = before;
            }
        }
    }
    members[index].points.sort_unstable();
    members
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ids::BlockdId;

    fn member(id: u8, weight: u32) -> LayoutMember {
        let (addr, zone) = (([127, 0, 0, 1], 1).into(), format!("zone-{id}"));
        LayoutMember { weight, ..LayoutMember::new(BlockdId([id; 16]), format!("blockd-{id}"), addr, zone) }
    }

    #[test]
    fn load_stays_within_ten_percent_of_the_weights_as_daemons_join() {
        for replicas in [1, 2, 3] {
            let mut members = Vec::new();
            for id in 1..=10 {
                members = place(members, member(id, 100), replicas, u64::from(id));
                let off = imbalance(&members, replicas);
                assert!(off < 0.10, "{id} daemons, {replicas} replicas: {off}");
            }
        }
    }

    #[test]
    fn a_join_moves_no_points_of_others() {
        let before = place(place(Vec::new(), member(1, 10), 1, 1), member(2, 10), 1, 2);
        let after = place(before.clone(), member(3, 10), 1, 3);
        assert_eq!(after[..2], before[..]);
    }
}
