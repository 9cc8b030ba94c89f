//! The tree as the metads have it, with its content.

use crate::blocks::Blocks;
use metad::fs::read::read;
use metad::fs::view::Kv;
use std::collections::BTreeMap;
use wire::attr::FileKind;
use wire::extent::Source;
use wire::ids::{Ino, SessionId};
use wire::op::{Read, ReadReply};

/// More than any simulated file has.
const FILE_MAX: u64 = 1 << 20;

/// Files by their paths, with inode and content.
pub type Tree = BTreeMap<String, (Ino, Vec<u8>)>;

/// Content of a file.
///
/// # Errors
/// What is wrong with it.
pub fn content(kv: &dyn Kv, blocks: &Blocks, ino: Ino) -> Result<Vec<u8>, String> {
    let asked = Read::Extents { ino, off: 0, len: FILE_MAX };
    let ReadReply::Extents(page) = read(kv, SessionId(0), &asked).map_err(|error| format!("inode {ino}: {error}"))?
    else {
        return Err(format!("inode {ino} has no extents"));
    };
    let mut bytes = vec![0; page.size as usize];
    for extent in page.extents {
        let (at, len) = (extent.file_off as usize, extent.len as usize);
        let part = match extent.source {
            Source::Inline(part) => part,
            Source::Zero => continue,
            Source::Block { hash, offset, .. } => {
                // I9: what is named is stored.
                let block =
                    blocks.content(&hash).ok_or_else(|| format!("inode {ino} names a block that nobody has"))?;
                block[offset as usize..offset as usize + len].to_vec()
            }
        };
        let end = (at + len).min(bytes.len());
        bytes[at..end].copy_from_slice(&part[..end - at]);
    }
    Ok(bytes)
}

/// All files.
///
/// # Errors
/// What is wrong with one of them.
pub fn tree(kv: &dyn Kv, blocks: &Blocks) -> Result<Tree, String> {
    let (mut files, mut dirs) = (Tree::new(), vec![(String::new(), Ino::ROOT)]);
    while let Some((path, dir)) = dirs.pop() {
        let asked = Read::ReadDir { ino: dir, after: 0, limit: 4096, plus: false };
        let answer = read(kv, SessionId(0), &asked).map_err(|error| format!("directory {path:?}: {error}"))?;
        let ReadReply::Page { entries, .. } = answer else { return Err(format!("{path:?} is no directory")) };
        for entry in entries {
            let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
            match entry.kind {
                FileKind::Directory => dirs.push((path, entry.ino)),
                _ => {
                    files.insert(path, (entry.ino, content(kv, blocks, entry.ino)?));
                }
            }
        }
    }
    Ok(files)
}
