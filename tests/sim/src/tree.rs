//! The tree as the metads store it, with its content.

use crate::blocks::Blocks;
use client::{Client, OpenFlags};
use metad::fs::read::read;
use metad::fs::view::Kv;
use std::collections::BTreeMap;
use std::sync::Arc;
use wire::attr::FileKind;
use wire::extent::Source;
use wire::ids::{Ino, SessionId};
use wire::op::{Read, ReadReply, With};

/// More bytes than any simulated file has.
const FILE_MAX: u64 = 1 << 20;

/// Files by their paths, with inode and content.
pub type Tree = BTreeMap<String, (Ino, Vec<u8>)>;

/// Returns the content of a file.
///
/// # Errors
/// Returns what is wrong with it.
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
                // I9: a block that an extent names is stored.
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

/// Returns all files.
///
/// # Errors
/// Returns what is wrong with one of them.
pub fn tree(kv: &dyn Kv, blocks: &Blocks) -> Result<Tree, String> {
    let (mut files, mut dirs) = (Tree::new(), vec![(String::new(), Ino::ROOT)]);
    while let Some((path, dir)) = dirs.pop() {
        let asked = Read::ReadDir { ino: dir, after: 0, limit: 4096, with: With::Names };
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

/// Compares everything with what a client shows.
///
/// # Errors
/// Returns the first difference.
pub async fn compare(client: &Arc<Client>, tree: &Tree) -> Result<(), String> {
    let mut listed = 0;
    let mut dirs = vec![(String::new(), Ino::ROOT)];
    while let Some((path, dir)) = dirs.pop() {
        let page = client.readdir(dir, 0, 4096, true).await.map_err(|error| format!("{path}: {error}"))?;
        for entry in page.entries {
            let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
            let attr = client.lookup(dir, &entry.name).await.map_err(|error| format!("{path}: {error}"))?;
            if attr.kind == FileKind::Directory {
                dirs.push((path, attr.ino));
                continue;
            }
            listed += 1;
            let Some((ino, content)) = tree.get(&path) else { return Err(format!("{path} is not there")) };
            let opened =
                client.open(attr.ino, OpenFlags::default()).await.map_err(|error| format!("{path}: {error}"))?;
            let read = client.read(&opened.handle, 0, 1 << 20).await;
            client.release(opened.handle).await;
            let read = read.map_err(|error| format!("{path}: {error}"))?;
            if attr.ino != *ino || attr.size != content.len() as u64 || read != content[..] {
                return Err(format!("{path} is not as it is: inode {} for {ino}, {} bytes", attr.ino, read.len()));
            }
        }
    }
    if listed == tree.len() { Ok(()) } else { Err(format!("{listed} files of {} are listed", tree.len())) }
}
