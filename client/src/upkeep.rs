//! What goes on in the background: signs of life, events, and commits of what has been written for a while.

use crate::file::state::FileState;
use crate::handle::FLUSHES;
use crate::meta::session::Alive;
use crate::{Client, Notice, accessed, compact};
use futures::StreamExt;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use wire::ids::{Ino, SessionId};
use wire::message::event::MetaEvent;
use wire::message::meta::MetaRequest;
use wire::quic::EventReceiver;

/// Between attempts at a stream of events.
const EVENTS_PAUSE: Duration = Duration::from_secs(1);
/// After so many rounds without anything to commit, memory for writing is given back.
const IDLE_ROUNDS: u32 = 10;
/// Signs of life per lifetime of a session.
const BEATS: u32 = 8;

impl Client {
    pub(crate) fn start_upkeep(self: &Arc<Self>, ttl: Duration) {
        let mut tasks = self.tasks.lock();
        tasks.spawn(keep_alive(self.me.clone(), ttl / BEATS));
        tasks.spawn(follow_events(self.me.clone()));
        tasks.spawn(commit_in_background(self.me.clone()));
        tasks.spawn(compact::run(self.me.clone()));
        tasks.spawn(accessed::run(self.me.clone()));
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

    /// Whose events are followed, and where.
    fn stream_source(&self) -> (SessionId, SocketAddr) {
        (self.session.id(), self.session.rpc().leader())
    }

    async fn take_event(&self, event: MetaEvent) {
        match event {
            MetaEvent::Orphaned(inos) => self.keep_or_release(&inos).await,
            MetaEvent::LockReleased(_) => self.lock_released.notify_waiters(),
            MetaEvent::LayoutChanged(_) => self.beat(EVENTS_PAUSE).await,
            MetaEvent::Changed(ino) => {
                self.refresh_open(ino);
                // Nobody listens while there is no mount.
                let _ = self.notices.send(Notice::Changed(ino));
            }
            MetaEvent::NameChanged { parent, name } => {
                self.names.lock().pop(&(parent, name.clone()));
                let _ = self.notices.send(Notice::NameChanged { parent, name });
            }
        }
    }

    /// An open file that another session has changed shows the new content from now on, and what is written to it is
    /// based on that.
    fn refresh_open(&self, ino: Ino) {
        if !self.files.lock().contains_key(&ino) || !self.refreshing.lock().insert(ino) {
            return;
        }
        let client = self.arc();
        let refresh = async move {
            // Before asking: a change that comes after the answer asks again.
            client.refreshing.lock().remove(&ino);
            let attr = client.getattr(ino).await;
            let open = client.files.lock().get(&ino).cloned();
            if let (Ok(attr), Some(file)) = (attr, open) {
                file.refresh(&attr, None);
            }
        };
        self.work.spawn_on(self.stop.clone().run_until_cancelled_owned(refresh), &self.runtime);
    }

    async fn commit_one(self: Arc<Self>, file: Arc<FileState>, whole: bool) {
        if let Err(error) = self.flush_file(&file, whole).await {
            tracing::warn!(ino = %file.ino(), %error, "content was not committed as it was written");
        }
        self.forget_if_idle(&file);
    }

    /// Commits what has waited; only what is uploading already when memory is what matters.
    async fn commit_some(self: &Arc<Self>, whole: bool) {
        let due = |file: &Arc<FileState>| {
            let inner = file.inner.lock();
            // What the policy refuses waits for somebody to ask.
            inner.held > 0 && !inner.refused
        };
        let files: Vec<_> = self.files.lock().values().filter(|file| due(file)).cloned().collect();
        let commits = files.into_iter().map(|file| self.clone().commit_one(file, whole));
        futures::stream::iter(commits).buffer_unordered(FLUSHES).collect::<()>().await;
    }
}

async fn keep_alive(client: Weak<Client>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(client) = client.upgrade() else { return };
        client.beat(every).await;
    }
}

async fn follow_events(weak: Weak<Client>) {
    loop {
        let (stream, at) = {
            let Some(client) = weak.upgrade() else { return };
            let at = client.stream_source();
            (client.session.rpc().events(&MetaRequest::Events { session: at.0 }).await, at)
        };
        if let Ok(stream) = stream {
            follow(&weak, stream, at).await;
        }
        tokio::time::sleep(EVENTS_PAUSE).await;
    }
}

/// Takes events until the stream breaks, or the session or the leader is another one: the old one keeps silent.
async fn follow(weak: &Weak<Client>, mut stream: EventReceiver, at: (SessionId, SocketAddr)) {
    loop {
        let event = tokio::time::timeout(EVENTS_PAUSE, stream.next::<MetaEvent>()).await;
        let Some(client) = weak.upgrade() else { return };
        match event {
            Ok(Ok(event)) => client.take_event(event).await,
            Ok(Err(_)) => return,
            Err(_) if client.stream_source() != at => return,
            Err(_) => {}
        }
    }
}

async fn commit_in_background(weak: Weak<Client>) {
    let mut whole_at = Instant::now();
    let mut idle = 0_u32;
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
        idle = if client.window.is_empty() { idle + 1 } else { 0 };
        if idle == IDLE_ROUNDS {
            client.buffers.clear();
        }
    }
}
