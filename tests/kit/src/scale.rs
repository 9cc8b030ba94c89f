//! How much the long tests do: a short form by default, and more where the environment says so.

use std::env;
use std::ffi::OsStr;
use std::str::FromStr;

/// The number in an environment variable, or the usual one where it is not set.
///
/// # Panics
/// When what is set is no such number.
#[must_use]
pub fn scale<T: FromStr>(variable: &str, usual: T) -> T {
    given(variable).unwrap_or(usual)
}

/// The number in an environment variable, if it is set, and not to nothing: recipes pass on what they were not given.
///
/// # Panics
/// When what is set is no such number: a test must not do something else than it was asked to.
#[must_use]
pub fn given<T: FromStr>(variable: &str) -> Option<T> {
    env::var_os(variable).filter(|set| !set.is_empty()).map(|set| number(variable, &set))
}

fn number<T: FromStr>(variable: &str, set: &OsStr) -> T {
    let parsed = set.to_str().and_then(|text| text.parse().ok());
    parsed.unwrap_or_else(|| panic!("{variable} is {set:?}, and must be a number that this test can take"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::panic::catch_unwind;

    #[test]
    fn what_is_no_number_is_refused_with_the_name_of_the_variable() {
        assert_eq!(number::<u64>("N", OsStr::new("17")), 17);
        for wrong in [&b""[..], b"x", b"1e3", b"-1", b"1 ", b"\xff"] {
            let refused = catch_unwind(|| number::<u64>("SOME_NUMBER", OsStr::from_bytes(wrong))).unwrap_err();
            let said = refused.downcast_ref::<String>().unwrap();
            assert!(said.starts_with("SOME_NUMBER is "), "{said}");
        }
        assert_eq!(scale("NO_SUCH_VARIABLE_IS_SET", 5_u8), 5);
        assert_eq!(given::<u8>("NO_SUCH_VARIABLE_IS_SET"), None);
    }
}
