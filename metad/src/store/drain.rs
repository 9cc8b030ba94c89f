//! The thread that writes changes from the overlay to the disk.

use super::Disk;
use super::overlay::Overlay;
use parking_lot::{Condvar, Mutex};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long changes gather before they are written, so that keys that change all the time are written seldom.
const GATHER_TIME: Duration = Duration::from_millis(200);
/// With changes of this many keys, they are written without gathering more.
const GATHERED_KEYS: usize = 10_000;
/// Nothing is added beyond this many keys while the disk is behind: about 50 MB.
const KEYS_MAX: usize = 200_000;

/// The thread. It writes everything before it ends, and ends when this is dropped, or when the node stops on a full disk.
pub(super) struct Drain {
    overlay: Arc<Overlay>,
    state: Arc<(Mutex<State>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    /// When changes began to gather; `None` when there are none.
    since: Option<Instant>,
    /// Whether somebody waits for the write.
    urgent: bool,
    /// Rounds of writing that have begun, and that have ended.
    begun: u64,
    ended: u64,
    /// Whether the store is being closed.
    ending: bool,
    /// The thread has given up, because the node stops on a full disk.
    gave_up: bool,
}

impl Drain {
    pub(super) fn start(disk: &Disk, overlay: &Arc<Overlay>) -> io::Result<Self> {
        let state = Arc::default();
        let thread = {
            let (disk, overlay, state) = (disk.clone(), overlay.clone(), Arc::clone(&state));
            std::thread::Builder::new().name("state-writer".to_owned()).spawn(move || run(&disk, &overlay, &state))?
        };
        Ok(Self { overlay: overlay.clone(), state, thread: Some(thread) })
    }

    /// Records that changes were added.
    pub(super) fn wake(&self) {
        let (state, changed) = &*self.state;
        let mut state = state.lock();
        let first = state.since.is_none();
        state.since.get_or_insert_with(Instant::now);
        if first || self.overlay.gathered() >= GATHERED_KEYS {
            changed.notify_all();
        }
    }

    /// Returns whether [`Drain::wait_for_room`] would wait.
    pub(super) fn is_behind(&self) -> bool {
        self.overlay.gathered() >= KEYS_MAX
    }

    /// Waits while too much has gathered.
    pub(super) fn wait_for_room(&self) {
        if self.is_behind() {
            self.now();
        }
    }

    /// Writes everything that was added before to the disk, unless that was given up. Blocks.
    pub(super) fn now(&self) {
        let (state, changed) = &*self.state;
        let mut state = state.lock();
        // A round under way may have begun too early.
        let wanted = state.begun + 1;
        while state.since.is_some() && state.ended < wanted && !state.gave_up {
            state.urgent = true;
            changed.notify_all();
            changed.wait(&mut state);
        }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.state.0.lock().ending = true;
        self.state.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // A failed write would have ended the process, so the thread cannot have failed.
            let _ = thread.join();
        }
    }
}

fn run(disk: &Disk, overlay: &Overlay, (state, changed): &(Mutex<State>, Condvar)) {
    let mut state = state.lock();
    loop {
        let hurry = state.urgent || state.ending || overlay.gathered() >= GATHERED_KEYS;
        match state.since {
            None if state.ending => return,
            None => changed.wait(&mut state),
            Some(since) if !hurry && since.elapsed() < GATHER_TIME => {
                changed.wait_for(&mut state, GATHER_TIME - since.elapsed().min(GATHER_TIME));
            }
            Some(_) => {
                state.begun += 1;
                state.urgent = false;
                let is_written = parking_lot::MutexGuard::unlocked(&mut state, || {
                    let taken = overlay.take();
                    let is_written = disk.write(taken.iter().map(|(key, change)| (key, change.as_ref())));
                    if is_written {
                        overlay.written();
                    }
                    is_written
                });
                if !is_written {
                    // They stay visible to the end. The log has them.
                    state.gave_up = true;
                    changed.notify_all();
                    return;
                }
                state.ended = state.begun;
                state.since = (overlay.gathered() > 0).then(Instant::now);
                changed.notify_all();
            }
        }
    }
}
