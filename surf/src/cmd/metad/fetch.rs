//! `surf metad backup`: a backup comes as a stream and becomes a file, whole or not at all.

use super::{in_words, name_of, verified};
use crate::admin::Admin;
use crate::cmd::access::Access;
use crate::cmd::lengths::duration;
use crate::output::{self, complain, say};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use wire::attr::Timestamp;
use wire::durable;
use wire::message::admin::{AdminRequest, BackupPiece};
use wire::quic::EventReceiver;

/// Exit code of a command that a signal has ended.
const INTERRUPTED: u8 = 130;
/// End of the names of files that are not complete.
const PARTIAL: &str = ".partial";

/// Write the metadata as it is now into a file.
#[derive(Args)]
pub struct Backup {
    #[command(flatten)]
    access: Access,
    /// The file; it is readable by its owner alone. `-` is standard output.
    file: PathBuf,
    /// How long the blocks that the backup refers to are kept, also when files are removed or changed: a number with s,
    /// m, h, d or w. 0: not at all, and a restore finds no content of what was removed meanwhile.
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = duration)]
    keep_blocks: Duration,
    /// Name of the pin on these blocks: see `surf metad backups`. By default one with the time.
    #[arg(long)]
    name: Option<String>,
}

impl Backup {
    /// Carries it out. SIGINT and SIGTERM end it with everything undone.
    pub async fn run(self) -> Result<ExitCode> {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let (admin, limit) = self.access.enter()?;
        let stop = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        let written = self.pin_and_write(&admin, limit, stop).await;
        admin.close().await;
        written
    }

    /// The pin comes first, so that it covers what the backup refers to from before it is made.
    async fn pin_and_write(&self, admin: &Admin, limit: Duration, stop: impl Future<Output = ()>) -> Result<ExitCode> {
        let name = self.name.clone().unwrap_or_else(|| name_of(Timestamp::now()));
        let keep_ms = u64::try_from(self.keep_blocks.as_millis())?;
        // Not broken off: a pin of this name that is there already belongs to another backup, and must not be released.
        if keep_ms > 0 {
            admin.ask_admin(AdminRequest::PinBlocks { name: name.clone(), keep_ms }, limit).await?;
        }
        let written = tokio::select! {
            written = self.write(admin, limit) => Some(written),
            () = stop => None,
        };
        let kept = output::duration(self.keep_blocks);
        if let Some(Ok(())) = written {
            if keep_ms > 0 {
                complain!("its blocks are kept for {kept}, or until `surf metad release {name}`");
            } else {
                complain!("its blocks are not kept: what is removed or changed from now on cannot be restored");
            }
            return Ok(ExitCode::SUCCESS);
        }
        let is_released =
            keep_ms == 0 || admin.ask_admin(AdminRequest::ReleasePin { name: name.clone() }, limit).await.is_ok();
        let blocks = if is_released {
            "no block is kept for it".to_owned()
        } else {
            format!("blocks are still kept for {kept}, or until `surf metad release {name}`")
        };
        match written {
            Some(Err(error)) if is_released => Err(error),
            Some(Err(error)) => Err(error.context(format!("no backup was made, and {blocks}"))),
            _ => {
                complain!("surf: interrupted: no backup was made, and {blocks}");
                Ok(ExitCode::from(INTERRUPTED))
            }
        }
    }

    /// Writes the file. What is written so far is removed when this is dropped.
    async fn write(&self, admin: &Admin, limit: Duration) -> Result<()> {
        let mut pieces = admin.backup(limit).await?;
        if self.file == Path::new("-") {
            return receive(&mut pieces, &mut tokio::io::stdout()).await.context("standard output");
        }
        let shown = self.file.display().to_string();
        let partial = Partial::create(&self.file).with_context(|| format!("{shown}: cannot be made"))?;
        let mut file = tokio::fs::File::from_std(partial.file.try_clone()?);
        receive(&mut pieces, &mut file).await.with_context(|| shown.clone())?;
        file.sync_all().await.with_context(|| shown.clone())?;
        // What is on the disk is verified before it takes the place of another file.
        let path = partial.path.clone();
        let (head, counts, bytes) = spawn_blocking(move || verified(&path)).await??;
        partial.publish(&self.file).with_context(|| shown.clone())?;
        say!("{shown}: {}", in_words(&head, &counts, bytes));
        Ok(())
    }
}

/// Writes all pieces. No more than one is held. Can be broken off at any time.
async fn receive(pieces: &mut EventReceiver, out: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
    let mut count = 0;
    loop {
        match pieces.next().await? {
            BackupPiece::Bytes(bytes) => {
                count += bytes.len() as u64;
                out.write_all(&bytes).await?;
            }
            BackupPiece::End { bytes } if bytes == count => return Ok(out.flush().await?),
            BackupPiece::End { bytes } => bail!("{count} bytes have come of {bytes}"),
            BackupPiece::Failed(reason) => bail!("metad could not make the backup: {reason}"),
        }
    }
}

/// A file under a temporary name, `TARGET.PID.partial`, which is removed unless it is published. It is locked while its
/// process lives.
struct Partial {
    path: PathBuf,
    file: File,
}

impl Partial {
    /// Makes it, and removes those that killed processes have left beside it.
    fn create(target: &Path) -> io::Result<Self> {
        if target.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        remove_leftovers(target);
        let mut path = target.as_os_str().to_owned();
        path.push(format!(".{}{PARTIAL}", std::process::id()));
        let path = PathBuf::from(path);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        // Another process may have taken it for a leftover before it was locked.
        let is_locked = file.try_lock().is_ok();
        let is_there = fs::symlink_metadata(&path).is_ok_and(|named| {
            file.metadata().is_ok_and(|opened| (named.dev(), named.ino()) == (opened.dev(), opened.ino()))
        });
        if !is_locked || !is_there {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "another backup to it begins: run this again"));
        }
        Ok(Self { path, file })
    }

    fn publish(self, target: &Path) -> io::Result<()> {
        durable::rename(&self.path, target)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // The file has been published, or is of no use.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes temporary files for this target that no living process holds, wherever it ran. Nothing depends on it: what
/// cannot be looked at or removed stays.
fn remove_leftovers(target: &Path) {
    let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (Some(name), Ok(entries)) = (target.file_name(), fs::read_dir(dir)) else { return };
    for entry in entries.flatten().filter(|entry| is_partial_of(name.as_bytes(), entry.file_name().as_bytes())) {
        let path = entry.path();
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let Ok(file) = File::open(&path) else { continue };
        if file.try_lock().is_ok() && fs::remove_file(&path).is_ok() {
            complain!("{}: removed, a backup that was killed has left it", path.display());
        }
    }
}

/// Returns whether a name is `TARGET.PID.partial`.
fn is_partial_of(target: &[u8], name: &[u8]) -> bool {
    let number = name.strip_prefix(target).and_then(|rest| rest.strip_suffix(PARTIAL.as_bytes()));
    let digits = number.and_then(|number| number.strip_prefix(b"."));
    digits.is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use std::sync::{Arc, Mutex};
    use wire::bundle::Bundle;
    use wire::ids::MetadId;
    use wire::message::admin::AdminReply;
    use wire::message::meta::{MetaReply, MetaRequest, Redirect};
    use wire::quic::{Endpoint, Incoming, Service};
    use wire::tls::{ClusterCa, PeerIdentity, Role, Subject};

    #[test]
    fn a_file_that_is_not_published_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("b");
        fs::write(&target, "old").unwrap();
        drop(Partial::create(&target).unwrap());
        assert_eq!((fs::read(&target).unwrap(), fs::read_dir(dir.path()).unwrap().count()), (b"old".to_vec(), 1));
        let partial = Partial::create(&target).unwrap();
        io::Write::write_all(&mut &partial.file, b"new").unwrap();
        partial.publish(&target).unwrap();
        assert_eq!((fs::read(&target).unwrap(), fs::read_dir(dir.path()).unwrap().count()), (b"new".to_vec(), 1));
        assert_eq!(fs::metadata(&target).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_a_killed_backup_has_left_is_removed_and_what_a_living_one_writes_stays() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["b.7.partial", "b.8.partial", "other.9.partial", "b.x.partial", "b.partial", "b.7.partial.kept"] {
            fs::write(at(name), "").unwrap();
        }
        // Another open file holds it, as another process would.
        let living = File::open(at("b.8.partial")).unwrap();
        living.try_lock().unwrap();
        let partial = Partial::create(&at("b")).unwrap();
        assert!(!at("b.7.partial").exists());
        assert!(Partial::create(&at("b")).is_err(), "this process writes it already");
        for name in ["b.8.partial", "other.9.partial", "b.x.partial", "b.partial", "b.7.partial.kept"] {
            assert!(at(name).exists(), "{name}");
        }
        assert!(partial.path.exists());
    }

    /// The command line.
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        backup: Backup,
    }

    /// A metad that begins a backup and never ends it.
    struct Endless {
        addr: SocketAddr,
        asked: Mutex<Vec<AdminRequest>>,
    }

    impl Service for Endless {
        fn authorize(&self, _peer: &PeerIdentity) -> Result<(), wire::Error> {
            Ok(())
        }

        async fn handle(self: Arc<Self>, _peer: Arc<PeerIdentity>, incoming: Incoming) {
            match incoming.decode::<MetaRequest>().unwrap() {
                MetaRequest::Admin(request) => {
                    self.asked.lock().unwrap().push(request);
                    incoming.respond(&MetaReply::Admin(AdminReply::Done), &[]).await;
                }
                MetaRequest::Backup => {
                    let mut pieces = incoming.into_events();
                    let piece = BackupPiece::Bytes(vec![1; 9].into());
                    pieces.send_within(&piece, Duration::from_secs(9)).await.unwrap();
                    pieces.closed().await;
                }
                _ => {
                    let leader = Some((MetadId(1), self.addr));
                    let reply = MetaReply::NotLeader(Redirect {
                        leader,
                        nodes: leader.into_iter().collect(),
                        ..Redirect::default()
                    });
                    incoming.respond(&reply, &[]).await;
                }
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_backup_that_is_interrupted_leaves_no_file_and_no_pin() {
        let ca = ClusterCa::create("test").unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let endpoint = Endpoint::bind(any, &ca.issue(&Subject::new(Role::Metad, "metad-1")).unwrap()).unwrap();
        let metad = Arc::new(Endless { addr: endpoint.local_addr(), asked: Mutex::default() });
        let _serving = endpoint.serve(metad.clone(), &tokio::runtime::Handle::current());
        let identity = ca.issue(&Subject::new(Role::Admin, "operator")).unwrap();
        let bundle = Bundle { cluster: "test".to_owned(), metads: vec![metad.addr], identity };
        let admin = Admin::open(&bundle).unwrap();

        let dir = tempfile::tempdir().unwrap();
        let (file, files) = (dir.path().join("b"), || fs::read_dir(dir.path()).unwrap().count());
        let words = ["backup", file.to_str().unwrap(), "--bundle", "unused", "--name", "mine"];
        let Line { backup } = clap::Parser::parse_from(words);
        let stop = async {
            while files() == 0 {
                tokio::task::yield_now().await;
            }
        };
        let code = backup.pin_and_write(&admin, Duration::from_secs(9), stop).await.unwrap();
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(INTERRUPTED)));
        assert_eq!(files(), 0);
        let asked = metad.asked.lock().unwrap();
        assert!(
            matches!(&asked[..], [AdminRequest::PinBlocks { .. }, AdminRequest::ReleasePin { name }] if name == "mine")
        );
    }
}
