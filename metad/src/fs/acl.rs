//! How POSIX access control lists (`acl(5)`) and the mode depend on each other: inheritance, and the mask that shows as
//! the group's bits. Lists have the kernel's form: a version, then entries of tag, permissions and id, little endian.

use super::inode::Inode;
use super::keys;
use super::numbered;
use super::view::View;
use wire::FsError;
use wire::attr::FileKind;

/// The list that is checked.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// The list that new entries of a directory inherit.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Returns whether an attribute is such a list.
pub(super) fn is_list(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

/// Entries of a list: some more than fit into a block of ext4, which answers with the same error. Each check of rights reads all.
const ENTRIES_MAX: usize = 512;
const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

struct Acl(Vec<Entry>);

impl Acl {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != VERSION || !rest.len().is_multiple_of(8) {
            return None;
        }
        let entries: Vec<Entry> = rest
            .chunks_exact(8)
            .map(|chunk| Entry {
                tag: u16::from_le_bytes([chunk[0], chunk[1]]),
                perm: u16::from_le_bytes([chunk[2], chunk[3]]),
                id: u32::from_le_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]),
            })
            .collect();
        let known =
            |entry: &Entry| [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER].contains(&entry.tag) && entry.perm <= 7;
        let acl = Self(entries);
        let complete = [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|tag| acl.find(*tag).is_some());
        (acl.0.iter().all(known) && (acl.0.is_empty() || complete)).then_some(acl)
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            bytes.extend_from_slice(&entry.tag.to_le_bytes());
            bytes.extend_from_slice(&entry.perm.to_le_bytes());
            bytes.extend_from_slice(&entry.id.to_le_bytes());
        }
        bytes
    }

    fn find(&self, tag: u16) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.tag == tag)
    }

    fn find_mut(&mut self, tag: u16) -> Option<&mut Entry> {
        self.0.iter_mut().find(|entry| entry.tag == tag)
    }

    /// Returns whether the list has no more than the three classes of the mode.
    fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    /// Returns the entry with the permissions of the group class: the mask, if there is one.
    fn group_class(&mut self) -> Option<&mut Entry> {
        if self.find(MASK).is_some() { self.find_mut(MASK) } else { self.find_mut(GROUP_OBJ) }
    }

    /// Returns the nine permission bits that show this list.
    fn mode(&mut self) -> u32 {
        let perm = |entry: Option<&Entry>| entry.map_or(0, |entry| u32::from(entry.perm));
        let owner = perm(self.find(USER_OBJ));
        let group = perm(self.group_class().map(|entry| &*entry));
        owner << 6 | group << 3 | perm(self.find(OTHER))
    }

    /// Sets the list's permissions from the nine permission bits.
    fn set_mode(&mut self, mode: u32) {
        let set = |entry: Option<&mut Entry>, shift: u32| {
            if let Some(entry) = entry {
                entry.perm = (mode >> shift & 7) as u16;
            }
        };
        set(self.find_mut(USER_OBJ), 6);
        set(self.group_class(), 3);
        set(self.find_mut(OTHER), 0);
    }
}

/// To whom an entry of a list belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    /// The owner.
    Owner,
    /// Another user.
    User(u32),
    /// The owning group.
    OwnerGroup,
    /// Another group.
    Group(u32),
    /// All others.
    Other,
}

/// Returns who has which rights by a list, with the mask taken into account, in the order in which they are looked at.
pub(super) fn classes(bytes: &[u8]) -> Option<Vec<(Class, u32)>> {
    let acl = Acl::parse(bytes).filter(|acl| !acl.0.is_empty())?;
    let mask = acl.find(MASK).map_or(7, |entry| u32::from(entry.perm));
    let of = |tag: u16, class: fn(u32) -> Class, mask: u32| {
        let found = acl.0.iter().filter(move |entry| entry.tag == tag);
        found.map(move |entry| (class(entry.id), u32::from(entry.perm) & mask)).collect::<Vec<_>>()
    };
    let owner = of(USER_OBJ, |_| Class::Owner, 7);
    let groups = [of(GROUP_OBJ, |_| Class::OwnerGroup, mask), of(GROUP, Class::Group, mask)].concat();
    Some([owner, of(USER, Class::User, mask), groups, of(OTHER, |_| Class::Other, 7)].concat())
}

/// Gives a new inode its permissions: from its directory's default list if there is one, otherwise by the umask.
pub(super) fn inherit(view: &mut View, dir: &Inode, inode: &mut Inode, umask: u32) {
    let default =
        if dir.attr.has_xattrs { numbered::load_bytes(view, &keys::xattr(dir.attr.ino, DEFAULT)) } else { None };
    let Some((bytes, mut acl)) = default.and_then(|bytes| Some((bytes.clone(), Acl::parse(&bytes)?))) else {
        inode.attr.mode &= !(umask & 0o777);
        return;
    };
    // acl(5), "object creation and default ACLs": the creator's mode limits what is inherited, the umask plays no part.
    let inherited = acl.mode() & inode.attr.mode;
    acl.set_mode(inherited);
    inode.attr.mode = inode.attr.mode & !0o777 | acl.mode();
    if !acl.is_minimal() {
        numbered::store_bytes(view, keys::xattr(inode.attr.ino, ACCESS), &acl.encode());
        inode.attr.has_xattrs = true;
    }
    if inode.attr.kind == FileKind::Directory {
        numbered::store_bytes(view, keys::xattr(inode.attr.ino, DEFAULT), &bytes);
        inode.attr.has_xattrs = true;
    }
}

/// Changes the access list when the mode is set.
pub(super) fn mode_changed(view: &mut View, inode: &Inode, mode: u32) {
    if !inode.attr.has_xattrs {
        return;
    }
    let key = keys::xattr(inode.attr.ino, ACCESS);
    if let Some(mut acl) = numbered::load_bytes(view, &key).and_then(|bytes| Acl::parse(&bytes)) {
        acl.set_mode(mode);
        numbered::store_bytes(view, key, &acl.encode());
    }
}

/// Changes the mode when an access list is set. Returns whether the attribute needs to be stored: a list of only the
/// three classes says no more than the mode.
pub(super) fn attribute_set(inode: &mut Inode, name: &[u8], value: &[u8]) -> Result<bool, FsError> {
    if !is_list(name) {
        return Ok(true);
    }
    if inode.attr.kind == FileKind::Symlink {
        return Err(FsError::NotSupported);
    }
    let mut acl = Acl::parse(value).ok_or(FsError::Invalid)?;
    if acl.0.len() > ENTRIES_MAX {
        return Err(FsError::NoSpace);
    }
    if name == DEFAULT {
        return if inode.attr.kind == FileKind::Directory { Ok(!acl.0.is_empty()) } else { Err(FsError::AccessDenied) };
    }
    if acl.0.is_empty() {
        return Ok(false);
    }
    inode.attr.mode = inode.attr.mode & !0o777 | acl.mode();
    Ok(!acl.is_minimal())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_shows_as_the_groups_bits() {
        let entry = |tag, perm| Entry { tag, perm, id: u32::MAX };
        let mut acl =
            Acl(vec![entry(USER_OBJ, 6), entry(USER, 7), entry(GROUP_OBJ, 4), entry(MASK, 5), entry(OTHER, 0)]);
        assert_eq!(acl.mode(), 0o650);
        acl.set_mode(0o741);
        assert_eq!(acl.mode(), 0o741);
        assert_eq!(acl.find(GROUP_OBJ).unwrap().perm, 4, "the owning group's own rights stay behind the mask");
        assert_eq!(Acl::parse(&acl.encode()).unwrap().0, acl.0);
    }

    #[test]
    fn a_malformed_list_is_refused() {
        assert!(Acl::parse(b"").is_none());
        assert!(Acl::parse(&[2, 0, 0, 0, 1]).is_none());
        assert!(Acl::parse(&[3, 0, 0, 0]).is_none());
        let only_owner = Acl(vec![Entry { tag: USER_OBJ, perm: 7, id: 0 }]).encode();
        assert!(Acl::parse(&only_owner).is_none());
    }
}
