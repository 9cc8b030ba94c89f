//! metad: Surf's metadata daemon.
pub mod error;
pub mod files;
pub mod fs;
pub mod raft;
pub mod store;
