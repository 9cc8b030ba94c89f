//! Disaster recovery: a new cluster from a backup, or from the only survivor of one. See `docs/operations.md`.
//!
//! Both work in the data directory of a node that does not run, and make the files of a node that alone is a cluster.
//! New files are first made in `recovered/`. Then [`MARK`] is written: from then on the new files count, and they are
//! moved into their places. An interruption does no harm: the next start moves the rest. The files that they replace
//! are set aside.

use crate::config::Config;
use crate::consensus::Member;
use crate::error::{Error, caught};
use crate::files::DataDir;
use crate::fs::recovery::{self, Jump};
use crate::fs::rules;
use crate::fs::view::{Changes, View};
use crate::raft::Tuning;
use crate::raft::stopped::{self, Stopped};
use crate::store::Store;
use std::fs::{self, File};
use std::io::{BufReader, ErrorKind, Read, Seek};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinSet, block_in_place};
use wire::attr::Timestamp;
use wire::backup::{Head, Reader, verify};
use wire::durable;
use wire::ids::MetadId;
use wire::message::admin::DeletionStop;
use wire::message::meta::{MetaReply, MetaRequest};
use wire::quic::Endpoint;
use wire::tls::Role;

/// Directory in which new files are made.
const RECOVERED: &str = "recovered";
/// The file that says that all new files are complete, and names the directory for those that they replace.
const MARK: &str = "RECOVERY";
/// Names of the directories with the files that were replaced are this and a number.
const SET_ASIDE: &str = "before-recovery-";
/// The parts of a node's data. The log comes last: a node without a log is a new one.
const PARTS: [&str; 3] = ["state", "snapshot", "log"];
/// Pairs loaded, or values changed, in one step.
const PAIRS_AT_ONCE: usize = 4096;
/// Sessions ended, or inodes removed, in one step: each may change much.
const SESSIONS_OR_INODES_AT_ONCE: usize = 16;
/// How long a member may take to answer: one that runs answers far sooner.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// Makes a node that alone is a cluster from a backup, in an empty data directory. Returns the head of the backup.
///
/// # Errors
/// One line for an operator, who can mend the cause.
pub async fn restore(config: &Config, file: &Path) -> Result<Head, Error> {
    let unusable = |error: &dyn std::fmt::Display| Error::Recovery(format!("{}: {error}", file.display()));
    let opened = File::open(file).map_err(|error| unusable(&error))?;
    // The same file is read twice, even if another one gets its name meanwhile.
    let reading = || BufReader::with_capacity(1 << 20, &opened);
    // All of it is verified before anything is made from it.
    let (head, _, _) = block_in_place(|| verify(reading())).map_err(|error| unusable(&error))?;
    rules::check(head.rules).map_err(|error| unusable(&error))?;
    let cluster_id = config.identity.cluster_id();
    if head.cluster_id != cluster_id {
        let other = format!("is of cluster {} ({}), the identity is of {cluster_id}", head.cluster, head.cluster_id);
        return Err(unusable(&format!("{other}: use one that the same CA has issued")));
    }
    let now = Timestamp::now();
    if head.at > now {
        return Err(unusable(&"was made later than now, by this machine's clock: set the clock"));
    }
    let dir = DataDir::take(&config.data_dir, cluster_id, config.id)?;
    if PARTS.iter().any(|part| config.data_dir.join(part).exists()) || config.data_dir.join(MARK).exists() {
        let found = config.data_dir.display();
        return Err(Error::Recovery(format!(
            "{found}: holds a node's data: a backup is restored into an empty directory"
        )));
    }
    let member = Member { id: config.id, addr: own_address(config)?, voter: true, matched: 0, heard: None };
    let made = begin(&config.data_dir)?;
    let store = Arc::new(Store::open(&made.join("state"), config.tuning.cache_bytes)?);
    (&opened).rewind().map_err(|error| unusable(&error))?;
    let mut reader = Reader::open(reading()).map_err(|error| unusable(&error))?;
    block_in_place(|| load(&mut reader, &store)).map_err(|error| unusable(&error))?;
    rules::check(rules::of(&*store)).map_err(|error| unusable(&error))?;
    let reason = format!("restored from a backup of log index {}", head.index);
    go_on(
        (&made, &config.tuning),
        Stopped { store, term: head.term, index: head.index, index_term: head.term, members: Vec::new() },
        &member,
        (now, reason),
    )
    .await?;
    switch(&config.data_dir)?;
    drop(dir);
    Ok(head)
}

/// The state from which a survivor goes on.
#[derive(Clone, Debug)]
pub struct Forced {
    /// Raft term of the last entry in its log.
    pub term: u64,
    /// Index of that entry.
    pub index: u64,
    /// The other nodes, which are no members any more.
    pub lost: Vec<MetadId>,
    /// Directory with the files that it had before.
    pub set_aside: PathBuf,
}

/// Makes a stopped node that has lost the others for good a cluster by itself.
///
/// # Errors
/// One line for an operator, who can mend the cause; also when another member answers.
pub async fn force_single(config: &Config) -> Result<Forced, Error> {
    let (dir, now) = (DataDir::take(&config.data_dir, config.identity.cluster_id(), config.id)?, Timestamp::now());
    finish(&config.data_dir, true)?;
    if !config.data_dir.join("log").exists() {
        let found = config.data_dir.display();
        return Err(Error::Recovery(format!(
            "{found}: no node has run here: this is for one that survived the others"
        )));
    }
    let made = begin(&config.data_dir)?;
    match make_alone(config, &made, now).await {
        Ok(forced) => {
            switch(&config.data_dir)?;
            drop(dir);
            Ok(forced)
        }
        Err(refused) => {
            // The node's own files are as they were: it can be started as ever.
            fs::remove_dir_all(&made).map_err(|error| Error::disk(&made, error))?;
            Err(refused)
        }
    }
}

/// Makes, in this directory, the files of a node that goes on without the others.
async fn make_alone(config: &Config, made: &Path, now: Timestamp) -> Result<Forced, Error> {
    let stopped = stopped::copy_with_log(&config.data_dir, made, &config.tuning).await?;
    let Some(member) = stopped.members.iter().find(|member| member.id == config.id).cloned() else {
        return Err(Error::Recovery(format!("metad-{} is no member of its cluster any more", config.id)));
    };
    let others: Vec<Member> = stopped.members.iter().filter(|other| other.id != config.id).cloned().collect();
    if let Some(alive) = probe(config, &others).await? {
        let (id, addr) = (alive.id, alive.addr);
        // Its threads must not write into the directory any more, which is removed.
        stopped.store.close()?;
        return Err(Error::Recovery(format!(
            "metad-{id} ({addr}) answers. While a majority runs nothing need be forced, and two clusters of one past would \
             harm each other: stop it, and wipe it afterwards"
        )));
    }
    let forced = Forced {
        term: stopped.index_term,
        index: stopped.index,
        lost: others.into_iter().map(|other| other.id).collect(),
        set_aside: set_aside_dir(&config.data_dir),
    };
    let reason = format!("metad-{} went on alone from log index {}", config.id, stopped.index);
    go_on((made, &config.tuning), stopped, &member, (now, reason)).await?;
    Ok(forced)
}

/// Completes a recovery that was interrupted after its files were complete. Refuses one that was interrupted earlier,
/// unless it is begun again.
///
/// # Errors
/// When it cannot be completed.
pub(crate) fn finish(data_dir: &Path, is_begun_again: bool) -> Result<(), Error> {
    if data_dir.join(MARK).exists() {
        return switch(data_dir);
    }
    if data_dir.join(RECOVERED).exists() && !is_begun_again {
        let found = data_dir.display();
        return Err(Error::Recovery(format!("{found}: a recovery was cut off here: run the same command again")));
    }
    Ok(())
}

fn begin(data_dir: &Path) -> Result<PathBuf, Error> {
    let made = data_dir.join(RECOVERED);
    match fs::remove_dir_all(&made) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::disk(&made, error)),
        _ => {}
    }
    durable::make_private_dir(&made).map_err(|error| Error::disk(&made, error))?;
    Ok(made)
}

fn own_address(config: &Config) -> Result<SocketAddr, Error> {
    let addr = config.initial.get(&config.id).copied().unwrap_or(config.listen);
    if addr.ip().is_unspecified() || addr.port() == 0 {
        return Err(Error::Config(format!("others do not reach this node at {addr}: give its address in `initial`")));
    }
    Ok(addr)
}

/// Returns the first of these metads that answers.
async fn probe(config: &Config, others: &[Member]) -> Result<Option<Member>, Error> {
    let any: SocketAddr = if others.iter().all(|other| other.addr.ip().is_loopback()) {
        ([127, 0, 0, 1], 0).into()
    } else {
        ([0, 0, 0, 0], 0).into()
    };
    let endpoint = Endpoint::bind(any, &config.identity)?;
    let mut probes = JoinSet::new();
    for other in others.iter().cloned() {
        let peer = endpoint.peer(other.addr, Role::Metad);
        probes.spawn(async move {
            let answer = peer.request::<_, MetaReply>(&MetaRequest::WhoLeads, &[], PROBE_LIMIT).await;
            answer.is_ok().then_some(other)
        });
    }
    let mut alive = None;
    while let Some(probed) = probes.join_next().await {
        alive = alive.or(probed.ok().flatten());
    }
    endpoint.close().await;
    Ok(alive)
}

fn load(reader: &mut Reader<impl Read>, store: &Store) -> Result<(), wire::backup::BackupError> {
    let mut pairs = Vec::new();
    loop {
        let record = reader.next()?;
        let is_last = record.is_none();
        pairs.extend(record);
        if pairs.len() >= PAIRS_AT_ONCE || is_last {
            store.load(std::mem::take(&mut pairs));
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Makes the files of a node that goes on from a state of the past.
async fn go_on(
    (made, tuning): (&Path, &Tuning),
    from: Stopped,
    member: &Member,
    (now, reason): (Timestamp, String),
) -> Result<(), Error> {
    let jump = Jump::at(now).ok_or_else(|| Error::Recovery("this machine's clock is wrong: set it".to_owned()))?;
    let store = &from.store;
    let foreign = |error: wire::Error| Error::Recovery(format!("the state cannot be used: {error}"));
    let damaged = |reason| Error::Recovery(format!("the state is damaged ({reason}): use another backup or survivor"));
    let work = || {
        while change(store, |view| Ok(recovery::end_sessions(view, now, SESSIONS_OR_INODES_AT_ONCE)))? > 0 {}
        while change(store, |view| Ok(recovery::release_remains(view, now)))? > 0 {}
        while change(store, |view| Ok(recovery::drop_orphans(view, now, SESSIONS_OR_INODES_AT_ONCE)))? > 0 {}
        for range in recovery::versioned() {
            let mut after = None;
            while change(store, |view| recovery::shift_versions(view, jump, &range, &mut after, PAIRS_AT_ONCE))? > 0 {}
        }
        let stop = DeletionStop { reason, since: now };
        change(store, |view| recovery::begin_anew(view, jump, &stop))
    };
    block_in_place(|| caught(work)).map_err(damaged)?.map_err(foreign)?;
    stopped::make_single(made, store, member, (jump.over_term(from.term), jump.over(from.index)), tuning).await
}

fn change<T>(store: &Store, step: impl FnOnce(&mut View) -> Result<T, wire::Error>) -> Result<T, wire::Error> {
    let mut view = View::new(store);
    let done = step(&mut view)?;
    let changes: Changes = view.into_changes();
    // The position is set when all is done: until then the state is incomplete.
    store.apply(changes, &store.position().unwrap_or_default());
    Ok(done)
}

/// Returns the directory that the mark names. It lies in the data directory, wherever that was when the mark was made: a
/// damaged mark moves nothing elsewhere.
fn marked(data_dir: &Path, mark: &[u8]) -> Result<PathBuf, Error> {
    let name = std::str::from_utf8(mark).ok().and_then(|path| Path::new(path).file_name()?.to_str());
    let is_ours = |name: &&str| name.strip_prefix(SET_ASIDE).is_some_and(|number| number.parse::<u32>().is_ok());
    name.filter(is_ours).map(|name| data_dir.join(name)).ok_or_else(|| {
        let (path, example) = (data_dir.join(MARK), set_aside_dir(data_dir));
        Error::Recovery(format!(
            "{}: is damaged: write the path {} into it, without a line break, and start again",
            path.display(),
            example.display()
        ))
    })
}

/// Returns a free name for a directory in which old files are set aside.
fn set_aside_dir(data_dir: &Path) -> PathBuf {
    let named = |number: u32| data_dir.join(format!("{SET_ASIDE}{number}"));
    (1..).map(named).find(|path| !path.exists()).unwrap_or_else(|| named(0))
}

/// Moves the new files into their places, and sets the old ones aside.
fn switch(data_dir: &Path) -> Result<(), Error> {
    let (mark, made) = (data_dir.join(MARK), data_dir.join(RECOVERED));
    let disk = |error| Error::disk(data_dir, error);
    if !mark.exists() {
        durable::sync_dir(&made).and_then(|()| durable::sync_dir(&made.join("log"))).map_err(disk)?;
        let set_aside = set_aside_dir(data_dir);
        durable::replace(&mark, set_aside.as_os_str().as_encoded_bytes()).map_err(disk)?;
    }
    let set_aside = marked(data_dir, &fs::read(&mark).map_err(disk)?)?;
    for part in PARTS {
        let (new, place) = (made.join(part), data_dir.join(part));
        // Moved already, before an interruption.
        if !new.exists() {
            continue;
        }
        if place.exists() {
            durable::make_private_dir(&set_aside).map_err(disk)?;
            fs::rename(&place, set_aside.join(part)).map_err(disk)?;
        }
        durable::rename(&new, &place).map_err(disk)?;
    }
    fs::remove_dir_all(&made)
        .or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
        .map_err(disk)?;
    fs::remove_file(&mark).and_then(|()| durable::sync_dir(data_dir)).map_err(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a data directory with a recovery whose files are complete.
    fn prepared() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let set_aside = set_aside_dir(dir.path());
        for (at, content) in [(dir.path().to_owned(), "old"), (dir.path().join(RECOVERED), "new")] {
            fs::create_dir_all(&at).unwrap();
            PARTS.iter().for_each(|part| fs::write(at.join(part), content).unwrap());
        }
        fs::write(dir.path().join(MARK), set_aside.as_os_str().as_encoded_bytes()).unwrap();
        (dir, set_aside)
    }

    #[test]
    fn a_recovery_that_is_cut_off_once_its_files_are_there_is_completed() {
        let steps = PARTS.len() * 2;
        for cut_after in 0..=steps {
            let (dir, set_aside) = prepared();
            let (made, place) = (dir.path().join(RECOVERED), dir.path());
            let moves = PARTS
                .iter()
                .flat_map(|part| [(place.join(part), set_aside.join(part)), (made.join(part), place.join(part))]);
            fs::create_dir(&set_aside).unwrap();
            moves.take(cut_after).for_each(|(from, to)| fs::rename(from, to).unwrap());
            finish(dir.path(), false).unwrap();
            for part in PARTS {
                assert_eq!(fs::read_to_string(place.join(part)).unwrap(), "new", "{part}, cut after {cut_after}");
                assert_eq!(fs::read_to_string(set_aside.join(part)).unwrap(), "old", "{part}, cut after {cut_after}");
            }
            assert!(!made.exists() && !dir.path().join(MARK).exists());
            assert_ne!(set_aside_dir(dir.path()), set_aside, "the next recovery sets files aside elsewhere");
        }
    }

    #[test]
    fn a_damaged_mark_of_a_recovery_is_refused_and_nothing_is_moved() {
        let (dir, set_aside) = prepared();
        for mark in [&b""[..], b"/", b"/tmp/elsewhere", b"before-recovery-", b"before-recovery-1/..", b"\xff"] {
            fs::write(dir.path().join(MARK), mark).unwrap();
            let error = finish(dir.path(), false).unwrap_err().to_string();
            assert!(error.contains("is damaged") && error.contains("before-recovery-1"), "{error}");
            PARTS.iter().for_each(|part| assert_eq!(fs::read_to_string(dir.path().join(part)).unwrap(), "old"));
        }
        fs::write(dir.path().join(MARK), "/where/it/was/before-recovery-1").unwrap();
        finish(dir.path(), false).unwrap();
        assert_eq!(fs::read_to_string(set_aside.join("log")).unwrap(), "old");
    }

    #[test]
    fn a_recovery_that_is_cut_off_before_is_not_taken_for_a_node() {
        let (dir, _) = prepared();
        fs::remove_file(dir.path().join(MARK)).unwrap();
        let error = finish(dir.path(), false).unwrap_err().to_string();
        assert!(error.contains("cut off"), "{error}");
        finish(dir.path(), true).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("log")).unwrap(), "old");
        begin(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path().join(RECOVERED)).unwrap().count(), 0);
    }
}
