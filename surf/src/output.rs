//! What is printed: tables for people, JSON for programs. Nothing else in this crate writes to a terminal.
//!
//! Names and reasons come from peers, and names of files from their users. A terminal obeys control characters, so all
//! that is printed goes through [`plain`].

use anyhow::Result;
use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;
use time::OffsetDateTime;
use time::macros::format_description;
use wire::attr::Timestamp;
use wire::text::{is_active, plain};

/// Prints one line. The reader may have gone, but the work goes on nevertheless.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{}", plain(text));
}

/// Prints one line on standard error.
pub fn complaint(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", plain(text));
}

/// Shows progress on the terminal's last line; without a text, clears it.
pub fn progress(text: &str) {
    let mut terminal = std::io::stderr();
    let _ = write!(terminal, "\r\x1b[K{}", plain(text)).and_then(|()| terminal.flush());
}

/// Prints one line, from the arguments of `format!`.
macro_rules! say {
    ($($arg:tt)*) => { $crate::output::line(&format!($($arg)*)) };
}

/// Prints one line on standard error, from the arguments of `format!`.
macro_rules! complain {
    ($($arg:tt)*) => { $crate::output::complaint(&format!($($arg)*)) };
}

pub(crate) use {complain, say};

/// Returns encoded JSON in which what a terminal would obey is escaped. Such characters stand only in strings, where
/// an escape means the same.
fn plain_json(encoded: &str) -> String {
    let mut text = String::with_capacity(encoded.len());
    for c in encoded.chars() {
        if is_active(c) && c != '\n' {
            // Writing to a string cannot fail. None of them needs a pair of surrogates.
            let _ = write!(text, "\\u{:04x}", u32::from(c));
        } else {
            text.push(c);
        }
    }
    text
}

/// Prints `value` as JSON on several lines.
///
/// # Errors
/// When it cannot be encoded, which is a bug.
pub fn json(value: &serde_json::Value) -> Result<()> {
    let _ = writeln!(std::io::stdout(), "{}", plain_json(&serde_json::to_string_pretty(value)?));
    Ok(())
}

/// Prints `value` as JSON on one line.
pub fn json_line(value: &serde_json::Value) {
    let _ = writeln!(std::io::stdout(), "{}", plain_json(&value.to_string()));
}

/// Prints rows in aligned columns under a heading.
pub fn table(heading: &[&str], rows: &[Vec<String>]) {
    let _ = write!(std::io::stdout(), "{}", format_table(heading, rows));
}

fn format_table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let widths: Vec<usize> = heading
        .iter()
        .enumerate()
        .map(|(column, title)| cells(column).map(|cell| cell.chars().count()).fold(title.len(), usize::max))
        .collect();
    let mut text = String::new();
    let titles: Vec<String> = heading.iter().map(|title| (*title).to_owned()).collect();
    for row in std::iter::once(&titles).chain(&rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A time for people and programs, to the second, as RFC 3339 has it.
#[must_use]
pub fn time(at: Timestamp) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    let formatted = OffsetDateTime::from_unix_timestamp(at.secs).ok().and_then(|at| at.format(format).ok());
    formatted.unwrap_or_else(|| at.secs.to_string())
}

/// A length of time for people: in its two largest units, or in tenths of a second when it is short.
#[must_use]
pub fn duration(length: Duration) -> String {
    const UNITS: [(u64, char); 4] = [(86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')];
    let (seconds, tenths) = (length.as_secs(), length.subsec_millis() / 100);
    if seconds < 60 {
        return if tenths == 0 { format!("{seconds}s") } else { format!("{seconds}.{tenths}s") };
    }
    let largest = UNITS.iter().position(|(unit, _)| seconds >= *unit).unwrap_or_default();
    let (mut text, mut left) = (String::new(), seconds);
    for (unit, letter) in UNITS.iter().skip(largest).take(2) {
        if left >= *unit {
            let _ = write!(text, "{}{letter}", left / unit);
        }
        left %= unit;
    }
    text
}

/// Bytes for people, in binary units.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["metad-1".to_owned(), "leader".to_owned()], vec!["b".to_owned(), String::new()]];
        assert_eq!(format_table(&["name", "state"], &rows), "name     state\nmetad-1  leader\nb\n");
    }

    /// What a hostile peer may call itself: it clears the screen, sets the title, overwrites its line, adds a line,
    /// writes backwards, and speaks 8-bit control codes.
    const HOSTILE: &str = "a\u{1b}[2J\u{1b}]0;owned\u{7}\rb\nc\u{202e}d\u{2066}\u{9b}31m\u{7f}\u{200f}e\u{2028}é";

    #[test]
    fn a_table_with_text_of_peers_commands_no_terminal() {
        let table = format_table(&["name"], &[vec![HOSTILE.to_owned()]]);
        assert_eq!(table.lines().count(), 2);
        assert!(!table.chars().any(|c| is_active(c) && c != '\n'), "{table:?}");
    }

    #[test]
    fn json_with_text_of_peers_commands_no_terminal_and_means_the_same() {
        let value = serde_json::json!({ HOSTILE: [HOSTILE, 1] });
        for encoded in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let shown = plain_json(&encoded);
            assert!(!shown.chars().any(|c| is_active(c) && c != '\n'), "{shown:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }
    }

    /// Everything that is printed is escaped here.
    #[test]
    fn no_other_file_of_this_crate_prints() {
        let mut left = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
        let words = ["print", "eprint", "println", "eprintln"].map(|word| format!("{word}!("));
        while let Some(path) = left.pop() {
            if path.is_dir() {
                left.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            } else if !path.ends_with("src/output.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let tests = text.find("#[cfg(test)]").unwrap_or(text.len());
                let writes = ["io::stdout()", "io::stderr()"].iter().filter(|word| {
                    text[..tests].lines().any(|line| line.contains(**word) && !line.contains("is_terminal"))
                });
                let prints = words.iter().filter(|word| text[..tests].contains(word.as_str()));
                assert_eq!(
                    (prints.count(), writes.count()),
                    (0, usize::from(path.ends_with("metad/fetch.rs"))),
                    "{path:?}"
                );
            }
        }
    }

    #[test]
    fn lengths_of_time_are_shown_in_their_largest_units() {
        let shown = |ms| duration(Duration::from_millis(ms));
        assert_eq!([shown(0), shown(400), shown(3_499), shown(59_000)], ["0s", "0.4s", "3.4s", "59s"]);
        assert_eq!([shown(60_000), shown(90_500), shown(3_600_000), shown(5_400_000)], ["1m", "1m30s", "1h", "1h30m"]);
        assert_eq!([shown(604_800_000), shown(129_600_000), shown(86_430_000)], ["7d", "1d12h", "1d"]);
    }

    #[test]
    fn bytes_are_shown_in_the_largest_unit_that_fits() {
        assert_eq!([bytes(7), bytes(1536), bytes(3 << 30)], ["7 B", "1.5 KiB", "3.0 GiB"]);
    }
}
