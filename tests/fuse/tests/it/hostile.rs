//! Liars with certificates of the cluster, one after the other, beside an honest mount of real daemons. Whatever they
//! do, the mount goes on within its normal times, no daemon ends or loses the lead, and none takes more memory than it
//! may.
//!
//! The table in docs/security.md lists what is tried; this is all of it that a client can do at any time. What exactly
//! keeps each liar from more has tests beside the code.

mod attacks;

use crate::flood::first_packets;
use attacks::{
    Prey, attach_dirty, begin_handshakes, fill_batches, hurry_puts, ignore_answers, ignore_events, nest_operations,
    open_sessions, owe_payloads, read_without_end, send_large_heads, send_long_lists,
};
use fuse::{Stop, random, sync_file};
use kit::fault::{is_alive, peak_memory};
use kit::surf::{Another, Daemon};
use kit::{Setup, Surf};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// How long each of them goes on.
const ATTACK: Duration = Duration::from_secs(2);
/// Within this time it ends once it is told to.
const END_LIMIT: Duration = Duration::from_secs(30);
/// The longest that one operation of the honest mount may take, as beside many sessions and beside a flood.
const NORMAL: Duration = Duration::from_secs(5);
/// Memory that a metad may have, as beside many sessions.
const METAD_BYTES_MAX: u64 = 512 << 20;
/// Memory that a block daemon may have: answers that one certificate does not fetch, and as much as it has otherwise.
const BLOCKD_BYTES_MAX: u64 = (512 + 256) << 20;
/// First packets of different connections, none of which goes on.
const PACKETS: usize = 64;
/// Connections with one certificate, on which nobody reads answers.
const CONNECTIONS: usize = 3;
/// Lengths of files: content in the metadata, and in a block.
const LENGTHS: [usize; 2] = [4_000, 20_000];

/// Those who must not notice anything.
struct Honest {
    /// Reads what the other mount has written. Unmounted before the daemons stop.
    reader: Another,
    surf: Surf,
    daemons: Vec<Daemon>,
    term: u64,
    files: usize,
}

impl Honest {
    fn start() -> Self {
        let surf = Surf::start_alone(Setup::Cluster);
        fs::create_dir(surf.path().join("honest")).expect("a directory is made");
        let (reader, daemons, term) = (surf.mount_again(&[]), surf.daemons(), surf.term());
        Self { reader, surf, daemons, term, files: 0 }
    }

    /// Makes, writes, syncs and reads files until the time is over. Returns the longest time that anything took.
    fn work(&mut self) -> Duration {
        let (begun, mut longest) = (Instant::now(), Duration::ZERO);
        while begun.elapsed() < ATTACK {
            let name = format!("honest/{}", self.files);
            let content = random(self.files as u64, LENGTHS[self.files % LENGTHS.len()]);
            let written = sync_file(&self.surf.path().join(&name), &content);
            let started = Instant::now();
            assert!(fs::read(self.reader.path().join(&name)).expect("the other mount reads it") == content, "{name}");
            longest = longest.max(written).max(started.elapsed());
            self.files += 1;
        }
        longest
    }

    fn assert_unharmed(&self, what: &str) {
        for Daemon { name, pid, .. } in &self.daemons {
            assert!(is_alive(*pid) && self.surf.daemon(name).pid == *pid, "{what}: {name} has ended");
            let most = if name.starts_with("metad") { METAD_BYTES_MAX } else { BLOCKD_BYTES_MAX };
            let peak = peak_memory(*pid);
            assert!(peak < most, "{what}: {name} used {} MiB", peak >> 20);
        }
        assert_eq!(self.surf.term(), self.term, "{what}: there was an election");
    }

    /// Works beside an attack, which returns how often it did what it is about.
    fn go_on_beside<F: Future<Output = usize> + Send + 'static>(
        &mut self,
        runtime: &Runtime,
        what: &str,
        attack: impl FnOnce(Arc<AtomicBool>) -> F,
    ) {
        let (stop, before) = (Stop::default(), self.files);
        let attacking = runtime.spawn(attack(stop.flag()));
        let longest = self.work();
        drop(stop);
        let ended = runtime.block_on(async { timeout(END_LIMIT, attacking).await });
        let count = ended.expect("the attack ends in time").expect("the attack does not panic");
        println!("{what}: {count} times; {} files beside it, at most {longest:?} each", self.files - before);
        assert!(count > 0, "{what}: that was no attack");
        assert!(longest < NORMAL, "{what}: the honest mount waited for {longest:?}");
        self.assert_unharmed(what);
    }
}

#[test]
fn clients_that_lie_harm_no_honest_mount_beside_them() {
    let mut honest = Honest::start();
    let prey = Prey::of(&honest.surf);
    let runtime = Runtime::new().unwrap();
    let packets = runtime.block_on(first_packets(PACKETS));
    honest.go_on_beside(&runtime, "operations nested without end", |stop| nest_operations(prey.liar("nester"), stop));
    honest.go_on_beside(&runtime, "lists beyond their bounds", |stop| send_long_lists(prey.liar("lister"), stop));
    honest.go_on_beside(&runtime, "heads as large as any may be", |stop| send_large_heads(prey.liar("giant"), stop));
    honest.go_on_beside(&runtime, "batches at their bounds", |stop| fill_batches(prey.liar("filler"), stop));
    honest.go_on_beside(&runtime, "attaching with something to send", |stop| attach_dirty(prey.reader("dirty"), stop));
    honest.go_on_beside(&runtime, "sessions without end", |stop| open_sessions(prey.liar("opener"), stop));
    honest.go_on_beside(&runtime, "events that nobody reads", |stop| ignore_events(prey.liar("deaf"), stop));
    let connections: Vec<_> = (0..CONNECTIONS).map(|_| prey.liar("ignorer")).collect();
    honest.go_on_beside(&runtime, "answers that nobody reads", |stop| ignore_answers(connections, stop));
    honest.go_on_beside(&runtime, "puts with deadlines of 1 ms", |stop| hurry_puts(prey.liar("hurrier"), stop));
    honest.go_on_beside(&runtime, "payloads that never come", |stop| owe_payloads(prey.liar("debtor"), stop));
    honest.go_on_beside(&runtime, "probes and reads without end", |stop| read_without_end(prey.liar("reader"), stop));
    let stranger = prey.liar("stranger");
    honest.go_on_beside(&runtime, "handshakes that do not go on", |stop| begin_handshakes(stranger, packets, stop));
    let (findings, code) = honest.surf.operate(&["fsck"]);
    assert_eq!(code, 0, "{findings}");
}
