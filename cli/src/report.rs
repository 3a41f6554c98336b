//! The result of a load as it is printed: for people in lines, for programs as one object with stable keys.

use std::collections::BTreeMap;
use std::fmt::Write;

use longshore_proto::v1;
use longshore_types::{format_bytes, redact_url};
use serde::Serialize;

use crate::output::{row, seconds, table};

/// The result of `longshore load --json`. Keys are only ever added.
#[derive(Debug, Clone, Serialize)]
pub struct LoadOutput {
    /// Canonical URI, without credentials.
    pub uri: String,
    /// The revision that is loaded.
    pub revision: String,
    /// The rank whose part of the model this is; none for the whole model.
    pub rank: Option<u32>,
    /// The number of ranks that share the model.
    pub world_size: Option<u32>,
    /// Bytes of the model in memory.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: u32,
    /// Number of other files, delivered as bytes.
    pub files: usize,
    /// Wall time of this call.
    pub seconds: f64,
    /// Whether the model was in memory already and nothing moved.
    pub reattached: bool,
    /// The device it is on.
    pub device: String,
    /// Its id at the loader.
    pub model_id: String,
    /// The loader that holds it, or `embedded`.
    pub loader: String,
    /// Where bytes came from in this call, by tier; all tiers are named.
    pub bytes_by_tier: BTreeMap<&'static str, u64>,
    /// Everything that was not the first choice.
    pub fallbacks: Vec<FallbackOutput>,
    /// Reads that were repeated.
    pub retries: u64,
    /// Blocks that did not match their checksum, and were read again.
    pub checksum_mismatches: u64,
    /// When each step ran.
    pub waterfall: Vec<StepOutput>,
    /// Files that are not part of the load, with the reason.
    pub skipped: Vec<SkippedOutput>,
    /// What a user should know.
    pub warnings: Vec<String>,
}

/// A kind of fallback.
#[derive(Debug, Clone, Serialize)]
pub struct FallbackOutput {
    /// Its name, for instance `worker_unreachable`.
    pub kind: String,
    /// How often.
    pub count: u64,
    /// The last one, in words.
    pub last_detail: String,
}

/// A step of the load.
#[derive(Debug, Clone, Serialize)]
pub struct StepOutput {
    /// `resolve`, `plan`, `fetch`, `verify`, `upload` or `publish`.
    pub step: &'static str,
    /// First start, since the start of the load.
    pub start_seconds: f64,
    /// Last end.
    pub end_seconds: f64,
    /// Summed over all threads.
    pub busy_seconds: f64,
}

/// A file that was left out.
#[derive(Debug, Clone, Serialize)]
pub struct SkippedOutput {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

const TIERS: [(v1::Tier, &str); 6] = [
    (v1::Tier::Device, "device"),
    (v1::Tier::Pinned, "pinned"),
    (v1::Tier::Memory, "memory"),
    (v1::Tier::Disk, "disk"),
    (v1::Tier::Peer, "peer"),
    (v1::Tier::Origin, "origin"),
];

/// The name of a step.
pub fn step_name(step: v1::LoadStep) -> &'static str {
    match step {
        v1::LoadStep::Unspecified => "load",
        v1::LoadStep::Resolve => "resolve",
        v1::LoadStep::Plan => "plan",
        v1::LoadStep::Fetch => "fetch",
        v1::LoadStep::Verify => "verify",
        v1::LoadStep::Upload => "upload",
        v1::LoadStep::Publish => "publish",
    }
}

impl LoadOutput {
    /// What the loader said, for a call that took `seconds`.
    pub fn new(model: &v1::LoadedModel, seconds: f64, loader: String) -> Self {
        let none = v1::LoadReport::default();
        // A re-attached model carries the report of the load that brought it: nothing of that happened now.
        let report = if model.reattached { &none } else { model.report.as_ref().unwrap_or(&none) };
        let mut bytes_by_tier: BTreeMap<&'static str, u64> = TIERS.iter().map(|(_, name)| (*name, 0)).collect();
        for entry in &report.bytes_by_tier {
            if let Some((_, name)) = TIERS.iter().find(|(tier, _)| *tier == entry.tier()) {
                *bytes_by_tier.entry(name).or_default() += entry.bytes;
            }
        }
        if model.reattached {
            bytes_by_tier.insert("device", model.size_bytes);
        }
        LoadOutput {
            uri: redact_url(&model.uri),
            revision: model.revision.clone(),
            rank: model.parallel.as_ref().map(|parallel| parallel.rank),
            world_size: model.parallel.as_ref().map(|parallel| parallel.world_size),
            bytes: model.size_bytes,
            tensors: model.tensor_count,
            files: model.files.len(),
            seconds,
            reattached: model.reattached,
            device: model.device.clone(),
            model_id: model.model_id.clone(),
            loader,
            bytes_by_tier,
            // Shown for a re-attached model too: a fallback of this very call is among them.
            fallbacks: model.report.iter().flat_map(|report| &report.fallbacks).map(FallbackOutput::new).collect(),
            retries: report.retries,
            checksum_mismatches: report.checksum_mismatches,
            waterfall: report.steps.iter().map(StepOutput::new).collect(),
            skipped: model.skipped.iter().map(SkippedOutput::new).collect(),
            warnings: model.warnings.clone(),
        }
    }

    /// For people.
    pub fn write_text(&self, text: &mut String) {
        let LoadOutput { uri, revision, device, .. } = self;
        let rate = self.bytes as f64 / self.seconds.max(1e-9) / 1e9;
        let (size, time) = (format_bytes(self.bytes), seconds(self.seconds));
        let _ = match self.reattached {
            true => {
                writeln!(text, "{uri} is on {device} already: {size}, {} tensors, attached in {time}", self.tensors)
            }
            false => writeln!(
                text,
                "loaded {uri} on {device}: {size}, {} tensors, {} other files in {time} ({rate:.2} GB/s)",
                self.tensors, self.files
            ),
        };
        let _ = writeln!(text, "revision  {revision}");
        if let (Some(rank), Some(world_size)) = (self.rank, self.world_size) {
            let _ = writeln!(text, "part      rank {rank} of {world_size}");
        }
        let tiers: Vec<String> = TIERS
            .iter()
            .filter_map(|(_, name)| self.bytes_by_tier.get(name).filter(|bytes| **bytes > 0).map(|bytes| (name, bytes)))
            .map(|(name, bytes)| format!("{name} {}", format_bytes(*bytes)))
            .collect();
        let _ = writeln!(text, "from      {}", if tiers.is_empty() { "nowhere".into() } else { tiers.join(", ") });
        self.write_waterfall(text);
        self.write_notes(text);
    }

    fn write_waterfall(&self, text: &mut String) {
        const WIDTH: f64 = 40.0;
        let end = self.waterfall.iter().map(|step| step.end_seconds).fold(f64::MIN_POSITIVE, f64::max);
        let column = |at: f64| (at / end * WIDTH).round().clamp(0.0, WIDTH) as usize;
        let rows = self.waterfall.iter().map(|step| {
            let (from, to) = (column(step.start_seconds), column(step.end_seconds));
            let bar = format!("|{}{}", " ".repeat(from.min(WIDTH as usize - 1)), "#".repeat((to - from).max(1)));
            let length = seconds(step.end_seconds - step.start_seconds);
            row([step.step, &bar, &length, &format!("(busy {})", seconds(step.busy_seconds))])
        });
        text.push_str(&table(&rows.collect::<Vec<_>>()));
    }

    fn write_notes(&self, text: &mut String) {
        for fallback in &self.fallbacks {
            let _ = writeln!(text, "fallback  {} x{}: {}", fallback.kind, fallback.count, fallback.last_detail);
        }
        if self.retries > 0 {
            let _ = writeln!(text, "retries   {}", self.retries);
        }
        if self.checksum_mismatches > 0 {
            let _ = writeln!(text, "corrupt   {} blocks did not match and were read again", self.checksum_mismatches);
        }
        for skipped in self.skipped.iter().take(SKIPPED_SHOWN) {
            let _ = writeln!(text, "skipped   {}: {}", skipped.name, skipped.reason);
        }
        if self.skipped.len() > SKIPPED_SHOWN {
            let _ = writeln!(text, "skipped   {} more; --json lists all", self.skipped.len() - SKIPPED_SHOWN);
        }
        for warning in &self.warnings {
            let _ = writeln!(text, "warning   {warning}");
        }
    }
}

/// Skipped files that the text names; JSON has them all.
const SKIPPED_SHOWN: usize = 10;

impl FallbackOutput {
    fn new(fallback: &v1::Fallback) -> Self {
        let v1::Fallback { kind, count, last_detail } = fallback.clone();
        FallbackOutput { kind, count, last_detail }
    }
}

impl StepOutput {
    fn new(time: &v1::StepTime) -> Self {
        StepOutput {
            step: step_name(time.step()),
            start_seconds: time.start_seconds,
            end_seconds: time.end_seconds,
            busy_seconds: time.busy_seconds,
        }
    }
}

impl SkippedOutput {
    fn new(file: &v1::SkippedFile) -> Self {
        SkippedOutput { name: file.name.clone(), reason: file.reason.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(reattached: bool) -> v1::LoadedModel {
        let tier = |tier: v1::Tier, bytes| v1::TierBytes { tier: tier as i32, bytes };
        let step = |step: v1::LoadStep, start_seconds, end_seconds| v1::StepTime {
            step: step as i32,
            start_seconds,
            end_seconds,
            busy_seconds: 0.1,
        };
        v1::LoadedModel {
            uri: "https://user:secret@host/m?sig=secret".into(),
            size_bytes: 3_000_000,
            tensor_count: 7,
            device: "host".into(),
            reattached,
            report: Some(v1::LoadReport {
                bytes_by_tier: vec![tier(v1::Tier::Origin, 2_000_000), tier(v1::Tier::Disk, 1_000_000)],
                retries: 2,
                steps: vec![step(v1::LoadStep::Resolve, 0.0, 0.1), step(v1::LoadStep::Fetch, 0.1, 0.4)],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn json_names_every_tier_and_no_secret() {
        let value = serde_json::to_value(LoadOutput::new(&model(false), 0.5, "embedded".into())).unwrap();
        assert_eq!(value["bytes_by_tier"]["origin"], 2_000_000);
        assert_eq!(value["bytes_by_tier"]["pinned"], 0);
        assert_eq!(value["waterfall"][1]["step"], "fetch");
        assert_eq!(value["retries"], 2);
        assert!(!value.to_string().contains("secret"), "{value}");
    }

    #[test]
    fn a_reattached_model_moved_nothing() {
        let output = LoadOutput::new(&model(true), 0.001, "unix:///x".into());
        assert_eq!(output.bytes_by_tier["device"], 3_000_000);
        assert_eq!((output.bytes_by_tier["origin"], output.retries), (0, 0));
    }

    #[test]
    fn text_says_how_long_and_where_from() {
        let mut text = String::new();
        LoadOutput::new(&model(false), 0.5, "embedded".into()).write_text(&mut text);
        assert!(text.contains("3.0 MB, 7 tensors") && text.contains("disk 1.0 MB, origin 2.0 MB"), "{text}");
        assert!(text.contains("fetch    |          ####"), "{text}");
        assert!(!text.contains("rank"), "{text}");
    }

    #[test]
    fn a_rank_is_named() {
        let parallel = v1::Parallel { rank: 3, world_size: 8, rules: Vec::new() };
        let model = v1::LoadedModel { parallel: Some(parallel), ..model(false) };
        let output = LoadOutput::new(&model, 0.5, "embedded".into());
        let value = serde_json::to_value(&output).unwrap();
        assert_eq!((&value["rank"], &value["world_size"]), (&3.into(), &8.into()));
        let mut text = String::new();
        output.write_text(&mut text);
        assert!(text.contains("rank 3 of 8"), "{text}");
    }
}
