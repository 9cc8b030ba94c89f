//! For whom puts are, so that each takes the turns of whoever sent the block first.
//!
//! A block daemon that passes a put on says for whom, and is believed within bounds: what it passes on takes other turns
//! than what comes from the one it names, so it uses up nobody's, and it has so many at once and no more.

use crate::store::Party;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use wire::ids::PartyId;
use wire::tls::{Role, Subject};

/// For how many at once one block daemon passes puts on. What it passes on for others is its own.
const NAMED_MAX: usize = 1024;

/// For whom block daemons pass on what is under way.
#[derive(Default)]
pub struct Origins {
    /// Puts under way, by the daemon that passes them on and by the one it names.
    named: Mutex<HashMap<PartyId, HashMap<PartyId, usize>>>,
}

/// For whom a put is, until that ends.
pub struct Origin {
    origins: Arc<Origins>,
    id: PartyId,
    via: Option<PartyId>,
}

impl Origins {
    /// Returns for whom a put is: for the sender itself, unless a block daemon passes it on for the one it has `named`.
    #[must_use]
    pub fn of(self: &Arc<Self>, sender: &Subject, named: Option<PartyId>) -> Origin {
        let (origins, via) = (self.clone(), sender.party());
        let named = named.filter(|named| sender.role == Role::Blockd && *named != via);
        match named.filter(|named| self.begin(via, *named)) {
            Some(id) => Origin { origins, id, via: Some(via) },
            None => Origin { origins, id: via, via: None },
        }
    }

    /// Counts a put, unless its daemon names too many.
    fn begin(&self, via: PartyId, named: PartyId) -> bool {
        let mut all = self.named.lock();
        let by_daemon = all.entry(via).or_default();
        if by_daemon.len() >= NAMED_MAX && !by_daemon.contains_key(&named) {
            return false;
        }
        *by_daemon.entry(named).or_default() += 1;
        true
    }
}

impl Origin {
    /// The one for whom it is, whatever way it came.
    #[must_use]
    pub fn id(&self) -> PartyId {
        self.id
    }

    /// Whose turns it takes at the writer.
    #[must_use]
    pub fn party(&self) -> Party {
        Party::Peer { origin: self.id, via: self.via }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        let Some(via) = self.via else { return };
        let mut all = self.origins.named.lock();
        let Some(by_daemon) = all.get_mut(&via) else { return };
        if let Some(count) = by_daemon.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                by_daemon.remove(&self.id);
            }
        }
        if by_daemon.is_empty() {
            all.remove(&via);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_takes_the_turns_of_whom_a_block_daemon_names_and_of_nobody_whom_a_client_names() {
        let origins = Arc::<Origins>::default();
        let [greedy, other] = ["greedy", "other"].map(|name| Subject::new(Role::Client, name));
        let daemon = Subject::new(Role::Blockd, "greedy");
        assert_ne!(daemon.party(), greedy.party());
        let of = |sender: &Subject, named: Option<&Subject>| {
            let origin = origins.of(sender, named.map(Subject::party));
            (origin.id(), origin.party())
        };
        let direct = |subject: &Subject| (subject.party(), Party::Peer { origin: subject.party(), via: None });
        assert_eq!(of(&greedy, Some(&other)), direct(&greedy));
        assert_eq!(of(&daemon, None), direct(&daemon));
        assert_eq!(of(&daemon, Some(&daemon)), direct(&daemon));
        let passed_on = Party::Peer { origin: other.party(), via: Some(daemon.party()) };
        assert_eq!(of(&daemon, Some(&other)), (other.party(), passed_on));
        assert!(origins.named.lock().is_empty(), "nothing is under way");
    }

    #[test]
    fn a_block_daemon_that_names_parties_without_end_has_so_many_turns_and_leaves_others_theirs() {
        let origins = Arc::<Origins>::default();
        let named = |number: usize| PartyId((number as u128).to_le_bytes());
        let [liar, honest] = ["liar", "honest"].map(|name| Subject::new(Role::Blockd, name));
        let mut under_way: Vec<Origin> = (0..NAMED_MAX).map(|number| origins.of(&liar, Some(named(number)))).collect();
        assert!(under_way.iter().enumerate().all(|(number, origin)| origin.id() == named(number)));
        let beyond = || origins.of(&liar, Some(named(NAMED_MAX))).party();
        assert_eq!(beyond(), Party::Peer { origin: liar.party(), via: None });
        assert_eq!(origins.of(&liar, Some(named(0))).id(), named(0), "of whom something is under way already");
        assert_eq!(origins.of(&honest, Some(named(NAMED_MAX))).id(), named(NAMED_MAX));
        under_way.pop();
        assert_eq!(beyond(), Party::Peer { origin: named(NAMED_MAX), via: Some(liar.party()) });
    }
}
