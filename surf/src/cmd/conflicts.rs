//! `surf conflicts`: lists conflict copies, made because two mounts wrote the same bytes of a file, and decides on
//! them.

use crate::output::{self, complain, say};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use wire::limits::NAME_BYTES_MAX;

/// The text between a file's name and the rest of its copy's name.
const MARK: &[u8] = b".conflict-";
/// Behind the time in the name of a copy that has nothing but what was written.
const PART: &str = "part";

/// Copies that were kept because two mounts wrote the same bytes of a file.
#[derive(Args)]
pub struct Conflicts {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the copies below a directory: which file, who wrote it, when, and both versions.
    List {
        /// The directory, in a mounted Surf.
        #[arg(default_value = ".")]
        dir: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Decide on copies.
    Keep {
        /// What to keep.
        #[arg(value_enum)]
        what: Keep,
        /// The copies, by their names `NAME.conflict-HOST-TIME`.
        #[arg(required = true)]
        copies: Vec<PathBuf>,
    },
}

/// Whose content stays.
#[derive(Clone, Copy, ValueEnum, PartialEq, Eq, Debug)]
enum Keep {
    /// The copy's: it takes the file's place.
    Mine,
    /// The file's: the copy is removed.
    Theirs,
    /// Both: the copy becomes an ordinary file, NAME.HOST-TIME.
    Both,
}

impl Conflicts {
    /// Carries it out.
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::List { dir, json } => list(&dir, json)?,
            Command::Keep { what, copies } => {
                for copy in copies {
                    let kept = keep(what, &copy).with_context(|| copy.display().to_string())?;
                    say!("{}", kept.display());
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The parts of a copy's name.
#[derive(Debug, PartialEq, Eq)]
struct Name {
    /// The file's name, cut if it was too long.
    file: OsString,
    host: String,
    /// Seconds since 1970, by the clock of that host.
    at: i64,
    /// It has nothing but what was written: the file was in too many pieces to be copied at once.
    is_part: bool,
    /// Number of a second or later copy of that name.
    number: Option<u32>,
}

impl Name {
    /// Reads `NAME.conflict-HOST-TIME`, perhaps followed by `.part`, and then perhaps by `.NUMBER`.
    fn parse(name: &OsStr) -> Option<Self> {
        let bytes = name.as_bytes();
        let at = bytes.windows(MARK.len()).rposition(|window| window == MARK)?;
        let file = OsString::from_vec(bytes[..at].to_vec());
        let rest = std::str::from_utf8(&bytes[at + MARK.len()..]).ok()?;
        let (host, time) = rest.rsplit_once('-')?;
        let mut words = time.split('.');
        let at = words.next()?.parse().ok()?;
        let mut word = words.next();
        let is_part = word == Some(PART);
        if is_part {
            word = words.next();
        }
        let number = word.map(str::parse::<u32>).transpose().ok()?;
        let is_name = !file.is_empty() && !host.is_empty() && words.next().is_none();
        is_name.then_some(Self { file, host: host.to_owned(), at, is_part, number })
    }
}

/// Seconds since 1970, for people.
fn time(at: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(at).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| at.to_string())
}

/// A copy, and its file.
struct Conflict {
    path: PathBuf,
    name: Name,
    copy: Metadata,
    /// `None` if the file is gone.
    file: Option<Metadata>,
}

/// All copies below a directory, in the order of their paths. Other filesystems mounted there are left out.
fn find(dir: &Path) -> Result<Vec<Conflict>> {
    let device = fs::metadata(dir).with_context(|| dir.display().to_string())?.dev();
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        // A directory that was removed in the meantime, or may not be read, does not hide the others.
        let unread = |error: &io::Error| complain!("{} is left out: {error}", dir.display());
        let Ok(entries) = fs::read_dir(&dir).inspect_err(unread) else { continue };
        for entry in entries {
            let Ok(entry) = entry.inspect_err(unread) else { break };
            // The entry was removed in the meantime.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() && metadata.dev() == device {
                left.push(entry.path());
            }
            if let Some(name) = Name::parse(&entry.file_name()) {
                let file = fs::symlink_metadata(dir.join(&name.file)).ok();
                found.push(Conflict { path: entry.path(), name, copy: metadata, file });
            }
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

fn list(dir: &Path, json: bool) -> Result<()> {
    let found = find(dir)?;
    if json {
        let version = |metadata: &Metadata| serde_json::json!({"bytes": metadata.len(), "mtime": metadata.mtime()});
        let rows: Vec<_> = found
            .iter()
            .map(|conflict| {
                serde_json::json!({
                    "copy": conflict.path.to_string_lossy(),
                    "file": conflict.path.with_file_name(&conflict.name.file).to_string_lossy(),
                    "host": conflict.name.host,
                    "time": conflict.name.at,
                    "part": conflict.name.is_part,
                    "mine": version(&conflict.copy),
                    "theirs": conflict.file.as_ref().map(version),
                })
            })
            .collect();
        return output::json(&serde_json::Value::Array(rows));
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|conflict| {
            let version = |file: &Metadata| format!("{}, {}", output::bytes(file.len()), time(file.mtime()));
            let what = if conflict.name.is_part { "what was written of " } else { "" };
            vec![
                conflict.path.display().to_string(),
                conflict.name.host.clone(),
                time(conflict.name.at),
                format!("{what}{}", version(&conflict.copy)),
                conflict.file.as_ref().map_or("gone".to_owned(), version),
            ]
        })
        .collect();
    if rows.is_empty() {
        say!("no conflicts");
    } else {
        output::table(&["copy", "written on", "at", "mine", "theirs"], &rows);
    }
    Ok(())
}

/// Other copies of the same file.
fn others_of(copy: &Path, name: &Name) -> Result<Vec<PathBuf>> {
    let dir = copy.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut others = Vec::new();
    for entry in fs::read_dir(dir)? {
        let other = entry?.file_name();
        if copy.file_name() != Some(&other) && Name::parse(&other).is_some_and(|other| other.file == name.file) {
            others.push(copy.with_file_name(other));
        }
    }
    others.sort();
    Ok(others)
}

/// Carries out a decision in one step, and returns the path of the result.
fn keep(what: Keep, copy: &Path) -> Result<PathBuf> {
    let Some(name) = copy.file_name().and_then(Name::parse) else {
        bail!("this is no copy of a conflict: these are named NAME.conflict-HOST-TIME");
    };
    let is_dir = fs::symlink_metadata(copy)?.is_dir();
    let file = copy.with_file_name(&name.file);
    if what != Keep::Both && copy.file_name().is_some_and(|full| full.len() >= NAME_BYTES_MAX) {
        bail!("the file's name did not fit into this one whole: rename or remove the copy yourself, or keep `both`");
    }
    match what {
        Keep::Mine if is_dir && fs::read_dir(&file).is_ok_and(|mut inside| inside.next().is_some()) => {
            bail!(
                "{} is a directory with entries of its own: move those you want from one to the other",
                file.display()
            );
        }
        Keep::Mine if name.is_part => {
            bail!(
                "this copy has only what was written, and holes elsewhere: write what you want of it into {} \
                 (`lseek` with SEEK_DATA finds it), then keep `theirs`, or keep `both`",
                file.display()
            );
        }
        Keep::Mine => {
            let others = others_of(copy, &name)?;
            if let Some(other) = others.first() {
                bail!("{} is of the same file: decide on that first, or keep `both`", other.display());
            }
            fs::rename(copy, &file)?;
            Ok(file)
        }
        Keep::Theirs => {
            if fs::symlink_metadata(&file).is_err() {
                bail!("{} is gone: the copy is all there is; keep `mine` or `both`", file.display());
            }
            if is_dir {
                fs::remove_dir(copy).context("it has entries: move or remove those first")?;
            } else {
                fs::remove_file(copy)?;
            }
            Ok(file)
        }
        Keep::Both => {
            let mut plain = name.file.clone();
            plain.push(format!(".{}-{}", name.host, name.at));
            if name.is_part {
                plain.push(format!(".{PART}"));
            }
            if let Some(number) = name.number {
                plain.push(format!(".{number}"));
            }
            let plain = copy.with_file_name(plain);
            if is_dir {
                // A rename replaces nothing here but an empty directory.
                fs::rename(copy, &plain).with_context(|| plain.display().to_string())?;
            } else {
                // A link first: unlike a rename, it replaces nothing.
                fs::hard_link(copy, &plain).with_context(|| plain.display().to_string())?;
                fs::remove_file(copy)?;
            }
            Ok(plain)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn parse(name: &str) -> Option<(String, String, i64, Option<u32>)> {
        let name = Name::parse(OsStr::new(name))?;
        Some((name.file.into_string().unwrap(), name.host, name.at, name.number))
    }

    #[test]
    fn names_of_copies_are_distinguished_from_others() {
        let host = |host: &str, number| Some(("a.txt".to_owned(), host.to_owned(), 1_700_000_000, number));
        assert_eq!(parse("a.txt.conflict-web-1-1700000000"), host("web-1", None));
        assert_eq!(parse("a.txt.conflict-web-1700000000.2"), host("web", Some(2)));
        for other in ["a.txt", "a.conflict", "a.conflict-web", "a.conflict-web-x", ".conflict-web-1", "a.conflict--1"] {
            assert_eq!(parse(other), None, "{other}");
        }
        let parts = |name| Name::parse(OsStr::new(name)).map(|name| (name.at, name.is_part, name.number));
        assert_eq!(parts("a.conflict-b.c-7.part"), Some((7, true, None)));
        assert_eq!(parts("a.conflict-b.c-7.part.2"), Some((7, true, Some(2))));
        assert_eq!(parts("a.conflict-b.c-7.2"), Some((7, false, Some(2))));
        assert_eq!([parts("a.conflict-b-7.2.part"), parts("a.conflict-b-7.2.3"), parts("a.conflict-b-7.")], [None; 3]);
        let twice = parse("a.conflict-b-1.conflict-c-2").unwrap();
        assert_eq!((twice.0.as_str(), twice.1.as_str()), ("a.conflict-b-1", "c"));
    }

    #[test]
    fn each_decision_leaves_the_chosen_content_and_no_copy() {
        for (what, expected) in [
            (Keep::Mine, vec![("file", "mine")]),
            (Keep::Theirs, vec![("file", "theirs")]),
            (Keep::Both, vec![("file", "theirs"), ("file.host-7", "mine")]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("sub")).unwrap();
            let at = |name: &str| dir.path().join("sub").join(name);
            fs::write(at("file"), "theirs").unwrap();
            fs::write(at("file.conflict-host-7"), "mine").unwrap();
            let found = find(dir.path()).unwrap();
            assert_eq!(found.len(), 1);
            keep(what, &found[0].path).unwrap();
            let mut left: Vec<String> =
                fs::read_dir(at("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            left.sort();
            let names: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
            assert_eq!(left, names);
            for (name, content) in expected {
                assert_eq!(fs::read_to_string(at(name)).unwrap(), content);
            }
        }
    }

    /// Guards I6.
    #[test]
    fn a_copy_of_what_was_written_alone_never_takes_the_place_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "theirs").unwrap();
        fs::write(at("file.conflict-host-7.part"), "mine").unwrap();
        assert!(keep(Keep::Mine, &at("file.conflict-host-7.part")).is_err());
        assert_eq!(fs::read_to_string(at("file")).unwrap(), "theirs");
        assert_eq!(keep(Keep::Both, &at("file.conflict-host-7.part")).unwrap(), at("file.host-7.part"));
        assert_eq!(fs::read_to_string(at("file.host-7.part")).unwrap(), "mine");
    }

    #[test]
    fn directories_and_links_are_conflicts_too() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["dir", "dir.conflict-host-7", "dir.conflict-host-7/sub.conflict-host-8"] {
            fs::create_dir(at(name)).unwrap();
        }
        symlink("nowhere", at("link.conflict-host-7")).unwrap();
        fs::write(at("dir/file"), "theirs").unwrap();
        let found: Vec<PathBuf> = find(dir.path()).unwrap().into_iter().map(|conflict| conflict.path).collect();
        assert_eq!(
            found,
            [at("dir.conflict-host-7"), at("dir.conflict-host-7/sub.conflict-host-8"), at("link.conflict-host-7")]
        );
        keep(Keep::Mine, &at("link.conflict-host-7")).unwrap();
        assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("nowhere"));
        assert!(keep(Keep::Mine, &at("dir.conflict-host-7")).is_err(), "the other one has entries");
        assert!(keep(Keep::Theirs, &at("dir.conflict-host-7")).is_err(), "this one has, too");
        keep(Keep::Both, &at("dir.conflict-host-7")).unwrap();
        assert!(at("dir.host-7/sub.conflict-host-8").is_dir() && at("dir/file").is_file());
    }

    #[test]
    fn nothing_is_replaced_or_removed_that_is_not_meant() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let cut = format!("{}.conflict-host-7", "n".repeat(NAME_BYTES_MAX - ".conflict-host-7".len()));
        fs::write(at(&cut), "mine").unwrap();
        assert!(keep(Keep::Mine, &at(&cut)).is_err(), "whose copy is it?");
        for name in ["two", "two.conflict-host-7", "two.conflict-host-8"] {
            fs::write(at(name), "mine").unwrap();
        }
        assert!(keep(Keep::Mine, &at("two.conflict-host-7")).is_err(), "the other copy has content of its own");
        keep(Keep::Theirs, &at("two.conflict-host-8")).unwrap();
        keep(Keep::Mine, &at("two.conflict-host-7")).unwrap();
        fs::write(at("plain"), "").unwrap();
        assert!(keep(Keep::Theirs, &at("plain")).is_err());
        fs::write(at("file.conflict-host-7"), "mine").unwrap();
        assert!(keep(Keep::Theirs, &at("file.conflict-host-7")).is_err(), "the file is gone");
        fs::write(at("file.host-7"), "other").unwrap();
        assert!(keep(Keep::Both, &at("file.conflict-host-7")).is_err(), "the name is taken");
        assert_eq!(fs::read_to_string(at("file.conflict-host-7")).unwrap(), "mine");
        assert_eq!(fs::read_to_string(at("file.host-7")).unwrap(), "other");
    }
}
