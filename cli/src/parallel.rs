//! The tensor-parallel flags: a rank, the number of ranks, and a file of rules.

use std::io::Read;
use std::path::Path;

use longshore_loader::{FusedPart, Parallel, ParallelRule, Rule};
use longshore_types::{Code, Error, Result};
use serde::Deserialize;

use crate::args::ParallelArgs;

/// Rules that come with the program, as files of rules.
const PRESETS: [(&str, &str); 2] =
    [("llama", include_str!("parallel/llama.toml")), ("qwen2", include_str!("parallel/qwen2.toml"))];

/// Largest file of rules, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

impl ParallelArgs {
    /// What the flags say: nothing, or one rank's part.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`] when some of them are missing or the rules are not valid, and those of reading the file.
    pub fn parallel(&self) -> Result<Option<Parallel>> {
        match (self.rank, self.world_size, &self.parallel_rules) {
            (None, None, None) => Ok(None),
            (Some(rank), Some(world_size), Some(rules)) => Ok(Some(Parallel::new(rank, world_size, read(rules)?)?)),
            _ => {
                let message = "--rank, --world-size and --parallel-rules belong together: give all three or none";
                Err(Error::new(Code::InvalidArgument, message))
            }
        }
    }
}

/// A preset by its name, or a file by its path.
fn read(source: &Path) -> Result<Vec<ParallelRule>> {
    let name = source.display();
    if let Some((_, text)) = PRESETS.iter().find(|(preset, _)| source == Path::new(preset)) {
        return parse(text, false).map_err(|error| error.context(name));
    }
    let failed = |error: std::io::Error| {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => Code::NotFound,
            std::io::ErrorKind::PermissionDenied => Code::PermissionDenied,
            _ => Code::Internal,
        };
        let presets = PRESETS.map(|(preset, _)| preset).join(" or ");
        let message = format!("cannot read the parallel rules {name}: {error}; name a file, or {presets}");
        Error::new(code, message).with_source(error)
    };
    let mut text = String::new();
    let file = std::fs::File::open(source).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(invalid(format!("the parallel rules {name} have more than {FILE_BYTES_MAX} bytes")));
    }
    let is_json = source.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    parse(&text, is_json).map_err(|error| error.context(name))
}

fn parse(text: &str, is_json: bool) -> Result<Vec<ParallelRule>> {
    let file: RulesFile = match is_json {
        true => serde_json::from_str(text).map_err(|error| invalid(format!("not a file of rules: {error}")))?,
        false => toml::from_str(text).map_err(|error| invalid(format!("not a file of rules: {error}")))?,
    };
    let rules = file.rule.into_iter().enumerate();
    rules.map(|(index, rule)| rule.check().map_err(|error| error.context(format!("rule {}", index + 1)))).collect()
}

fn invalid(message: String) -> Error {
    Error::new(Code::InvalidArgument, message)
}

/// A file of rules: tables `[[rule]]` in TOML, a list `rule` in JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RulesFile {
    rule: Vec<RuleEntry>,
}

/// One rule: a pattern, and what happens to the tensors that match it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleEntry {
    pattern: String,
    split: Option<u32>,
    parts: Option<Vec<PartEntry>>,
    #[serde(default)]
    replicate: bool,
    #[serde(default)]
    expert: bool,
}

/// A size, or a size with its number of replicas.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a part is a size, or { size = N, replicas = N }")]
enum PartEntry {
    Size(u64),
    Shared(SharedPart),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SharedPart {
    size: u64,
    replicas: u32,
}

impl RuleEntry {
    fn check(self) -> Result<ParallelRule> {
        let RuleEntry { pattern, split, parts, replicate, expert } = self;
        let rule = match (split, replicate, expert) {
            (Some(dim), false, false) => {
                let parts = parts.into_iter().flatten().map(|part| match part {
                    PartEntry::Size(size) => FusedPart { size, replicas: 1 },
                    PartEntry::Shared(SharedPart { size, replicas }) => FusedPart { size, replicas },
                });
                Rule::Split { dim, parts: parts.collect() }
            }
            (None, true, false) if parts.is_none() => Rule::Replicate,
            (None, false, true) if parts.is_none() => Rule::Expert,
            _ => {
                let message =
                    "needs one of `split = N`, `replicate = true` and `expert = true`; `parts` go with a split";
                return Err(invalid(format!("pattern {pattern:?} {message}")));
            }
        };
        ParallelRule::new(&pattern, rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = r#"
        [[rule]]
        pattern = "*.qkv_proj.weight"
        split = 0
        parts = [4096, { size = 1024, replicas = 2 }, { size = 1024, replicas = 2 }]

        [[rule]]
        pattern = "*.o_proj.weight"
        split = 1

        [[rule]]
        pattern = "*norm*"
        replicate = true

        [[rule]]
        pattern = "*.experts.{expert}.*"
        expert = true
    "#;

    #[test]
    fn toml_and_json_say_the_same() {
        let rules = parse(TOML, false).unwrap();
        let value: toml::Table = TOML.parse().unwrap();
        assert_eq!(parse(&serde_json::to_string(&value).unwrap(), true).unwrap(), rules);
        let parts = [(4096, 1), (1024, 2), (1024, 2)].map(|(size, replicas)| FusedPart { size, replicas });
        assert_eq!(*rules[0].rule(), Rule::Split { dim: 0, parts: parts.to_vec() });
        assert_eq!(*rules[1].rule(), Rule::Split { dim: 1, parts: vec![] });
        assert_eq!((rules[2].rule(), rules[3].rule()), (&Rule::Replicate, &Rule::Expert));
    }

    #[test]
    fn presets_are_rules() {
        for (name, size) in [("llama", 9), ("qwen2", 12)] {
            let rules = read(Path::new(name)).unwrap();
            assert_eq!(rules.len(), size, "{name}");
            let decides =
                |tensor: &str| rules.iter().find(|rule| rule.pattern().matches(tensor)).map(ParallelRule::rule);
            let split = |dim| Rule::Split { dim, parts: vec![] };
            assert_eq!(decides("model.layers.0.self_attn.k_proj.weight"), Some(&split(0)));
            assert_eq!(decides("model.layers.79.mlp.down_proj.weight"), Some(&split(1)));
            assert_eq!(decides("lm_head.weight"), Some(&split(0)));
            assert_eq!(decides("model.layers.0.input_layernorm.weight"), None, "replicated");
            assert_eq!(decides("model.layers.0.self_attn.q_proj.qweight"), None, "another layout");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let text = |toml: &str| parse(toml, false).unwrap_err().to_string();
        let of_rule = |rule: &str| text(&format!("[[rule]]\npattern = \"a\"\n{rule}"));
        assert!(text("[[rules]]").contains("rules"), "{}", text("[[rules]]"));
        assert!(of_rule("").starts_with("rule 1: pattern \"a\" needs one of"), "{}", of_rule(""));
        assert!(of_rule("split = 0\nexpert = true").contains("needs one of"));
        assert!(of_rule("replicate = true\nparts = [1]").contains("`parts` go with a split"));
        assert!(of_rule("splitt = 0").contains("splitt"));
        assert!(of_rule("split = -1").contains("not a file of rules"));
        assert!(of_rule("split = 0\nparts = [\"x\"]").contains("a part is a size"));
        assert!(of_rule("expert = true").contains("needs {expert}"));
        assert!(parse("{", true).unwrap_err().to_string().contains("not a file of rules"));
        let missing = read(Path::new("/nowhere/rules.toml")).unwrap_err();
        assert_eq!(missing.code(), Code::NotFound);
        assert!(missing.to_string().contains("name a file, or llama or qwen2"), "{missing}");
    }

    #[test]
    fn the_flags_belong_together() {
        let args = |rank, world_size, rules: Option<&str>| ParallelArgs {
            rank,
            world_size,
            parallel_rules: rules.map(Into::into),
        };
        assert!(args(None, None, None).parallel().unwrap().is_none());
        assert_eq!(args(Some(3), Some(8), Some("llama")).parallel().unwrap().unwrap().to_string(), "rank 3 of 8");
        for some in [args(Some(0), None, None), args(None, Some(8), None), args(Some(0), Some(8), None)] {
            assert!(some.parallel().unwrap_err().to_string().contains("all three or none"));
        }
        assert!(args(Some(8), Some(8), Some("llama")).parallel().unwrap_err().to_string().contains("ranks are 0 to 7"));
    }
}
