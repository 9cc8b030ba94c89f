//! Names of files that are made beside others because another session was first. Pure.

use wire::limits::NAME_BYTES_MAX;
use wire::op::Name;

/// Returns the name with this suffix. If the name has the suffix already, it gets a number as well.
pub(crate) fn conflict_name(name: &[u8], mut suffix: Name) -> Name {
    suffix.truncate(NAME_BYTES_MAX);
    let name = match name.windows(suffix.len()).position(|part| part == suffix.as_slice()) {
        Some(at) => {
            let (copy, number) = name.split_at(at + suffix.len());
            let number = std::str::from_utf8(number).ok().and_then(|number| number.strip_prefix('.')?.parse().ok());
            [copy, format!(".{}", number.map_or(1, |number: u32| number.saturating_add(1))).as_bytes()].concat()
        }
        None => {
            let mut name = name[..name.len().min(NAME_BYTES_MAX - suffix.len())].to_vec();
            name.extend_from_slice(&suffix);
            name
        }
    };
    let from = name.len().saturating_sub(NAME_BYTES_MAX);
    name[from..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_others_have_too_is_numbered_and_stays_within_the_limit() {
        let named = |name: &[u8]| conflict_name(name, b".conflict-host-7".to_vec());
        assert_eq!(named(b"file"), b"file.conflict-host-7");
        assert_eq!(named(b"file.conflict-host-7"), b"file.conflict-host-7.1");
        assert_eq!(named(b"file.conflict-host-7.9"), b"file.conflict-host-7.10");
        let long = named(&[b'x'; NAME_BYTES_MAX]);
        assert_eq!(long.len(), NAME_BYTES_MAX);
        assert!(named(&long).len() <= NAME_BYTES_MAX && named(&long) != long);
    }
}
