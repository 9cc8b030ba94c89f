//! Coding of message heads and stored records: postcard behind one version byte, with bounded decoding.
//!
//! Enums only ever gain variants at their end, so that older bytes keep their meaning. Payload bytes never pass through
//! here.

use crate::Error;
use crate::limits::HEAD_BYTES_MAX;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of the coding that stands before every encoded value.
const VERSION: u8 = 2;

/// Encodes a value.
///
/// # Panics
/// Never for the types of this project: postcard fails only on sequences of unknown length and on custom `Serialize`
/// errors, and they have neither.
#[must_use]
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes = postcard::to_extend(value, bytes).expect("plain data always encodes");
    bytes
}

/// How many bytes [`encode`] would make of a value.
///
/// # Panics
/// Never for the types of this project, as [`encode`].
#[must_use]
pub fn encoded_len<T: Serialize + ?Sized>(value: &T) -> usize {
    let counted = postcard::serialize_with_flavor(value, postcard::ser_flavors::Size::default());
    1 + counted.expect("plain data always encodes")
}

/// Decodes a value; bytes behind it are refused.
///
/// Postcard checks each length against the bytes that are left before it allocates, so a forged length costs nothing.
///
/// # Errors
/// [`Error::Malformed`] when the bytes are too many, of another version, or not a `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    if bytes.len() > HEAD_BYTES_MAX {
        return Err(Error::Malformed(format!("{} bytes are more than a message may have", bytes.len())));
    }
    let body = match bytes.split_first() {
        Some((&VERSION, body)) => body,
        Some((other, _)) => {
            let reason = format!(
                "it is coded by version {other}, and this program knows {VERSION}: use the release that wrote it, or begin anew"
            );
            return Err(Error::Malformed(reason));
        }
        None => return Err(Error::Malformed("it is empty".to_owned())),
    };
    match postcard::take_from_bytes::<T>(body) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(Error::Malformed(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(Error::Malformed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::block::BlockRequest;
    use crate::message::meta::{MetaReply, MetaRequest};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..512), versioned: bool) {
            if versioned && !bytes.is_empty() {
                bytes[0] = VERSION;
            }
            let _ = decode::<MetaRequest>(&bytes);
            let _ = decode::<MetaReply>(&bytes);
            let _ = decode::<BlockRequest>(&bytes);
        }
    }

    #[test]
    fn a_forged_length_is_refused_before_it_allocates() {
        // A byte string that claims 2^60 bytes.
        let bytes = [VERSION, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
        assert!(decode::<Vec<u8>>(&bytes).is_err());
    }

    #[test]
    fn bytes_behind_the_value_are_refused() {
        let mut bytes = encode(&7_u32);
        assert_eq!(bytes.len(), encoded_len(&7_u32));
        assert_eq!(decode::<u32>(&bytes).unwrap(), 7);
        bytes.push(0);
        assert!(decode::<u32>(&bytes).is_err());
    }
}
