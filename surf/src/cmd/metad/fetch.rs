//! `surf metad backup`: a backup comes as a stream and becomes a file, whole or not at all.

use super::{in_words, name_of, verified};
use crate::admin::Admin;
use crate::cmd::access::Access;
use anyhow::{Context, Result, bail};
use clap::Args;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::block_in_place;
use wire::attr::Timestamp;
use wire::durable;
use wire::limits::PIN_MAX_MS;
use wire::message::admin::{AdminRequest, BackupPiece};
use wire::quic::EventReceiver;

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

/// Reads a length of time.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no length of time: say 36h, or 7d");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    let seconds = match &text[digits.len()..] {
        "" if count == 0 => 0,
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err(wrong()),
    };
    let seconds = count.checked_mul(seconds).filter(|seconds| *seconds <= PIN_MAX_MS / 1000);
    seconds.map(Duration::from_secs).ok_or_else(|| "a hundred years at most".to_owned())
}

impl Backup {
    /// Carries it out.
    pub async fn run(self) -> Result<()> {
        let (admin, limit) = self.access.enter()?;
        let written = self.pin_and_write(&admin, limit).await;
        admin.close().await;
        written
    }

    /// The pin comes first, so that it covers what the backup refers to from before it is made.
    async fn pin_and_write(&self, admin: &Admin, limit: Duration) -> Result<()> {
        let name = self.name.clone().unwrap_or_else(|| name_of(Timestamp::now()));
        let keep_ms = u64::try_from(self.keep_blocks.as_millis())?;
        if keep_ms > 0 {
            admin.ask_admin(AdminRequest::PinBlocks { name: name.clone(), keep_ms }, limit).await?;
        }
        let written = self.write(admin, limit).await;
        if keep_ms > 0 {
            if let Err(error) = written {
                // Best effort: the pin also ends by itself.
                let released = admin.ask_admin(AdminRequest::ReleasePin { name: name.clone() }, limit).await;
                return Err(match released {
                    Ok(_) => error,
                    Err(_) => error
                        .context(format!("no backup was made, and blocks are still kept: `surf metad release {name}`")),
                });
            }
            eprintln!("its blocks are kept for {} s, or until `surf metad release {name}`", keep_ms / 1000);
        } else if written.is_ok() {
            eprintln!("its blocks are not kept: what is removed or changed from now on cannot be restored");
        }
        written
    }

    async fn write(&self, admin: &Admin, limit: Duration) -> Result<()> {
        let mut pieces = admin.backup(limit).await?;
        if self.file == Path::new("-") {
            receive(&mut pieces, &mut io::stdout().lock()).await.context("standard output")?;
            return Ok(());
        }
        let shown = self.file.display().to_string();
        let mut partial = Partial::create(&self.file).with_context(|| format!("{shown}: cannot be made"))?;
        receive(&mut pieces, &mut partial.file).await.with_context(|| shown.clone())?;
        // Verifies what is on the disk, before it takes the place of another file.
        let (head, counts, bytes) = block_in_place(|| {
            partial.file.sync_all().with_context(|| shown.clone())?;
            verified(&partial.path)
        })?;
        partial.publish(&self.file).with_context(|| shown.clone())?;
        println!("{shown}: {}", in_words(&head, &counts, bytes));
        Ok(())
    }
}

/// Writes all pieces. No more than one is held.
async fn receive(pieces: &mut EventReceiver, out: &mut impl Write) -> Result<()> {
    let mut count = 0;
    loop {
        match pieces.next().await? {
            BackupPiece::Bytes(bytes) => {
                count += bytes.len() as u64;
                block_in_place(|| out.write_all(&bytes))?;
            }
            BackupPiece::End { bytes } if bytes == count => return Ok(block_in_place(|| out.flush())?),
            BackupPiece::End { bytes } => bail!("{count} bytes have come of {bytes}"),
            BackupPiece::Failed(reason) => bail!("metad could not make the backup: {reason}"),
        }
    }
}

/// A file under a temporary name, which is removed unless it is published.
struct Partial {
    path: PathBuf,
    file: File,
}

impl Partial {
    fn create(target: &Path) -> io::Result<Self> {
        if target.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let mut path = target.as_os_str().to_owned();
        path.push(format!(".{}.partial", std::process::id()));
        let path = PathBuf::from(path);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_with_their_unit() {
        let seconds = |text: &str| duration(text).map(|found| found.as_secs());
        assert_eq!(
            [seconds("0"), seconds("90s"), seconds("2h"), seconds("7d")],
            [Ok(0), Ok(90), Ok(7200), Ok(604_800)]
        );
        for wrong in ["", "7", "d", "-1d", "7days", "1.5h", "99999999999999999999s", "9999999w"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_that_is_not_published_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("b");
        fs::write(&target, "old").unwrap();
        drop(Partial::create(&target).unwrap());
        assert_eq!((fs::read(&target).unwrap(), fs::read_dir(dir.path()).unwrap().count()), (b"old".to_vec(), 1));
        let mut partial = Partial::create(&target).unwrap();
        partial.file.write_all(b"new").unwrap();
        partial.publish(&target).unwrap();
        assert_eq!((fs::read(&target).unwrap(), fs::read_dir(dir.path()).unwrap().count()), (b"new".to_vec(), 1));
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&fs::metadata(&target).unwrap()) & 0o777, 0o600);
    }
}
