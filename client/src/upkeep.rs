//! What goes on in the background: signs of life, events, and commits of what has been written for a while.

use crate::meta::session::Alive;
use crate::{Client, Notice};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use wire::message::event::MetaEvent;
use wire::message::meta::MetaRequest;

/// Between attempts at a stream of events.
const EVENTS_PAUSE: Duration = Duration::from_secs(1);
/// Signs of life per lifetime of a session.
const BEATS: u32 = 8;

impl Client {
    pub(crate) fn start_upkeep(self: &Arc<Self>, ttl: Duration) {
        let mut tasks = self.tasks.lock();
        tasks.spawn(keep_alive(self.me.clone(), ttl / BEATS));
        tasks.spawn(follow_events(self.me.clone()));
        tasks.spawn(commit_in_background(self.me.clone()));
    }

    async fn beat(&self, limit: Duration) {
        let layout = self.layouts.newest();
        match self.session.keep_alive(&layout, limit).await {
            Ok(Alive::Yes { orphans, layout, .. }) => {
                if let Some(layout) = layout {
                    self.layouts.learn(layout);
                }
                self.keep_or_release(&orphans).await;
            }
            Ok(Alive::No(expired)) => {
                if let Err(error) = self.session.renew(expired).await {
                    tracing::warn!(%error, "no new session yet");
                }
            }
            Err(error) => tracing::debug!(%error, "no sign of life from metad"),
        }
    }

    async fn take_event(&self, event: MetaEvent) {
        match event {
            MetaEvent::Orphaned(inos) => self.keep_or_release(&inos).await,
            MetaEvent::LockReleased(_) => self.lock_released.notify_waiters(),
            MetaEvent::LayoutChanged(_) => self.beat(EVENTS_PAUSE).await,
            MetaEvent::Changed(ino) => {
                // Nobody listens while there is no mount.
                let _ = self.notices.send(Notice::Changed(ino));
            }
        }
    }

    /// Commits what has waited; only what is uploading already when memory is what matters.
    async fn commit_some(self: &Arc<Self>, whole: bool) {
        let files: Vec<_> = self.files.lock().values().filter(|file| file.is_dirty()).cloned().collect();
        for file in files {
            if let Err(error) = self.flush_file(&file, whole).await {
                tracing::warn!(ino = %file.ino(), %error, "content was not committed as it was written");
            }
            self.forget_if_idle(&file);
        }
    }
}

async fn keep_alive(client: Weak<Client>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(client) = client.upgrade() else { return };
        client.beat(every).await;
    }
}

async fn follow_events(client: Weak<Client>) {
    loop {
        let stream = {
            let Some(client) = client.upgrade() else { return };
            client.session.rpc().events(&MetaRequest::Events { session: client.session.id() }).await
        };
        if let Ok(mut stream) = stream {
            while let Ok(event) = stream.next::<MetaEvent>().await {
                let Some(client) = client.upgrade() else { return };
                client.take_event(event).await;
            }
        }
        tokio::time::sleep(EVENTS_PAUSE).await;
    }
}

async fn commit_in_background(weak: Weak<Client>) {
    let mut whole_at = Instant::now();
    loop {
        let Some(client) = weak.upgrade() else { return };
        let age = client.config.dirty_age;
        let left = (whole_at + age).saturating_duration_since(Instant::now());
        let pressed = tokio::time::timeout(left, client.window.pressure.notified()).await.is_ok();
        // Without room even after what was sealed, scattered small writes are what fills the window.
        let whole = !pressed || !client.window.has_room();
        if !pressed {
            whole_at = Instant::now() + age;
        }
        client.commit_some(whole).await;
    }
}
