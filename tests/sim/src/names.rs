//! What programs have done to names and the answers they got, and what a lookup must return because of these.

use crate::leases::Leases;
use std::collections::BTreeMap;
use tokio::time::Instant;
use wire::FsError;
use wire::ids::Ino;
use wire::op::Name;

/// Where a name leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leads {
    /// It is absent.
    Nowhere,
    /// It leads to this inode.
    To(Ino),
    /// It leads to some inode.
    Somewhere,
}

impl Leads {
    /// Returns whether a lookup may return this.
    #[must_use]
    pub fn may_show(self, shown: Option<Ino>) -> bool {
        match self {
            Self::Nowhere => shown.is_none(),
            Self::To(ino) => shown == Some(ino),
            Self::Somewhere => shown.is_some(),
        }
    }
}

/// How a call changes a name.
#[derive(Clone, Copy, Debug)]
struct Change {
    client: usize,
    begun: Instant,
    /// When the call returned, if it succeeded.
    done: Option<Instant>,
    /// Whether it was refused.
    refused: bool,
    leads_to: Leads,
}

/// A call under way that changes names.
pub struct Changing(Vec<((Ino, Name), usize)>);

/// All changes of names.
#[derive(Debug, Default)]
pub struct Names(BTreeMap<(Ino, Name), Vec<Change>>);

impl Names {
    /// Notes the beginning of a call after which names lead to these.
    pub fn begin(&mut self, client: usize, names: &[(Ino, &[u8], Leads)]) -> Changing {
        let begun = Instant::now();
        let mut changing = Vec::new();
        for (dir, name, leads_to) in names {
            let place = (*dir, name.to_vec());
            let changes = self.0.entry(place.clone()).or_default();
            changes.push(Change { client, begun, done: None, refused: false, leads_to: *leads_to });
            changing.push((place, changes.len() - 1));
        }
        Changing(changing)
    }

    /// Notes that the call has returned. The inode that it `made` is known only now.
    pub fn returned(&mut self, Changing(changing): Changing, outcome: Result<Option<Ino>, FsError>) {
        for (place, index) in changing {
            let Some(change) = self.0.get_mut(&place).and_then(|changes| changes.get_mut(index)) else { continue };
            match outcome {
                Ok(made) => {
                    change.done = Some(Instant::now());
                    change.leads_to = made.map_or(change.leads_to, Leads::To);
                }
                // With other errors it is unknown what the call has done.
                Err(error) => change.refused = !matches!(error, FsError::Io | FsError::Stale),
            }
        }
    }

    /// Returns what a lookup that began then must return; `None` where there are several possibilities, or where others
    /// may not have waited for some client.
    #[must_use]
    pub fn expected(&self, (dir, name): (Ino, &[u8]), begun: Instant, leases: &Leases) -> Option<Leads> {
        let changes = self.0.get(&(dir, name.to_vec()))?;
        let mut done = Vec::new();
        for change in changes.iter().filter(|change| !change.refused) {
            let at = change.done.filter(|at| *at < begun && leases.are_held(change.client, *at))?;
            done.push((change.begun, at, change.leads_to));
        }
        let last = |(_, at, _): &&(Instant, Instant, _)| !done.iter().any(|(begun, ..)| *begun > *at);
        let mut last = done.iter().filter(last);
        let (_, _, leads_to) = last.next()?;
        last.next().is_none().then_some(*leads_to)
    }

    /// Returns whether a client has made an inode, or given it a name, at a time that satisfies `when`.
    #[must_use]
    pub fn were_given_by(&self, client: usize, ino: Ino, when: impl Fn(Option<Instant>) -> bool) -> bool {
        let may_be = |leads: Leads| leads == Leads::To(ino) || leads == Leads::Somewhere;
        let given = |change: &Change| change.client == client && may_be(change.leads_to) && when(change.done);
        self.0.values().flatten().any(given)
    }

    /// Returns the names of a directory that were changed.
    pub fn of(&self, dir: Ino) -> impl Iterator<Item = &Name> {
        let of_dir = move |((parent, _), _): &(&(Ino, Name), _)| *parent == dir;
        self.0.iter().filter(of_dir).map(|((_, name), _)| name)
    }
}
