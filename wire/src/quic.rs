//! QUIC transport: one connection per pair of peers, one bidirectional stream per request, event streams.
//!
//! - `socket` is the UDP socket, its TLS and transport settings, and the thread that drives it, on which `driver` runs
//!   quinn's tasks; [`endpoint`] calls and answers by the socket, and remembers peers.
//! - `credentials` are what the node shows of itself, and `standing` has the connections that end with a certificate.
//! - [`peer`] is the calling side, a connection made when needed; [`request`] has requests with deadlines, and streams of
//!   events.
//! - [`serve`] is the answering side, `admission` decides who gets a handshake, and `budget` what a connection may use.
//! - [`renew`] is how a node has its certificate renewed, and `trial` looks whether a renewed one is let in.
//! - [`enroll`] is how a newcomer without a certificate asks for one; `strangers` answers it, within narrow bounds.
//!
//! Versions are agreed on in the TLS handshake by ALPN, so that two programs without a common one never exchange a
//! byte that the other could misread.

mod admission;
mod budget;
#[cfg(test)]
mod cert_tests;
mod credentials;
mod driver;
pub mod endpoint;
pub mod enroll;
mod events;
#[cfg(test)]
mod newcomer_tests;
pub mod peer;
pub mod renew;
pub mod request;
#[cfg(test)]
mod rotation_tests;
pub mod serve;
mod socket;
mod standing;
mod strangers;
mod stream;
#[cfg(test)]
mod tests;
mod trial;
mod windows;

pub use admission::network_of;
pub use budget::Held;
pub use endpoint::Endpoint;
pub use events::EventSender;
pub use peer::Peer;
pub use request::{EventReceiver, OutgoingRequest};
pub use serve::{Incoming, ServerHandle, Service};
