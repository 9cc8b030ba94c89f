//! The content of files: [`layout`] knows which daemon holds what, [`put`] stores, [`fetch`] reads and verifies,
//! [`cache`] remembers blocks in memory, [`disk`] on the local disk, beyond the mount.

pub mod cache;
pub mod disk;
pub mod fetch;
pub mod layout;
pub mod put;
