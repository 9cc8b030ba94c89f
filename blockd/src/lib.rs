//! Surf's block daemon: a store of blocks that are named by their hash, on a Chord ring of such daemons.

pub mod chord;
pub mod config;
pub mod layouts;
pub mod metrics;
pub mod stamps;
