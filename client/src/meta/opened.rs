//! What metad answers when a session is opened.

use super::bounds::Bounds;
use std::time::Duration;
use wire::Error;
use wire::attr::Timestamp;
use wire::ids::SessionId;
use wire::layout::Layout;
use wire::message::meta::MetaReply;

/// What metad returns when a session is opened.
pub struct Opened {
    /// The block layout.
    pub layout: Layout,
    /// The session lives this long without a sign of life.
    pub ttl: Duration,
    /// The leader's clock.
    pub now: Timestamp,
    /// The client's bounds.
    pub bounds: Bounds,
}

/// Reads the answer to an opening.
///
/// # Errors
/// `Malformed` when it is none.
pub fn opened(reply: MetaReply) -> Result<(SessionId, Opened), Error> {
    match reply {
        MetaReply::Session { session, ttl_ms, layout, now, root, squash } => {
            Ok((session, Opened { layout, ttl: Duration::from_millis(ttl_ms), now, bounds: Bounds { root, squash } }))
        }
        other => Err(Error::Malformed(format!("unexpected reply {other:?}"))),
    }
}
