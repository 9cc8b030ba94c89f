//! The commands, one file each.

pub mod access;
pub mod blockd;
pub mod cluster;
pub mod conflicts;
pub mod dev;
pub mod fsck;
pub mod health;
pub mod metad;
mod node;
pub mod session;
pub mod status;
