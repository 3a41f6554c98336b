//! Results as JSON, and the page made from it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use crate::limits::Sample;
use crate::system;

/// A run: what `benches/results/*.json` holds.
#[derive(Debug, Serialize)]
pub struct Report {
    date: String,
    machine: String,
    versions: std::collections::BTreeMap<String, String>,
    model_bytes: u64,
    rows: Vec<Row>,
}

/// One subject on one case.
#[derive(Debug, Serialize)]
pub struct Row {
    case: String,
    subject: String,
    /// Median over the rounds.
    value: f64,
    unit: &'static str,
    /// The limit's median in the same unit; absent for limits.
    limit: Option<f64>,
    /// Median over the rounds of the ratio within each round.
    ratio_to_limit: Option<f64>,
    cpu_s_per_gb: f64,
    /// CPU per byte over the limit's, the same way.
    cpu_ratio_to_limit: Option<f64>,
    runs: usize,
    min: f64,
    max: f64,
    cache_state: &'static str,
    command: String,
    note: String,
}

/// What a row is made of, beside its samples.
pub struct RowSpec<'a> {
    /// For instance `worker/tcp`.
    pub case: &'a str,
    /// `longshore`, or the name of the limit.
    pub subject: &'a str,
    /// What was warm.
    pub cache_state: &'static str,
    /// How the work is done, in a line.
    pub note: &'a str,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        len if len % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

impl Report {
    /// An empty report on this machine.
    pub fn new(model_bytes: u64) -> Report {
        let versions = [("longshore".to_owned(), env!("CARGO_PKG_VERSION").to_owned())];
        Report {
            date: system::today(),
            machine: system::machine(),
            versions: versions.into(),
            model_bytes,
            rows: Vec::new(),
        }
    }

    /// Adds a row: `samples[i]` and `limits[i]` were measured in round i.
    pub fn add(&mut self, spec: &RowSpec<'_>, samples: &[Sample], limits: Option<&[Sample]>, command: &str) {
        let gigabytes = self.model_bytes as f64 / 1e9;
        let rates: Vec<f64> = samples.iter().map(|sample| gigabytes / sample.seconds).collect();
        let per_round = |ratio: fn(&Sample, &Sample) -> f64| {
            limits.map(|limits| median(samples.iter().zip(limits).map(|(ours, limit)| ratio(ours, limit)).collect()))
        };
        self.rows.push(Row {
            case: spec.case.to_owned(),
            subject: spec.subject.to_owned(),
            value: median(rates.clone()),
            unit: "GB/s",
            limit: limits.map(|limits| median(limits.iter().map(|limit| gigabytes / limit.seconds).collect())),
            ratio_to_limit: per_round(|ours, limit| limit.seconds / ours.seconds),
            cpu_s_per_gb: median(samples.iter().map(|sample| sample.cpu_seconds / gigabytes).collect()),
            cpu_ratio_to_limit: per_round(|ours, limit| ours.cpu_seconds / limit.cpu_seconds),
            runs: samples.len(),
            min: rates.iter().copied().fold(f64::INFINITY, f64::min),
            max: rates.iter().copied().fold(0.0, f64::max),
            cache_state: spec.cache_state,
            command: command.to_owned(),
            note: spec.note.to_owned(),
        });
    }

    /// Writes the JSON file and gives its path.
    pub fn write(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let path = folder.join(format!("{}-{cores}-cores.json", self.date));
        std::fs::write(&path, serde_json::to_string_pretty(self)? + "\n")?;
        Ok(path)
    }

    /// The rows as a Markdown table.
    pub fn table(&self) -> String {
        let mut out = String::from(
            "| case | subject | GB/s (median) | min to max | of limit | CPU s per GB | CPU of limit's | runs | state |\n\
             |---|---|---|---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let percent = row.ratio_to_limit.map_or("limit".to_owned(), |ratio| format!("{:.0} %", ratio * 100.0));
            let cpu = row.cpu_ratio_to_limit.map_or(String::new(), |ratio| format!("{ratio:.2} x"));
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "| `{}` | {} | {:.2} | {:.2} to {:.2} | {percent} | {:.2} | {cpu} | {} | {} |",
                row.case, row.subject, row.value, row.min, row.max, row.cpu_s_per_gb, row.runs, row.cache_state
            );
        }
        out
    }

    /// Writes the page.
    pub fn write_page(&self, page: &Path, results: &Path) -> anyhow::Result<()> {
        if let Some(folder) = page.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut text = format!(
            "# Benchmarks\n\nWritten by `make bench` from `{}`; no number here is edited by hand.\n\n\
             {}. {}. Model: {:.2} GB of safetensors in one file.\n\n\
             Each round measures every row once, in alternation. Rates are medians over the rounds; *of limit* is the median of the ratios\n\
             within each round. CPU seconds are those of all processes on both ends (for the origin's rows: without the origin itself).\n\n{}\n",
            results.display(),
            self.date,
            self.machine,
            self.model_bytes as f64 / 1e9,
            self.table()
        );
        text.push_str("## How each row works\n\n");
        for row in &self.rows {
            let _ = writeln!(text, "* `{}`, {}: {}", row.case, row.subject, row.note);
        }
        let command = self.rows.first().map_or("make bench", |row| &row.command);
        let _ = writeln!(text, "\nCommand: `{command}`");
        std::fs::write(page, text)?;
        Ok(())
    }
}
