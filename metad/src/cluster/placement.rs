//! Where a new block daemon's points lie on the ring.
//!
//! Random points alone balance badly: with 64 of them a daemon's share varies by an eighth. So candidates are drawn and
//! moved about until the expected load of all, replicas counted, is as close to the weights as possible. The points of
//! existing daemons stay: only blocks that the newcomer takes over move. A daemon whose weight is changed gets some points
//! more or loses some in the same way, and keeps the others.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wire::ids::{BlockdId, Point};
use wire::layout::{Layout, LayoutMember};

/// Points of a daemon of full weight. More points balance better and make the layout larger.
const POINTS: usize = 64;
/// Most points of a daemon, however much heavier than the others it becomes.
const POINTS_MAX: usize = 8 * POINTS;
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
    improve(&mut members, index, replicas, |points| {
        let moved = random.random_range(0..count);
        points[moved] = Point(random.random());
    });
    members[index].points.sort_unstable();
    members
}

/// Returns the points for another weight of a member. It keeps as many of its points as it can, and the first one always,
/// which is its place on the Chord ring. The result depends only on the arguments.
#[must_use]
pub fn reweighed(layout: &Layout, id: &BlockdId, weight: u32) -> Vec<Point> {
    let mut members: Vec<LayoutMember> =
        layout.members.iter().filter(|member| member.is_owner() || member.id == *id).cloned().collect();
    let Some(index) = members.iter().position(|member| member.id == *id) else { return Vec::new() };
    let others = || members.iter().filter(move |member| member.id != *id);
    let weights: f64 = others().map(|member| f64::from(member.weight)).sum();
    let had = members[index].points.clone();
    if weights == 0.0 || had.is_empty() {
        return had;
    }
    let per_weight = others().map(|member| member.points.len()).sum::<usize>() as f64 / weights;
    let count = ((per_weight * f64::from(weight)).round() as usize).clamp(1, POINTS_MAX);
    let mut random = StdRng::seed_from_u64(layout.epoch.0);
    let (kept, replicas) = (had.len(), usize::from(layout.replicas));
    members[index].weight = weight;
    if count > kept {
        members[index].points.extend((kept..count).map(|_| Point(random.random())));
        improve(&mut members, index, replicas, |points| {
            let moved = random.random_range(kept..count);
            points[moved] = Point(random.random());
        });
    } else if count < kept {
        members[index].points = (0..count).map(|nth| had[nth * kept / count]).collect();
        improve(&mut members, index, replicas, |points| {
            let (other, at) = (had[random.random_range(0..kept)], random.random_range(0..count));
            if at > 0 && !points.contains(&other) {
                points[at] = other;
            }
        });
    }
    let mut points = std::mem::take(&mut members[index].points);
    points[1..].sort_unstable();
    points
}

/// Changes the points of a member again and again, and keeps what balances better.
fn improve(members: &mut [LayoutMember], index: usize, replicas: usize, mut change: impl FnMut(&mut [Point])) {
    let mut best = imbalance(members, replicas);
    if members.len() > replicas.max(1) {
        for _ in 0..ROUNDS {
            let before = members[index].points.clone();
            change(&mut members[index].points);
            let now = imbalance(members, replicas);
            if now < best {
                best = now;
            } else {
                members[index].points = before;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::layout::ring::Ring;

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

    /// The share of all copies that come to daemons which did not have them before.
    fn moved(before: &Layout, after: &Layout) -> f64 {
        let of = |layout: &Layout| layout.members.iter().flat_map(|member| member.points.clone()).collect::<Vec<_>>();
        let mut ends = [of(before), of(after)].concat();
        ends.sort_unstable();
        ends.dedup();
        let owners = |layout: &Layout, end: Point| -> Vec<BlockdId> {
            Ring::new(layout).owners(end).into_iter().map(|index| layout.members[index].id).collect()
        };
        let (mut sum, mut last) = (0.0, ends[ends.len() - 1]);
        for end in ends {
            let had = owners(before, end);
            let gained = owners(after, end).into_iter().filter(|id| !had.contains(id)).count();
            sum += gained as f64 * (end.0.wrapping_sub(last.0) as f64 / u128::MAX as f64);
            last = end;
        }
        sum
    }

    /// What a daemon should hold, by the weights.
    fn ideal(layout: &Layout, id: &BlockdId) -> f64 {
        let weights: f64 = layout.owning().map(|owner| f64::from(owner.weight)).sum();
        let copies = f64::from(layout.replicas).min(layout.owning().count() as f64);
        let owner = layout.member(id).filter(|member| member.is_owner());
        owner.map_or(0.0, |owner| copies * f64::from(owner.weight) / weights)
    }

    #[test]
    fn joins_drains_losses_returns_and_changes_of_weight_move_a_tenth_more_than_they_must_at_most() {
        let members = (1..=10).fold(Vec::new(), |members, id| place(members, member(id, 100), 3, u64::from(id)));
        let layout = Layout { replicas: 3, min_sync: 2, members, ..Layout::default() };
        let (id, all) = (BlockdId([4; 16]), layout.members.clone());
        let weighed = |weight| layout.weighed(&id, weight, &reweighed(&layout, &id, weight)).unwrap();
        let (out, drained) = (layout.taken_out(&id), layout.drained(&id, true).unwrap());
        let joined = layout.with_members(place(all.clone(), member(11, 100), 3, 11)).unwrap();
        let back = out.with_members(all).unwrap();
        for (what, before, after) in [
            ("a join", &layout, &joined),
            ("a drain", &layout, &drained),
            ("the end of a drain", &drained, &drained.drained(&id, false).unwrap()),
            ("a loss", &layout, &out),
            ("a return", &out, &back),
            ("removal", &layout, &layout.removed(&id)),
            ("half the weight", &layout, &weighed(50)),
            ("twice the weight", &layout, &weighed(200)),
        ] {
            let gains = after.members.iter().map(|member| ideal(after, &member.id) - ideal(before, &member.id));
            let must: f64 = gains.map(|gain| gain.max(0.0)).sum();
            let moved = moved(before, after);
            println!("{what}: {moved:.3} of {must:.3}");
            assert!((must * 0.8..=must * 1.1).contains(&moved), "{what} moves {moved}, and must move {must}");
        }
        assert_eq!(moved(&out, &out.removed(&id)), 0.0, "others have taken over already");
        for weight in [50, 200] {
            let off = imbalance(&weighed(weight).members, 3);
            assert!(off < 0.10, "weight {weight}: {off}");
        }
        let (heavier, points) = (weighed(200), &layout.member(&id).unwrap().points);
        assert!(points.iter().all(|point| heavier.member(&id).unwrap().points.contains(point)), "it keeps its points");
        assert!([50, 200].iter().all(|weight| reweighed(&layout, &id, *weight)[0] == points[0]));
    }

    #[test]
    fn a_join_moves_no_points_of_others() {
        let before = place(place(Vec::new(), member(1, 10), 1, 1), member(2, 10), 1, 2);
        let after = place(before.clone(), member(3, 10), 1, 3);
        assert_eq!(after[..2], before[..]);
    }
}
