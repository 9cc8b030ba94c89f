//! The proxy's thread: waits for all sockets at once, and for the next datagram that is due.

use super::{Ends, Proxy, Shared};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Time between two looks whether to stop.
const STOP_CHECK_EVERY: Duration = Duration::from_millis(50);
/// Datagrams taken from one socket before the others have their turn.
const BATCH: usize = 64;
/// A sender that is silent for this long is forgotten: QUIC sends something every second while a connection lives.
const FORGET_AFTER: Duration = Duration::from_secs(30);
/// As large as those of the daemons' endpoints: smaller buffers lose packets at loopback speed.
const BUFFER_BYTES: libc::c_int = 8 << 20;
/// Address of the proxy's own sockets: they never occupy a daemon's port while the daemon is down.
const PROXY_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A socket that stands for a daemon.
struct Front {
    name: Arc<str>,
    socket: UdpSocket,
    daemon: SocketAddr,
}

/// The sender of datagrams, and the front that they go to.
type FlowId = (usize, SocketAddr);

/// The path of one sender's datagrams to one daemon, and of the answers.
struct Flow {
    /// Connected to the daemon.
    socket: UdpSocket,
    there: Ends,
    back: Ends,
    generation: u64,
    heard: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Direction {
    There,
    Back,
}

/// A datagram that goes on later. The fields are in the order by which datagrams are sorted; `number` preserves that of
/// arrival.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due: Instant,
    number: u64,
    flow: FlowId,
    direction: Direction,
    bytes: Vec<u8>,
}

pub(super) struct Forwarder {
    shared: Arc<Shared>,
    fronts: Vec<Front>,
    flows: HashMap<FlowId, Flow>,
    waiting: BinaryHeap<Reverse<Waiting>>,
    number: u64,
}

fn socket() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((PROXY_ADDRESS, 0))?;
    socket.set_nonblocking(true)?;
    let value = BUFFER_BYTES;
    for option in [libc::SO_RCVBUF, libc::SO_SNDBUF, libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        // Only root may set the forced sizes, and others get an error; the plain ones are enough for tests.
        // SAFETY: the descriptor is open, and `value` is an int.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
    }
    Ok(socket)
}

impl Forwarder {
    pub(super) fn new(shared: Arc<Shared>, daemons: &[(String, SocketAddr)]) -> io::Result<Self> {
        let front = |(name, daemon): &(String, SocketAddr)| {
            Ok(Front { name: name.as_str().into(), socket: socket()?, daemon: *daemon })
        };
        let fronts = daemons.iter().map(front).collect::<io::Result<_>>()?;
        Ok(Self { shared, fronts, flows: HashMap::new(), waiting: BinaryHeap::new(), number: 0 })
    }

    pub(super) fn fronts(&self) -> io::Result<Vec<(String, SocketAddr)>> {
        self.fronts.iter().map(|front| Ok((front.name.to_string(), front.socket.local_addr()?))).collect()
    }

    pub(super) fn run(mut self) {
        let mut buffer = vec![0; 64 << 10];
        while !self.shared.stop.load(Ordering::SeqCst) {
            let ids: Vec<FlowId> = self.flows.keys().copied().collect();
            let ready = self.wait(&ids);
            self.send_what_is_due();
            let (fronts, flows) = ready.split_at(self.fronts.len());
            for index in (0..fronts.len()).filter(|index| fronts[*index]) {
                self.take_from_front(index, &mut buffer);
            }
            for (id, _) in ids.iter().zip(flows).filter(|(_, ready)| **ready) {
                self.take_from_daemon(*id, &mut buffer);
            }
            self.flows.retain(|_, flow| flow.heard.elapsed() < FORGET_AFTER);
        }
    }

    /// Returns which of the fronts, and then of these flows, have a datagram.
    fn wait(&self, ids: &[FlowId]) -> Vec<bool> {
        let until_due =
            self.waiting.peek().map_or(STOP_CHECK_EVERY, |first| first.0.due.saturating_duration_since(Instant::now()));
        let sockets = self.fronts.iter().map(|front| &front.socket).chain(ids.iter().map(|id| &self.flows[id].socket));
        let mut polled: Vec<libc::pollfd> =
            sockets.map(|socket| libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
        // Rounded up: a datagram that is due in part of a millisecond is no reason to spin.
        let limit_ms = until_due.min(STOP_CHECK_EVERY).as_micros().div_ceil(1000) as libc::c_int;
        // SAFETY: the pointer and the count are those of one vector, whose descriptors are open.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, limit_ms) };
        // An error counts too: receiving takes it off the socket.
        polled.iter().map(|polled| polled.revents != 0).collect()
    }

    fn send_what_is_due(&mut self) {
        let now = Instant::now();
        while self.waiting.peek().is_some_and(|first| first.0.due <= now) {
            if let Some(Reverse(datagram)) = self.waiting.pop() {
                self.send(datagram.flow, datagram.direction, &datagram.bytes);
            }
        }
    }

    fn take_from_front(&mut self, index: usize, buffer: &mut [u8]) {
        for _ in 0..BATCH {
            let (len, source) = match self.fronts[index].socket.recv_from(buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The receiver of an answer is gone.
                Err(_) => continue,
            };
            let id = (index, source);
            // Without a socket for its flow the datagram is lost, as datagrams may be.
            if let Ok(ends) = self.ends_of(id) {
                self.pass(id, Direction::There, &ends, &buffer[..len]);
            }
        }
    }

    fn take_from_daemon(&mut self, id: FlowId, buffer: &mut [u8]) {
        for _ in 0..BATCH {
            let Some(flow) = self.flows.get(&id) else { return };
            let len = match flow.socket.recv(buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The daemon is gone.
                Err(_) => continue,
            };
            let ends = flow.back.clone();
            self.pass(id, Direction::Back, &ends, &buffer[..len]);
        }
    }

    /// Returns sender and receiver of the datagrams of a flow; makes the flow if there is none.
    fn ends_of(&mut self, id: FlowId) -> io::Result<Ends> {
        let generation = self.shared.generation.load(Ordering::SeqCst);
        let known = self.flows.get_mut(&id).filter(|flow| flow.generation == generation);
        if let Some(flow) = known {
            flow.heard = Instant::now();
            return Ok(flow.there.clone());
        }
        let (index, source) = id;
        let sender = self.sender(source);
        let receiver = self.fronts[index].name.clone();
        let socket = match self.flows.remove(&id) {
            Some(flow) => flow.socket,
            None => {
                let socket = socket()?;
                socket.connect(self.fronts[index].daemon)?;
                socket
            }
        };
        let (there, back) = ((sender.clone(), receiver.clone()), (receiver, sender));
        self.flows.insert(id, Flow { socket, there: there.clone(), back, generation, heard: Instant::now() });
        Ok(there)
    }

    fn sender(&self, source: SocketAddr) -> Arc<str> {
        if let Some(front) = self.fronts.iter().find(|front| front.daemon == source) {
            return front.name.clone();
        }
        self.shared.rules().ports.get(&source.port()).cloned().unwrap_or_else(|| Proxy::OTHERS.into())
    }

    fn pass(&mut self, id: FlowId, direction: Direction, ends: &Ends, bytes: &[u8]) {
        let delays = self.shared.decide(ends);
        for delay in delays.into_iter().flatten() {
            if delay.is_zero() {
                self.send(id, direction, bytes);
            } else {
                self.number += 1;
                let (due, bytes) = (Instant::now() + delay, bytes.to_vec());
                self.waiting.push(Reverse(Waiting { due, number: self.number, flow: id, direction, bytes }));
            }
        }
    }

    /// Sends a datagram. It is lost if it cannot be sent now, as datagrams may be.
    fn send(&self, id: FlowId, direction: Direction, bytes: &[u8]) {
        let Some(flow) = self.flows.get(&id) else { return };
        let _ = match direction {
            Direction::There => flow.socket.send(bytes),
            Direction::Back => self.fronts[id.0].socket.send_to(bytes, id.1),
        };
    }
}
