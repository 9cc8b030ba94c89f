//! The newest layout that this daemon knows (I11).
//!
//! There is one owner: everyone reads the layout here, and only [`Layouts::learn`] replaces it, by a newer one. A
//! [`LayoutSource`] brings layouts: metad, or the program that runs the daemon inside its process.

use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use wire::ids::LayoutEpoch;
use wire::layout::Layout;

/// How long to wait for a layout that a sender knows and this daemon does not. metad answers sooner, unless it is away
/// or the sender has made the layout up.
const NEWER_WAIT: Duration = Duration::from_secs(1);

/// Where layouts come from.
#[derive(Debug)]
pub enum LayoutSource {
    /// From the metads of the configuration, to which this daemon sends heartbeats.
    Metad,
    /// From the program that started this daemon. Nothing is sent to any metad.
    Given(watch::Receiver<Layout>),
}

/// The newest layout, and the wish for a newer one.
pub struct Layouts {
    newest: watch::Sender<Arc<Layout>>,
    wanted: Notify,
    /// When metad last answered, if it ever did.
    heard: Mutex<Option<Instant>>,
}

/// Why nothing is stored for a sender.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Blocks have other owners since the sender's layout.
    OldLayout(Layout),
    /// This daemon cannot know whether blocks have other owners.
    Fenced(String),
}

impl Default for Layouts {
    fn default() -> Self {
        Self { newest: watch::Sender::new(Arc::default()), wanted: Notify::new(), heard: Mutex::default() }
    }
}

impl Layouts {
    /// Notes that metad has answered a request sent at this time, with the newest layout if this one was old. metad
    /// counts this daemon's silence from no earlier moment.
    pub fn heard_metad(&self, asked: Instant) {
        *self.heard.lock() = Some(asked);
    }

    /// Checks whether a put by a sender that knows this layout may be acknowledged now. Must be called once the block
    /// is stored, so that a daemon that compares with this one under newer owners finds it (I11). A layout that only the
    /// sender knows must have arrived before ([`Layouts::as_new_as`]).
    ///
    /// # Errors
    /// The reason why it may not.
    pub fn may_store(&self, sender: LayoutEpoch) -> Result<(), Refusal> {
        let newest = self.newest();
        if sender < newest.placement {
            return Err(Refusal::OldLayout((*newest).clone()));
        }
        if sender > newest.epoch {
            // By the owners that are known here, the copy may belong elsewhere: it would be given back and dropped, and
            // an owner that missed it would not be noted.
            let known = newest.epoch;
            return Err(Refusal::Fenced(format!(
                "no metad has sent the layout of epoch {sender} yet, only that of {known}"
            )));
        }
        // This is long before metad takes this daemon out and others copy what it owns: they would miss what it
        // acknowledges.
        let limit = Duration::from_millis(newest.down_after_ms / 2);
        match *self.heard.lock() {
            Some(heard) if heard.elapsed() > limit => {
                Err(Refusal::Fenced(format!("no metad has answered for {} s", heard.elapsed().as_secs())))
            }
            _ => Ok(()),
        }
    }

    /// The newest known layout; an empty one, of epoch 0, until one was learned.
    #[must_use]
    pub fn newest(&self) -> Arc<Layout> {
        self.newest.borrow().clone()
    }

    /// Follows the newest layout.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Layout>> {
        self.newest.subscribe()
    }

    /// Takes a layout, unless it is old.
    pub fn learn(&self, layout: Layout) {
        let changed = self.newest.send_if_modified(|newest| {
            // I11: epochs only grow.
            let newer = layout.epoch > newest.epoch;
            if newer {
                *newest = Arc::new(layout);
            }
            newer
        });
        if changed {
            let newest = self.newest();
            tracing::info!(epoch = %newest.epoch, members = newest.members.len(), "new layout");
        }
    }

    /// Compares with the epoch that a sender knows. Returns the layout to send along when the sender's is old. When the
    /// sender's is newer, a newer one is asked for.
    #[must_use]
    pub fn compare(&self, sender: LayoutEpoch) -> Option<Layout> {
        let newest = self.newest();
        if sender > newest.epoch {
            self.wanted.notify_one();
        }
        // I11: a daemon that knows a newer layout says so.
        (sender < newest.epoch).then(|| (*newest).clone())
    }

    /// Returns the newest layout. When a sender knows a newer one, that is asked for and waited for; it may still be
    /// missing then. Cancel-safe.
    pub async fn as_new_as(&self, sender: LayoutEpoch) -> Arc<Layout> {
        if sender > self.newest().epoch {
            self.wanted.notify_one();
            let mut newer = self.watch();
            let _ = tokio::time::timeout(NEWER_WAIT, newer.wait_for(|layout| layout.epoch >= sender)).await;
        }
        self.newest()
    }

    /// Waits until a sender with a newer layout was met. Cancel-safe.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(epoch: u64) -> Layout {
        Layout { epoch: LayoutEpoch(epoch), ..Layout::default() }
    }

    /// Guards I11.
    #[test]
    fn an_old_layout_never_replaces_a_newer_one() {
        let layouts = Layouts::default();
        layouts.learn(layout(3));
        layouts.learn(layout(2));
        assert_eq!(layouts.newest().epoch, LayoutEpoch(3));
        assert_eq!(layouts.compare(LayoutEpoch(2)).unwrap().epoch, LayoutEpoch(3));
        assert!(layouts.compare(LayoutEpoch(3)).is_none());
    }

    /// Guards I11.
    #[test]
    fn nothing_is_stored_for_older_owners_or_long_without_metad() {
        let layouts = Layouts::default();
        let mut newest = Layout { placement: LayoutEpoch(2), down_after_ms: 60_000, ..layout(3) };
        layouts.learn(newest.clone());
        assert_eq!(layouts.may_store(LayoutEpoch(1)), Err(Refusal::OldLayout(newest.clone())));
        assert_eq!(layouts.may_store(LayoutEpoch(2)), Ok(()), "the owners are the same since");
        layouts.heard_metad(Instant::now());
        assert_eq!(layouts.may_store(LayoutEpoch(3)), Ok(()));
        (newest.epoch, newest.down_after_ms) = (LayoutEpoch(4), 0);
        layouts.learn(newest);
        assert!(matches!(layouts.may_store(LayoutEpoch(4)), Err(Refusal::Fenced(_))));
    }

    /// Guards I11.
    #[tokio::test]
    async fn a_sender_with_a_newer_layout_makes_this_daemon_ask_for_it() {
        let layouts = Layouts::default();
        assert!(layouts.compare(LayoutEpoch(1)).is_none());
        layouts.wanted().await;
    }

    /// Guards I11.
    #[tokio::test(start_paused = true)]
    async fn a_newer_layout_of_a_sender_is_waited_for_and_nothing_is_stored_without_it() {
        let layouts = Layouts::default();
        assert!(matches!(layouts.may_store(LayoutEpoch(1)), Err(Refusal::Fenced(_))));
        // It has no owners yet, and nobody could compare with it.
        assert_eq!(layouts.may_store(LayoutEpoch(0)), Ok(()));
        layouts.learn(layout(1));
        let (newest, ()) = tokio::join!(layouts.as_new_as(LayoutEpoch(2)), async {
            layouts.wanted().await;
            layouts.learn(layout(2));
        });
        assert_eq!((newest.epoch, layouts.may_store(LayoutEpoch(2))), (LayoutEpoch(2), Ok(())));
        assert_eq!(layouts.as_new_as(LayoutEpoch(3)).await.epoch, LayoutEpoch(2), "it does not come");
        assert!(matches!(layouts.may_store(LayoutEpoch(3)), Err(Refusal::Fenced(_))));
    }
}
