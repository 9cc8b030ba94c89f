//! Files that people write: TOML, with errors that lead to the place.

use serde::de::DeserializeOwned;

/// Reads a file's text.
///
/// # Errors
/// One line: where, which key, and what is wrong with it.
pub fn from_toml<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let number = before.matches('\n').count();
        let line = text.lines().nth(number).unwrap_or_default();
        let key = line.split_once('=').map_or(String::new(), |(key, _)| format!(" (`{}`)", key.trim()));
        format!("line {}{key}: {}", number + 1, error.message().replace('\n', " "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        #[serde(rename = "listen")]
        _listen: std::net::SocketAddr,
    }

    #[test]
    fn an_error_names_line_and_key() {
        for (text, words) in [
            ("\nlisten = \"x\"\n", ["line 2", "`listen`"]),
            ("lisen = 1\n", ["line 1", "lisen"]),
            ("", ["line 1", "listen"]),
            ("listen = [\n\n", ["line", "`listen`"]),
        ] {
            let error = from_toml::<Settings>(text).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)) && !error.contains('\n'), "{text:?}: {error}");
        }
    }
}
