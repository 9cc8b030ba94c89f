//! The rows: what is measured, in this order, and which rows must run before each.

use crate::report::Unit;
use crate::scale::Scale;
use crate::side::Side;
use crate::tree::Inputs;
use crate::{apps, io, meta};
use anyhow::{Result, ensure};

/// A row's work on a side; returns its figure.
type Work = fn(&mut Side, &Inputs, Scale) -> Result<f64>;

/// A row of the table.
pub(crate) struct Row {
    pub name: &'static str,
    pub unit: Unit,
    pub work: Work,
    /// Rows whose files this one works on.
    after: &'static [&'static str],
}

const fn row(name: &'static str, unit: Unit, work: Work, after: &'static [&'static str]) -> Row {
    Row { name, unit, work, after }
}

const UNTAR: &str = "untar";
const CLONE: &str = "git clone";
const SEQUENTIAL: &str = "sequential write + fsync";
const CREATE_1: &str = "create, 1 process";
const CREATE_8: &str = "create, 8 processes";
const SMALL_FILES: &str = "write 16 KiB files";

pub(crate) const ROWS: &[Row] = &[
    row(SEQUENTIAL, Unit::MibPerSecond, io::sequential_write, &[]),
    row("sequential read, cold", Unit::MibPerSecond, io::sequential_read_cold, &[SEQUENTIAL]),
    row("sequential read, warm", Unit::MibPerSecond, io::sequential_read_warm, &[SEQUENTIAL]),
    row("random 4 KiB read, cold", Unit::PerSecond, io::random_read_cold, &[]),
    row("random 4 KiB write", Unit::PerSecond, io::random_write, &[]),
    row("random 4 KiB write, fsync each", Unit::PerSecond, io::random_write_synced, &[]),
    row(CREATE_1, Unit::PerSecond, meta::create_1, &[]),
    row("stat cold, 1 process", Unit::PerSecond, meta::stat_1, &[CREATE_1]),
    row("ls -l of 4,000", Unit::Seconds, meta::list, &[CREATE_1]),
    row("unlink, 1 process", Unit::PerSecond, meta::unlink_1, &[CREATE_1]),
    row(CREATE_8, Unit::PerSecond, meta::create_8, &[]),
    row("stat cold, 8 processes", Unit::PerSecond, meta::stat_8, &[CREATE_8]),
    row("unlink, 8 processes", Unit::PerSecond, meta::unlink_8, &[CREATE_8]),
    row(SMALL_FILES, Unit::PerSecond, meta::write_small, &[]),
    row("read 16 KiB files, cold", Unit::PerSecond, meta::read_small, &[SMALL_FILES]),
    row(UNTAR, Unit::Seconds, apps::untar, &[]),
    row("find, cold", Unit::Seconds, apps::find, &[UNTAR]),
    row("du, warm", Unit::Seconds, apps::du, &[UNTAR]),
    row("grep -r, cold", Unit::Seconds, apps::grep, &[UNTAR]),
    row(CLONE, Unit::Seconds, apps::git_clone, &[]),
    row("git status", Unit::Seconds, apps::git_status, &[CLONE]),
    row("rm -r of both", Unit::Seconds, apps::remove, &[UNTAR, CLONE]),
];

/// A row to be run.
pub(crate) struct Selected {
    pub row: &'static Row,
    /// False when it is run only because another row needs it.
    pub is_shown: bool,
}

/// The words of an option. Names of rows have commas in them, so a text that fits a row as a whole is one word.
fn words(text: &str) -> Vec<&str> {
    if ROWS.iter().any(|row| row.name.contains(text)) { vec![text] } else { text.split(',').map(str::trim).collect() }
}

/// Rows whose name contains one of the words (all rows without any), and those that they need, in order.
pub(crate) fn select(texts: &[String]) -> Result<Vec<Selected>> {
    let words: Vec<&str> = texts.iter().flat_map(|text| words(text)).collect();
    let wanted = |row: &Row| words.is_empty() || words.iter().any(|word| row.name.contains(word));
    for word in &words {
        ensure!(!word.is_empty() && ROWS.iter().any(|row| row.name.contains(word)), "no row is called `{word}`");
    }
    let needed: Vec<&str> = ROWS.iter().filter(|row| wanted(row)).flat_map(|row| row.after).copied().collect();
    let selected = ROWS.iter().filter(|row| wanted(row) || needed.contains(&row.name));
    Ok(selected.map(|row| Selected { row, is_shown: wanted(row) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(words: &[&str]) -> Vec<(&'static str, bool)> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        select(&words).unwrap().into_iter().map(|selected| (selected.row.name, selected.is_shown)).collect()
    }

    #[test]
    fn a_selected_row_includes_the_rows_that_it_needs() {
        assert_eq!(
            names(&["git status", "find"]),
            [("untar", false), ("find, cold", true), ("git clone", false), ("git status", true)]
        );
        assert_eq!(names(&["rm -r"]), [("untar", false), ("git clone", false), ("rm -r of both", true)]);
        assert_eq!(names(&[]).len(), ROWS.len());
    }

    #[test]
    fn several_words_and_names_with_commas_are_distinguished() {
        assert_eq!(names(&["git status,find"]), names(&["git status", "find"]));
        assert_eq!(names(&["stat cold, 8"]), [("create, 8 processes", false), ("stat cold, 8 processes", true)]);
    }

    #[test]
    fn a_word_that_names_no_row_is_refused() {
        for wrong in ["untar,unpack", "unpack", "untar,"] {
            assert!(select(&[wrong.to_owned()]).is_err_and(|error| error.to_string().contains("no row")), "{wrong}");
        }
    }

    #[test]
    fn what_a_row_needs_comes_before_it_and_needs_nothing_itself() {
        for (at, row) in ROWS.iter().enumerate() {
            for needed in row.after {
                assert!(ROWS[..at].iter().any(|before| before.name == *needed && before.after.is_empty()), "{needed}");
            }
        }
    }
}
