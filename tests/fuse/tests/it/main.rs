//! Ordinary programs on real mounts of real daemons. There is one binary, because each binary links everything.

mod cache;
mod certs;
mod chaos;
mod cli;
mod clocks;
mod confined;
mod crash;
mod delegations;
mod faults;
mod flood;
mod fsck;
mod healing;
mod journal;
mod large;
mod mapped;
mod mounts;
mod overload;
mod posix;
mod power;
mod programs;
mod recalls;
mod recovery;
mod replacing;
mod rotate;
mod semantics;
mod tokens;
