//! A filesystem of a few lines, with the errors of `rename(2)`, `link(2)` and similar calls.

use std::collections::BTreeMap;
use wire::FsError;
use wire::op::RenameMode;

pub type Ino = u64;
const ROOT: Ino = 1;

#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    File(Vec<u8>),
    Dir(BTreeMap<String, Ino>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    pub nodes: BTreeMap<Ino, Node>,
}

impl Model {
    pub fn new() -> Self {
        Self { nodes: BTreeMap::from([(ROOT, Node::Dir(BTreeMap::new()))]) }
    }

    /// Returns some directory, maybe one that is gone, or some file.
    pub fn pick(&self, directory: bool, index: usize) -> Option<Ino> {
        let fits = |node: &Node| matches!(node, Node::Dir(_)) == directory;
        let all: Vec<Ino> = self.nodes.iter().filter(|(_, node)| fits(node)).map(|(ino, _)| *ino).collect();
        all.get(index % all.len().max(1)).copied()
    }

    pub fn entries(&mut self, dir: Ino) -> Result<&mut BTreeMap<String, Ino>, FsError> {
        match self.nodes.get_mut(&dir).ok_or(FsError::NotFound)? {
            Node::Dir(entries) => Ok(entries),
            Node::File(_) => Err(FsError::NotADirectory),
        }
    }

    pub fn find(&mut self, dir: Ino, name: &str) -> Result<Ino, FsError> {
        self.entries(dir)?.get(name).copied().ok_or(FsError::NotFound)
    }

    pub fn is_dir(&self, ino: Ino) -> bool {
        matches!(self.nodes[&ino], Node::Dir(_))
    }

    pub fn links(&self, ino: Ino) -> usize {
        let names = |node: &Node| match node {
            Node::Dir(entries) => entries.values().filter(|to| **to == ino).count(),
            Node::File(_) => 0,
        };
        self.nodes.values().map(names).sum()
    }

    pub fn create(&mut self, dir: Ino, name: &str, ino: Ino, node: Node) -> Result<(), FsError> {
        if self.find(dir, name).is_ok() {
            return Err(FsError::Exists);
        }
        self.entries(dir)?.insert(name.to_owned(), ino);
        self.nodes.insert(ino, node);
        Ok(())
    }

    pub fn link(&mut self, ino: Ino, dir: Ino, name: &str) -> Result<(), FsError> {
        if self.is_dir(ino) {
            return Err(FsError::NotPermitted);
        }
        if self.links(ino) == 0 {
            return Err(FsError::NotFound);
        }
        if self.find(dir, name).is_ok() {
            return Err(FsError::Exists);
        }
        self.entries(dir)?.insert(name.to_owned(), ino);
        Ok(())
    }

    pub fn unlink(&mut self, dir: Ino, name: &str) -> Result<Ino, FsError> {
        let ino = self.find(dir, name)?;
        if self.is_dir(ino) {
            return Err(FsError::IsADirectory);
        }
        self.entries(dir)?.remove(name);
        Ok(ino)
    }

    pub fn rmdir(&mut self, dir: Ino, name: &str) -> Result<(), FsError> {
        let ino = self.find(dir, name)?;
        match &self.nodes[&ino] {
            Node::File(_) => return Err(FsError::NotADirectory),
            Node::Dir(entries) if !entries.is_empty() => return Err(FsError::NotEmpty),
            Node::Dir(_) => {}
        }
        self.entries(dir)?.remove(name);
        self.nodes.remove(&ino);
        Ok(())
    }

    fn within(&self, dir: Ino, ancestor: Ino) -> bool {
        let Node::Dir(entries) = &self.nodes[&ancestor] else { return false };
        dir == ancestor || entries.values().any(|below| self.within(dir, *below))
    }

    /// Returns the file whose entry was replaced.
    pub fn rename(
        &mut self,
        (dir, name): (Ino, &str),
        (to, new): (Ino, &str),
        mode: RenameMode,
    ) -> Result<Option<Ino>, FsError> {
        let source = self.find(dir, name)?;
        let target = self.find(to, new).ok();
        if self.is_dir(source) && self.within(to, source) {
            return Err(FsError::Invalid);
        }
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(FsError::Exists),
            (RenameMode::Exchange, None) => return Err(FsError::NotFound),
            (RenameMode::Exchange, Some(target)) => {
                if self.is_dir(target) && self.within(dir, target) {
                    return Err(FsError::Invalid);
                }
                self.entries(dir)?.insert(name.to_owned(), target);
                self.entries(to)?.insert(new.to_owned(), source);
                return Ok(None);
            }
            (_, Some(target)) if target == source => return Ok(None),
            (_, Some(target)) => match (self.is_dir(source), &self.nodes[&target]) {
                (true, Node::File(_)) => return Err(FsError::NotADirectory),
                (false, Node::Dir(_)) => return Err(FsError::IsADirectory),
                (true, Node::Dir(entries)) if !entries.is_empty() => return Err(FsError::NotEmpty),
                _ => {}
            },
            (_, None) => {}
        }
        self.entries(dir)?.remove(name);
        self.entries(to)?.insert(new.to_owned(), source);
        let Some(target) = target else { return Ok(None) };
        if self.is_dir(target) {
            self.nodes.remove(&target);
            return Ok(None);
        }
        Ok(Some(target))
    }

    pub fn file(&mut self, ino: Ino) -> Result<&mut Vec<u8>, FsError> {
        match self.nodes.get_mut(&ino).ok_or(FsError::NotFound)? {
            Node::File(bytes) => Ok(bytes),
            Node::Dir(_) => Err(FsError::IsADirectory),
        }
    }

    pub fn write(&mut self, ino: Ino, at: usize, content: &[u8]) -> Result<(), FsError> {
        let bytes = self.file(ino)?;
        let end = at + content.len();
        bytes.resize(bytes.len().max(end), 0);
        bytes[at..end].copy_from_slice(content);
        Ok(())
    }
}
