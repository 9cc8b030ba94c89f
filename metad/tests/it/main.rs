//! Tests of metad from outside: the state machine alone, and nodes over real QUIC. They are one binary, because each
//! binary links everything.

mod audit;
mod certs;
mod cluster;
mod compare;
mod confined;
mod evict;
mod followers;
mod hostile;
mod model_machine;
mod recovery;
mod replace;
mod roles;
mod rotate;
mod snapshots;
mod tokens;
