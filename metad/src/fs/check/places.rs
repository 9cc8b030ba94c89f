//! Names of places, for people.

use crate::fs::inode::Inode;
use crate::fs::keys;
use crate::fs::view::Kv;
use wire::ids::Ino;

/// Longest path that is reported in full, in bytes. `PATH_MAX` is 4096.
const PATH_BYTES_MAX: usize = 4096;

/// Returns bytes as one line; what is not printable text is escaped.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if c.is_control() => text.extend(c.escape_default()),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text += &format!("\\x{byte:02x}");
        }
    }
    text
}

/// Returns the path of an inode, or its number when no path leads to it.
#[must_use]
pub fn of(kv: &dyn Kv, ino: Ino) -> String {
    path(kv, ino).unwrap_or_else(|| format!("inode {ino}"))
}

/// Returns the path of an entry.
#[must_use]
pub fn entry(kv: &dyn Kv, parent: Ino, name: &[u8]) -> String {
    let name = printable(name);
    match path(kv, parent) {
        Some(dir) if dir == "/" => format!("/{name}"),
        Some(dir) => format!("{dir}/{name}"),
        None => format!("{name:?} of directory {parent}"),
    }
}

/// Returns an inode's path; if a file has several names, the one that was given last.
fn path(kv: &dyn Kv, ino: Ino) -> Option<String> {
    let (mut parts, mut bytes, mut at) = (Vec::new(), 0, ino);
    while at != Ino::ROOT {
        let inode: Inode = wire::codec::decode(&kv.get(&keys::inode(at))?).ok()?;
        // The entry may be gone, even if the inode has others.
        kv.get(&keys::dentry(inode.parent, &inode.name))?;
        bytes += inode.name.len() + 1;
        if bytes > PATH_BYTES_MAX {
            return None;
        }
        parts.push(printable(&inode.name));
        at = inode.parent;
    }
    parts.reverse();
    Some(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_on_its_line_whatever_bytes_it_has() {
        assert_eq!(printable(b"a\nb\\\xff\x1b[1m \xc3\xa9"), "a\\nb\\\\\\xff\\u{1b}[1m é");
    }
}
