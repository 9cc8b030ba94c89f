//! The bounds of this client, as metad reports them. metad enforces them, whatever is done here.

use wire::caller::{self, Caller};
use wire::ids::Ino;
use wire::tls::Squash;

/// The bounds of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// The directory that was this client's root when it began. It stays so for the kernel, whatever becomes of it.
    pub root: Ino,
    /// Whose rights its users have.
    pub squash: Squash,
}

impl Bounds {
    /// Returns whether metad wants to know for whom this client asks.
    #[must_use]
    pub fn are_set(self) -> bool {
        self.root != Ino::ROOT || self.squash != Squash::None
    }

    /// Returns for whom the running task asks, if metad wants to know.
    #[must_use]
    pub fn caller(self) -> Option<Caller> {
        caller::current().filter(|_| self.are_set())
    }
}
