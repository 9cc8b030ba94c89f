//! Extended attributes.

use super::Shared;
use super::reply::{Sized, gone_is_stale};
use std::fs;
use wire::FsError;
use wire::ids::Ino;
use wire::op::XattrMode;

/// The attribute that holds a file's access ACL (`acl(5)`).
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
/// The ACL that new entries of a directory inherit.
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
/// Namespaces in which names are free. The kernel checks who may use which.
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
/// Names that only root may see (`xattr(7)`).
const ROOT_ONLY_NAMESPACE: &[u8] = b"trusted.";

/// Caller that sets an attribute.
#[derive(Clone, Copy)]
pub(super) struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub tid: u32,
}

pub(super) fn mode(flags: i32) -> XattrMode {
    match flags {
        libc::XATTR_CREATE => XattrMode::Create,
        libc::XATTR_REPLACE => XattrMode::Replace,
        _ => XattrMode::Set,
    }
}

/// Refuses names that local filesystems refuse. The kernel leaves this to FUSE filesystems.
pub(super) fn check_name(name: &[u8]) -> Result<(), FsError> {
    if name == ACCESS_ACL || name == DEFAULT_ACL {
        return Ok(());
    }
    match NAMESPACES.iter().find_map(|namespace| name.strip_prefix(*namespace)) {
        Some([]) => Err(FsError::Invalid),
        Some(_) => Ok(()),
        None => Err(FsError::NotSupported),
    }
}

impl Shared {
    pub(super) async fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        caller: Caller,
    ) -> Result<(), FsError> {
        let clear_sgid = name == ACCESS_ACL && self.loses_sgid(ino, caller).await?;
        self.client.setxattr(ino, name, value, mode, clear_sgid).await.map_err(gone_is_stale)
    }

    /// Setting an ACL clears setgid unless the caller is root or in the file's group, as `chmod(2)` does.
    async fn loses_sgid(&self, ino: Ino, caller: Caller) -> Result<bool, FsError> {
        if caller.uid == 0 {
            return Ok(false);
        }
        let attr = self.client.getattr(ino).await.map_err(gone_is_stale)?;
        if attr.mode & libc::S_ISGID == 0 || attr.gid == caller.gid {
            return Ok(false);
        }
        let status = fs::read_to_string(format!("/proc/{}/status", caller.tid)).unwrap_or_default();
        Ok(!has_group(&status, attr.gid))
    }

    pub(super) async fn getxattr(&self, ino: Ino, name: &[u8], room: u32) -> Result<Sized, FsError> {
        let value = self.client.getxattr(ino, name).await.map_err(gone_is_stale)?;
        Ok(Sized { value, room })
    }

    pub(super) async fn listxattr(&self, ino: Ino, room: u32, privileged: bool) -> Result<Sized, FsError> {
        let names = self.client.listxattr(ino).await.map_err(gone_is_stale)?;
        let shown = names.into_iter().filter(|name| privileged || !name.starts_with(ROOT_ONLY_NAMESPACE));
        let value = shown.flat_map(|name| name.into_iter().chain([0])).collect();
        Ok(Sized { value, room })
    }
}

/// Reports whether `proc_pid_status(5)` lists a supplementary group.
fn has_group(status: &str, gid: u32) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    line.is_some_and(|groups| groups.split_ascii_whitespace().any(|group| group.parse() == Ok(gid)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_refused_as_on_local_filesystems() {
        for name in ["user.a", "trusted.b", "security.selinux", "system.posix_acl_default"] {
            assert_eq!(check_name(name.as_bytes()), Ok(()), "{name}");
        }
        assert_eq!(check_name(b"user."), Err(FsError::Invalid));
        for name in ["user", "system.nfs4_acl", "nonsense.a", ""] {
            assert_eq!(check_name(name.as_bytes()), Err(FsError::NotSupported), "{name}");
        }
    }

    #[test]
    fn supplementary_groups_are_found() {
        let status = "Name:\tx\nGroups:\t4 24 1000 \nVmPeak:\t1 kB\n";
        assert!(has_group(status, 24));
        assert!(!has_group(status, 2));
        assert!(!has_group("", 0));
    }
}
