use super::*;
use crate::wait::until;
use std::net::UdpSocket;

const LIMIT: Duration = Duration::from_secs(10);

/// A daemon that receives datagrams, and a talker that sends them through the proxy.
struct Pair {
    proxy: Proxy,
    daemon: UdpSocket,
    talker: UdpSocket,
}

fn receive(socket: &UdpSocket) -> Option<(String, SocketAddr)> {
    let mut buffer = [0; 100];
    let (len, from) = socket.recv_from(&mut buffer).ok()?;
    Some((String::from_utf8_lossy(&buffer[..len]).into_owned(), from))
}

impl Pair {
    fn new(seed: u64) -> Self {
        let socket = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let (daemon, talker) = (socket(), socket());
        let proxy = Proxy::start(&[("daemon".to_owned(), daemon.local_addr().unwrap())], seed).unwrap();
        proxy.name_process(std::process::id(), "talker");
        Self { proxy, daemon, talker }
    }

    fn send(&self, text: &str) {
        self.talker.send_to(text.as_bytes(), self.proxy.front("daemon")).unwrap();
    }

    fn received(&self, count: usize) -> Vec<String> {
        let mut received = Vec::new();
        until("the daemon has received it", LIMIT, || {
            received.extend(std::iter::from_fn(|| receive(&self.daemon)).map(|(text, _)| text));
            (received.len() >= count).then_some(())
        });
        received
    }

    /// Returns the arrivals of many numbered datagrams: when this returns, all are decided on, and none is under way.
    fn received_of_many(&self, link: Link) -> Vec<String> {
        self.proxy.set(&["talker"], &["daemon"], link);
        for number in 0..200 {
            self.send(&number.to_string());
        }
        until("all are decided on", LIMIT, || {
            let counts = self.proxy.counts();
            (counts.passed + counts.delayed + counts.dropped + counts.cut == 200).then_some(())
        });
        let counts = self.proxy.counts();
        self.received((counts.passed + counts.delayed + counts.duplicated) as usize)
    }
}

#[test]
fn questions_and_answers_pass() {
    let pair = Pair::new(1);
    pair.send("question");
    let (text, from) = until("a question", LIMIT, || receive(&pair.daemon));
    assert_eq!(text, "question");
    pair.daemon.send_to(b"answer", from).unwrap();
    let (text, from) = until("an answer", LIMIT, || receive(&pair.talker));
    assert_eq!((text.as_str(), from), ("answer", pair.proxy.front("daemon")));
    assert_eq!(pair.proxy.counts(), Counts { passed: 2, ..Counts::default() });
}

#[test]
fn each_direction_is_cut_separately_and_healed() {
    let pair = Pair::new(1);
    pair.send("question");
    let (_, from) = until("a question", LIMIT, || receive(&pair.daemon));
    pair.proxy.set(&["daemon"], &["talker"], Link::CUT);
    pair.daemon.send_to(b"lost", from).unwrap();
    pair.send("another");
    assert_eq!(pair.received(1), ["another"]);
    until("the answer is lost", LIMIT, || (pair.proxy.counts().cut == 1).then_some(()));
    pair.proxy.heal();
    pair.proxy.set(&["talker"], &["daemon"], Link::CUT);
    pair.daemon.send_to(b"answer", from).unwrap();
    assert_eq!(until("an answer", LIMIT, || receive(&pair.talker)).0, "answer");
    pair.send("lost");
    until("the question is lost", LIMIT, || (pair.proxy.counts().cut == 2).then_some(()));
    pair.proxy.heal();
    pair.send("last");
    assert_eq!(pair.received(1), ["last"]);
}

#[test]
fn a_sender_is_known_by_its_process_and_others_are_left_alone() {
    let pair = Pair::new(1);
    pair.proxy.name_process(1, "talker");
    pair.proxy.set(&["talker"], &["daemon"], Link::CUT);
    pair.send("from others");
    assert_eq!(pair.received(1), ["from others"]);
    pair.proxy.name_process(std::process::id(), "talker");
    pair.send("lost");
    until("it is cut", LIMIT, || (pair.proxy.counts().cut == 1).then_some(()));
}

#[test]
fn the_same_seed_loses_the_same_datagrams() {
    let link = Link { drop: 0.3, ..Link::GOOD };
    let received = Pair::new(5).received_of_many(link);
    assert!((100..180).contains(&received.len()), "{}", received.len());
    assert_eq!(received, Pair::new(5).received_of_many(link));
    assert_ne!(received, Pair::new(6).received_of_many(link));
}

#[test]
fn datagrams_are_duplicated_and_overtake_each_other() {
    let received = Pair::new(1).received_of_many(Link { duplicate: 0.2, reorder: 0.2, ..Link::GOOD });
    assert!((220..280).contains(&received.len()), "{}", received.len());
    let numbers: Vec<u32> = received.iter().map(|text| text.parse().unwrap()).collect();
    assert!(!numbers.is_sorted());
    assert_eq!(numbers.iter().collect::<std::collections::BTreeSet<_>>().len(), 200, "none is lost");
}

#[test]
fn a_slow_link_delays_each_by_its_time_at_least() {
    let pair = Pair::new(1);
    let delay = Duration::from_millis(100);
    pair.proxy.set(&["talker"], &["daemon"], Link::slow(delay));
    let started = std::time::Instant::now();
    pair.send("late");
    assert_eq!(pair.received(1), ["late"]);
    assert!(started.elapsed() >= delay);
    assert_eq!(pair.proxy.counts(), Counts { delayed: 1, ..Counts::default() });
}
