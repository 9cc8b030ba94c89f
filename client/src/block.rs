//! Content: [`layout`] knows who holds what, [`put`] stores, [`fetch`] reads and verifies, [`cache`] remembers, [`disk`] does so
//! beyond the mount.

pub mod cache;
pub mod disk;
pub mod fetch;
pub mod layout;
pub mod put;
