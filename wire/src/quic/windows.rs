//! How many bytes of answers one connection of a client may have on their way: what its peer does not acknowledge is kept
//! here, and connections are cheap for whoever has a certificate.
//!
//! A certificate's connections share a window, and all certificates of clients share one. Nobody waits for anybody else's
//! acknowledgements: each connection has its part for itself, and hundreds of mounts that share a bundle have smaller ones,
//! which over a local network is as fast. Daemons and operators are not counted, and have a full window each.

use tokio::sync::watch;

/// Window of one connection that has few others beside it.
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// Window of all connections of a client's certificate.
const CERTIFICATE_WINDOW_BYTES: u64 = 512 << 20;
/// Window of all connections of clients.
const CLIENTS_WINDOW_BYTES: u64 = 2 << 30;
/// Window of a connection in any case: a quarter of a gigabyte in a second if an answer takes a millisecond.
const WINDOW_BYTES_MIN: u64 = 256 << 10;

/// Returns the window of each connection of a client's certificate that has so many of them, while so many certificates of
/// clients have connections. It is a power of two, so that it seldom changes as connections come and go.
pub(super) fn window_of(certificates: usize, connections: usize) -> u64 {
    let all = CERTIFICATE_WINDOW_BYTES.min(CLIENTS_WINDOW_BYTES / certificates.max(1) as u64);
    let share = (all / connections.max(1) as u64).max(1);
    (1_u64 << share.ilog2()).clamp(WINDOW_BYTES_MIN, u64::from(CONNECTION_WINDOW_BYTES))
}

/// Waits until a window changes, and returns it. Cancel-safe.
pub(super) async fn changed(window: &mut watch::Receiver<u64>) -> u64 {
    if window.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    *window.borrow_and_update()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_share_the_window_of_their_certificate_and_certificates_that_of_all() {
        assert_eq!(window_of(1, 1), u64::from(CONNECTION_WINDOW_BYTES));
        assert_eq!((window_of(1, 200), window_of(200, 1)), (2 << 20, 8 << 20));
        for certificates in [1, 3, 10, 100, 1_000, 4_000] {
            for connections in [1, 2, 7, 100, 2_048] {
                let all = window_of(certificates, connections) * connections as u64;
                let least = connections as u64 * WINDOW_BYTES_MIN;
                assert!(all <= CERTIFICATE_WINDOW_BYTES.max(least), "{certificates} {connections}");
                let together = all * certificates as u64;
                assert!(together <= CLIENTS_WINDOW_BYTES.max(least * certificates as u64));
            }
        }
    }
}
