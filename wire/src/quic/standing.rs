//! The connections of this server that stand: those of a revoked certificate end at once, and each ends with its
//! certificate.

use crate::attr::Timestamp;
use crate::cert::Certificate;
use crate::revoked::Refusals;
use crate::tls::Subject;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Close code: the certificate is revoked.
pub(super) const REVOKED: u32 = 3;
/// Close code: the CA of the certificate is not trusted any more.
pub(super) const DISTRUSTED: u32 = 5;
/// Close code: the certificate has ended.
pub(super) const ENDED: u32 = 4;
/// A peer that was let in with an ended certificate, to renew it, may stay this long.
const RENEWAL_LIMIT: Duration = Duration::from_secs(30);
/// Clocks may be set, and machines sleep: the end of a certificate is looked at again after this long.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The connections that stand, by number.
#[derive(Default)]
pub(super) struct Standing {
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    next: u64,
    connections: HashMap<u64, (Subject, Certificate, quinn::Connection)>,
}

/// A connection that stands; it counts until this is dropped.
pub(super) struct Stands {
    standing: Arc<Standing>,
    number: u64,
}

impl Standing {
    /// Counts a connection.
    ///
    /// # Errors
    /// How to close it, if its certificate was refused since the handshake began.
    pub(super) fn enter(
        self: &Arc<Self>,
        refusals: &Refusals,
        (subject, certificate): (&Subject, &Certificate),
        connection: &quinn::Connection,
    ) -> Result<Stands, Closing> {
        let number = {
            let mut all = self.all.lock();
            all.next += 1;
            let number = all.next;
            all.connections.insert(number, (subject.clone(), certificate.clone(), connection.clone()));
            number
        };
        let stands = Stands { standing: self.clone(), number };
        // Looked at once it counts: a list that comes from now on finds it.
        closing(refusals, subject, certificate).map_or(Ok(stands), Err)
    }

    /// Closes the connections whose certificates are revoked, or whose CA is not trusted any more.
    pub(super) fn close_refused(&self, refusals: &Refusals) {
        for (subject, certificate, connection) in self.all.lock().connections.values() {
            if let Some(closing) = closing(refusals, subject, certificate) {
                closing.close(connection);
            }
        }
    }
}

/// Why a connection is closed, as a code and for people.
pub(super) struct Closing(u32, &'static str);

impl Closing {
    pub(super) fn reason(&self) -> &'static str {
        self.1
    }

    pub(super) fn close(&self, connection: &quinn::Connection) {
        connection.close(self.0.into(), self.1.as_bytes());
    }
}

fn closing(refusals: &Refusals, subject: &Subject, certificate: &Certificate) -> Option<Closing> {
    if !refusals.refuse(subject, certificate) {
        return None;
    }
    Some(if refusals.distrust(&certificate.authority) {
        Closing(DISTRUSTED, "the CA of its certificate was replaced")
    } else {
        Closing(REVOKED, "its certificate is revoked")
    })
}

impl Drop for Stands {
    fn drop(&mut self) {
        self.standing.all.lock().connections.remove(&self.number);
    }
}

/// Waits until a certificate ends, by the wall clock; for a while if it has ended already.
pub(super) async fn end_of(certificate: &Certificate) {
    if certificate.is_lasting() {
        return std::future::pending().await;
    }
    if certificate.has_ended(Timestamp::now()) {
        return tokio::time::sleep(RENEWAL_LIMIT).await;
    }
    loop {
        let left = u64::try_from(certificate.ends.nanos_since(Timestamp::now())).unwrap_or(0);
        if left == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_nanos(left).min(LOOK_EVERY)).await;
    }
}
