//! One rank's share of every tensor: which rule decides for it, and which of its bytes that leaves.

mod experts;
mod slice;

use longshore_types::{Code, Error, Manifest, Result, Tensor};

use crate::parallel::{Parallel, ParallelRule, Rule};
use experts::Experts;
pub(super) use slice::Pieces;

/// Most pieces that the tensors of a model may be cut into one by one, where they follow no simple pattern.
const LOOSE_PIECES_MAX: u64 = 1 << 20;

/// What a rank gets of one tensor.
pub(super) enum Share {
    /// Nothing: it is an expert of another rank.
    Elsewhere,
    /// These bytes of the file.
    Here {
        pieces: Pieces,
        /// When it is not that of the file.
        shape: Option<Box<[u64]>>,
    },
}

impl Share {
    /// All of it.
    pub(super) fn whole(tensor: &Tensor) -> Share {
        Share::Here { pieces: Pieces::one(tensor.extent.offset_bytes, tensor.extent.length_bytes), shape: None }
    }
}

/// The rules of one request, applied to one manifest.
pub(super) struct Shares<'a> {
    parallel: &'a Parallel,
    /// For each tensor of the manifest, the rule that decides.
    decided: Vec<Decided>,
    /// For each rule, the experts that it found.
    experts: Vec<Experts>,
    warnings: Vec<String>,
    /// How many pieces may still be listed one by one.
    loose_left: u64,
}

/// Which rule decides for a tensor, and for an expert's tensor, which expert that is.
#[derive(Clone, Copy)]
struct Decided {
    /// Index of the rule; `None` when no rule matches.
    rule: Option<u16>,
    expert: u32,
}

impl<'a> Shares<'a> {
    /// # Errors
    /// [`Code::InvalidArgument`] when experts cannot be dealt out evenly, naming the rule.
    pub(super) fn new(manifest: &Manifest, parallel: &'a Parallel) -> Result<Shares<'a>> {
        let rules = parallel.rules();
        let mut counts = vec![0_u64; rules.len()];
        let mut experts = vec![Experts::default(); rules.len()];
        let mut decided = Vec::with_capacity(manifest.tensors.len());
        for tensor in &manifest.tensors {
            let found = rules.iter().position(|rule| rule.pattern().matches(&tensor.name));
            let mut expert = 0;
            if let Some(index) = found {
                counts[index] += 1;
                if *rules[index].rule() == Rule::Expert {
                    expert = experts[index].note(&rules[index], &tensor.name)?;
                }
            }
            decided.push(Decided { rule: found.and_then(|index| u16::try_from(index).ok()), expert });
        }
        for (rule, experts) in rules.iter().zip(&mut experts) {
            experts.deal(rule, parallel.world_size())?;
        }
        let unused = rules.iter().zip(&counts).filter(|(_, count)| **count == 0);
        let warnings = unused.map(|(rule, _)| {
            format!("parallel rule {} decides for no tensor: none matches that no earlier rule matches", rule.pattern())
        });
        Ok(Shares { parallel, decided, experts, warnings: warnings.collect(), loose_left: LOOSE_PIECES_MAX })
    }

    /// The rank's share of the tensor with that index.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] naming the tensor, when its rule does not fit it.
    pub(super) fn of(&mut self, index: usize, tensor: &Tensor) -> Result<Share> {
        let Some(decided) = self.decided.get(index) else {
            return Err(Error::new(Code::Internal, "a tensor that no rule was asked for"));
        };
        let Some(rule_index) = decided.rule.map(usize::from) else { return Ok(Share::whole(tensor)) };
        let rule = &self.parallel.rules()[rule_index];
        match rule.rule() {
            Rule::Replicate => Ok(Share::whole(tensor)),
            Rule::Split { .. } if tensor.piece.is_some() => {
                let reason =
                    "it is one of several pieces that the tensor is stored in, and only whole tensors are split";
                Err(refused(tensor, rule, reason))
            }
            Rule::Split { dim, parts } => {
                let share = slice::split(tensor, *dim, parts, self.parallel);
                share.and_then(|share| self.pay_for(share)).map_err(|reason| refused(tensor, rule, &reason))
            }
            Rule::Expert => match self.experts[rule_index].rank_of(decided.expert) == self.parallel.rank() {
                true => Ok(Share::whole(tensor)),
                false => Ok(Share::Elsewhere),
            },
        }
    }

    /// A list of pieces must not get longer than what memory there is for it, whatever a model and a rule say.
    fn pay_for(&mut self, share: Share) -> Result<Share, String> {
        if let Share::Here { pieces, .. } = &share {
            let left = self.loose_left.checked_sub(pieces.loose());
            self.loose_left = left.ok_or_else(|| {
                format!(
                    "it makes more than {LOOSE_PIECES_MAX} separate pieces of the model's tensors; split parts of unequal \
                     sizes along their first dimension"
                )
            })?;
        }
        Ok(share)
    }

    pub(super) fn into_warnings(self) -> Vec<String> {
        self.warnings
    }
}

fn refused(tensor: &Tensor, rule: &ParallelRule, reason: &str) -> Error {
    let (name, pattern) = (&tensor.name, rule.pattern());
    Error::new(Code::InvalidArgument, format!("tensor {name:?} cannot be split by rule {pattern}: {reason}"))
}
