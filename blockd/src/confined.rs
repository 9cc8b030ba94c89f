//! Clients that are confined: what they may ask of this daemon, and for which parts of blocks they have tickets.

use crate::tickets::Tickets;
use wire::message::block::{BlockRequest, BlockRequestKind};
use wire::tls::PeerIdentity;

/// What a confined client is told that asks for something without a ticket, for people.
pub(crate) const NEEDS_TICKET: &str =
    "a client that is confined gets blocks by tickets alone: its release may be older than this one";

/// Reports whether confined clients may send such a request at all: names of blocks, and figures of the daemon, tell of what
/// others have.
pub(crate) fn is_for_confined(request: BlockRequestKind) -> bool {
    matches!(request, BlockRequestKind::Put | BlockRequestKind::GetByTicket)
}

/// Cuts a request to what its ticket is for; one without a ticket stays as it came. `None` if its sender needs another ticket.
pub(crate) async fn cut_to_ticket(
    tickets: &Tickets,
    peer: &PeerIdentity,
    request: BlockRequest,
) -> Option<BlockRequest> {
    let BlockRequest::GetByTicket { hash, epoch, offset, len, ticket } = request else { return Some(request) };
    let part = ticket.range();
    let is_within = part.contains(&u64::from(offset));
    if !is_within || !tickets.admits(&ticket, &peer.certificate.key, &hash).await {
        return None;
    }
    let left = u32::try_from(part.end - u64::from(offset)).unwrap_or(u32::MAX);
    let len = if ticket.is_whole() { len } else { len.min(left) };
    Some(BlockRequest::Get { hash, epoch, offset, len })
}
