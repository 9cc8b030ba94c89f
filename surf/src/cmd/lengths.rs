//! Lengths of time on the command line.

use std::time::Duration;
use wire::limits::PIN_MAX_MS;

/// Reads a length of time: a number with s, m, h, d or w.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no length of time: say 36h, or 7d");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    let seconds = match &text[digits.len()..] {
        "" if count == 0 => 0,
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err(wrong()),
    };
    let seconds = count.checked_mul(seconds).filter(|seconds| *seconds <= PIN_MAX_MS / 1000);
    seconds.map(Duration::from_secs).ok_or_else(|| "a hundred years at most".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_with_their_unit() {
        let seconds = |text: &str| duration(text).map(|found| found.as_secs());
        assert_eq!(
            [seconds("0"), seconds("90s"), seconds("2h"), seconds("7d")],
            [Ok(0), Ok(90), Ok(7200), Ok(604_800)]
        );
        for wrong in ["", "7", "d", "-1d", "7days", "1.5h", "99999999999999999999s", "9999999w"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
