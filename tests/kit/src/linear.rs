//! Checks whether a history of concurrent operations is linearizable: whether there is a moment for each operation,
//! between its call and its return, so that all results are those of the operations one after the other, in this order.
//!
//! The search is Wing and Gong's ("Testing and Verifying Concurrent Objects") with Lowe's memory of configurations that
//! lead nowhere ("Testing for Linearizability"). A configuration is the progress of each lane, and the state. Two
//! things are added:
//!
//! - An operation may consist of several *steps*, each at a moment of its own, in order: a system call on a path first
//!   looks the name up and then acts on what it has found.
//! - An operation whose outcome is unknown has no end: its steps are taken at any later time, or never.
//!
//! Objects that no operation has in common are checked separately, each with its own history: a history is linearizable
//! if and only if the histories of its objects are (Herlihy and Wing, "Linearizability", theorem 1).

use std::collections::HashSet;
use std::fmt::{Debug, Write};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Configurations looked at before the search gives up: some gigabytes of memory.
const CONFIGURATIONS_MAX: usize = 30_000_000;
/// Operations shown before those that do not fit.
const SHOWN_OPERATIONS: usize = 40;

/// An operation with its outcome, and when it was called and returned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event<O> {
    /// The lane that called. Each lane has one operation at a time, and none after an operation without an end.
    pub lane: u32,
    /// When it was called.
    pub start: u64,
    /// When it returned; `None` if nobody knows whether it has happened.
    pub end: Option<u64>,
    /// What was called, and what it returned.
    pub op: O,
}

/// The result of a step.
pub enum Next<S, P> {
    /// More steps of the operation, in a state that may be another.
    On(S, P),
    /// The operation has ended, and has changed the state.
    Changed(S),
    /// The operation has ended, and no other operation can distinguish this state from the one before.
    Seen(S),
}

/// An object whose operations are carried out one after the other.
pub trait Model {
    /// Everything that results depend on.
    type State: Clone + Hash + Debug;
    /// An operation with its outcome.
    type Op: Debug;
    /// The progress of an operation.
    type Progress: Clone + Hash + Default;

    /// Returns the possible results of a step that are consistent with the operation's outcome; empty if there are
    /// none.
    fn step(
        &self,
        state: &Self::State,
        op: &Self::Op,
        progress: &Self::Progress,
    ) -> Vec<Next<Self::State, Self::Progress>>;
}

struct Configuration<M: Model> {
    /// For each lane, which of its operations is next, and the progress of that operation.
    lanes: Vec<(usize, M::Progress)>,
    state: M::State,
    done: usize,
}

struct Search<'a, M: Model> {
    model: &'a M,
    lanes: Vec<Vec<&'a Event<M::Op>>>,
    /// Operations that must end.
    count: usize,
}

/// Refuses a history that is not linearizable; the text shows how far the search got at best.
///
/// # Errors
/// The history is not linearizable, or too wide to be searched.
///
/// # Panics
/// When a lane has two operations at once: the history is not one.
pub fn check<M: Model>(model: &M, initial: M::State, history: &[Event<M::Op>]) -> Result<(), String> {
    let mut numbers: Vec<u32> = history.iter().map(|event| event.lane).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut lanes: Vec<Vec<&Event<M::Op>>> = vec![Vec::new(); numbers.len()];
    for event in history {
        lanes[numbers.partition_point(|number| *number < event.lane)].push(event);
    }
    for lane in &mut lanes {
        lane.sort_by_key(|event| event.start);
        let in_turn = lane.windows(2).all(|pair| pair[0].end.is_some_and(|end| end <= pair[1].start));
        assert!(in_turn, "a lane has one operation at a time");
    }
    let count = history.iter().filter(|event| event.end.is_some()).count();
    Search { model, lanes, count }.run(initial)
}

impl<M: Model> Search<'_, M> {
    fn run(&self, initial: M::State) -> Result<(), String> {
        let start =
            Configuration { lanes: vec![(0, M::Progress::default()); self.lanes.len()], state: initial, done: 0 };
        let mut seen = HashSet::new();
        let mut deepest: Option<Configuration<M>> = None;
        // The path to the present configuration: for each step, the remaining alternatives, the best one last.
        let mut path: Vec<Vec<Configuration<M>>> = vec![vec![start]];
        while let Some(alternatives) = path.last_mut() {
            let Some(configuration) = alternatives.pop() else {
                path.pop();
                continue;
            };
            if configuration.done == self.count {
                return Ok(());
            }
            if !seen.insert(fingerprint(&configuration)) {
                continue;
            }
            if seen.len() > CONFIGURATIONS_MAX {
                let shown = deepest.map(|deepest| self.show(&deepest)).unwrap_or_default();
                return Err(format!("undecided after {CONFIGURATIONS_MAX} configurations\n{shown}"));
            }
            path.push(self.after(&configuration));
            if deepest.as_ref().is_none_or(|deepest| configuration.done > deepest.done) {
                deepest = Some(configuration);
            }
        }
        let (done, shown) = deepest.map_or((0, String::new()), |deepest| (deepest.done, self.show(&deepest)));
        Err(format!("not linearizable: {done} of {} operations fit\n{shown}", self.count))
    }

    /// Returns the configurations one step further; the one to try first is the last.
    fn after(&self, configuration: &Configuration<M>) -> Vec<Configuration<M>> {
        let current = |lane: usize| self.lanes[lane].get(configuration.lanes[lane].0).copied();
        let end_of = |lane: usize| current(lane).and_then(|event| event.end).unwrap_or(u64::MAX);
        // An operation that was called after another one had returned cannot come before it.
        let first_end = (0..self.lanes.len()).map(end_of).min().unwrap_or(u64::MAX);
        let mut callable: Vec<usize> =
            (0..self.lanes.len()).filter(|lane| current(*lane).is_some_and(|event| event.start <= first_end)).collect();
        callable.sort_by_key(|lane| std::cmp::Reverse(end_of(*lane)));
        let mut after = Vec::new();
        for lane in callable {
            let Some(event) = current(lane) else { continue };
            let (at, progress) = &configuration.lanes[lane];
            for next in self.model.step(&configuration.state, &event.op, progress) {
                let mut lanes = configuration.lanes.clone();
                let mut done = configuration.done;
                let (state, only_seen) = match next {
                    Next::On(state, progress) => {
                        lanes[lane] = (*at, progress);
                        (state, false)
                    }
                    Next::Changed(state) | Next::Seen(state) if event.end.is_none() => {
                        lanes[lane] = (at + 1, M::Progress::default());
                        (state, false)
                    }
                    Next::Changed(state) => {
                        lanes[lane] = (at + 1, M::Progress::default());
                        done += 1;
                        (state, false)
                    }
                    Next::Seen(state) => {
                        lanes[lane] = (at + 1, M::Progress::default());
                        done += 1;
                        (state, true)
                    }
                };
                let next = Configuration { lanes, state, done };
                if only_seen {
                    // Every operation that comes later can come after this one as well.
                    return vec![next];
                }
                after.push(next);
            }
        }
        after
    }

    /// Shows the operations before and around those that do not fit.
    fn show(&self, configuration: &Configuration<M>) -> String {
        let mut text = String::new();
        let mut shown: Vec<(bool, &Event<M::Op>)> = Vec::new();
        for (lane, (at, _)) in self.lanes.iter().zip(&configuration.lanes) {
            shown.extend(lane[..*at].iter().rev().take(SHOWN_OPERATIONS).map(|event| (true, *event)));
            shown.extend(lane[*at..].iter().take(3).map(|event| (false, *event)));
        }
        shown.sort_by_key(|(_, event)| event.start);
        let first = shown.len().saturating_sub(SHOWN_OPERATIONS);
        for (fits, event) in &shown[first..] {
            let mark = if *fits { ' ' } else { '?' };
            let end = event.end.map_or("never".to_owned(), |end| end.to_string());
            let _ = writeln!(text, "{mark} lane {:2}  {:>12} .. {end:>12}  {:?}", event.lane, event.start, event.op);
        }
        let _ = write!(text, "state before what is marked: {:?}", configuration.state);
        text
    }
}

/// 128 bits: that two of millions of configurations have the same bits is less likely than a broken memory chip.
fn fingerprint<M: Model>(configuration: &Configuration<M>) -> (u64, u64) {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, &configuration.lanes, &configuration.state).hash(&mut hasher);
        hasher.finish()
    };
    (half(0), half(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register that begins as 0.
    struct Register;

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Write(u32),
        Read(u32),
    }
    use Op::{Read, Write};

    impl Model for Register {
        type State = u32;
        type Op = Op;
        type Progress = ();

        fn step(&self, state: &u32, op: &Op, (): &()) -> Vec<Next<u32, ()>> {
            match op {
                Write(value) => vec![Next::Changed(*value)],
                Read(value) if value == state => vec![Next::Seen(*state)],
                Read(_) => Vec::new(),
            }
        }
    }

    fn is_linearizable(history: &[(u32, u64, u64, Op)]) -> bool {
        let known = |end: u64| (end != u64::MAX).then_some(end);
        let history: Vec<_> = history
            .iter()
            .map(|(lane, start, end, op)| Event { lane: *lane, start: *start, end: known(*end), op: *op })
            .collect();
        check(&Register, 0, &history).is_ok()
    }

    const NEVER: u64 = u64::MAX;

    #[test]
    fn one_after_the_other_each_reads_the_last_write() {
        assert!(is_linearizable(&[]));
        assert!(is_linearizable(&[(1, 1, 2, Write(7)), (2, 3, 4, Read(7))]));
        assert!(!is_linearizable(&[(1, 1, 2, Write(7)), (2, 3, 4, Read(0))]));
        assert!(!is_linearizable(&[(1, 1, 2, Read(7)), (2, 3, 4, Write(7))]));
    }

    #[test]
    fn a_read_during_a_write_may_see_either_and_those_after_it_no_older_one() {
        for seen in [0, 7] {
            assert!(is_linearizable(&[(1, 1, 10, Write(7)), (2, 2, 3, Read(seen))]));
        }
        assert!(is_linearizable(&[(1, 1, 10, Write(7)), (2, 2, 3, Read(0)), (3, 4, 5, Read(7))]));
        assert!(!is_linearizable(&[(1, 1, 10, Write(7)), (2, 2, 3, Read(7)), (3, 4, 5, Read(0))]));
        // The two readers overlap, so either may have been the first.
        assert!(is_linearizable(&[(1, 1, 10, Write(7)), (2, 2, 5, Read(7)), (3, 4, 6, Read(0))]));
    }

    #[test]
    fn an_operation_with_an_unknown_outcome_happens_at_any_later_time_or_never() {
        let write = (1, 1, NEVER, Write(7));
        assert!(is_linearizable(&[write, (2, 2, 3, Read(0)), (2, 4, 5, Read(0))]));
        assert!(is_linearizable(&[write, (2, 2, 3, Read(0)), (2, 90, 91, Read(7))]));
        assert!(!is_linearizable(&[write, (2, 2, 3, Read(7)), (2, 4, 5, Read(0))]));
        assert!(!is_linearizable(&[(1, 4, NEVER, Write(7)), (2, 2, 3, Read(7))]));
    }

    #[test]
    fn two_readers_that_saw_two_writes_in_different_orders_are_refused() {
        let writes = [(1, 1, 2, Write(1)), (2, 1, 2, Write(2))];
        let agreeing = [(3, 3, 4, Read(1)), (4, 3, 4, Read(1))];
        let disagreeing = [(3, 3, 4, Read(1)), (4, 3, 4, Read(2))];
        assert!(is_linearizable(&[&writes[..], &agreeing].concat()));
        assert!(!is_linearizable(&[&writes[..], &disagreeing].concat()));
    }

    #[test]
    fn long_histories_of_many_lanes_take_no_time() {
        let mut history = Vec::new();
        for round in 0..5_000_u64 {
            for lane in 0..5 {
                let value = (round * 5 + u64::from(lane)) as u32 + 1;
                history.push((lane, round * 10, round * 10 + 5, Write(value)));
            }
            // The last lane differs each time, and the search cannot know which it is.
            let last = (round * 5 + round % 5) as u32 + 1;
            history.push((9, round * 10 + 6, round * 10 + 7, Read(last)));
        }
        assert!(is_linearizable(&history));
        history.push((9, 60_000, 60_001, Read(1)));
        assert!(!is_linearizable(&history));
    }

    #[test]
    fn a_refusal_shows_what_does_not_fit() {
        let event = |lane, start, end, op| Event { lane, start, end: Some(end), op };
        let history = [event(1, 1, 2, Write(7)), event(2, 3, 4, Read(0)), event(1, 5, 6, Write(8))];
        let refused = check(&Register, 0, &history).unwrap_err();
        assert!(refused.contains("1 of 3 operations fit"), "{refused}");
        assert!(refused.lines().any(|line| line.starts_with("? lane  2") && line.contains("Read(0)")), "{refused}");
        assert!(refused.lines().any(|line| line.starts_with("  lane  1") && line.contains("Write(7)")), "{refused}");
    }
}
