//! Clients that are confined: this daemon cannot know what they may read.

use crate::layouts::Layouts;
use wire::ids::LayoutEpoch;
use wire::message::block::BlockRequest;
use wire::tls::Subject;

/// What a confined client is told that gets no blocks, for people.
const REFUSED: &str = "the block daemons serve no confined clients: an operator can let them, with `surf cluster set \
                       --confined-blocks on`";

/// Checks whether the sender of a request may have it answered. Only confined clients wait for anything: these are answered
/// nothing, until an operator has allowed it.
///
/// # Errors
/// The reason, for people: it is confined, and no operator has allowed it.
pub(crate) async fn check(layouts: &Layouts, sender: &Subject, request: &BlockRequest) -> Result<(), &'static str> {
    let known = match request {
        BlockRequest::Put { epoch, .. } | BlockRequest::Get { epoch, .. } => *epoch,
        // They say nothing of the layout that the sender knows.
        _ => LayoutEpoch::default(),
    };
    let may = !sender.is_confined() || layouts.confined_may_use_blocks(known).await;
    if may { Ok(()) } else { Err(REFUSED) }
}
