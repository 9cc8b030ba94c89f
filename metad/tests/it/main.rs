//! Metad from outside: the state machine alone, and nodes over real QUIC. One binary, because each one links everything.

mod cluster;
mod hostile;
mod model_machine;
mod recovery;
