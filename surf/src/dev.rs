//! A cluster of real daemons below one directory.
//!
//! ```text
//! DIR/cluster.json     every daemon with its pid, address and data directory
//! DIR/dev.lock         held while a command changes the cluster
//! DIR/ca.pem           the cluster's CA
//! DIR/client.bundle    what a mount needs
//! DIR/admin.bundle     what an operator needs
//! DIR/NAME/            NAME.toml, identity.pem, NAME.log, data/
//! ```

mod cluster;
mod process;
mod setup;

pub use cluster::{ClusterFile, Daemon, DevDir, Kind, required};
pub use process::{is_running, kill, last_words, start, stop_all};
pub use setup::{Shape, create};
