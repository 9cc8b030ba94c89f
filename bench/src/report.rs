//! Medians, ratios, and how they are shown.

use anyhow::Result;
use serde_json::json;
use std::fmt::Write;

/// What a figure counts.
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

/// One workload: per side its runs.
pub(crate) struct Row {
    pub name: &'static str,
    pub unit: Unit,
    pub runs: Vec<Vec<f64>>,
}

/// All figures.
pub(crate) struct Report {
    sides: Vec<String>,
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

/// How many times as fast the second is as the first.
fn speed(unit: Unit, first: f64, other: f64) -> f64 {
    if unit == Unit::Seconds { first / other } else { other / first }
}

fn shown(figure: f64) -> String {
    if figure < 100.0 { format!("{figure:.2}") } else { format!("{figure:.0}") }
}

impl Report {
    pub(crate) fn new(sides: Vec<String>, runs: usize) -> Self {
        Self { sides, runs, rows: Vec::new() }
    }

    /// A table in Markdown.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("medians of {}; in brackets the speed as a ratio to {}\n\n", self.runs, self.sides[0]);
        let _ = writeln!(text, "| work | {} | unit |", self.sides.join(" | "));
        let _ = writeln!(text, "|---|{}---|", "---|".repeat(self.sides.len()));
        for row in &self.rows {
            let medians: Vec<f64> = row.runs.iter().map(|runs| median(runs)).collect();
            let cells = medians.iter().enumerate().map(|(at, figure)| match at {
                0 => shown(*figure),
                _ => format!("{} ({:.3})", shown(*figure), speed(row.unit, medians[0], *figure)),
            });
            let _ =
                writeln!(text, "| {} | {} | {} |", row.name, cells.collect::<Vec<_>>().join(" | "), row.unit.text());
        }
        text
    }

    /// Every single figure, and the machine.
    pub(crate) fn json(&self) -> Result<String> {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| json!({ "name": row.name, "unit": row.unit.text(), "runs": row.runs }))
            .collect();
        let all = json!({ "sides": self.sides, "machine": crate::sys::machine(), "rows": rows });
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
}
