//! The experts of a rule, and who gets which.

use longshore_types::{Code, Error, Result};

use crate::parallel::ParallelRule;

/// The experts that the tensors of one rule belong to: numbers first, in any order, then how they are dealt out.
#[derive(Debug, Clone, Default)]
pub(super) struct Experts {
    /// One for each tensor.
    numbers: Vec<u32>,
    /// Consecutive experts that each rank gets.
    each: u32,
}

impl Experts {
    /// Notes the expert that a tensor of the rule belongs to.
    pub(super) fn note(&mut self, rule: &ParallelRule, tensor: &str) -> Result<u32> {
        let digits = rule.pattern().expert_of(tensor).unwrap_or_default();
        let number = digits.parse().map_err(|_| {
            let pattern = rule.pattern();
            Error::new(Code::InvalidArgument, format!("parallel rule {pattern}: tensor {tensor:?} names no expert"))
        })?;
        self.numbers.push(number);
        Ok(number)
    }

    /// Deals out what was noted.
    pub(super) fn deal(&mut self, rule: &ParallelRule, world_size: u32) -> Result<()> {
        let refused = |reason: String| {
            let message = format!("parallel rule {}: {reason}", rule.pattern());
            Err(Error::new(Code::InvalidArgument, message))
        };
        let Some(&last) = self.numbers.iter().max() else { return Ok(()) };
        // Never more than there are tensors: a number from a name decides no allocation.
        let mut seen = vec![false; self.numbers.len()];
        for &number in &self.numbers {
            if let Some(seen) = seen.get_mut(number as usize) {
                *seen = true;
            }
        }
        if let Some(missing) = seen.iter().position(|seen| !seen).filter(|&first| first <= last as usize) {
            return refused(format!(
                "expert {missing} is missing among those up to {last}, so that they cannot be dealt out"
            ));
        }
        let count = u64::from(last) + 1;
        if !count.is_multiple_of(u64::from(world_size)) {
            return refused(format!("{count} experts cannot be dealt out evenly to a world of {world_size} ranks"));
        }
        self.each = (count / u64::from(world_size)) as u32;
        self.numbers = Vec::new();
        Ok(())
    }

    /// The rank that has the expert.
    pub(super) fn rank_of(&self, expert: u32) -> u32 {
        expert / self.each.max(1)
    }
}
