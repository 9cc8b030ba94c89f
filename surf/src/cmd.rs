//! The commands, one file each.

pub mod cluster;
pub mod dev;
pub mod status;
