//! Which process has a UDP port open, by the kernel's tables.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

/// The name of the process, among these, that sends from `source`.
pub(super) fn name_of(source: SocketAddr, processes: &HashMap<u32, Arc<str>>) -> Option<Arc<str>> {
    let table = fs::read_to_string("/proc/self/net/udp").ok()?;
    let inodes: Vec<String> = table.lines().skip(1).filter_map(|line| inode(line, source)).collect();
    processes.iter().find(|(pid, _)| inodes.iter().any(|inode| has_open(**pid, inode))).map(|(_, name)| name.clone())
}

/// The inode of the socket in this line of `proc(5)`'s table, if it is bound to `source` or to its port on all addresses.
fn inode(line: &str, source: SocketAddr) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (addr, port) = fields.get(1)?.split_once(':')?;
    // Bytes in the order of memory.
    let addr = Ipv4Addr::from(u32::from_str_radix(addr, 16).ok()?.to_ne_bytes());
    let port = u16::from_str_radix(port, 16).ok()?;
    let same = port == source.port() && (addr.is_unspecified() || IpAddr::V4(addr) == source.ip());
    same.then(|| fields.get(9).map(|inode| (*inode).to_owned())).flatten()
}

fn has_open(pid: u32, inode: &str) -> bool {
    let wanted = format!("socket:[{inode}]");
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    open.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == Path::new(&wanted)))
}
