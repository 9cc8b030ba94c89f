//! Finds the UDP ports that a process has open, by the kernel's tables.
//!
//! Looking into another process can wait for the same thing as that process. So this is done once, when a sender is
//! named, and never while a datagram is forwarded, on which the other process may depend.

use std::fs;
use std::path::Path;

/// Returns the ports from which the process can send now.
pub(super) fn ports_of(pid: u32) -> Vec<u16> {
    let table = fs::read_to_string("/proc/self/net/udp").unwrap_or_default();
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let links: Vec<_> = open.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    let sockets = table.lines().skip(1).filter_map(socket);
    let own = sockets.filter(|(_, inode)| links.iter().any(|link| link == Path::new(&format!("socket:[{inode}]"))));
    own.map(|(port, _)| port).collect()
}

/// Returns port and inode of the socket in a line of the table, see `proc(5)`.
fn socket(line: &str) -> Option<(u16, &str)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, port) = fields.get(1)?.split_once(':')?;
    Some((u16::from_str_radix(port, 16).ok()?, fields.get(9)?))
}
