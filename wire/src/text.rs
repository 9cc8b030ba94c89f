//! Text of peers, as people may read it.

/// Returns whether a terminal obeys a character instead of showing it, or shows what stands beside it in another order.
#[must_use]
pub fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns text as one line that a terminal shows as it is: control characters and marks that change the direction of
/// writing are escaped.
#[must_use]
pub fn plain(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if is_active(c) {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_peers_stays_on_its_line_and_commands_no_terminal() {
        let hostile = "a\u{1b}[2J\u{1b}]0;owned\u{7}\rb\nc\u{202e}d\u{2066}\u{9b}31m\u{7f}\u{200f}e\u{2028}é";
        let shown = plain(hostile);
        assert!(!shown.chars().any(is_active), "{shown:?}");
        assert_eq!(
            shown,
            "a\\u{1b}[2J\\u{1b}]0;owned\\u{7}\\rb\\nc\\u{202e}d\\u{2066}\\u{9b}31m\\u{7f}\\u{200f}e\\u{2028}é"
        );
    }
}
