//! Random numbers for pauses between attempts, unique names, and tokens that others must not guess.

/// Returns a random number. In a simulation, the numbers follow from its seed.
#[must_use]
pub fn number() -> u64 {
    #[cfg(feature = "simulation")]
    if let Some(number) = crate::simulation::number() {
        return number;
    }
    rand::random()
}

/// A number from 0 up to, but not including, 1.
#[must_use]
pub fn fraction() -> f64 {
    // As many bits as the number has room for.
    (number() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    #[test]
    fn fractions_lie_between_zero_and_one() {
        assert!((0..1000).all(|_| (0.0..1.0).contains(&super::fraction())));
    }
}
