//! The layout as this client knows it, and which daemons it has trouble with.

use parking_lot::RwLock;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use wire::ids::{BlockHash, BlockdId};
use wire::layout::Layout;
use wire::suspects::Suspects;

/// A daemon that failed is asked last for this long.
const SUSPECT_FOR: Duration = Duration::from_secs(5);

/// The newest layout heard of.
pub struct Layouts {
    newest: RwLock<Arc<Layout>>,
    suspects: Suspects<BlockdId>,
}

/// A daemon to be asked.
pub type Holder = (BlockdId, SocketAddr);

impl Layouts {
    /// Starts with a layout.
    #[must_use]
    pub fn new(layout: Layout) -> Self {
        Self { newest: RwLock::new(Arc::new(layout)), suspects: Suspects::new(SUSPECT_FOR) }
    }

    /// The newest one.
    #[must_use]
    pub fn newest(&self) -> Arc<Layout> {
        self.newest.read().clone()
    }

    /// Takes over a newer one.
    pub fn learn(&self, layout: Layout) {
        let mut newest = self.newest.write();
        if layout.epoch > newest.epoch {
            *newest = Arc::new(layout);
        }
    }

    /// Asked last for a while.
    pub fn suspect(&self, id: BlockdId) {
        self.suspects.add(id);
    }

    /// Answers again.
    pub fn trust(&self, id: BlockdId) {
        self.suspects.clear(&id);
    }

    /// Where a block belongs, those that answer first.
    #[must_use]
    pub fn owners(&self, layout: &Layout, hash: &BlockHash) -> Vec<Holder> {
        let mut owners: Vec<Holder> = layout.owners(hash).iter().map(|owner| (owner.id, owner.addr)).collect();
        owners.sort_by_key(|(id, _)| self.suspects.contains(id));
        owners
    }

    /// Where a block may be found: where it belongs, then where it belonged before (I11), then anywhere.
    #[must_use]
    pub fn places(&self, layout: &Layout, hash: &BlockHash) -> Vec<Holder> {
        let mut places = self.owners(layout, hash);
        let before = layout.previous_owners(hash);
        for member in before.into_iter().chain(&layout.members) {
            if !places.iter().any(|(id, _)| *id == member.id) {
                places.push((member.id, member.addr));
            }
        }
        places
    }
}
