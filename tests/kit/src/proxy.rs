//! A proxy between the daemons and everybody else. It delays, drops, duplicates, reorders and cuts datagrams.
//!
//! Before each daemon stands a *front*, a socket on loopback. The daemons know and pass on only the addresses of the
//! fronts (see [`crate::Surf::start_behind_proxy`]), so all traffic of mounts, of operators and between daemons goes
//! through the proxy. A datagram to a front goes on to the daemon from a socket that belongs to the datagram's sender
//! (a *flow*), and answers go back the same way. QUIC does not notice: its packets belong to connections by their ids,
//! and addresses do not change.
//!
//! The port identifies the sender: a daemon sends from the port on which it serves, and the kernel's tables say which
//! ports a mount has open. So each *link*, a sender and a receiver, can be treated separately in each direction,
//! whichever of the two began the connection. Nothing here needs root.

mod forward;
mod origin;

use crate::chance::Chance;
use forward::Forwarder;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A datagram that others are to overtake is held back for at most this time.
const REORDER_MAX: Duration = Duration::from_millis(20);

/// Treatment of the datagrams of one direction. By default, all pass at once.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Link {
    /// None passes.
    pub cut: bool,
    /// Each takes this long.
    pub delay: Duration,
    /// Each takes longer by a random time of up to this.
    pub jitter: Duration,
    /// Probability that one is lost.
    pub drop: f64,
    /// Probability that one arrives twice.
    pub duplicate: f64,
    /// Probability that one is held back, so that later ones overtake it.
    pub reorder: f64,
}

impl Link {
    /// Nothing passes.
    pub const CUT: Self = Self { cut: true, ..Self::GOOD };
    /// All pass at once.
    pub const GOOD: Self =
        Self { cut: false, delay: Duration::ZERO, jitter: Duration::ZERO, drop: 0.0, duplicate: 0.0, reorder: 0.0 };
    /// Much of the harm that networks do, all at once.
    pub const BAD: Self = Self {
        cut: false,
        delay: Duration::from_millis(5),
        jitter: Duration::from_millis(20),
        drop: 0.02,
        duplicate: 0.02,
        reorder: 0.05,
    };

    /// Each datagram takes this long, and up to twice as long.
    #[must_use]
    pub const fn slow(delay: Duration) -> Self {
        Self { delay, jitter: delay, ..Self::GOOD }
    }

    /// Returns the delays of the copies of a datagram that arrive.
    fn delays(&self, chance: &mut Chance) -> [Option<Duration>; 2] {
        if self.cut || chance.happens(self.drop) {
            return [None, None];
        }
        let mut after = |most: Duration| Duration::from_nanos(chance.below(most.as_nanos() as u64 + 1));
        let (first, second) = (self.delay + after(self.jitter), self.delay + after(self.jitter.max(REORDER_MAX)));
        let held = after(REORDER_MAX);
        let first = if chance.happens(self.reorder) { first + held } else { first };
        [Some(first), chance.happens(self.duplicate).then_some(second)]
    }
}

/// Numbers of datagrams so far, by what happened to them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Went on at once.
    pub passed: u64,
    /// Went on later.
    pub delayed: u64,
    /// Went on twice.
    pub duplicated: u64,
    /// Were lost by chance.
    pub dropped: u64,
    /// Did not pass a link that is cut.
    pub cut: u64,
}

#[derive(Default)]
struct Counters {
    passed: AtomicU64,
    delayed: AtomicU64,
    duplicated: AtomicU64,
    dropped: AtomicU64,
    cut: AtomicU64,
}

/// A sender and a receiver.
type Ends = (Arc<str>, Arc<str>);

/// Rules that can be changed while datagrams pass.
struct Rules {
    seed: u64,
    links: HashMap<Ends, (Link, Chance)>,
    /// The sender on each port that is no daemon's.
    ports: HashMap<u16, Arc<str>>,
}

struct Shared {
    rules: Mutex<Rules>,
    /// Grows when the senders on all ports must be looked up anew.
    generation: AtomicU64,
    counters: Counters,
    stop: AtomicBool,
}

impl Shared {
    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides after which delays copies of a datagram go on, and counts that.
    fn decide(&self, ends: &Ends) -> [Option<Duration>; 2] {
        let count = |counter: &AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        let mut rules = self.rules();
        let Some((link, chance)) = rules.links.get_mut(ends) else {
            count(&self.counters.passed);
            return [Some(Duration::ZERO), None];
        };
        let delays = link.delays(chance);
        match delays {
            [None, _] if link.cut => count(&self.counters.cut),
            [None, _] => count(&self.counters.dropped),
            [Some(Duration::ZERO), _] => count(&self.counters.passed),
            [Some(_), _] => count(&self.counters.delayed),
        }
        if delays[1].is_some() {
            count(&self.counters.duplicated);
        }
        delays
    }
}

/// A running proxy. Dropping it closes every front.
pub struct Proxy {
    shared: Arc<Shared>,
    fronts: Vec<(String, SocketAddr)>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Name of senders that are neither daemons nor named by [`Proxy::name_process`]: operators' commands.
    pub const OTHERS: &str = "others";

    /// Starts a proxy before daemons, given by name and address.
    ///
    /// # Errors
    /// When loopback has no free port.
    pub fn start(daemons: &[(String, SocketAddr)], seed: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            rules: Mutex::new(Rules { seed, links: HashMap::new(), ports: HashMap::new() }),
            generation: AtomicU64::new(0),
            counters: Counters::default(),
            stop: AtomicBool::new(false),
        });
        let forwarder = Forwarder::new(shared.clone(), daemons)?;
        let fronts = forwarder.fronts()?;
        let thread = std::thread::Builder::new().name("proxy".to_owned()).spawn(move || forwarder.run())?;
        Ok(Self { shared, fronts, thread: Some(thread) })
    }

    /// The address that others are to use for a daemon.
    ///
    /// # Panics
    /// When there is none of that name.
    #[must_use]
    pub fn front(&self, daemon: &str) -> SocketAddr {
        self.fronts.iter().find(|(name, _)| name == daemon).expect("a front stands before the daemon").1
    }

    /// Names of the daemons.
    #[must_use]
    pub fn daemons(&self) -> Vec<String> {
        self.fronts.iter().map(|(name, _)| name.clone()).collect()
    }

    /// From now on, `name` is the sender of datagrams from the present sockets of this process, and of no others.
    /// Returns the number of these sockets.
    pub fn name_process(&self, pid: u32, name: &str) -> usize {
        let ports = origin::ports_of(pid);
        let mut rules = self.shared.rules();
        // A process that is gone may have left its ports, and its name, to another.
        rules.ports.retain(|_, known| &**known != name);
        rules.ports.extend(ports.iter().map(|port| (*port, Arc::from(name))));
        drop(rules);
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
        ports.len()
    }

    /// From now on, datagrams from each of `senders` to each of `receivers` are treated like this; those on their way
    /// arrive as before.
    pub fn set(&self, senders: &[impl AsRef<str>], receivers: &[impl AsRef<str>], link: Link) {
        let mut rules = self.shared.rules();
        for sender in senders {
            for receiver in receivers {
                let (sender, receiver) = (sender.as_ref(), receiver.as_ref());
                let chance = Chance::of(rules.seed, &format!("{sender} {receiver}"));
                let known = rules.links.entry((sender.into(), receiver.into())).or_insert((link, chance));
                known.0 = link;
            }
        }
    }

    /// Sets the treatment of both directions, as [`Proxy::set`] does for one.
    pub fn set_both(&self, ones: &[impl AsRef<str>], others: &[impl AsRef<str>], link: Link) {
        self.set(ones, others, link);
        self.set(others, ones, link);
    }

    /// Cuts a daemon off from the other daemons, or a mount from all daemons, in both directions.
    pub fn isolate(&self, name: &str) {
        let others: Vec<String> = self.daemons().into_iter().filter(|daemon| daemon != name).collect();
        self.set_both(&[name], &others, Link::CUT);
    }

    /// Makes all links good again.
    pub fn heal(&self) {
        for (link, _) in self.shared.rules().links.values_mut() {
            *link = Link::GOOD;
        }
    }

    /// Returns the numbers of datagrams so far, by what happened to them.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let counters = &self.shared.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            passed: get(&counters.passed),
            delayed: get(&counters.delayed),
            duplicated: get(&counters.duplicated),
            dropped: get(&counters.dropped),
            cut: get(&counters.cut),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
