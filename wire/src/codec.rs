//! Coding of message heads and stored records: postcard behind one version byte, with bounded decoding.
//!
//! Enums only ever gain variants at their end, so that older bytes keep their meaning. Payload bytes never pass through
//! here.

use crate::Error;
use crate::limits::HEAD_BYTES_MAX;
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::marker::PhantomData;

/// Version of the coding that stands before every encoded value.
const VERSION: u8 = 9;
/// Most elements for which room is allocated before they are decoded.
const CAPACITY_MAX: usize = 256;
/// Most bytes for which room is allocated before they are read.
const READ_BYTES_MAX: usize = 64 << 10;

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
    match postcard::take_from_bytes::<T>(body(bytes)?) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(Error::Malformed(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(Error::Malformed(error.to_string())),
    }
}

/// Decodes the start of a value, such as its variant, and ignores the bytes behind it.
///
/// # Errors
/// [`Error::Malformed`] when the bytes are too many, of another version, or do not begin with a `T`.
pub fn decode_start<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    match postcard::take_from_bytes::<T>(body(bytes)?) {
        Ok((value, _)) => Ok(value),
        Err(error) => Err(Error::Malformed(error.to_string())),
    }
}

/// Returns the bytes behind the version.
fn body(bytes: &[u8]) -> Result<&[u8], Error> {
    if bytes.len() > HEAD_BYTES_MAX {
        return Err(Error::Malformed(format!("{} bytes are more than a message may have", bytes.len())));
    }
    match bytes.split_first() {
        Some((&VERSION, body)) => Ok(body),
        Some((other, _)) => Err(Error::Malformed(format!(
            "it is coded by version {other}, and this program knows {VERSION}: use the release that wrote it, or begin anew"
        ))),
        None => Err(Error::Malformed("it is empty".to_owned())),
    }
}

/// Reads `len` bytes of a file into `part`, in place of its content. Memory is taken as the bytes come: a forged length
/// takes no more than a small multiple of what the file holds.
///
/// # Errors
/// [`ErrorKind::UnexpectedEof`] when there are fewer bytes, which `part` then has; errors of `from`.
pub fn read_part(from: &mut impl Read, len: u32, part: &mut Vec<u8>) -> io::Result<()> {
    part.clear();
    part.reserve((len as usize).min(READ_BYTES_MAX));
    let count = from.take(u64::from(len)).read_to_end(part)?;
    if count < len as usize { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// Decodes a list of at most `MAX` elements, for `#[serde(deserialize_with)]`. Elements can take a hundred times more
/// memory than their encoding, so a bound on the bytes of a message is no bound on its memory.
///
/// # Errors
/// When there are more elements. Nothing is allocated for the surplus.
pub fn bounded<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(Bounded::<T, MAX>(PhantomData))
}

/// Takes up to `MAX` elements.
struct Bounded<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Bounded<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
        let announced = elements.size_hint().unwrap_or(0);
        if announced > MAX {
            return Err(A::Error::invalid_length(announced, &self));
        }
        let mut list = Vec::with_capacity(announced.min(CAPACITY_MAX));
        while let Some(element) = elements.next_element()? {
            if list.len() >= MAX {
                return Err(A::Error::invalid_length(list.len() + 1, &self));
            }
            list.push(element);
        }
        Ok(list)
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

    /// A file that notes for how many bytes the caller has made room.
    struct Asked<'a>(&'a [u8], usize);

    impl Read for Asked<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = self.1.max(buffer.len());
            self.0.read(buffer)
        }
    }

    #[test]
    fn a_forged_length_in_a_file_takes_no_memory_for_bytes_that_are_not_there() {
        let content = vec![7; 100_000];
        let (mut file, mut part) = (Asked(&content, 0), vec![1]);
        read_part(&mut file, 100_000, &mut part).unwrap();
        assert_eq!(part, content);
        let mut file = Asked(&content[..10], 0);
        let error = read_part(&mut file, u32::MAX, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        assert!(file.1 <= READ_BYTES_MAX, "there was room for {} bytes", file.1);
    }

    #[test]
    fn a_list_longer_than_allowed_is_refused_before_its_elements_are_read() {
        #[derive(Deserialize, Debug)]
        struct AtMostThree(#[serde(deserialize_with = "bounded::<_, _, 3>")] Vec<u64>);
        assert_eq!(decode::<AtMostThree>(&encode(&vec![1_u64, 2, 3])).unwrap().0, [1, 2, 3]);
        let error = decode::<AtMostThree>(&encode(&vec![1_u64, 2, 3, 4])).unwrap_err().to_string();
        assert!(error.starts_with("malformed"), "{error}");
    }

    #[test]
    fn the_start_of_a_value_is_decoded_without_the_rest() {
        let mut bytes = encode(&(7_u32, "text"));
        bytes.truncate(3);
        assert_eq!(decode_start::<u32>(&bytes).unwrap(), 7);
        let mut earlier = bytes;
        earlier[0] = VERSION - 1;
        let error = decode_start::<u32>(&earlier).unwrap_err().to_string();
        assert!(error.contains("use the release that wrote it"), "{error}");
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
