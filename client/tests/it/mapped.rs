//! Pages that programs have changed through a mapping, as the kernel writes them back, while others change the file.

use crate::cluster::{Cluster, content, create, names, open, until};
use client::{Client, Handle, Notice, OpenFlags};
use futures::FutureExt;
use std::sync::Arc;
use std::time::Duration;
use wire::FsError;
use wire::attr::AttrChange;
use wire::ids::Ino;
use wire::limits::FILE_BYTES_MAX;

const PAGE: usize = 4096;
/// A place of another page, by which the first client is seen to know of a change.
const SIGN: usize = PAGE + 10;

/// Two clients that have a file of two pages open. The first has read it, for the pages of a kernel that never drops them.
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
        let made = create(&one, "file").await;
        one.write(&made.handle, 0, &[b'.'; 2 * PAGE], false).await.unwrap();
        one.fsync(&made.handle).await.unwrap();
        one.release(made.handle).await;
        let (mapped, theirs) = (open(&one, "file").await.handle, open(&other, "file").await.handle);
        let page = one.read(&mapped, 0, PAGE).await.unwrap().to_vec();
        assert_eq!(page, [b'.'; PAGE]);
        Self { _cluster: cluster, one, other, mapped, theirs, page }
    }

    /// The program has changed byte 0 of the first page, which it read before the other client committed byte 100.
    async fn start_with_an_old_page() -> Self {
        let mut two = Self::start().await;
        two.store(0, b'1');
        two.other_writes(100, b'2').await;
        two.one_knows(b'2').await;
        two
    }

    /// The program changes a byte of the first page, as it has read that.
    fn store(&mut self, at: usize, value: u8) {
        self.page[at] = value;
    }

    async fn write_back(&self) {
        assert_eq!(self.one.try_write_mapped(&self.mapped, 0, &self.page), None, "others may have changed it");
        assert_eq!(self.one.write_mapped(&self.mapped, 0, &self.page).await.unwrap(), PAGE);
    }

    /// The other client commits a byte of the first page.
    async fn other_writes(&self, at: usize, value: u8) {
        self.try_other_writes(at, value).await.unwrap();
    }

    async fn try_other_writes(&self, at: usize, value: u8) -> Result<(), FsError> {
        for at in [at, SIGN] {
            self.other.write(&self.theirs, at as u64, &[value], false).await?;
        }
        self.other.fsync(&self.theirs).await
    }

    /// Both write this byte. The other client commits first.
    async fn start_in_conflict(at: usize, ours: u8, theirs: u8) -> Self {
        for _ in 0..10 {
            let two = Self::start().await;
            two.one.write(&two.mapped, at as u64, &[ours], false).await.unwrap();
            match two.try_other_writes(at, theirs).await {
                Ok(()) => return two,
                // On a busy machine, the first one commits in the background meanwhile.
                Err(error) => assert_eq!(error, FsError::Stale),
            }
        }
        panic!("the other client was never the first");
    }

    /// Waits until the first client knows of it, though the kernel still has the old first page.
    async fn one_knows(&self, value: u8) {
        until("it is known", || async { self.one.read(&self.mapped, SIGN as u64, 1).await.unwrap()[..] == [value] })
            .await;
    }

    /// Asserts what a few bytes of the file are, and that there is no conflict.
    async fn assert_merged(&self, bytes: &[(usize, u8)]) {
        assert_eq!(self.one.fsync(&self.mapped).await, Ok(()));
        for client in [&self.one, &self.other] {
            let found = content(client, "file").await;
            assert_eq!(found.len(), 2 * PAGE);
            for (at, value) in bytes {
                assert_eq!(found[*at] as char, *value as char, "at {at}");
            }
            assert_eq!(names(client).await, ["file"], "no conflict");
        }
    }

    /// Asserts that the first client is in conflict: the file has what the other one has written, a copy the rest.
    async fn assert_conflict(&self, at: usize, theirs: u8, ours: &[(usize, u8)]) {
        assert_eq!(self.one.fsync(&self.mapped).await, Err(FsError::Stale));
        assert_eq!(content(&self.other, "file").await[at] as char, theirs as char);
        let names = names(&self.other).await;
        let [copy] = &names.iter().filter(|name| name.contains(".conflict-")).collect::<Vec<_>>()[..] else {
            panic!("{names:?}")
        };
        let copied = content(&self.other, copy).await;
        for (at, value) in ours {
            assert_eq!(copied[*at] as char, *value as char, "at {at}");
        }
    }
}

/// Guards I6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_waits_to_be_committed_is_in_no_conflict_with_other_bytes_of_it() {
    let mut two = Two::start().await;
    two.store(0, b'1');
    two.write_back().await;
    two.other_writes(100, b'2').await;
    two.assert_merged(&[(0, b'1'), (100, b'2'), (101, b'.')]).await;
}

/// Guards I6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_comes_back_late_does_not_overwrite_what_others_have_committed_meanwhile() {
    let two = Two::start_with_an_old_page().await;
    two.write_back().await;
    two.assert_merged(&[(0, b'1'), (100, b'2')]).await;
}

/// Guards I6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_page_and_later_writes_that_wait_to_be_committed_do_not_harm_each_other() {
    let mut two = Two::start_with_an_old_page().await;
    two.one.write(&two.mapped, 200, b"3", false).await.unwrap();
    two.store(200, b'3');
    two.write_back().await;
    two.other_writes(300, b'4').await;
    two.assert_merged(&[(0, b'1'), (100, b'2'), (200, b'3'), (300, b'4')]).await;
}

/// Guards I6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_of_a_late_page_that_others_have_changed_too_goes_into_a_conflict_copy() {
    let mut two = Two::start().await;
    two.store(0, b'1');
    two.store(100, b'1');
    two.other_writes(100, b'2').await;
    two.one_knows(b'2').await;
    two.write_back().await;
    two.assert_conflict(100, b'2', &[(0, b'1'), (100, b'1')]).await;
}

/// Guards I6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_of_others_that_a_program_has_seen_and_puts_back_is_put_back() {
    let mut two = Two::start().await;
    two.other_writes(100, b'2').await;
    two.one_knows(b'2').await;
    // The kernel has given the page up meanwhile, and reads it again.
    two.page = two.one.read(&two.mapped, 0, PAGE).await.unwrap().to_vec();
    assert_eq!(two.page[100], b'2');
    two.store(100, b'.');
    two.write_back().await;
    two.assert_merged(&[(100, b'.'), (SIGN, b'2')]).await;
}

/// Guards I6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_which_it_is_not_certain_what_the_program_has_seen_is_judged_whole() {
    let two = Two::start_with_an_old_page().await;
    // A handle with O_DIRECT reads past the page, or into it for another mapping.
    assert_eq!(two.one.read_direct(&two.mapped, 100, 1).await.unwrap()[..], *b"2");
    two.write_back().await;
    two.assert_conflict(100, b'2', &[(0, b'1'), (100, b'.')]).await;
}

/// Guards I5.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_conflict_an_open_relies_on_no_page_even_if_the_file_is_of_the_version_that_they_were_read_from() {
    let two = Two::start_in_conflict(100, b'1', b'2').await;
    two.one_knows(b'2').await;
    // The kernel drops its pages, and reads them anew with what is not committed.
    let again = open(&two.one, "file").await;
    assert!(!again.keep_cache);
    assert_eq!(two.one.read(&again.handle, 100, 1).await.unwrap()[..], *b"1");
    two.assert_conflict(100, b'2', &[(100, b'1')]).await;
    assert!(!open(&two.one, "file").await.keep_cache);
    two.one.release(again.handle).await;
    two.one.release(two.mapped).await;
    assert!(!open(&two.one, "file").await.keep_cache);
}

/// Guards I6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_was_not_taken_is_not_relied_on_once_the_file_was_closed() {
    let two = Two::start().await;
    two.other_writes(100, b'2').await;
    two.one_knows(b'2').await;
    let again = open(&two.one, "file").await.handle;
    let beyond = two.one.write_mapped(&again, FILE_BYTES_MAX, &two.page).await;
    assert_eq!(beyond, Err(FsError::TooLarge), "while the kernel drops its pages for the open");
    two.one.read(&again, 100, 1).await.unwrap();
    two.one.release(again).await;
    two.one.release(two.mapped).await;
    assert!(!open(&two.one, "file").await.keep_cache);
}

/// Guards I6. The kernel drops pages without waiting for copies of them that are on their way (Linux before 6.16).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_has_come_is_compared_with_what_its_program_has_seen_though_the_kernel_drops_all_pages_meanwhile() {
    let two = Two::start_with_an_old_page().await;
    let taking = two.one.begin_taking(&two.mapped);
    let again = open(&two.one, "file").await;
    assert!(!again.keep_cache);
    two.one.read(&again.handle, 0, 1).await.unwrap();
    let page = (PAGE, std::future::ready(Ok(&two.page)));
    assert_eq!(two.one.write_mapped_content(taking, 0, page).await, Ok(PAGE));
    two.assert_merged(&[(0, b'1'), (100, b'2')]).await;
}

/// Guards I6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_that_fails_in_the_end_does_not_count_as_a_drop_of_pages() {
    let two = Two::start_with_an_old_page().await;
    let failed = open(&two.one, "file").await;
    assert!(!failed.keep_cache);
    two.one.release_unopened(failed.handle).await;
    assert!(!open(&two.one, "file").await.keep_cache);
    two.write_back().await;
    two.assert_merged(&[(0, b'1'), (100, b'2')]).await;
}

/// Guards I6. The kernel gets `EINTR`, and retains its pages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_have_missed_a_truncation_because_its_caller_was_interrupted_do_not_undo_it() {
    const LEFT: u64 = 2000;
    let mut two = Two::start().await;
    let ino = two.mapped.ino();
    let mut notices = two.one.notices();
    let change = AttrChange { size: Some(LEFT), ..AttrChange::default() };
    assert!(two.one.setattr(ino, change).now_or_never().is_none(), "it waits for metad");
    let changed = async { while notices.recv().await != Ok(Notice::Changed(ino)) {} };
    tokio::time::timeout(Duration::from_secs(60), changed).await.expect("the kernel is asked to drop its pages");
    drop(notices);
    assert_eq!(two.one.getattr(ino).await.unwrap().size, LEFT);
    assert!(!open(&two.one, "file").await.keep_cache);
    two.store(0, b'1');
    two.write_back().await;
    assert_eq!(two.one.fsync(&two.mapped).await, Err(FsError::Stale), "the page is in conflict with the truncation");
    assert_eq!(content(&two.other, "file").await, [b'.'; LEFT as usize]);
}

/// Guards I6. Alone with a file, a client takes pages whole. They are committed before others can change the file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_a_client_took_whole_while_it_was_alone_are_in_no_conflict_either() {
    let cluster = Cluster::start().await;
    let (one, other) = (cluster.lazy_client().await, cluster.client().await);
    let made = create(&one, "file").await;
    let mut page = vec![b'.'; PAGE];
    one.write(&made.handle, 0, &page, false).await.unwrap();
    one.fsync(&made.handle).await.unwrap();
    page[0] = b'1';
    until("it is alone", || async { one.try_write_mapped(&made.handle, 0, &page) == Some(Ok(PAGE)) }).await;
    let theirs = open(&other, "file").await.handle;
    other.write(&theirs, 100, b"2", false).await.unwrap();
    other.fsync(&theirs).await.unwrap();
    one.fsync(&made.handle).await.unwrap();
    let found = content(&other, "file").await;
    assert_eq!((found[0], found[100], found[101]), (b'1', b'2', b'.'));
    assert_eq!(names(&other).await, ["file"], "no conflict");
}

/// The kernel may be dropping them for another client's commit, whose own pages may wait for one of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_a_file_that_is_open_with_o_sync_wait_for_no_commit() {
    let cluster = Cluster::start().await;
    let (one, other) = (cluster.lazy_client().await, cluster.client().await);
    let made = create(&one, "file").await;
    let mut page = vec![b'.'; PAGE];
    one.write(&made.handle, 0, &page, false).await.unwrap();
    one.fsync(&made.handle).await.unwrap();
    let ino = made.handle.ino();
    let synced = one.open(ino, OpenFlags { sync: true, ..OpenFlags::default() }).await.unwrap().handle;
    page[0] = b'1';
    until("it is alone", || async { one.try_write_mapped(&synced, 0, &page) == Some(Ok(PAGE)) }).await;
    one.fsync(&synced).await.unwrap();
    assert_eq!(content(&other, "file").await, page);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_cost_what_writes_cost_while_nobody_else_has_the_file() {
    const ROUNDS: u64 = 20;
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let made = create(&client, "file").await;
    client.write(&made.handle, 0, &[b'.'; PAGE], false).await.unwrap();
    client.release(made.handle).await;
    client.sync_all().await.unwrap();
    let ino = client.lookup(Ino::ROOT, b"file").await.unwrap().ino;
    let handle = client.open(ino, OpenFlags::default()).await.unwrap().handle;
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
