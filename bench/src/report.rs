//! Medians, ratios, and the table that shows them.

use crate::columns::NULL;
use anyhow::Result;
use serde_json::json;
use std::fmt::Write;

/// The unit of a figure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unit {
    MibPerSecond,
    PerSecond,
    Seconds,
}

impl Unit {
    fn text(self) -> &'static str {
        match self {
            Unit::MibPerSecond => "MiB/s",
            Unit::PerSecond => "op/s",
            Unit::Seconds => "s",
        }
    }
}

/// One workload, with the runs of each side.
pub(crate) struct Row {
    pub name: &'static str,
    pub unit: Unit,
    pub runs: Vec<Vec<f64>>,
}

/// A side: its name, and its description.
pub(crate) struct Column {
    pub name: String,
    pub what: String,
}

/// All figures.
pub(crate) struct Report {
    columns: Vec<Column>,
    runs: usize,
    pub rows: Vec<Row>,
}

/// The middle of the runs.
pub(crate) fn median(runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => (sorted[len / 2 - 1] + sorted[len / 2]) / 2.0,
    }
}

/// Returns how many times as fast the second is as the first.
fn speed(unit: Unit, first: f64, other: f64) -> f64 {
    if unit == Unit::Seconds { first / other } else { other / first }
}

fn shown(figure: f64) -> String {
    if figure < 100.0 { format!("{figure:.2}") } else { format!("{figure:.0}") }
}

impl Report {
    pub(crate) fn new(columns: Vec<Column>, runs: usize) -> Self {
        Self { columns, runs, rows: Vec::new() }
    }

    /// The columns that others are compared with: the first one, and the null file system.
    fn bases(&self) -> Vec<usize> {
        let null = self.columns.iter().position(|column| column.name == NULL);
        std::iter::once(0).chain(null.filter(|at| *at > 0)).collect()
    }

    /// A figure, and in brackets its ratios to the bases before it.
    fn cell(&self, unit: Unit, medians: &[f64], at: usize) -> String {
        if medians[at].is_nan() {
            return "failed".to_owned();
        }
        let bases = self.bases().into_iter().filter(|base| *base != at && at > 0);
        let ratios: Vec<String> = bases
            .map(|base| speed(unit, medians[base], medians[at]))
            .map(|ratio| if ratio.is_nan() { "-".to_owned() } else { format!("{ratio:.3}") })
            .collect();
        match ratios.as_slice() {
            [] => shown(medians[at]),
            ratios => format!("{} ({})", shown(medians[at]), ratios.join(", ")),
        }
    }

    /// A table in Markdown.
    pub(crate) fn table(&self) -> String {
        let bases: Vec<&str> = self.bases().into_iter().map(|at| self.columns[at].name.as_str()).collect();
        let names: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
        let mut text =
            format!("medians of {}; in brackets the speed as a ratio to {}\n\n", self.runs, bases.join(" and to "));
        let _ = writeln!(text, "| work | {} | unit |", names.join(" | "));
        let _ = writeln!(text, "|---|{}---|", "---|".repeat(names.len()));
        for row in &self.rows {
            let medians: Vec<f64> = row.runs.iter().map(|runs| median(runs)).collect();
            let cells: Vec<String> = (0..medians.len()).map(|at| self.cell(row.unit, &medians, at)).collect();
            let _ = writeln!(text, "| {} | {} | {} |", row.name, cells.join(" | "), row.unit.text());
        }
        text.push('\n');
        for column in &self.columns {
            let _ = writeln!(text, "- {}: {}", column.name, column.what);
        }
        text
    }

    /// All single figures, and the machine.
    pub(crate) fn json(&self) -> Result<String> {
        let row = |row: &Row| {
            let medians: Vec<f64> = row.runs.iter().map(|runs| median(runs)).collect();
            json!({ "name": row.name, "unit": row.unit.text(), "medians": medians, "runs": row.runs })
        };
        let names: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
        let what: Vec<&str> = self.columns.iter().map(|column| column.what.as_str()).collect();
        let rows: Vec<_> = self.rows.iter().map(row).collect();
        let all = json!({ "sides": names, "what": what, "machine": crate::sys::machine(), "rows": rows });
        Ok(serde_json::to_string_pretty(&all)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_whatever_the_order() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn twice_the_time_is_half_the_speed() {
        assert_eq!(speed(Unit::Seconds, 1.0, 2.0), 0.5);
        assert_eq!(speed(Unit::PerSecond, 1.0, 2.0), 2.0);
    }

    fn report(names: &[&str], runs: Vec<Vec<f64>>) -> Report {
        let column = |name: &&str| Column { name: (*name).to_owned(), what: String::new() };
        let mut report = Report::new(names.iter().map(column).collect(), 1);
        report.rows.push(Row { name: "untar", unit: Unit::Seconds, runs });
        report
    }

    #[test]
    fn each_figure_is_compared_with_the_first_and_with_the_null_file_system() {
        let table = report(&["ext4", "null", "surf"], vec![vec![1.0], vec![2.0], vec![8.0]]).table();
        assert!(table.contains("| untar | 1.00 | 2.00 (0.500) | 8.00 (0.125, 0.250) | s |"), "{table}");
        let table = report(&["null", "surf"], vec![vec![2.0], vec![8.0]]).table();
        assert!(table.contains("| untar | 2.00 | 8.00 (0.250) | s |"), "{table}");
    }

    #[test]
    fn failures_are_shown_and_compared_with_nothing() {
        let table = report(&["ext4", "null", "surf"], vec![vec![1.0], vec![], vec![4.0]]).table();
        assert!(table.contains("| untar | 1.00 | failed | 4.00 (0.250, -) | s |"), "{table}");
        let json = report(&["ext4", "null"], vec![vec![1.0], vec![]]).json().unwrap();
        assert!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["rows"][0]["medians"][1].is_null());
    }
}
