//! Time and chance of a simulation, which runs on one thread: the clock follows tokio's, which a test has paused, and
//! random numbers come from a seed. Only tests enable this feature.
//!
//! The state belongs to the thread that simulates. Other threads, and this one before and after, have the machine's
//! clock and chance.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

struct World {
    began: Instant,
    wall: SystemTime,
    chance: u64,
}

/// The thread simulates until this is dropped.
#[must_use]
pub struct Entered {
    /// It must not leave its thread.
    _here: PhantomData<*const ()>,
}

/// From now on this thread's clock begins at `wall` and follows tokio's, and its random numbers are those of `seed`.
/// Must be called on the runtime whose clock that is.
pub fn enter(seed: u64, wall: SystemTime) -> Entered {
    WORLD.set(Some(World { began: Instant::now(), wall, chance: seed }));
    Entered { _here: PhantomData }
}

impl Drop for Entered {
    fn drop(&mut self) {
        WORLD.set(None);
    }
}

/// Time since the simulation began.
fn elapsed() -> Option<Duration> {
    WORLD.with_borrow(|world| Some(world.as_ref()?.began.elapsed()))
}

pub(crate) fn since_boot() -> Option<Duration> {
    // A machine's clock is never at its very start.
    Some(elapsed()? + Duration::from_secs(1))
}

pub(crate) fn wall() -> Option<SystemTime> {
    let elapsed = elapsed()?;
    WORLD.with_borrow(|world| Some(world.as_ref()?.wall + elapsed))
}

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators).
pub(crate) fn number() -> Option<u64> {
    WORLD.with_borrow_mut(|world| {
        let chance = &mut world.as_mut()?.chance;
        *chance = chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *chance;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(mixed ^ (mixed >> 31))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::Timestamp;
    use crate::chance;
    use crate::sys::since_boot;

    #[test]
    fn a_simulation_has_its_own_clock_and_chance_and_leaves_them() {
        let numbers = |seed| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async move {
                let _entered = enter(seed, SystemTime::UNIX_EPOCH + Duration::from_secs(5));
                let before = since_boot();
                tokio::time::sleep(Duration::from_secs(3600)).await;
                assert_eq!(since_boot() - before, Duration::from_secs(3600));
                assert_eq!(Timestamp::now().secs, 3605);
                (chance::number(), chance::number())
            })
        };
        assert_eq!(numbers(1), numbers(1));
        assert_ne!(numbers(1), numbers(2));
        assert!(Timestamp::now().secs > 3605 && chance::number() != chance::number());
    }
}
