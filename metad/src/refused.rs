//! The audit of one metad: whom it has refused since its start. Refusals add nothing to the log of the cluster, because
//! strangers must not fill it; so they are kept here, in bounded memory.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::net::SocketAddr;
use wire::attr::Timestamp;
use wire::limits::AUDIT_MAX;
use wire::message::cert::{AuditEvent, AuditRecord};
use wire::quic::network_of;

/// Records among which one is looked for that says the same.
const LOOKED_AT: usize = 64;
/// Most records of one network: a peer that tries again and again, under many names, makes no refusals of others go.
const OF_NETWORK_MAX: usize = AUDIT_MAX / 16;

/// The last refusals.
#[derive(Default)]
pub struct Refused(Mutex<VecDeque<Record>>);

struct Record {
    record: AuditRecord,
    /// How often it happened.
    count: u64,
}

impl Refused {
    /// Records a refusal. The log has the first of those that say the same, and then fewer and fewer of them.
    pub(crate) fn add(&self, at: Timestamp, who: &str, addr: SocketAddr, why: &str) {
        let mut all = self.0.lock();
        let first = all.len().saturating_sub(LOOKED_AT);
        let is_same = |one: &Record| one.record.who == who && one.record.detail == why && is_of(one, addr);
        let known = all.range(first..).position(is_same).and_then(|at| all.remove(first + at));
        let count = known.map_or(0, |known| known.count) + 1;
        let (event, who, detail) = (AuditEvent::Refused, who.to_owned(), why.to_owned());
        let record = AuditRecord { at, event, who, addr: Some(addr), detail };
        if count.is_power_of_two() {
            log(&record);
        }
        if all.iter().filter(|one| is_of(one, addr)).count() >= OF_NETWORK_MAX {
            all.iter().position(|one| is_of(one, addr)).and_then(|oldest| all.remove(oldest));
        } else if all.len() >= AUDIT_MAX {
            all.pop_front();
        }
        all.push_back(Record { record, count });
    }

    /// Returns the refusals since a time, the oldest first.
    pub(crate) fn since(&self, since: Timestamp) -> Vec<AuditRecord> {
        let all = self.0.lock();
        let recent = all.iter().filter(|one| one.record.at >= since);
        let shown = |one: &Record| {
            let mut record = one.record.clone();
            if one.count > 1 {
                record.detail = format!("{} ({} times)", record.detail, one.count);
            }
            record
        };
        recent.map(shown).collect()
    }
}

/// Returns whether somebody of the same network was refused.
fn is_of(one: &Record, addr: SocketAddr) -> bool {
    one.record.addr.is_some_and(|of| network_of(of.ip()) == network_of(addr.ip()))
}

/// Writes a record to this node's log: one line, always with the same fields.
pub(crate) fn log(record: &AuditRecord) {
    let AuditRecord { event, who, addr, detail, .. } = record;
    let addr = addr.map_or_else(|| "-".to_owned(), |addr| addr.to_string());
    tracing::info!(target: "audit", event = event.name(), who, addr, detail);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn from(number: u8) -> SocketAddr {
        ([10, 0, 0, number], 1).into()
    }

    #[test]
    fn who_comes_again_and_again_makes_no_other_refusal_go_and_all_together_are_bounded() {
        let (refused, now) = (Refused::default(), Timestamp::default());
        refused.add(now, "client a", from(1), "revoked");
        for port in 0..10_000 {
            refused.add(now, "client b", SocketAddr::new(from(2).ip(), port), "revoked");
        }
        let all = refused.since(now);
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].who.as_str(), all[1].detail.as_str()), ("client a", "revoked (10000 times)"));
        // Under many names, from many addresses of one network.
        for number in 0..2 * AUDIT_MAX as u32 {
            let ip = Ipv6Addr::from((0x2001_0db8_u128 << 96) | u128::from(number));
            refused.add(now, &format!("client {number}"), (ip, 1).into(), "revoked");
        }
        let all = refused.since(now);
        assert_eq!((all.len(), all[0].who.as_str()), (2 + OF_NETWORK_MAX, "client a"));
        for number in 0..2 * AUDIT_MAX as u32 {
            refused.add(now, "client c", (Ipv4Addr::from(number), 1).into(), "revoked");
        }
        assert_eq!(refused.since(now).len(), AUDIT_MAX);
        assert!(refused.since(now.shifted(1)).is_empty());
    }
}
