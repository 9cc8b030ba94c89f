//! The one way to make content part of a file (I6, I7).
//!
//! - `plan` is what a commit carries: the only place where [`wire::op::Op::Commit`] is made;
//! - `outcome` is what happens to content with each answer to it. Both are pure;
//! - `uploader` stores sealed content, `gathering` joins small content of many files in one block;
//! - `committer` owns what is on its way from memory to metad, within the `window`; `beside` names new files beside
//!   others;
//! - `fragments` are chunks in many pieces, for compaction.
//!
//! Content is committed at once by a flush, or from the write-back queue. Both send what `plan` makes, and follow
//! `outcome`.

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

#[cfg(test)]
#[path = "commit/mapped_tests.rs"]
mod mapped_tests;
