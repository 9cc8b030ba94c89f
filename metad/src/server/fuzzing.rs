//! What a server checks before anything else, for `tests/fuzzing`.

use super::validate;
use wire::op::Batch;

/// Returns whether a batch of a client would be proposed.
#[must_use]
pub fn may_be_proposed(batch: &Batch) -> bool {
    validate::batch(batch, true).is_ok()
}
