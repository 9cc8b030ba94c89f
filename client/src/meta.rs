//! Talking to metad: [`rpc`] finds the leader and asks until it is answered, [`session`] numbers what must happen once.

pub mod rpc;
pub mod session;
