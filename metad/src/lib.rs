//! metad: Surf's metadata daemon.
pub mod fs;
