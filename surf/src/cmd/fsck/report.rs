//! Output of a check: a line per finding, a summary, and its progress on a terminal.

use super::{EXIT_FINDINGS_LEFT, EXIT_REPAIRED, EXIT_UNCHECKED};
use crate::output::{self, complain, say};
use serde_json::json;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// No progress is shown before this time.
const PROGRESS_DELAY: Duration = Duration::from_secs(1);
/// Pause between two lines of progress.
const PROGRESS_PAUSE: Duration = Duration::from_millis(200);
/// Most findings that are remembered as printed, because a later round finds them again.
const PRINTED_MAX: usize = 100_000;

/// Advice for what can be repaired, but not yet.
const METADS_FIRST: &str = "the metads differ: mend the one that differs first, and check again";

/// Outcome of a finding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is mended.
    Repaired,
    /// It can be mended, which was not asked for.
    Repairable,
    /// It cannot be mended by a program without losing something.
    ByHand,
    /// It could not be mended.
    Failed,
}

/// A line about something that was found.
#[derive(Clone, Copy)]
pub struct Line<'a> {
    /// Which kind.
    pub kind: &'a str,
    /// Where.
    pub place: &'a str,
    /// What is wrong.
    pub what: &'a str,
    /// Outcome of the finding.
    pub outcome: Outcome,
    /// What to do.
    pub advice: &'a str,
}

impl Line<'_> {
    fn to_json(self) -> serde_json::Value {
        let Line { kind, place, what, outcome, advice } = self;
        let outcome = match outcome {
            Outcome::Repaired => "repaired",
            Outcome::Repairable => "repairable",
            Outcome::ByHand => "by-hand",
            Outcome::Failed => "failed",
        };
        json!({ "kind": kind, "place": place, "what": what, "outcome": outcome, "advice": advice })
    }

    fn in_words(self) -> String {
        let Line { kind, place, what, outcome, advice } = self;
        let end = match outcome {
            Outcome::Repaired => "repaired".to_owned(),
            Outcome::Repairable => format!("left; with --repair {advice}"),
            Outcome::ByHand => format!("left: {advice}"),
            Outcome::Failed => "not repaired: run it again".to_owned(),
        };
        format!("{kind}: {place}: {what} [{end}]")
    }
}

/// Counts findings, and prints them as they come.
pub struct Report {
    json: bool,
    repairs: bool,
    repaired: u64,
    /// Findings left in the last round.
    left: u64,
    failure: Option<String>,
    /// The metads differ: no repair is advised.
    metads_differ: bool,
    notes: Vec<String>,
    printed: HashSet<u64>,
    progress: Progress,
}

/// Hash of a finding.
fn mark(line: &Line) -> u64 {
    let mut hasher = DefaultHasher::new();
    (line.kind, line.place, line.what).hash(&mut hasher);
    hasher.finish()
}

struct Progress {
    begun: Instant,
    shown_at: Option<Instant>,
    shown: bool,
    is_terminal: bool,
}

impl Report {
    /// Starts without findings.
    pub fn new(json: bool, repairs: bool) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let progress = Progress { begun: Instant::now(), shown_at: None, shown: false, is_terminal };
        let (notes, printed) = (Vec::new(), HashSet::new());
        Self { json, repairs, repaired: 0, left: 0, failure: None, metads_differ: false, notes, printed, progress }
    }

    /// Begins another check of the whole state: findings that are left are counted anew.
    pub fn begin_round(&mut self) {
        self.left = 0;
    }

    /// Notes that the metads differ. Repairs follow from the leader's state, which may be the wrong one.
    pub fn metads_differ(&mut self) {
        self.metads_differ = true;
    }

    /// Counts and prints a finding.
    pub fn find(&mut self, line: &Line) {
        let line = &self.advised(line);
        match line.outcome {
            Outcome::Repaired => self.repaired += 1,
            _ => self.left += 1,
        }
        let mark = mark(line);
        let is_new =
            line.outcome == Outcome::Repaired || self.printed.len() >= PRINTED_MAX || self.printed.insert(mark);
        if !is_new {
            return;
        }
        self.clear();
        if self.json { output::json_line(&line.to_json()) } else { say!("{}", line.in_words()) }
    }

    /// Returns the finding with the advice that holds now.
    fn advised<'a>(&self, line: &Line<'a>) -> Line<'a> {
        match line.outcome {
            Outcome::Repairable if self.metads_differ => {
                Line { outcome: Outcome::ByHand, advice: METADS_FIRST, ..*line }
            }
            _ => *line,
        }
    }

    /// Notes something worth knowing that is not a fault.
    pub fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// Reports that something could not be checked.
    pub fn fail(&mut self, reason: &str) {
        self.clear();
        complain!("surf: {reason}");
        self.failure.get_or_insert_with(|| reason.to_owned());
    }

    /// Shows progress, on a terminal and not too often.
    pub fn progress(&mut self, text: &str) {
        let progress = &mut self.progress;
        let is_due = progress.shown_at.is_none_or(|at| at.elapsed() >= PROGRESS_PAUSE);
        if progress.is_terminal && progress.begun.elapsed() > PROGRESS_DELAY && is_due {
            output::progress(text);
            (progress.shown_at, progress.shown) = (Some(Instant::now()), true);
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.progress.shown) {
            output::progress("");
        }
    }

    fn code(&self) -> u8 {
        let mut code = 0;
        if self.repaired > 0 {
            code += EXIT_REPAIRED;
        }
        if self.left > 0 {
            code += EXIT_FINDINGS_LEFT;
        }
        if self.failure.is_some() {
            code += EXIT_UNCHECKED;
        }
        code
    }

    /// Prints the summary. Returns the exit code.
    pub fn end(mut self) -> u8 {
        self.clear();
        let code = self.code();
        if self.json {
            let (found, failure) = (self.repaired + self.left, &self.failure);
            output::json_line(&json!({ "summary": {
                "found": found, "repaired": self.repaired, "left": self.left, "unchecked": failure,
                "notes": self.notes, "exit_code": code,
            } }));
            return code;
        }
        self.notes.iter().for_each(|note| say!("note: {note}"));
        let found = match (self.repaired, self.left) {
            (0, 0) => "no fault found".to_owned(),
            (repaired, 0) => format!("{repaired} faults found, all of them repaired"),
            (0, left) if !self.repairs => format!("{left} faults found"),
            (repaired, left) => format!("{} faults found, {repaired} of them repaired, {left} left", repaired + left),
        };
        let unchecked = if self.failure.is_some() { "; not everything could be checked" } else { "" };
        say!("{found}{unchecked}");
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_the_sum_of_the_outcomes_of_the_findings() {
        let line = |outcome| Line { kind: "k", place: "p", what: "w", outcome, advice: "a" };
        let mut report = Report::new(true, true);
        assert_eq!(report.code(), 0);
        report.find(&line(Outcome::Failed));
        report.find(&line(Outcome::Repaired));
        assert_eq!(report.code(), 5);
        report.begin_round();
        assert_eq!(report.code(), 1, "the second round has found nothing of it");
        report.find(&line(Outcome::ByHand));
        report.fail("a daemon is away");
        assert_eq!(report.code(), 13);
    }

    #[test]
    fn no_repair_is_advised_while_the_metads_differ() {
        let line = |outcome| Line { kind: "k", place: "p", what: "w", outcome, advice: "it is written anew" };
        let mut report = Report::new(false, false);
        let before = report.advised(&line(Outcome::Repairable)).in_words();
        assert_eq!(before, "k: p: w [left; with --repair it is written anew]");
        report.metads_differ();
        let now = report.advised(&line(Outcome::Repairable));
        assert_eq!(now.in_words(), format!("k: p: w [left: {METADS_FIRST}]"));
        assert_eq!(now.to_json()["outcome"], "by-hand");
        assert_eq!(report.advised(&line(Outcome::ByHand)).advice, "it is written anew");
    }
}
