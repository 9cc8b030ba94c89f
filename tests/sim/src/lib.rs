//! Surf's clients and metads in one thread: the real client and the real metad above simulated links, disks, clocks and
//! agreement, under a scheduler whose every decision comes from a seed. The same seed is the same run, to the last message.
//!
//! - [`plan`] says what programs do and what goes wrong; [`world`] lets it happen;
//! - [`network`], [`disk`], [`blocks`], [`consensus`] are what is simulated; [`cluster`] starts the metads above it;
//! - [`program`] acts on a client; [`history`], [`truth`] and [`tree`] hold what must be so against what is;
//! - [`watched`] is what tasks wait for; [`seeds`] runs many schedules, and makes a failing one small.

#![forbid(unsafe_code)]

pub mod blocks;
pub mod cluster;
pub mod consensus;
pub mod content;
pub mod disk;
pub mod history;
pub mod leases;
pub mod names;
pub mod network;
pub mod plan;
pub mod program;
pub mod seeds;
pub mod themes;
pub mod tree;
pub mod truth;
pub mod watched;
pub mod world;
