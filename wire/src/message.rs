//! Requests and replies, one enum per receiving daemon. Variants are only ever appended.

pub mod admin;
pub mod block;
pub mod cert;
pub mod check;
pub mod enroll;
pub mod event;
pub mod meta;
