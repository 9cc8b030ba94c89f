//! Content of a file, in chunks, so that growing it moves nothing.

/// As large as the largest request, and aligned like most, so that a read is answered from one chunk without a copy.
const CHUNK_BYTES: usize = 1 << 20;

/// Bytes of a file. Its length is in its attributes; bytes that were never written read as zeros.
#[derive(Default)]
pub(super) struct Content {
    /// Each holds at most [`CHUNK_BYTES`]; bytes missing at its end are zeros.
    chunks: Vec<Vec<u8>>,
}

/// The chunk of an offset, and the place in it.
fn place(offset: u64) -> (usize, usize) {
    // Files in memory are smaller than the address space.
    ((offset / CHUNK_BYTES as u64) as usize, (offset % CHUNK_BYTES as u64) as usize)
}

impl Content {
    pub(super) fn write(&mut self, offset: u64, mut data: &[u8]) {
        let (mut index, mut at) = place(offset);
        while !data.is_empty() {
            let (part, rest) = data.split_at(data.len().min(CHUNK_BYTES - at));
            if self.chunks.len() <= index {
                self.chunks.resize_with(index + 1, Vec::new);
            }
            let chunk = &mut self.chunks[index];
            if chunk.len() < at {
                chunk.resize(at, 0);
            }
            let over = part.len().min(chunk.len() - at);
            chunk[at..at + over].copy_from_slice(&part[..over]);
            chunk.extend_from_slice(&part[over..]);
            (index, at, data) = (index + 1, 0, rest);
        }
    }

    /// Passes `len` bytes to `take`, without copying them where one chunk holds them all.
    pub(super) fn read<T>(&self, offset: u64, len: usize, take: impl FnOnce(&[u8]) -> T) -> T {
        let (index, at) = place(offset);
        if let Some(whole) = self.chunks.get(index).and_then(|chunk| chunk.get(at..at + len)) {
            return take(whole);
        }
        let mut bytes = vec![0; len];
        let (mut index, mut at, mut done) = (index, at, 0);
        while done < len {
            let want = (len - done).min(CHUNK_BYTES - at);
            let chunk = self.chunks.get(index).map_or(&[][..], Vec::as_slice);
            let held = &chunk[at.min(chunk.len())..(at + want).min(chunk.len())];
            bytes[done..done + held.len()].copy_from_slice(held);
            (index, at, done) = (index + 1, 0, done + want);
        }
        take(&bytes)
    }

    /// Cuts off the bytes behind `len`: they read as zeros when the file grows again.
    pub(super) fn cut(&mut self, len: u64) {
        let (index, at) = place(len);
        self.chunks.truncate(index + usize::from(at > 0));
        if let Some(chunk) = self.chunks.get_mut(index) {
            chunk.truncate(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &Content, offset: u64, len: usize) -> Vec<u8> {
        content.read(offset, len, <[u8]>::to_vec)
    }

    #[test]
    fn what_is_written_across_chunks_is_read_back_and_holes_are_zeros() {
        let mut content = Content::default();
        let data: Vec<u8> = (0..3 * CHUNK_BYTES).map(|at| (at % 251) as u8).collect();
        let offset = CHUNK_BYTES as u64 - 5;
        content.write(offset, &data);
        assert_eq!(read(&content, offset, data.len()), data);
        assert_eq!(read(&content, 0, 10), [0; 10]);
        assert_eq!(read(&content, 5 << 20, 4), [0; 4]);
        content.write(offset + 1, &[255; 2]);
        assert_eq!(read(&content, offset, 4), [data[0], 255, 255, data[3]]);
    }

    #[test]
    fn what_was_cut_off_does_not_come_back() {
        let mut content = Content::default();
        content.write(0, &[7; 2 * CHUNK_BYTES]);
        content.cut(CHUNK_BYTES as u64 + 3);
        content.write(CHUNK_BYTES as u64 + 6, &[8]);
        assert_eq!(read(&content, CHUNK_BYTES as u64 + 1, 7), [7, 7, 0, 0, 0, 8, 0]);
        content.cut(CHUNK_BYTES as u64);
        assert_eq!(read(&content, CHUNK_BYTES as u64 - 1, 2), [7, 0]);
        content.cut(0);
        assert_eq!(read(&content, 0, 2), [0, 0]);
    }
}
