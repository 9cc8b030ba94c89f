//! The time that a leader stamps commands with.

use parking_lot::Mutex;
use wire::attr::Timestamp;
use wire::steady::Steady;
use wire::sys::since_boot;

/// The leader's clock as commands see it. While this process runs, it never goes backwards.
#[derive(Default)]
pub struct Clock(Mutex<Steady>);

impl Clock {
    /// Returns the current time.
    pub fn now(&self) -> Timestamp {
        self.0.lock().at(Timestamp::now(), since_boot())
    }
}
