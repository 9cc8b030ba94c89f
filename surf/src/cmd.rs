//! The commands, one file each.

pub mod access;
pub mod audit;
pub mod blockd;
pub mod cert;
pub mod cluster;
pub mod conflicts;
pub mod dev;
pub mod enroll;
pub mod fsck;
pub mod health;
mod lengths;
pub mod metad;
pub mod node;
pub mod rotate;
pub mod session;
pub mod status;
pub mod token;
