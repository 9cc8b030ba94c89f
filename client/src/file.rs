//! One file's content: what is known of it, what is written and not committed yet, and how both are read together.
//!
//! - [`dirty`] holds written bytes until they are cut into blocks, `sealed` is such a block on its way, `pending` is all
//!   that is not committed; `extents` is what is known of the committed content, `position` where its readers are. All of
//!   these are pure.
//! - [`state`] is one open inode, shared by its handles: the lock over all of that, and every transition.
//! - `read` puts content together, `flush` uploads and commits, `together` joins small content of many files in one block.

pub mod dirty;
pub(crate) mod extents;
pub(crate) mod flush;
pub(crate) mod pending;
pub(crate) mod position;
mod read;
pub(crate) mod sealed;
pub mod state;
pub(crate) mod together;
