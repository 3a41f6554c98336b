//! New content from parts of other content, without a copy of its bytes.

use std::ops::Range;

use bytes::Bytes;

use super::{Content, Segment};

impl Segment {
    /// A part of it, which must lie within it.
    fn slice(&self, range: Range<u64>) -> Segment {
        let len_bytes = range.end - range.start;
        match self {
            Segment::Bytes(bytes) => Segment::Bytes(bytes.slice(range.start as usize..range.end as usize)),
            Segment::Generated { seed, fill, offset_bytes, .. } => {
                Segment::Generated { seed: *seed, fill: *fill, offset_bytes: offset_bytes + range.start, len_bytes }
            }
            Segment::File { file, offset_bytes, .. } => {
                Segment::File { file: file.clone(), offset_bytes: offset_bytes + range.start, len_bytes }
            }
        }
    }
}

impl Content {
    /// The content of all of these, one behind the other.
    pub fn concat(contents: impl IntoIterator<Item = Content>) -> Content {
        let segments = contents.into_iter().flat_map(|content| content.segments().cloned().collect::<Vec<_>>());
        Content::of(segments)
    }

    /// A part of it; what lies behind its end is left out.
    pub fn slice(&self, range: Range<u64>) -> Content {
        let parts = self.segments.iter().filter_map(|(end, segment)| {
            let start = end - segment.len_bytes();
            let (from, to) = (range.start.max(start), range.end.min(*end));
            (from < to).then(|| segment.slice(from - start..to - start))
        });
        Content::of(parts)
    }

    /// The same with one bit of the byte at `offset_bytes` turned; unchanged when that is behind the end.
    pub fn flipped(&self, offset_bytes: u64) -> Content {
        let byte = self.slice(offset_bytes..offset_bytes.saturating_add(1)).to_vec();
        let Some(byte) = byte.first() else { return self.clone() };
        let wrong = Content::from(Bytes::from(vec![byte ^ 0x10]));
        Content::concat([self.slice(0..offset_bytes), wrong, self.slice(offset_bytes + 1..u64::MAX)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_flips_are_of_the_right_bytes() {
        let content = Content::concat([Content::from(b"head".to_vec()), Content::generated(3, 2 << 20)]);
        let all = content.to_vec();
        assert_eq!(content.slice(2..9).to_vec(), all[2..9]);
        assert_eq!(content.slice(5..u64::MAX).to_vec(), all[5..]);
        assert_eq!(content.slice(0..0).len_bytes(), 0);
        for offset in [0, 3, 4, 1 << 20, all.len() - 1] {
            let flipped = content.flipped(offset as u64).to_vec();
            assert_eq!(flipped.len(), all.len());
            let wrong: Vec<usize> = (0..all.len()).filter(|&i| flipped[i] != all[i]).collect();
            assert_eq!(wrong, [offset]);
        }
        assert_eq!(content.flipped(all.len() as u64).to_vec(), all);
    }
}
