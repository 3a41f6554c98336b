//! To messages and back.

use longshore_proto::v1;
use longshore_proto::v1::parallel_rule::Rule as Message;
use longshore_types::{Error, Result};

use super::{FusedPart, Parallel, ParallelRule, Rule, check_rule_count, invalid};

impl From<&Parallel> for v1::Parallel {
    fn from(parallel: &Parallel) -> v1::Parallel {
        let rules = parallel.rules().iter().map(v1::ParallelRule::from).collect();
        v1::Parallel { rank: parallel.rank(), world_size: parallel.world_size(), rules }
    }
}

impl From<&ParallelRule> for v1::ParallelRule {
    fn from(rule: &ParallelRule) -> v1::ParallelRule {
        let message = match rule.rule() {
            Rule::Replicate => Message::Replicate(v1::Replicate {}),
            Rule::Expert => Message::Expert(v1::Expert {}),
            Rule::Split { dim, parts } => {
                let part = |&FusedPart { size, replicas }: &FusedPart| v1::FusedPart { size, replicas };
                Message::Split(v1::Split { dim: *dim, parts: parts.iter().map(part).collect() })
            }
        };
        v1::ParallelRule { pattern: rule.pattern().as_str().to_owned(), rule: Some(message) }
    }
}

impl TryFrom<v1::Parallel> for Parallel {
    type Error = Error;

    fn try_from(message: v1::Parallel) -> Result<Parallel> {
        check_rule_count(message.rules.len())?;
        let rules = message.rules.into_iter().map(ParallelRule::try_from).collect::<Result<_>>()?;
        Parallel::new(message.rank, message.world_size, rules)
    }
}

impl TryFrom<v1::ParallelRule> for ParallelRule {
    type Error = Error;

    fn try_from(message: v1::ParallelRule) -> Result<ParallelRule> {
        let pattern = message.pattern;
        let rule = match message.rule {
            None => return Err(invalid(format!("rule {pattern:?} does not say what it does"))),
            Some(Message::Replicate(_)) => Rule::Replicate,
            Some(Message::Expert(_)) => Rule::Expert,
            Some(Message::Split(v1::Split { dim, parts })) => {
                // Absent and 1 are the same, so that they name the same model.
                let part = |part: v1::FusedPart| FusedPart { size: part.size, replicas: part.replicas.max(1) };
                Rule::Split { dim, parts: parts.into_iter().map(part).collect() }
            }
        };
        ParallelRule::new(&pattern, rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_survives_the_wire() {
        let parts = vec![FusedPart { size: 64, replicas: 1 }, FusedPart { size: 16, replicas: 2 }];
        let rules = [
            ("*norm*", Rule::Replicate),
            ("*.qkv.weight", Rule::Split { dim: 0, parts }),
            ("*.o_proj.weight", Rule::Split { dim: 1, parts: vec![] }),
            ("*.experts.{expert}.*", Rule::Expert),
        ];
        let rules = rules.map(|(pattern, rule)| ParallelRule::new(pattern, rule).unwrap());
        let parallel = Parallel::new(3, 8, rules.to_vec()).unwrap();
        assert_eq!(Parallel::try_from(v1::Parallel::from(&parallel)).unwrap(), parallel);
    }

    #[test]
    fn an_absent_number_of_replicas_is_one() {
        let part = |replicas| {
            let split = v1::Split { dim: 0, parts: vec![v1::FusedPart { size: 4, replicas }] };
            let rule = v1::ParallelRule { pattern: "a".into(), rule: Some(Message::Split(split)) };
            Parallel::try_from(v1::Parallel { rank: 0, world_size: 2, rules: vec![rule] }).unwrap()
        };
        assert_eq!(part(0), part(1));
        assert_ne!(part(1), part(2));
    }

    #[test]
    fn what_comes_in_is_checked() {
        let rule = v1::ParallelRule { pattern: "a".into(), rule: None };
        let refused = |message: v1::Parallel| Parallel::try_from(message).unwrap_err().to_string();
        assert!(refused(v1::Parallel { rank: 0, world_size: 1, rules: vec![rule] }).contains("does not say"));
        assert!(refused(v1::Parallel::default()).contains("world size of 0"));
        let many = vec![v1::ParallelRule::default(); 257];
        assert!(refused(v1::Parallel { rank: 0, world_size: 1, rules: many }).contains("257 rules"));
    }
}
