//! Lookup in a ring of a thousand daemons takes O(log n) hops (Stoica, Theorem IV.2).

use super::lookup::{Lookup, Outcome};
use super::{Action, Chord, Event, Options};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::time::Duration;
use wire::ids::{BlockdId, Point};
use wire::message::block::Member;

const DAEMONS: usize = 1000;
const LOOKUPS: usize = 5000;

type Ring = BTreeMap<Point, Chord>;

fn ring(rng: &mut StdRng) -> Ring {
    let members: Vec<Member> = (0..DAEMONS)
        .map(|_| {
            let point: u128 = rng.random();
            Member { point: Point(point), id: BlockdId(point.to_be_bytes()), addr: ([127, 0, 0, 1], 1).into() }
        })
        .collect();
    members.iter().map(|me| (me.point, Chord::start_with(*me, &members, Options::default()))).collect()
}

/// Lets one member repair a finger: asks are answered at once.
fn repair_finger(ring: &mut Ring, point: Point, now: Duration) {
    let mut waiting = ring.get_mut(&point).map(|chord| chord.handle(Event::Timer { now })).unwrap_or_default();
    while let Some(action) = waiting.pop() {
        let Action::Ask { query, to, request } = action else { continue };
        let reply = ring.get_mut(&to.point).and_then(|chord| chord.answer(&request).0);
        let event = reply.map_or(Event::Failed { query }, |reply| Event::Reply { query, reply });
        waiting.extend(ring.get_mut(&point).map(|chord| chord.handle(event)).unwrap_or_default());
    }
}

fn look_up(ring: &mut Ring, from: Point, point: Point) -> (Member, u32) {
    let mut lookup = Lookup::new(point);
    loop {
        match lookup.advance(&ring[&from]) {
            Outcome::Found(member) => return (member, lookup.hops()),
            Outcome::Lost => panic!("lost after {} hops", lookup.hops()),
            Outcome::Ask(to, request) => match ring.get_mut(&to.point).and_then(|chord| chord.answer(&request).0) {
                Some(reply) => lookup.replied(reply),
                None => drop(lookup.failed()),
            },
        }
    }
}

fn owner(ring: &Ring, point: Point) -> Point {
    *ring.range(point..).next().or_else(|| ring.iter().next()).unwrap().0
}

fn measure(ring: &mut Ring, rng: &mut StdRng) -> (f64, u32) {
    let points: Vec<Point> = ring.keys().copied().collect();
    let (mut sum, mut max) = (0, 0);
    for _ in 0..LOOKUPS {
        let (from, target) = (points[rng.random_range(0..points.len())], Point(rng.random()));
        let (found, hops) = look_up(ring, from, target);
        // A dead one may still be named by the member before it.
        assert!(found.point == owner(ring, target) || !ring.contains_key(&found.point));
        (sum, max) = (sum + hops, max.max(hops));
    }
    (f64::from(sum) / LOOKUPS as f64, max)
}

#[test]
fn a_thousand_daemons_are_searched_in_logarithmic_hops() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut ring = ring(&mut rng);
    let points: Vec<Point> = ring.keys().copied().collect();
    // Members repair one finger per turn: log2 n of them, and some for arcs that are shorter than the mean.
    for turn in 1..=24_u32 {
        for point in &points {
            repair_finger(&mut ring, *point, Duration::from_secs(u64::from(turn) * 10));
        }
    }
    let log2 = (DAEMONS as f64).log2();
    let (mean, max) = measure(&mut ring, &mut rng);
    println!("{DAEMONS} daemons: mean {mean:.2} hops, max {max}; log2 n = {log2:.2}");
    assert!(mean <= 0.5 * log2 + 1.0, "mean {mean}");
    assert!(f64::from(max) <= 1.5 * log2, "max {max}");

    // A tenth of them dies at once; lookups find a way before anything is repaired.
    let mut dead = 0;
    for point in points.iter().step_by(10) {
        ring.remove(point);
        dead += 1;
    }
    let (mean, max) = measure(&mut ring, &mut rng);
    println!("{dead} of them dead, unrepaired: mean {mean:.2} hops, max {max}");
    assert!(mean <= log2 + 1.0, "mean {mean}");
}
