//! What to do next to replace a metad: decided anew in each round, by the membership alone. So it does not matter where
//! an earlier attempt has ended, or whether somebody else takes the steps.

use std::fmt;
use std::net::SocketAddr;
use wire::ids::MetadId;
use wire::limits::CAUGHT_UP_ENTRIES;
use wire::message::admin::ClusterStatus;

/// A metad, as the leader knows it: number, address, whether it votes, entries of the log that it has.
pub(super) type Member = (MetadId, SocketAddr, bool, u64);

/// The metads of the cluster, as the leader knows them.
#[derive(Clone, Copy)]
pub(super) struct Metads<'a> {
    /// The members.
    pub members: &'a [Member],
    /// Numbers of all that are or were members.
    pub ever: &'a [MetadId],
    /// The last entry that the leader has applied.
    pub applied: u64,
}

impl<'a> Metads<'a> {
    /// Takes them from the state of the cluster.
    pub(super) fn of(status: &'a ClusterStatus) -> Self {
        Self { members: &status.metads, ever: &status.metads_ever, applied: status.applied }
    }

    /// Returns whether a metad that was removed had this number. The cluster gives it to no other.
    pub(super) fn had(&self, id: MetadId) -> bool {
        self.ever.contains(&id) && self.members.iter().all(|(member, ..)| *member != id)
    }

    /// Returns all numbers that are or were used.
    pub(super) fn used(&self) -> impl Iterator<Item = u64> {
        self.members.iter().map(|(id, ..)| id.0).chain(self.ever.iter().map(|id| id.0))
    }
}

/// Who is to leave, and who is to take its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// The metad that leaves.
    pub old: MetadId,
    /// The new one.
    pub new: MetadId,
    /// Where the new one serves.
    pub addr: SocketAddr,
}

/// What is done next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Wait until the new one runs.
    Start,
    /// Make it a learner.
    Add,
    /// Wait until it has the log.
    CatchUp {
        /// Entries that it has.
        has: u64,
        /// Entries that there are.
        of: u64,
    },
    /// Give it the vote of the old one, which is removed with the same change.
    Replace,
    /// Remove the old one, which does not vote any more.
    Forget,
    /// Nothing is left to do.
    Done,
}

/// Why the one cannot replace the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// Both have the same number.
    SameNumber(MetadId),
    /// The old one is no member, nor is the new one.
    NoSuchMember(MetadId, Vec<MetadId>),
    /// The number of the new one belongs to a member elsewhere.
    NumberTaken(MetadId, SocketAddr),
    /// A metad that was removed had the number of the new one. With a number that is free.
    NumberUsed(MetadId, u64),
    /// The address of the new one belongs to a third member.
    AddressTaken(SocketAddr, MetadId),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SameNumber(id) => write!(f, "metad-{id} cannot replace itself: a number is never used twice"),
            Self::NoSuchMember(old, members) => {
                let members: Vec<String> = members.iter().map(|id| format!("metad-{id}")).collect();
                write!(f, "metad-{old} is no member; there are {}", members.join(", "))
            }
            Self::NumberTaken(new, addr) => {
                write!(f, "metad-{new} is a member at {addr}: the new one needs a number that was never used")
            }
            Self::NumberUsed(new, free) => write!(
                f,
                "there was a metad-{new} before: the new one needs a number that was never used, such as {free} (`--id`)"
            ),
            Self::AddressTaken(addr, id) => write!(f, "metad-{id} has the address {addr}: choose another"),
        }
    }
}

/// Returns the next step, by the metads of the cluster, and whether a metad answers at the new one's address.
pub(super) fn next(wanted: &Wanted, metads: &Metads<'_>, answers: bool) -> Result<Step, Refusal> {
    let Wanted { old, new, addr } = *wanted;
    let Metads { members, applied, .. } = *metads;
    let find = |id: MetadId| members.iter().find(|(member, ..)| *member == id);
    if old == new {
        return Err(Refusal::SameNumber(old));
    }
    // The old one may have the same address: messages say for whom they are.
    let taken = members.iter().find(|(id, at, ..)| *at == addr && *id != old && *id != new);
    match (find(old), find(new), taken) {
        (None, None, _) => Err(Refusal::NoSuchMember(old, members.iter().map(|(id, ..)| *id).collect())),
        (_, _, Some((id, ..))) => Err(Refusal::AddressTaken(addr, *id)),
        (_, Some((_, at, ..)), _) if *at != addr => Err(Refusal::NumberTaken(new, *at)),
        (None, Some((_, _, true, _)), _) => Ok(Step::Done),
        (Some((_, _, false, _)), Some((_, _, true, _)), _) => Ok(Step::Forget),
        // Both vote if the new one was added by hand, or a change of the membership was cut off in the middle.
        (Some(_), Some((_, _, true, _)), _) => Ok(Step::Replace),
        (Some(_), None, _) if metads.had(new) => Err(Refusal::NumberUsed(new, metads.used().max().unwrap_or(0) + 1)),
        (Some(_), None, _) if answers => Ok(Step::Add),
        (Some(_), None, _) => Ok(Step::Start),
        (_, Some((_, _, false, has)), _) if has.saturating_add(CAUGHT_UP_ENTRIES) < applied || *has == 0 => {
            Ok(Step::CatchUp { has: *has, of: applied })
        }
        // It takes a vote even if somebody has removed the old one meanwhile.
        (_, Some((_, _, false, _)), _) => Ok(Step::Replace),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(number: u16) -> SocketAddr {
        ([10, 0, 0, 1], 7000 + number).into()
    }

    fn member(number: u16, voter: bool, has: u64) -> Member {
        (MetadId(number.into()), addr(number), voter, has)
    }

    fn wanted() -> Wanted {
        Wanted { old: MetadId(3), new: MetadId(4), addr: addr(4) }
    }

    fn three() -> Vec<Member> {
        (1..=3).map(|number| member(number, true, 9_000)).collect()
    }

    fn with(more: Member) -> Vec<Member> {
        [three(), vec![more]].concat()
    }

    fn next(wanted: &Wanted, members: &[Member], applied: u64, answers: bool) -> Result<Step, Refusal> {
        super::next(wanted, &Metads { members, ever: &[], applied }, answers)
    }

    #[test]
    fn each_step_follows_from_the_membership_alone() {
        let next = |members: &[Member], answers| next(&wanted(), members, 9_000, answers).unwrap();
        assert_eq!(next(&three(), false), Step::Start);
        assert_eq!(next(&three(), true), Step::Add);
        for answers in [false, true] {
            assert_eq!(next(&with(member(4, false, 0)), answers), Step::CatchUp { has: 0, of: 9_000 });
            assert_eq!(next(&with(member(4, false, 7_999)), answers), Step::CatchUp { has: 7_999, of: 9_000 });
            assert_eq!(next(&with(member(4, false, 8_000)), answers), Step::Replace);
            assert_eq!(
                next(&with(member(4, true, 0)), answers),
                Step::Replace,
                "a change was cut off, or it was added"
            );
            let half = [member(1, true, 1), member(2, true, 1), member(3, false, 1), member(4, true, 1)];
            assert_eq!(next(&half, answers), Step::Forget);
            assert_eq!(next(&[member(1, true, 1), member(2, true, 1), member(4, true, 1)], answers), Step::Done);
        }
    }

    #[test]
    fn a_learner_of_a_young_cluster_has_to_follow_before_it_votes() {
        assert_eq!(next(&wanted(), &with(member(4, false, 0)), 20, true), Ok(Step::CatchUp { has: 0, of: 20 }));
        assert_eq!(next(&wanted(), &with(member(4, false, 3)), 20, true), Ok(Step::Replace));
    }

    #[test]
    fn the_old_one_loses_its_vote_only_when_the_new_one_gets_it() {
        // Whatever is there, no step but `Replace` takes a vote away, and it gives one.
        for has in [0, 5, 8_000, 9_000] {
            let step = next(&wanted(), &with(member(4, false, has)), 9_000, true).unwrap();
            assert!(matches!(step, Step::CatchUp { .. } | Step::Replace), "{step:?}");
        }
        let removed: Vec<Member> =
            with(member(4, false, 9_000)).into_iter().filter(|one| one.0 != MetadId(3)).collect();
        assert_eq!(next(&wanted(), &removed, 9_000, true), Ok(Step::Replace));
    }

    #[test]
    fn every_run_of_steps_ends_in_done_from_wherever_it_begins() {
        for (members, applied) in [(three(), 9_000), (with(member(4, false, 0)), 5), (with(member(4, true, 9)), 9)] {
            let mut members = members;
            let mut steps = Vec::new();
            loop {
                let step = next(&wanted(), &members, applied, steps.len() > 1).unwrap();
                steps.push(step);
                let is = |id: u64| move |one: &Member| one.0 == MetadId(id);
                match step {
                    Step::Start => {}
                    Step::Add => members.push(member(4, false, 0)),
                    Step::CatchUp { .. } => members.iter_mut().filter(|one| is(4)(one)).for_each(|one| one.3 += 4_000),
                    Step::Replace => {
                        members.iter_mut().filter(|one| is(4)(one)).for_each(|one| one.2 = true);
                        members.retain(|one| !is(3)(one));
                    }
                    Step::Forget => members.retain(|one| !is(3)(one)),
                    Step::Done => break,
                }
                assert!(steps.len() < 10, "{steps:?}");
            }
            assert_eq!(members.iter().filter(|one| one.2).count(), 3, "{steps:?}");
        }
    }

    #[test]
    fn what_cannot_be_replaced_is_refused_with_the_reason() {
        let refused = |wanted: Wanted| next(&wanted, &three(), 9, true).unwrap_err().to_string();
        let absent = refused(Wanted { old: MetadId(9), ..wanted() });
        assert!(absent.contains("metad-9 is no member; there are metad-1, metad-2, metad-3"), "{absent}");
        assert!(refused(Wanted { new: MetadId(3), ..wanted() }).contains("replace itself"));
        assert!(refused(Wanted { new: MetadId(2), ..wanted() }).contains("metad-2 is a member at 10.0.0.1:7002"));
        assert!(refused(Wanted { addr: addr(1), ..wanted() }).contains("metad-1 has the address"));
        let ever: Vec<MetadId> = (1..=6).map(MetadId).collect();
        for answers in [false, true] {
            let metads = Metads { members: &three(), ever: &ever, applied: 9 };
            let used = super::next(&wanted(), &metads, answers).unwrap_err().to_string();
            assert!(used.contains("there was a metad-4 before") && used.contains("such as 7"), "{used}");
            let follows = Metads { members: &with(member(4, false, 9)), ..metads };
            assert_eq!(super::next(&wanted(), &follows, answers), Ok(Step::Replace), "it is a member now");
        }
        let same_place = Wanted { addr: addr(3), ..wanted() };
        assert_eq!(next(&same_place, &three(), 9, true), Ok(Step::Add), "the machine of the lost one has a new disk");
    }
}
