//! What the answers of a block daemon must look like. Pure.
//!
//! A daemon may be of another version, damaged, or taken over. An answer that contradicts its question is returned as a
//! reason, for people.

use wire::ids::BlockHash;
use wire::message::block::BlockReply;

/// Returns a page of names: in order, between two names, and no more than asked for.
pub(super) fn listed(
    reply: BlockReply,
    (first, last): (BlockHash, BlockHash),
    limit: usize,
) -> Result<Vec<(BlockHash, u32)>, String> {
    let BlockReply::Blocks(page) = reply else { return Err(foreign(&reply, "a list of its blocks")) };
    let in_range = page.first().is_none_or(|(hash, _)| *hash >= first) && page.last().is_none_or(|(h, _)| *h <= last);
    if page.len() > limit || !in_range || !page.is_sorted_by(|one, next| one.0 < next.0) {
        return Err("it lists blocks that it was not asked for, or in no order".to_owned());
    }
    Ok(page)
}

/// Returns one answer per block that was to be verified.
pub(super) fn verified(reply: BlockReply, asked: usize) -> Result<Vec<Option<bool>>, String> {
    match reply {
        BlockReply::Verified(good) if good.len() == asked => Ok(good),
        BlockReply::Verified(good) => Err(wrong_count(good.len(), asked)),
        other => Err(foreign(&other, "which copies are good")),
    }
}

/// Returns one answer per block that was probed.
pub(super) fn present(reply: BlockReply, asked: usize) -> Result<Vec<bool>, String> {
    match reply {
        BlockReply::Present(are) if are.len() == asked => Ok(are),
        BlockReply::Present(are) => Err(wrong_count(are.len(), asked)),
        other => Err(foreign(&other, "which blocks it has")),
    }
}

fn wrong_count(answers: usize, asked: usize) -> String {
    format!("it gives {answers} answers about {asked} blocks")
}

/// Names an answer of another kind. It may be long, and hold what the daemon likes.
fn foreign(reply: &BlockReply, asked: &str) -> String {
    const SHOWN_CHARS: usize = 80;
    let shown: String = format!("{reply:?}").chars().take(SHOWN_CHARS).collect();
    format!("asked for {asked}, it answers {shown}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_in_order_within_its_range_and_no_longer_than_asked_for() {
        let hash = |byte| BlockHash([byte; 32]);
        let range = (hash(2), hash(8));
        let checked = |bytes: &[u8]| {
            listed(BlockReply::Blocks(bytes.iter().map(|byte| (hash(*byte), 1)).collect()), range, 3).is_ok()
        };
        assert!([&[][..], &[2], &[2, 5, 8]].into_iter().all(checked));
        for wrong in [&[1, 2][..], &[2, 9], &[5, 4], &[5, 5], &[2, 3, 4, 5], &[9], &[1]] {
            assert!(!checked(wrong), "{wrong:?}");
        }
        let foreign = listed(BlockReply::Failed("x".repeat(9_999)), range, 3).unwrap_err();
        assert!(foreign.len() < 200, "{foreign}");
    }

    #[test]
    fn answers_are_as_many_as_questions() {
        assert!(present(BlockReply::Present(vec![true]), 1).is_ok());
        assert!(verified(BlockReply::Verified(vec![None]), 1).is_ok());
        for wrong in [BlockReply::Present(vec![true; 2]), BlockReply::Present(Vec::new()), BlockReply::Behind] {
            assert!(present(wrong.clone(), 1).is_err());
            assert!(verified(wrong, 1).is_err());
        }
        assert!(verified(BlockReply::Verified(Vec::new()), 1).is_err());
    }
}
