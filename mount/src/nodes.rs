//! The kernel's numbers of inodes. They are those of the cluster, but for the root: the kernel calls it 1, also where the
//! mount's root is a directory further down. No mount that has another root sees the cluster's inode 1.

use fuser::INodeNo;
use wire::ids::Ino;

/// Translates numbers of inodes for one mount.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nodes {
    root: Ino,
}

impl Nodes {
    /// For a mount with this root.
    pub(crate) fn new(root: Ino) -> Self {
        Self { root }
    }

    /// Returns the inode that the kernel means.
    pub(crate) fn ino(self, number: INodeNo) -> Ino {
        if number == INodeNo::ROOT { self.root } else { Ino(number.0) }
    }

    /// Returns the kernel's number of an inode.
    pub(crate) fn number(self, ino: Ino) -> INodeNo {
        if ino == self.root { INodeNo::ROOT } else { INodeNo(ino.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_root_has_another_number() {
        for root in [Ino::ROOT, Ino(5000)] {
            let nodes = Nodes::new(root);
            assert_eq!((nodes.ino(INodeNo(1)), nodes.number(root)), (root, INodeNo(1)));
            assert_eq!((nodes.ino(INodeNo(6000)), nodes.number(Ino(6000))), (Ino(6000), INodeNo(6000)));
        }
    }
}
