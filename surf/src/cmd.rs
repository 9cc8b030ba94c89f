//! The commands, one file each.

pub mod cluster;
pub mod conflicts;
pub mod dev;
pub mod status;
