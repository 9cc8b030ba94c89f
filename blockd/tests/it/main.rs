//! Block daemons from outside, over real QUIC. One binary, because each one links everything.

mod daemon;
mod daemon_cluster;
mod daemon_metad;
mod daemon_process;
mod daemon_throughput;
mod fairness;
mod healing;
mod hostile;
mod revoked;
mod ring;
mod roles;
