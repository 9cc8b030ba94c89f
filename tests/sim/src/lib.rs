//! Surf's clients and metads in one thread: the real client and the real metad above simulated links, disks, clocks and
//! agreement, under a scheduler whose every decision comes from a seed. The same seed is the same run, to the last
//! message.
//!
//! - [`steps`] are what programs do and what goes wrong; [`plan`] is made of them, [`themes`] draw some plans; [`world`]
//!   carries them out;
//! - [`network`], [`disk`], [`blocks`], [`consensus`] are simulated; [`cluster`] starts the metads above them;
//! - [`program`] acts on a client; [`history`], [`truth`] and [`tree`] compare what must be true with what is;
//! - [`watched`] are values that tasks wait for; [`seeds`] runs many schedules, and makes a failing one small.

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
pub mod steps;
pub mod themes;
pub mod tree;
pub mod truth;
pub mod watched;
pub mod world;
