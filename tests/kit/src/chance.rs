//! Chance from a seed: the same seed gives the same decisions on every machine and with every version of every library.

use crate::scale::given;
use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// Returns the decisions of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns separate decisions for a part of the work. They do not depend on how many decisions other parts have
    /// taken.
    #[must_use]
    pub fn of(seed: u64, part: &str) -> Self {
        // FNV-1a.
        let hash = part
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let mut chance = Self(seed ^ hash);
        chance.number();
        chance
    }

    /// Returns any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `end`, which must not be 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// Returns whether something of this probability happens now.
    pub fn happens(&mut self, probability: f64) -> bool {
        ((self.number() >> 11) as f64) < probability * (1_u64 << 53) as f64
    }

    /// Returns one of the elements.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.below(among.len() as u64) as usize]
    }
}

/// Returns the seed in `FAULT_SEED`, or a new one. A test that uses it prints it when it fails.
///
/// # Panics
/// When what is set is no number.
#[must_use]
pub fn seed() -> u64 {
    given("FAULT_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        Chance::new(now).below(1 << 32)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_everything_and_parts_decide_separately() {
        let numbers = |mut chance: Chance| (0..100).map(|_| chance.number()).collect::<Vec<_>>();
        assert_eq!(numbers(Chance::of(7, "a")), numbers(Chance::of(7, "a")));
        assert_ne!(numbers(Chance::of(7, "a")), numbers(Chance::of(7, "b")));
        assert_ne!(numbers(Chance::of(7, "a")), numbers(Chance::of(8, "a")));
    }

    #[test]
    fn things_happen_with_their_probability() {
        let mut chance = Chance::new(1);
        let count = (0..10_000).filter(|_| chance.happens(0.2)).count();
        assert!((1_800..2_200).contains(&count), "{count}");
        assert!(!chance.happens(0.0) && chance.happens(1.0));
    }
}
