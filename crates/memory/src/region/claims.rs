//! A set of disjoint, half-open intervals: which bytes of a region somebody may write now.

use std::collections::BTreeMap;
use std::ops::Range;

/// Intervals by their start. Invariant: none is empty and no two overlap.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_start: BTreeMap<u64, u64>,
}

impl Claims {
    /// Adds `range`, or names the interval it would overlap. An empty range claims nothing and always succeeds.
    pub(super) fn insert(&mut self, range: Range<u64>) -> Result<(), Range<u64>> {
        if range.start >= range.end {
            return Ok(());
        }
        // The last interval that starts before our end is the only one that can reach into us from either side.
        if let Some((&start, &end)) = self.by_start.range(..range.end).next_back()
            && end > range.start
        {
            return Err(start..end);
        }
        self.by_start.insert(range.start, range.end);
        Ok(())
    }

    /// Takes back an interval that [`Claims::insert`] accepted.
    pub(super) fn remove(&mut self, range: &Range<u64>) {
        if range.start < range.end {
            let end = self.by_start.remove(&range.start);
            debug_assert_eq!(end, Some(range.end), "released what was not claimed");
        }
    }

    /// How many intervals there are.
    pub(super) fn len(&self) -> usize {
        self.by_start.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(Range<u64>),
        RemoveNth(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let insert = (0u64..64, 0u64..12).prop_map(|(start, len)| Step::Insert(start..start + len));
        let remove = (0usize..64).prop_map(Step::RemoveNth);
        proptest::collection::vec(prop_oneof![3 => insert, 1 => remove], 1..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 4 } else { 256 }, ..ProptestConfig::default() })]
        /// Reference model: one flag for every byte.
        #[test]
        fn behaves_as_a_flag_for_every_byte(steps in steps()) {
            let mut claims = Claims::default();
            let mut flags = [false; 80];
            let mut held: Vec<Range<u64>> = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(range) => {
                        let bytes = range.start as usize..range.end as usize;
                        let free = flags[bytes.clone()].iter().all(|flag| !flag);
                        let answer = claims.insert(range.clone());
                        prop_assert_eq!(answer.is_ok(), free);
                        match answer {
                            Ok(()) => {
                                flags[bytes].fill(true);
                                held.push(range);
                            }
                            Err(other) => {
                                prop_assert!(held.contains(&other));
                                prop_assert!(other.start < range.end && range.start < other.end);
                            }
                        }
                    }
                    Step::RemoveNth(n) if !held.is_empty() => {
                        let range = held.swap_remove(n % held.len());
                        claims.remove(&range);
                        flags[range.start as usize..range.end as usize].fill(false);
                    }
                    Step::RemoveNth(_) => {}
                }
                prop_assert_eq!(claims.len(), held.iter().filter(|range| !range.is_empty()).count());
            }
        }
    }
}
