//! The ways in which a test starts a Surf.

use crate::surf::{Setup, Surf};
use crate::turn::Share;

impl Surf {
    /// Starts a Surf and waits until it is mounted. Other tests that start theirs in this way may run at the same
    /// time.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start(setup: Setup) -> Self {
        Self::start_at(Share::Part, setup)
    }

    /// Starts one, waits until it is mounted, and has the machine to itself.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start_alone(setup: Setup) -> Self {
        Self::start_at(Share::Whole, setup)
    }

    fn start_at(share: Share, setup: Setup) -> Self {
        let mut surf = Self::prepare(share, setup);
        if setup == Setup::Cluster {
            surf.up(3, 3);
        }
        surf.mount(&[]);
        surf
    }

    /// Starts a cluster by `start`, and mounts it. Others may run at the same time.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start_by(start: impl FnOnce(&Self)) -> Self {
        Self::start_at_by(Share::Part, start)
    }

    /// Starts a cluster by `start`, mounts it, and has the machine to itself.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start_alone_by(start: impl FnOnce(&Self)) -> Self {
        Self::start_at_by(Share::Whole, start)
    }

    fn start_at_by(share: Share, start: impl FnOnce(&Self)) -> Self {
        let mut surf = Self::prepare(share, Setup::Cluster);
        start(&surf);
        surf.mount(&[]);
        surf
    }

    /// Mounts an embedded cluster after `prepare`, which may put a disk below its data directory. Others may run at the same
    /// time.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start_embedded_by(prepare: impl FnOnce(&Self)) -> Self {
        let mut surf = Self::prepare(Share::Part, Setup::Embedded);
        prepare(&surf);
        surf.mount(&[]);
        surf
    }
}
