//! A growing set of bytes of a region: which of them something was sent to.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint ranges by their start; neighbours are one. Invariant: none is empty, no two overlap or touch.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    by_start: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Whether nothing of `range` is in the set.
    pub(super) fn is_free(&self, range: &Range<u64>) -> bool {
        self.overlap(range).is_none()
    }

    /// A range of the set that shares bytes with `range`.
    pub(super) fn overlap(&self, range: &Range<u64>) -> Option<Range<u64>> {
        if range.start >= range.end {
            return None;
        }
        // The last one that starts before our end is the only one that can reach into us from either side.
        let (&start, &end) = self.by_start.range(..range.end).next_back()?;
        (end > range.start).then_some(start..end)
    }

    /// Adds bytes that are not in the set yet, or names what they overlap.
    pub(super) fn insert(&mut self, range: Range<u64>) -> Result<(), Range<u64>> {
        if let Some(other) = self.overlap(&range) {
            return Err(other);
        }
        if range.start >= range.end {
            return Ok(());
        }
        let Range { mut start, mut end } = range;
        if let Some((&before, &before_end)) = self.by_start.range(..start).next_back()
            && before_end == start
        {
            start = before;
        }
        if let Some(after_end) = self.by_start.remove(&end) {
            end = after_end;
        }
        self.by_start.insert(start, end);
        Ok(())
    }

    /// Takes bytes out of the set that were inserted.
    pub(super) fn remove(&mut self, range: &Range<u64>) {
        if range.start >= range.end {
            return;
        }
        let Some((&start, &end)) = self.by_start.range(..=range.start).next_back() else { return };
        if end < range.end {
            return;
        }
        self.by_start.remove(&start);
        if start < range.start {
            self.by_start.insert(start, range.start);
        }
        if range.end < end {
            self.by_start.insert(range.end, end);
        }
    }

    /// The ranges, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.by_start.iter().map(|(&start, &end)| start..end)
    }

    /// What is missing up to `len`, in order.
    pub(super) fn gaps(&self, len: u64) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = 0;
        for (&start, &end) in self.by_start.iter().chain([(&len, &len)]) {
            if at < start {
                gaps.push(at..start);
            }
            at = end;
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEN: usize = 80;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        /// Reference model: one flag for every byte.
        #[test]
        fn behaves_as_a_flag_for_every_byte(steps in proptest::collection::vec((any::<bool>(), 0u64..64, 0u64..12), 1..60)) {
            let mut ranges = Ranges::default();
            let mut flags = [false; LEN];
            for (adds, start, len) in steps {
                let range = start..start + len;
                let bytes = start as usize..(start + len) as usize;
                let free = flags[bytes.clone()].iter().all(|flag| !flag);
                let full = flags[bytes.clone()].iter().all(|flag| *flag);
                prop_assert_eq!(ranges.is_free(&range), free);
                if adds {
                    prop_assert_eq!(ranges.insert(range).is_ok(), free);
                    if free {
                        flags[bytes].fill(true);
                    }
                } else if full {
                    ranges.remove(&range);
                    flags[bytes].fill(false);
                }
                let mut gaps = [false; LEN];
                for gap in ranges.gaps(LEN as u64) {
                    prop_assert!(gap.start < gap.end);
                    gaps[gap.start as usize..gap.end as usize].fill(true);
                }
                prop_assert!(flags.iter().zip(gaps).all(|(flag, gap)| *flag != gap));
            }
        }
    }
}
