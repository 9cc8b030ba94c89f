//! Which CAs the cluster trusts: the steps by which operators have changed that, as they have signed them. The last one says
//! what holds.

use super::keys;
use super::view::{Kv, KvExt, View};
use wire::limits::TRUST_STEPS_MAX;
use wire::trust::{SignedTrust, Trust};

/// Setting: the steps since the last time at which one CA alone was trusted.
const STEPS: &str = "trusted CAs";

/// Returns the steps.
pub fn steps(kv: &dyn Kv) -> Vec<SignedTrust> {
    kv.load(&keys::setting(STEPS)).unwrap_or_default()
}

/// Returns what holds, if another CA was ever brought in.
pub fn trust(kv: &dyn Kv) -> Option<Trust> {
    steps(kv).last()?.trust().ok()
}

/// Writes a step down, if it follows the last one. Returns whether it holds now.
pub(super) fn add(view: &mut View, step: &SignedTrust) -> bool {
    let Ok(next) = step.trust() else { return false };
    let mut steps = steps(view);
    let last = steps.last().and_then(|last| last.trust().ok());
    if last.as_ref() == Some(&next) {
        // It may have been asked for before, of a leader that was lost before it could answer.
        return true;
    }
    if next.version != last.map_or(0, |last| last.version) + 1 {
        return false;
    }
    if next.is_rotating() {
        steps.clear();
    }
    steps.push(step.clone());
    if steps.len() > TRUST_STEPS_MAX {
        steps.remove(0);
    }
    view.store(keys::setting(STEPS), &steps);
    true
}
