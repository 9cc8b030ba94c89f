//! Clients that are confined: this daemon cannot know what they may read.

use crate::layouts::Layouts;
use wire::message::block::BlockRequest;
use wire::tls::Subject;

/// The reason that a confined client gets with a refusal, for people.
const REFUSED: &str = "the block daemons serve no confined clients: an operator can let them, with `surf cluster set \
                       --confined-blocks on`";

/// Checks whether the sender of a request may have content stored or get it. Only confined clients wait for anything.
///
/// # Errors
/// The reason, for people: it is confined, and no operator has allowed it.
pub(crate) async fn check(layouts: &Layouts, sender: &Subject, request: &BlockRequest) -> Result<(), &'static str> {
    let (BlockRequest::Put { epoch, .. } | BlockRequest::Get { epoch, .. }) = request else { return Ok(()) };
    let may = !sender.is_confined() || layouts.confined_may_use_blocks(*epoch).await;
    if may { Ok(()) } else { Err(REFUSED) }
}
