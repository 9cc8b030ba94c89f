//! Pages that programs have changed through a mapping, as the kernel writes them back, while others change the file.

use crate::cluster::{Cluster, content, create, names, open, until};
use client::{Client, Handle, OpenFlags};
use std::sync::Arc;
use wire::FsError;

const PAGE: usize = 4096;

/// Two clients that have a file of one page open. The first has read it.
struct Two {
    _cluster: Cluster,
    one: Arc<Client>,
    other: Arc<Client>,
    mapped: Handle,
    theirs: Handle,
    page: Vec<u8>,
}

impl Two {
    async fn start() -> Self {
        let cluster = Cluster::start().await;
        let (one, other) = (cluster.client().await, cluster.client().await);
        let page = vec![b'.'; PAGE];
        let made = create(&one, "file").await;
        one.write(&made.handle, 0, &page, false).await.unwrap();
        one.fsync(&made.handle).await.unwrap();
        one.release(made.handle).await;
        let (mapped, theirs) = (open(&one, "file").await.handle, open(&other, "file").await.handle);
        assert_eq!(one.read(&mapped, 0, PAGE).await.unwrap(), page);
        Self { _cluster: cluster, one, other, mapped, theirs, page }
    }

    /// The program changes a byte of the page that it has read first.
    fn store(&mut self, at: usize) {
        self.page[at] = b'1';
    }

    async fn write_back(&self) {
        assert_eq!(self.one.write_mapped(&self.mapped, 0, &self.page).await.unwrap(), PAGE);
    }

    async fn other_writes(&self, at: usize) {
        self.other.write(&self.theirs, at as u64, b"2", false).await.unwrap();
        self.other.fsync(&self.theirs).await.unwrap();
    }

    /// Waits until the first client knows of it, though the kernel still has the old page.
    async fn one_knows(&self, at: usize) {
        until("it is known", || async { self.one.read_direct(&self.mapped, at as u64, 1).await.unwrap()[..] == *b"2" })
            .await;
    }

    async fn assert_merged(&self) {
        assert_eq!(self.one.fsync(&self.mapped).await, Ok(()));
        for client in [&self.one, &self.other] {
            let found = content(client, "file").await;
            assert_eq!((found[0], found[100], found.len()), (b'1', b'2', PAGE));
            assert_eq!(names(client).await, ["file"], "no conflict");
        }
    }
}

/// Guards I6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_waits_to_be_committed_is_in_no_conflict_with_other_bytes_of_it() {
    let mut two = Two::start().await;
    two.store(0);
    two.write_back().await;
    two.other_writes(100).await;
    two.assert_merged().await;
}

/// Guards I6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_comes_back_late_does_not_overwrite_what_others_have_committed_meanwhile() {
    let mut two = Two::start().await;
    two.store(0);
    two.other_writes(100).await;
    two.one_knows(100).await;
    two.write_back().await;
    two.assert_merged().await;
}

/// Guards I6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_page_and_later_writes_that_wait_to_be_committed_do_not_harm_each_other() {
    let mut two = Two::start().await;
    two.store(0);
    two.other_writes(100).await;
    two.one_knows(100).await;
    two.one.write(&two.mapped, 100, b"2", false).await.unwrap();
    two.one.write(&two.mapped, 200, b"3", false).await.unwrap();
    two.page[200] = b'3';
    two.write_back().await;
    two.assert_merged().await;
    assert_eq!(content(&two.other, "file").await[200], b'3');
}

/// Guards I6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_of_a_late_page_that_others_have_changed_too_goes_into_a_conflict_copy() {
    let mut two = Two::start().await;
    two.store(0);
    two.store(100);
    two.other_writes(100).await;
    two.one_knows(100).await;
    two.write_back().await;
    assert_eq!(two.one.fsync(&two.mapped).await, Err(FsError::Stale));
    let found = content(&two.other, "file").await;
    assert_eq!((found[0], found[100]), (b'.', b'2'));
    let names = names(&two.other).await;
    let [copy] = &names.iter().filter(|name| name.contains(".conflict-")).collect::<Vec<_>>()[..] else {
        panic!("{names:?}")
    };
    let copied = content(&two.other, copy).await;
    assert_eq!((copied[0], copied[100]), (b'1', b'1'));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_cost_what_writes_cost_while_nobody_else_changes_the_file() {
    const ROUNDS: u64 = 20;
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let page = vec![b'.'; PAGE];
    let made = create(&client, "file").await;
    client.write(&made.handle, 0, &page, false).await.unwrap();
    client.release(made.handle).await;
    client.sync_all().await.unwrap();
    let handle = client.open(made_ino(&client).await, OpenFlags::default()).await.unwrap().handle;
    client.read(&handle, 0, PAGE).await.unwrap();
    let mut fewest = [u64::MAX; 2];
    for round in 0..2 * ROUNDS {
        let (before, mapped) = (client.requests(), round % 2 == 1);
        let page = vec![round as u8; PAGE];
        let written = if mapped {
            client.try_write_mapped(&handle, 0, &page)
        } else {
            client.try_write(&handle, 0, &page, false)
        };
        assert_eq!(written, Some(Ok(PAGE)), "at once, round {round}");
        client.fsync(&handle).await.unwrap();
        let asked = &mut fewest[usize::from(mapped)];
        *asked = (*asked).min(client.requests() - before);
    }
    assert!(fewest[1] <= fewest[0], "{} requests for pages, {} for writes", fewest[1], fewest[0]);
}

async fn made_ino(client: &Client) -> wire::ids::Ino {
    client.lookup(wire::ids::Ino::ROOT, b"file").await.unwrap().ino
}
