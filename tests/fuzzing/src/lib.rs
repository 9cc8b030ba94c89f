//! Damaged and hostile bytes for everything that decodes them.
//!
//! A *target* is a function that takes any bytes as a peer, or a damaged disk, would hand them over. It panics if
//! - the code under test does,
//! - memory is taken for a length before the bytes are there,
//! - a value that was decoded is another one after encoding and decoding it,
//! - or what was refused was changed on the disk.
//!
//! It returns whether it took the bytes for good: this is how a corpus is kept from rotting. Where a checksum would
//! keep damage from the code behind it, the bytes are tried as they come, and with a checksum that fits.
//!
//! [`TARGETS`] lists all of them. `fuzz/` runs them under libFuzzer, [`runner`] without it. Both, and the tests, begin
//! with the files in `corpus/`, which [`corpus`] writes; inputs that have found a fault stay in `regressions/`.

#![forbid(unsafe_code)]

pub mod apply;
pub mod blocks;
pub mod clients;
mod commands;
pub mod corpus;
pub mod identities;
pub mod memory;
pub mod messages;
mod mutate;
pub mod raft;
pub mod replicas;
pub mod runner;
pub mod settings;
pub mod targets;

pub use corpus::Samples;
pub use targets::{TARGETS, Target, target};
