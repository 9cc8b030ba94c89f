//! What goes on in the background: signs of life, events and their acknowledgements, and commits of what has been written
//! for a while.

use crate::file::state::FileState;
use crate::handle::FLUSHES;
use crate::journal::Picture;
use crate::known::leased::LeasedSession;
use crate::meta::session::Alive;
use crate::network::EventStream;
use crate::writeback::WriteBack;
use crate::{Client, Notice, accessed, compact, writeback};
use futures::StreamExt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::Instant;
use wire::ids::{Ino, SessionId};
use wire::limits::LEASE_MS;
use wire::message::event::MetaEvent;
use wire::message::meta::{LeaseState, MetaRequest};
use wire::retry::Backoff;

/// Before the second attempt at a stream of events.
const EVENTS_FIRST: Duration = Duration::from_millis(20);
/// Between looks whether events still come from where they should.
const EVENTS_PAUSE: Duration = Duration::from_secs(1);
/// An acknowledgement that takes longer is of no use: the leases have run out.
const ACKNOWLEDGE_LIMIT: Duration = Duration::from_millis(LEASE_MS);
/// Signs of life while leases are held.
const EXTENSION: Duration = Duration::from_millis(LEASE_MS / 4);
/// After so many rounds without anything to commit, memory for writing is given back.
const IDLE_ROUNDS: u32 = 10;
/// When nothing was committed for so long, servers are away, or as good as that.
const STANDSTILL: Duration = Duration::from_secs(2);
/// Who has more than this uncommitted in one file, and goes on writing, is committed block by block: cut in the midst, it
/// would be written twice, here and into the journal.
const STREAMED: u64 = 1 << 20;
/// Signs of life per lifetime of a session.
const BEATS: u32 = 8;

impl Client {
    pub(crate) fn start_upkeep(self: &Arc<Self>, ttl: Duration) {
        let mut tasks = self.tasks.lock();
        tasks.spawn(keep_alive(self.me.clone(), (ttl / BEATS).min(EXTENSION)));
        tasks.spawn(follow_events(self.me.clone()));
        tasks.spawn(defer_in_background(self.me.clone()));
        tasks.spawn(commit_in_background(self.me.clone()));
        tasks.spawn(compact::run(self.me.clone()));
        tasks.spawn(accessed::run(self.me.clone()));
        tasks.spawn(writeback::run(self.me.clone(), self.writeback.clone()));
    }

    async fn beat(&self, limit: Duration) {
        let layout = self.layouts.newest();
        match self.session.keep_alive(&layout, limit).await {
            Ok(Alive::Yes { orphans, layout, leases, .. }) => {
                if let Some(layout) = layout {
                    self.layouts.learn(layout);
                }
                if leases == LeaseState::None {
                    self.detached.notify_waiters();
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

    /// Takes in an event; nothing is waited for here, because others wait for what comes behind it.
    fn take_event(&self, event: MetaEvent, acknowledge: &Acknowledgements) {
        let cache = &self.known;
        let (seq, believed, told) = match event {
            MetaEvent::Orphaned(inos) => {
                let client = self.arc();
                self.in_background(async move { client.keep_or_release(&inos).await });
                return;
            }
            MetaEvent::LockReleased(_) => return self.lock_released.notify_waiters(),
            MetaEvent::LayoutChanged(_) => return self.beat_soon(),
            MetaEvent::Attached { seq } => {
                let told = self.writeback.tail();
                cache.attached();
                // What is in the kernel's pages may have been read under a lock that is lost.
                for ino in self.held_locks.lost_on() {
                    self.notify(Notice::Changed(ino));
                }
                self.refresh_all_open();
                // Leases are of use once they are extended.
                self.beat_soon();
                match seq {
                    Some(seq) => (seq, None, told),
                    None => return,
                }
            }
            MetaEvent::Recall { seq, inos } => {
                let inos = self.writeback.with_made_in(inos);
                // In this order: what is done from now on does not get into the queue.
                let believed = cache.recall(&inos);
                let told = self.writeback.tail_on(&inos);
                for ino in inos {
                    self.refresh_open(ino);
                }
                (seq, believed, told)
            }
            MetaEvent::Share { seq, inos } => {
                let inos = self.writeback.with_made_in(inos);
                cache.share(&inos);
                (seq, None, self.writeback.tail_on(&inos))
            }
            MetaEvent::RecallAll { seq } => {
                let believed = cache.recall_all();
                self.refresh_all_open();
                (seq, believed, self.writeback.tail())
            }
            MetaEvent::Company { seq } => (seq, cache.company(), None),
        };
        if let Some(told) = told {
            self.writeback.hurry(told);
        }
        let queue = if told.is_some() { &acknowledge.telling } else { &acknowledge.dropping };
        // Nobody takes it only when the stream has ended, and with it the leases.
        let _ = queue.send(Acknowledgement { seq, at: believed, told });
    }

    fn beat_soon(&self) {
        let client = self.arc();
        self.in_background(async move { client.beat(EVENTS_PAUSE).await });
    }

    pub(crate) fn in_background(&self, work: impl Future<Output = ()> + Send + 'static) {
        let work = self.stop.clone().run_until_cancelled_owned(work);
        self.work.spawn_on(work, &self.runtime);
    }

    /// An open file that another session changes shows the new content once it is there, and what is written to it is
    /// based on that.
    pub(crate) fn refresh_open(&self, ino: Ino) {
        if !self.files.lock().contains_key(&ino) || !self.refreshing.lock().insert(ino) {
            return;
        }
        let client = self.arc();
        let refresh = async move {
            // Before asking: a change that comes after the answer asks again.
            client.refreshing.lock().remove(&ino);
            let open = client.files.lock().get(&ino).cloned();
            if let Some(file) = open {
                client.refresh_until_leased(&file).await;
            }
        };
        self.in_background(refresh);
    }

    /// The same for all of them: nobody would tell of changes.
    fn refresh_all_open(&self) {
        let open: Vec<Ino> = self.files.lock().keys().copied().collect();
        for ino in open {
            self.refresh_open(ino);
        }
    }

    /// Puts what has been written to files into the queue, where it can go there and is at most so much of one: servers are
    /// not waited for.
    fn defer_files(&self, most: u64) {
        let due: Vec<_> = self.files.lock().values().filter(|file| file.is_to_be_queued(most)).cloned().collect();
        for file in due {
            if !self.writeback.has_room() {
                return;
            }
            self.defer_content(&file);
        }
    }

    /// Lets the journal have what cannot go into the queue, too, while commits have come to a stand.
    async fn keep_picture(self: &Arc<Self>, stands: bool, picture: &mut Picture) {
        let Some(journal) = &self.journal else { return };
        // On a full disk whoever wrote it was told.
        let kept = if stands && !self.window.is_failing() {
            self.keep_shared(journal, picture).await
        } else if picture.is_empty() {
            return;
        } else {
            self.drop_shared(journal).await.map(|()| Picture::new())
        };
        match kept {
            Ok(kept) => *picture = kept,
            Err(error) => tracing::error!(
                dir = %journal.dir().display(), %error,
                "the journal cannot be written: what was written to files that others use too would not survive this process"
            ),
        }
    }

    async fn commit_one(self: Arc<Self>, file: Arc<FileState>, whole: bool) {
        if whole && self.defer_content(&file) {
            return;
        }
        if let Err(error) = self.flush_file(&file, whole).await {
            tracing::warn!(ino = %file.ino(), %error, "content was not committed as it was written");
        }
        self.forget_if_idle(&file);
    }

    /// Commits what has waited; only what is uploading already when memory is what matters.
    async fn commit_some(self: &Arc<Self>, whole: bool) {
        let files: Vec<_> =
            self.files.lock().values().filter(|file| file.is_to_be_committed(!whole)).cloned().collect();
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

/// An event to be acknowledged, not before this time.
struct Acknowledgement {
    seq: u64,
    at: Option<Instant>,
    /// Nor before metad has been told everything up to this entry.
    told: Option<u64>,
}

/// Events on their way to be acknowledged. What needs nothing to be told does not wait for what does: the other session
/// may have to have it before it can tell what that one waits for.
struct Acknowledgements {
    dropping: UnboundedSender<Acknowledgement>,
    telling: UnboundedSender<Acknowledgement>,
}

impl Acknowledgement {
    fn is_due(&self, queue: &WriteBack) -> bool {
        self.at.is_none_or(|at| at <= Instant::now()) && self.told.is_none_or(|told| queue.is_told(told))
    }
}

async fn follow_events(weak: Weak<Client>) {
    let mut backoff = Backoff::new(EVENTS_FIRST, EVENTS_PAUSE);
    loop {
        {
            let Some(client) = weak.upgrade() else { return };
            // Whoever asks for events has nothing in its caches: metad counts on it.
            if let Some(until) = client.known.empty() {
                tokio::time::sleep_until(until).await;
            }
            // Finds the leader, if it is another one.
            client.beat(EVENTS_PAUSE).await;
            let at = client.stream_source();
            let dirty = client.writeback.tail().is_some();
            let stream = client.session.rpc().events(&MetaRequest::Events { session: at.0, dirty }).await;
            let (session, detached) = (client.session.clone(), client.detached.clone());
            let queue = client.writeback.clone();
            drop(client);
            if let Ok(stream) = stream {
                let (dropping, to_drop) = mpsc::unbounded_channel();
                let (telling, to_tell) = mpsc::unbounded_channel();
                let acknowledge = Acknowledgements { dropping, telling };
                tokio::select! {
                    biased;
                    () = follow(&weak, stream, at, &detached, acknowledge) => {}
                    // What metad asked for by a stream that has ended, it does not wait for any more.
                    () = acknowledge_in_order(&session, &queue, to_drop) => {}
                    () = acknowledge_in_order(&session, &queue, to_tell) => {}
                }
                backoff = Backoff::new(EVENTS_FIRST, EVENTS_PAUSE);
            }
        }
        tokio::time::sleep(backoff.delay()).await;
    }
}

/// Takes events until the stream breaks, or the session or the leader is another one: the old one keeps silent.
async fn follow(
    weak: &Weak<Client>,
    mut stream: Box<dyn EventStream>,
    at: (SessionId, SocketAddr),
    detached: &Notify,
    acknowledge: Acknowledgements,
) {
    let opened = Instant::now();
    loop {
        let event = tokio::select! {
            biased;
            event = tokio::time::timeout(EVENTS_PAUSE, stream.next()) => Some(event),
            () = detached.notified() => None,
        };
        let Some(client) = weak.upgrade() else { return };
        match event {
            Some(Ok(Ok(event))) => client.take_event(event, &acknowledge),
            Some(Ok(Err(_))) => return,
            Some(Err(_)) if client.stream_source() != at => return,
            Some(Err(_)) => {}
            // The request for events may still be on its way.
            None if opened.elapsed() < EVENTS_PAUSE => {}
            None => return,
        }
    }
}

/// Acknowledges events, each when it is time, and the later ones never before the earlier.
async fn acknowledge_in_order(
    session: &LeasedSession,
    queue: &WriteBack,
    mut events: UnboundedReceiver<Acknowledgement>,
) {
    let mut next = events.recv().await;
    while let Some(Acknowledgement { seq, at, told }) = next.take() {
        let mut done = vec![seq];
        if let Some(at) = at {
            tokio::time::sleep_until(at).await;
        }
        if let Some(told) = told {
            // A failed attempt is repeated; metad waits for as long as it sees fit.
            while queue.wait_told(told).await.is_err() {}
        }
        // Those behind it that are due go along.
        loop {
            match events.try_recv() {
                Ok(more) if more.is_due(queue) => done.push(more.seq),
                Ok(more) => break next = Some(more),
                Err(_) => break,
            }
        }
        session.acknowledge(done, ACKNOWLEDGE_LIMIT).await;
        if next.is_none() {
            next = events.recv().await;
        }
    }
}

/// Says when it is time to commit what was written, and lets the journal have it when commits have come to a stand.
async fn defer_in_background(weak: Weak<Client>) {
    let (mut commits, mut since) = (0, Instant::now());
    let mut picture = Picture::new();
    loop {
        let Some(client) = weak.upgrade() else { return };
        let age = client.config.dirty_age;
        client.overdue.notify_one();
        let now = client.window.releases();
        if now != commits || client.window.is_empty() {
            (commits, since) = (now, Instant::now());
        }
        let stands = since.elapsed() > STANDSTILL;
        client.defer_files(if stands { u64::MAX } else { STREAMED });
        client.keep_picture(stands, &mut picture).await;
        drop(client);
        tokio::time::sleep(age).await;
    }
}

async fn commit_in_background(weak: Weak<Client>) {
    let mut idle = 0_u32;
    loop {
        let Some(client) = weak.upgrade() else { return };
        let pressed = tokio::select! {
            biased;
            () = client.window.pressure.notified() => true,
            () = client.overdue.notified() => false,
        };
        // Without room even after what was sealed, scattered small writes are what fills the window.
        let whole = !pressed || !client.window.has_room();
        if pressed && let Some(tail) = client.writeback.tail() {
            client.writeback.hurry(tail);
        }
        client.commit_some(whole).await;
        idle = if client.window.is_empty() { idle + 1 } else { 0 };
        if idle == IDLE_ROUNDS {
            client.buffers.clear();
        }
    }
}
