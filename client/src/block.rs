//! Content: [`layout`] knows who holds what, [`put`] stores, [`fetch`] reads and verifies, [`cache`] remembers.

pub mod cache;
pub mod fetch;
pub mod layout;
pub mod put;
