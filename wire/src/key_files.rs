//! Files with keys and certificates: read whole, written complete or not at all, and secrets for their owner alone.

use crate::{Error, durable, sys};
use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Largest secret that is read: a key has some 250 bytes.
const PRIVATE_BYTES_MAX: u64 = 64 << 10;

pub(crate) fn read_file(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|error| Error::Identity {
        file: path.display().to_string(),
        reason: format!("cannot be read ({error}): restore it, or correct the path"),
    })
}

/// Reads a secret that this user has written with [`write_private`] before. Returns `None` when there is no such file.
///
/// # Errors
/// [`Error::Identity`] when it cannot be read, or others may have written or read it: then it is no secret.
pub(crate) fn read_private(path: &Path) -> Result<Option<String>, Error> {
    let refused = |reason: String| Error::Identity { file: path.display().to_string(), reason };
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(libc::ELOOP) => refused("is a symbolic link, which is not followed: remove it".to_owned()),
        _ => refused(format!("cannot be read ({error}): remove it")),
    };
    // Opening a named pipe would wait for a writer.
    let mut file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let found = file.metadata().map_err(failed)?;
    check_private(&found, sys::effective_uid()).map_err(refused)?;
    let mut text = String::new();
    (&mut file).take(PRIVATE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok(Some(text))
}

/// Checks that nobody but this user (and root) can know what is in a file.
fn check_private(found: &Metadata, user: u32) -> Result<(), String> {
    let (owner, mode) = (found.uid(), found.mode() & 0o777);
    if !found.is_file() {
        Err("is no regular file: remove it".to_owned())
    } else if owner != user {
        Err(format!(
            "belongs to another user (uid {owner}), who may know the key in it: remove it, or run this as that user"
        ))
    } else if mode & 0o077 != 0 {
        Err(format!("others may read or write it (mode {mode:o}), so the key in it is no secret: remove it"))
    } else {
        Ok(())
    }
}

/// Cuts PEM text into exactly the wanted sections.
pub(crate) fn sections<const N: usize>(origin: &Path, text: &str, wanted: &[&str; N]) -> Result<[String; N], Error> {
    let wrong = |reason: String| Error::Identity { file: origin.display().to_string(), reason };
    let found =
        pem::parse_many(text).map_err(|error| wrong(format!("is damaged ({error}): restore or issue it again")))?;
    let tags: Vec<&str> = found.iter().map(pem::Pem::tag).collect();
    if tags != wanted {
        return Err(wrong(format!("holds {tags:?} where {wanted:?} is expected: restore or issue it again")));
    }
    let texts: Vec<String> = found.iter().map(pem::encode).collect();
    texts.try_into().map_err(|_| wrong("is damaged: restore or issue it again".to_owned()))
}

/// Writes a secret: complete or not at all, readable by its owner alone, durable on return.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    durable::replace(path, text.as_bytes()).map_err(|error| Error::Identity {
        file: path.display().to_string(),
        reason: format!("cannot be written: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_somebody_else_may_know_is_not_read() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let refused = |name: &str| read_private(&at(name)).unwrap_err().to_string();
        write_private(&at("key"), "secret").unwrap();
        assert_eq!(read_private(&at("key")).unwrap().as_deref(), Some("secret"));
        assert_eq!(read_private(&at("none")).unwrap(), None);
        symlink(at("key"), at("link")).unwrap();
        assert!(refused("link").contains("symbolic link, which is not followed: remove it"));
        symlink(at("none"), at("dangling")).unwrap();
        assert!(refused("dangling").contains("symbolic link"));
        fs::create_dir(at("dir")).unwrap();
        assert!(refused("dir").contains("no regular file"));
        fs::write(at("open"), "secret").unwrap();
        fs::set_permissions(at("open"), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(refused("open").contains("(mode 640)"), "{}", refused("open"));
        let (found, user) = (fs::metadata(at("key")).unwrap(), sys::effective_uid());
        let other = check_private(&found, user + 1).unwrap_err();
        assert!(other.contains(&format!("another user (uid {user})")) && other.contains("remove it"), "{other}");
    }
}
