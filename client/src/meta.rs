//! Talking to metad: [`rpc`] finds the leader and asks until it answers, [`session`] numbers requests that must happen
//! exactly once.

pub mod bounds;
mod clock;
mod opened;
pub mod rpc;
pub mod session;
