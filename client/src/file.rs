//! Open files: what is written and not committed yet, what is known of the content, and how both are read together.
//!
//! - [`dirty`] holds written bytes until they are cut into blocks; pure.
//! - [`state`] is one open inode, shared by its handles.
//! - `read` puts content together, `flush` uploads and commits, `together` joins small content of many files in one block.

pub mod dirty;
pub(crate) mod flush;
mod read;
pub mod state;
pub(crate) mod together;
