//! Where quinn's tasks and timers run: on the network thread, whichever thread asks for them.
//!
//! quinn's endpoint reads packets for 50 µs in each of its turns, and then waits until every connection that has work
//! has had a turn, too. With hundreds of connections on one thread it reads more slowly than packets arrive: they wait
//! for seconds in the socket's buffer, those of Raft among them, or are lost, and all peers send theirs again. So the
//! endpoint takes several turns in a row while it has more to read.

use std::future::Future;
use std::io;
use std::net::UdpSocket;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;
use tokio::runtime::Handle;

/// Turns that the endpoint takes in a row: about 400 µs. Other tasks wait for that long while packets come without end.
const TURNS_MAX: usize = 8;

/// quinn's runtime for one endpoint.
#[derive(Debug)]
pub(super) struct Driver {
    handle: Handle,
    /// Whether the endpoint's own task was spawned. It is the first that quinn spawns; all later ones are of connections.
    reads: AtomicBool,
}

impl Driver {
    pub(super) fn new(handle: Handle) -> Self {
        Self { handle, reads: AtomicBool::new(false) }
    }
}

impl quinn::Runtime for Driver {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn quinn::AsyncTimer>> {
        let _inside = self.handle.enter();
        quinn::TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        if self.reads.swap(true, Ordering::Relaxed) {
            self.handle.spawn(future);
        } else {
            self.handle.spawn(Eager::new(future));
        }
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        let _inside = self.handle.enter();
        quinn::TokioRuntime.wrap_udp_socket(socket)
    }
}

/// A task that takes its next turn at once when it asks for one during a turn, a few times in a row.
struct Eager<F> {
    task: F,
    /// The waker that the task gets in place of the runtime's; made in the first turn.
    waker: Option<(Arc<Noticed>, Waker)>,
}

/// Wakes the task, and notes that it asked for another turn.
struct Noticed {
    asked: AtomicBool,
    task: Waker,
}

impl Wake for Noticed {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.asked.store(true, Ordering::Relaxed);
        self.task.wake_by_ref();
    }
}

impl<F> Eager<F> {
    fn new(task: F) -> Self {
        Self { task, waker: None }
    }
}

impl<F: Future + Unpin> Future for Eager<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        // tokio gives a task the same waker in every turn, so the one made in the first turn stays right.
        let (noticed, waker) = this.waker.get_or_insert_with(|| {
            let noticed = Arc::new(Noticed { asked: AtomicBool::new(false), task: cx.waker().clone() });
            (noticed.clone(), Waker::from(noticed))
        });
        for _ in 0..TURNS_MAX {
            noticed.asked.store(false, Ordering::Relaxed);
            if let Poll::Ready(output) = Pin::new(&mut this.task).poll(&mut Context::from_waker(waker)) {
                return Poll::Ready(output);
            }
            if !noticed.asked.load(Ordering::Relaxed) {
                break;
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;
    use tokio::sync::Notify;

    /// Wakes itself in each turn, and counts them.
    fn busy(turns: Arc<AtomicUsize>) -> impl Future<Output = ()> + Unpin {
        poll_fn(move |cx| {
            turns.fetch_add(1, Ordering::Relaxed);
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    #[tokio::test]
    async fn a_task_with_more_to_do_takes_several_turns_before_others_have_one_and_leaves_them_theirs() {
        let turns = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(Eager::new(busy(turns.clone())));
        let mut seen = Vec::new();
        let other = poll_fn(move |cx| {
            seen.push(turns.load(Ordering::Relaxed));
            cx.waker().wake_by_ref();
            if seen.len() == 4 { Poll::Ready(std::mem::take(&mut seen)) } else { Poll::Pending }
        });
        let seen = tokio::spawn(other).await.unwrap();
        assert!(seen.windows(2).all(|pair| pair[1] - pair[0] == TURNS_MAX), "{seen:?}");
        task.abort();
    }

    #[tokio::test]
    async fn a_task_that_waits_is_woken_and_ends() {
        let (ready, turns) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        let (notified, counted) = (ready.clone(), turns.clone());
        let mut waiting = Box::pin(async move { notified.notified().await });
        let task = tokio::spawn(Eager::new(poll_fn(move |cx| {
            counted.fetch_add(1, Ordering::Relaxed);
            waiting.as_mut().poll(cx)
        })));
        tokio::task::yield_now().await;
        assert_eq!(turns.load(Ordering::Relaxed), 1, "it waits, and takes no further turn");
        ready.notify_one();
        task.await.unwrap();
        assert_eq!(turns.load(Ordering::Relaxed), 2);
    }
}
