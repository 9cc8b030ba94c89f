//! How much the long tests do: a short form by default, and more where the environment says so.

use std::str::FromStr;

/// The number in an environment variable, or the usual one where it is not set.
///
/// # Panics
/// When what is set is no such number.
#[must_use]
pub fn scale<T: FromStr>(variable: &str, usual: T) -> T {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")),
        Err(_) => usual,
    }
}
