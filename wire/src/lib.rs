//! The words that all of Surf shares: ids, operations, messages, their coding, and the links they travel on.
//!
//! No policy and no storage live here. Clients and daemons know each other only through this crate.

pub mod attr;
pub mod backup;
pub mod buffers;
pub mod bundle;
pub mod caller;
pub mod cert;
mod chain;
pub mod chance;
pub mod codec;
pub mod durable;
pub mod errno;
pub mod error;
pub mod extent;
pub mod fair_queue;
pub mod frame;
pub mod hints;
pub mod ids;
pub mod issuer;
mod key_files;
pub mod layout;
pub mod leader;
mod leaf;
pub mod limits;
pub mod log;
pub mod message;
pub mod op;
pub mod quic;
pub mod retry;
pub mod revoked;
pub mod sections;
pub mod settings;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod steady;
mod subject;
pub mod suspects;
pub mod sys;
pub mod text;
pub mod ticket;
pub mod tls;
pub mod token;
pub mod trace;
pub mod trust;

pub use error::{Error, FsError, describe};
