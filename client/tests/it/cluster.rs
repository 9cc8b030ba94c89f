//! A cluster inside the test's process, and clients of it.

use client::NewNode;
use client::{Client, ClientConfig, OpenFlags, Opened};
use embed::{EmbedOptions, Embedded};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::ids::Ino;
use wire::op::NewInode;

/// A condition that is not met after this time never will be.
const LIMIT: Duration = Duration::from_secs(20);

pub struct Cluster {
    pub embedded: Embedded,
    _dir: tempfile::TempDir,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::of(EmbedOptions::default()).await
    }

    pub async fn of(options: EmbedOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let embedded = Embedded::start(dir.path(), options).await.unwrap();
        Self { embedded, _dir: dir }
    }

    pub fn config(&self) -> ClientConfig {
        ClientConfig::new(self.embedded.bundle().clone(), "test")
    }

    pub async fn client(&self) -> Arc<Client> {
        Client::connect(self.config()).await.unwrap()
    }

    /// Connects a client that commits nothing by itself for a long time.
    pub async fn lazy_client(&self) -> Arc<Client> {
        let mut config = self.config();
        config.dirty_age = Duration::from_secs(3600);
        Client::connect(config).await.unwrap()
    }
}

pub fn regular() -> NewNode {
    NewNode { node: NewInode::Regular, mode: 0o644, umask: 0o022, uid: 0, gid: 0 }
}

pub async fn create(client: &Client, name: &str) -> Opened {
    client.create(Ino::ROOT, name.as_bytes(), regular(), OpenFlags::default()).await.unwrap()
}

pub async fn open(client: &Client, name: &str) -> Opened {
    let attr = client.lookup(Ino::ROOT, name.as_bytes()).await.unwrap();
    client.open(attr.ino, OpenFlags::default()).await.unwrap()
}

/// Returns all of a file's content, as a fresh open sees it.
pub async fn content(client: &Client, name: &str) -> Vec<u8> {
    let opened = open(client, name).await;
    let read = client.read(&opened.handle, 0, opened.attr.size as usize + 1).await.unwrap();
    client.release(opened.handle).await;
    read.to_vec()
}

pub async fn names(client: &Client) -> Vec<String> {
    let entries = client.readdir(Ino::ROOT, 0, 1000, false).await.unwrap().entries;
    entries.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()).collect()
}

/// Returns bytes that differ from place to place.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Waits until something holds.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < LIMIT, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
