//! The one way to make content part of a file (I6, I7).
//!
//! - `plan` is what a commit carries: the only place where [`wire::op::Op::Commit`] is made;
//! - `outcome` is what becomes of content with each answer to it. Both are pure;
//! - `uploader` stores sealed content, `gathering` joins small content of many files in one block;
//! - `committer` owns what is on its way from memory to metad, within the `window`; `beside` names what stands beside a file;
//! - `fragments` are chunks in many pieces, for compaction.
//!
//! Content is committed at once, with a flush, or from the write-back queue; both send what `plan` makes, and do what
//! `outcome` says.

pub(crate) mod beside;
pub(crate) mod committer;
pub(crate) mod fragments;
mod gathering;
pub(crate) mod outcome;
pub(crate) mod plan;
pub(crate) mod uploader;
pub(crate) mod window;

#[cfg(test)]
#[path = "commit/commit_tests.rs"]
mod tests;
