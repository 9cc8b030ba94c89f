//! Clients that are confined: what they may ask of this daemon, and for which parts of blocks they have tickets.

use crate::tickets::Tickets;
use wire::message::block::BlockRequest;
use wire::tls::PeerIdentity;

/// What a confined client is told that asks for something without a ticket, for people.
const REFUSED: &str = "a client that is confined gets blocks by tickets alone: its release may be older than this one";

/// A request of a confined client.
pub(crate) enum Checked {
    /// It is answered as it is.
    As(BlockRequest),
    /// The client needs another ticket.
    NoTicket,
    /// It is not answered: why.
    Refused(&'static str),
}

/// Checks a request. That of a confined client is cut to what its ticket is for; others are as they came.
pub(crate) async fn check(tickets: &Tickets, peer: &PeerIdentity, request: BlockRequest) -> Checked {
    let is_confined = peer.subject.is_confined();
    match request {
        BlockRequest::GetByTicket { hash, epoch, offset, len, ticket } => {
            let part = ticket.range();
            let is_within = part.contains(&u64::from(offset));
            if !is_within || !tickets.admits(&ticket, &peer.certificate.key, &hash).await {
                return Checked::NoTicket;
            }
            let left = u32::try_from(part.end - u64::from(offset)).unwrap_or(u32::MAX);
            let len = if ticket.is_whole() { len } else { len.min(left) };
            Checked::As(BlockRequest::Get { hash, epoch, offset, len })
        }
        request @ BlockRequest::Put { .. } => Checked::As(request),
        request if !is_confined => Checked::As(request),
        _ => Checked::Refused(REFUSED),
    }
}
