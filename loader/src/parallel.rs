//! Tensor parallelism: which part of each tensor one rank of a group gets.
//!
//! A [`Parallel`] is a rank, the size of its group, and rules by tensor name. It says nothing about bytes: the plan
//! turns it into what has to be read. Everything in it was checked when it was built, and it is part of what names a
//! model in memory.

mod message;
mod pattern;

use std::fmt;
use std::sync::Arc;

use longshore_types::{Code, Error, Result};

pub use pattern::{EXPERT, PATTERN_BYTES_MAX, Pattern};

/// Largest number of ranks.
pub const WORLD_SIZE_MAX: u32 = 4096;
/// Most rules of a request.
pub const RULES_MAX: usize = 256;
/// Most parts of a fused tensor.
pub const PARTS_MAX: usize = 64;

/// One rank's part of a model.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Parallel {
    rank: u32,
    world_size: u32,
    rules: Arc<[ParallelRule]>,
}

/// What happens to the tensors whose names match a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ParallelRule {
    pattern: Pattern,
    rule: Rule,
}

/// What happens to a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Every rank gets the whole.
    Replicate,
    /// Every rank gets an equal piece along a dimension.
    Split {
        /// The dimension, from 0.
        dim: u32,
        /// Several matrices in one tensor, each split by itself; a rank's pieces follow each other. Empty: one.
        parts: Vec<FusedPart>,
    },
    /// The tensors of one expert go to one rank, whole. The pattern holds one [`EXPERT`].
    Expert,
}

/// One of several matrices that a tensor consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FusedPart {
    /// Its size along the dimension that is split.
    pub size: u64,
    /// So many consecutive ranks share one piece, at least one.
    pub replicas: u32,
}

impl Parallel {
    /// One rank of `world_size`. The first rule whose pattern matches decides; a tensor that none matches is replicated.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] when there is no such rank, for more than [`RULES_MAX`] rules, or when ranks cannot
    /// share pieces as a part says.
    pub fn new(rank: u32, world_size: u32, rules: Vec<ParallelRule>) -> Result<Parallel> {
        if !(1..=WORLD_SIZE_MAX).contains(&world_size) {
            return Err(invalid(format!("a world size of {world_size} is not between 1 and {WORLD_SIZE_MAX}")));
        }
        if rank >= world_size {
            let last = world_size - 1;
            return Err(invalid(format!("there is no rank {rank} in a world of {world_size}: ranks are 0 to {last}")));
        }
        check_rule_count(rules.len())?;
        for rule in &rules {
            let Rule::Split { parts, .. } = &rule.rule else { continue };
            if let Some(part) = parts.iter().find(|part| !world_size.is_multiple_of(part.replicas)) {
                let (pattern, replicas) = (&rule.pattern, part.replicas);
                return Err(invalid(format!(
                    "rule {pattern}: {replicas} ranks cannot share each piece in a world of {world_size}, \
                     which is no multiple of {replicas}"
                )));
            }
        }
        Ok(Parallel { rank, world_size, rules: rules.into() })
    }

    /// 0 to `world_size` - 1.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Number of ranks.
    pub fn world_size(&self) -> u32 {
        self.world_size
    }

    /// The rules, in the order in which they are tried.
    pub fn rules(&self) -> &[ParallelRule] {
        &self.rules
    }
}

impl fmt::Display for Parallel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.world_size)
    }
}

impl ParallelRule {
    /// A rule for the tensors whose whole name matches `pattern`, see [`Pattern`].
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] for a pattern that is none, that lacks the [`EXPERT`] of [`Rule::Expert`] or has one
    /// without it, for more than [`PARTS_MAX`] parts, and for a part of no size or for no rank.
    pub fn new(pattern: &str, rule: Rule) -> Result<ParallelRule> {
        let pattern = Pattern::parse(pattern)?;
        match &rule {
            Rule::Expert if !pattern.has_expert() => {
                return Err(invalid(format!("rule {pattern}: a pattern of experts needs {EXPERT} for their number")));
            }
            Rule::Replicate | Rule::Split { .. } if pattern.has_expert() => {
                return Err(invalid(format!("rule {pattern}: {EXPERT} is for rules of experts, use * here")));
            }
            Rule::Split { parts, .. } => check_parts(&pattern, parts)?,
            Rule::Replicate | Rule::Expert => {}
        }
        Ok(ParallelRule { pattern, rule })
    }

    /// Which tensors.
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// What happens to them.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }
}

fn check_rule_count(count: usize) -> Result<()> {
    match count <= RULES_MAX {
        true => Ok(()),
        false => Err(invalid(format!("{count} rules are more than the {RULES_MAX} that are accepted"))),
    }
}

fn check_parts(pattern: &Pattern, parts: &[FusedPart]) -> Result<()> {
    if parts.len() > PARTS_MAX {
        return Err(invalid(format!("rule {pattern}: more than {PARTS_MAX} parts")));
    }
    let is_bad = |part: &FusedPart| part.size == 0 || !(1..=WORLD_SIZE_MAX).contains(&part.replicas);
    match parts.iter().find(|part| is_bad(part)) {
        None => Ok(()),
        Some(FusedPart { size, replicas }) => Err(invalid(format!(
            "rule {pattern}: a part of size {size} with {replicas} replicas; both must be at least 1, and replicas at \
             most {WORLD_SIZE_MAX}"
        ))),
    }
}

fn invalid(message: String) -> Error {
    Error::new(Code::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pattern: &str, parts: Vec<FusedPart>) -> Result<ParallelRule> {
        ParallelRule::new(pattern, Rule::Split { dim: 0, parts })
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let text = |result: Result<Parallel>| result.unwrap_err().to_string();
        assert!(text(Parallel::new(0, 0, vec![])).contains("world size of 0"));
        assert!(text(Parallel::new(0, 4097, vec![])).contains("between 1 and 4096"));
        assert!(text(Parallel::new(8, 8, vec![])).contains("ranks are 0 to 7"));
        let many = vec![ParallelRule::new("*", Rule::Replicate).unwrap(); RULES_MAX + 1];
        assert!(text(Parallel::new(0, 1, many)).contains("257 rules"));
        let shared = vec![split("*.qkv", vec![FusedPart { size: 12, replicas: 3 }]).unwrap()];
        assert!(text(Parallel::new(0, 8, shared.clone())).contains("no multiple of 3"));
        assert_eq!(Parallel::new(5, 6, shared).unwrap().to_string(), "rank 5 of 6");
    }

    #[test]
    fn rules_are_checked_by_kind() {
        let text = |result: Result<ParallelRule>| result.unwrap_err().to_string();
        assert!(text(ParallelRule::new("experts.*", Rule::Expert)).contains("needs {expert}"));
        assert!(text(ParallelRule::new("experts.{expert}.w", Rule::Replicate)).contains("use * here"));
        assert!(text(split("", vec![])).contains("1 to 256 bytes"));
        assert!(text(split("a", vec![FusedPart { size: 0, replicas: 1 }])).contains("size 0"));
        assert!(text(split("a", vec![FusedPart { size: 1, replicas: 0 }])).contains("0 replicas"));
        assert!(text(split("a", vec![FusedPart { size: 1, replicas: 1 }; 65])).contains("64 parts"));
        assert!(split("a", vec![FusedPart { size: 1, replicas: 1 }; 64]).is_ok());
    }
}
