//! The one way to make content part of a file (I6, I7).
//!
//! - `plan` is what a commit carries: the only place where [`wire::op::Op::Commit`] is made;
//! - `outcome` is what becomes of content with each answer to it.
//!
//! Both are pure. Content is committed at once, with a flush, or from the write-back queue; both send what `plan` makes,
//! and do what `outcome` says.

pub(crate) mod outcome;
pub(crate) mod plan;

#[cfg(test)]
#[path = "commit/commit_tests.rs"]
mod tests;
