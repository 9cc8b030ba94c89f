//! The daemon as a process: configuration, signals, and being killed.

use crate::daemon_cluster::{LIMIT, caller, identity, random_block, until};
use bytes::Bytes;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use wire::ids::{BlockHash, LayoutEpoch};
use wire::message::block::{BlockReply, BlockRequest};
use wire::quic::{Endpoint, Peer};
use wire::tls::{ClusterCa, Role};

/// Kills the process when the test ends, however it ends.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Daemon {
    dir: TempDir,
    addr: SocketAddr,
    client: Endpoint,
}

impl Daemon {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = ClusterCa::create("t").unwrap();
        identity(&ca, Role::Blockd, "b1").save(&dir.path().join("b1.pem")).unwrap();
        identity(&ca, Role::Client, "c1").save(&dir.path().join("c1.pem")).unwrap();
        // This port was free a moment ago.
        let addr = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let daemon = Self { dir, addr, client: caller(&ca, Role::Client) };
        daemon.write_config("");
        daemon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_config(&self, more: &str) {
        let (data, pem) = (self.path("data"), self.path("b1.pem"));
        let text = format!(
            "listen = \"{}\"\ndata_dir = {data:?}\nidentity = {pem:?}\nmetads = [\"127.0.0.1:1\"]\n{more}",
            self.addr
        );
        fs::write(self.path("blockd.toml"), text).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockd"));
        command.arg("--config").arg(self.path("blockd.toml")).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> (bool, String) {
        let Output { status, stderr, .. } = self.command().args(arguments).output().unwrap();
        (status.success(), String::from_utf8(stderr).unwrap())
    }

    async fn start(&self) -> Guard {
        let mut command = self.command();
        let guard = Guard(command.stderr(Stdio::null()).spawn().unwrap());
        until("it serves", async || {
            let status = self.peer().request::<_, BlockReply>(&BlockRequest::Status, &[], Duration::from_secs(1)).await;
            matches!(status, Ok((BlockReply::Status(_), _)))
        })
        .await;
        guard
    }

    fn peer(&self) -> Peer {
        self.client.peer(self.addr, Role::Blockd)
    }
}

/// Guards I9.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_kill() {
    let daemon = Daemon::new();
    let mut process = daemon.start().await;
    let blocks: Vec<Bytes> = [10, 5000, 4 << 20].map(random_block).into();
    for block in &blocks {
        let put = BlockRequest::Put {
            hash: BlockHash::of(block),
            epoch: LayoutEpoch(0),
            chain: Vec::new(),
            needed: 1,
            origin: None,
        };
        let (reply, _) = daemon.peer().request(&put, std::slice::from_ref(block), LIMIT).await.unwrap();
        assert!(matches!(&reply, BlockReply::Stored { synced, .. } if synced.len() == 1), "{reply:?}");
    }
    process.0.kill().unwrap();
    process.0.wait().unwrap();
    let _process = daemon.start().await;
    for block in &blocks {
        let get = BlockRequest::Get { hash: BlockHash::of(block), epoch: LayoutEpoch(0), offset: 0, len: u32::MAX };
        let (reply, bytes): (BlockReply, Bytes) = daemon.peer().request(&get, &[], LIMIT).await.unwrap();
        assert!(matches!(reply, BlockReply::Content { .. }), "{reply:?}");
        assert_eq!(&bytes, block);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_stops_it_cleanly() {
    let daemon = Daemon::new();
    let mut process = daemon.start().await;
    let sent = Command::new("kill").args(["-TERM", &process.0.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let mut status = None;
    until("it has stopped", async || {
        status = process.0.try_wait().unwrap();
        status.is_some()
    })
    .await;
    assert!(status.unwrap().success(), "{status:?}");
}

#[test]
fn mistakes_are_reported_in_one_line_without_starting() {
    let daemon = Daemon::new();
    assert_eq!(daemon.run(&["--check-config"]), (true, String::new()));
    let refused = |arguments: &[&str], words: &str| {
        let (success, text) = daemon.run(arguments);
        assert!(!success && text.contains(words) && text.trim_end().lines().count() == 1, "{text}");
    };
    daemon.write_config("wieght = 3\n");
    refused(&["--check-config"], "line 5 (`wieght`): unknown field");
    daemon.write_config("grace_s = 1\n");
    refused(&["--check-config"], "`grace_s` is 1");
    daemon.write_config("");
    let client = daemon.path("c1.pem");
    refused(&["--check-config", "--identity", client.to_str().unwrap()], "role client");
    refused(&["--identity", "/nonexistent.pem"], "/nonexistent.pem: cannot be read");
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    refused(&["--listen", &taken.local_addr().unwrap().to_string()], "another program uses it");
}
