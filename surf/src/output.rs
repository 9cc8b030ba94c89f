//! What is printed: tables for people, JSON for programs.

use anyhow::{Context, Result};
use std::fmt::Write;
use time::OffsetDateTime;
use time::macros::format_description;
use tracing_subscriber::EnvFilter;
use wire::attr::Timestamp;

/// Sends logs to standard error, so that they never mix with output.
///
/// # Errors
/// When the filter is not valid.
pub fn init_log(filter: &str) -> Result<()> {
    let filter = EnvFilter::try_new(filter).context("--log")?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    Ok(())
}

/// Prints `value` as JSON.
///
/// # Errors
/// When it cannot be encoded, which is a bug.
pub fn json(value: &serde_json::Value) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints rows in aligned columns under a heading.
pub fn table(heading: &[&str], rows: &[Vec<String>]) {
    print!("{}", format_table(heading, rows));
}

fn format_table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let widths: Vec<usize> = heading
        .iter()
        .enumerate()
        .map(|(column, title)| cells(column).map(|cell| cell.chars().count()).fold(title.len(), usize::max))
        .collect();
    let mut text = String::new();
    let titles: Vec<String> = heading.iter().map(|title| (*title).to_owned()).collect();
    for row in std::iter::once(&titles).chain(rows) {
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

    #[test]
    fn bytes_are_shown_in_the_largest_unit_that_fits() {
        assert_eq!([bytes(7), bytes(1536), bytes(3 << 30)], ["7 B", "1.5 KiB", "3.0 GiB"]);
    }
}
