//! One file's content: what is known of it, what is written and not committed yet, and how a read combines both.
//!
//! - [`dirty`] holds written bytes until they are cut into blocks, `sealed` is such a block under way, `pending` is all
//!   uncommitted content; `extents` is what is known of the committed content, `position` where its readers are, `pages`
//!   what the kernel's pages show, and `changed` finds what a program has changed in them. All of these are pure.
//! - [`state`] is one open inode, shared by its handles: the lock over all of that, and every transition.
//!
//! How content is read is up to `reader`, how it is committed to `commit`.

pub(crate) mod changed;
pub mod dirty;
pub(crate) mod extents;
pub(crate) mod pages;
pub(crate) mod pending;
pub(crate) mod position;
pub(crate) mod sealed;
pub mod state;
