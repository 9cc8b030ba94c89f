//! Tools that Surf's tests share: real mounts, real daemons, ordinary programs with a time limit, and faults.
//!
//! Everything here cleans up after itself on success, panic, signal and `kill -9` of the test: each guard undoes its
//! work when dropped, and beside each runs a [`watchdog`] that does the same when the test process is gone. Every wait
//! has a limit, because a leaked FUSE mount hangs everything that comes after it.

pub mod bins;
pub mod chance;
pub mod clock;
pub mod command;
pub mod fault;
pub mod lies;
pub mod linear;
pub mod mounts;
pub mod names;
pub mod operate;
pub mod powerloss;
pub mod proxy;
pub mod scale;
mod start;
pub mod surf;
mod sys;
mod turn;
pub mod wait;
pub mod watchdog;
pub mod workload;

pub use chance::Chance;
pub use command::{Output, run, sh};
pub use powerloss::VolatileDisk;
pub use proxy::{Link, Proxy};
pub use scale::scale;
pub use surf::{Setup, Surf};
pub use sys::{own_descriptors, truncate};
pub use wait::until;
