//! Messages that no honest peer sends.

use serde::ser::SerializeTuple;
use serde::{Serialize, Serializer};

/// Bytes that are encoded unchanged.
pub struct Raw(pub Vec<u8>);

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = serializer.serialize_tuple(self.0.len())?;
        self.0.iter().try_for_each(|byte| bytes.serialize_element(byte))?;
        bytes.end()
    }
}

/// Returns an encoded message in which a value is nested `times` deeper than in `message`. The value is encoded as `once`
/// there, and as `twice` if it is nested once more; what it holds comes last in it.
///
/// # Panics
/// When the message does not hold the value, or what the value holds does not come last.
#[must_use]
pub fn nested(message: &[u8], once: &[u8], twice: &[u8], times: usize) -> Raw {
    let level = twice.strip_suffix(once).expect("the inner value comes last");
    let at = message.windows(once.len()).position(|part| part == once).expect("the message holds the value");
    Raw([&message[..at], &level.repeat(times), &message[at..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_around_a_nested_value_stays() {
        assert_eq!(nested(b"<(x)>", b"(x)", b"((x)", 3).0, b"<((((x)>");
    }
}
