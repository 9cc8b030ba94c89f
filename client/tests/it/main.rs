//! Clients of real daemons in the test's process. One binary, because each one links everything.

mod admission;
mod cluster;
mod delegations;
mod files;
mod leases;
mod mapped;
mod model;
mod session;
mod throughput;
mod traced;
