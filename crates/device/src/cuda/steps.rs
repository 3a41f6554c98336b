//! From the parts of an upload to the copies that bring them in.
//!
//! A copy call costs 2-3 us and the card about as much again, so what is small is worth gathering by the CPU first, at about
//! 10 GB/s: pays below some tens of KiB. Thin rows are gathered for the same reason. Everything else goes directly.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::device::Part;
use longshore_types::{Code, Error, Result};

/// Runs up to this size are gathered when they have neighbours.
const SMALL_BYTES: u64 = 32 << 10;
/// Rows below this width are gathered.
const THIN_ROW_BYTES: u64 = 256;
/// Tensors are placed at multiples of this many bytes; what lies between two of them is padding.
pub(super) const ALIGNMENT_BYTES: u64 = 256;
/// The longest pack.
pub(super) const PACK_BYTES_MAX: u64 = 1 << 20;
/// Runs of one pack at most.
const PACK_RUNS_MAX: usize = 4096;

/// Equal rows at equal distances in the chunk's piece, to consecutive places in the region. One row is a plain run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run {
    /// Offset of the first row in the piece.
    pub(super) from: u64,
    pub(super) row_bytes: u64,
    /// From the start of a row to the start of the next one.
    pub(super) pitch_bytes: u64,
    pub(super) rows: u64,
    /// Offset in the region.
    pub(super) to: u64,
}

/// One copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Step {
    /// As it is.
    Copy(Run),
    /// Runs that follow each other in the region, gathered first. What lies between them becomes zero.
    Pack(Vec<Run>),
}

impl Run {
    /// Its bytes in the region. Exact for runs made from checked parts; saturates for others.
    pub(super) fn len_bytes(&self) -> u64 {
        self.row_bytes.saturating_mul(self.rows)
    }

    pub(super) fn end(&self) -> u64 {
        self.to.saturating_add(self.len_bytes())
    }

    /// The end of its bytes in the piece; `None` beyond what can be addressed.
    pub(super) fn source_end(&self) -> Option<u64> {
        let last = self.pitch_bytes.checked_mul(self.rows.checked_sub(1)?)?;
        self.from.checked_add(last)?.checked_add(self.row_bytes)
    }

    fn is_small(&self) -> bool {
        self.len_bytes() <= SMALL_BYTES || self.is_thin()
    }

    fn is_thin(&self) -> bool {
        self.rows > 1 && self.row_bytes < THIN_ROW_BYTES
    }
}

impl Step {
    pub(super) fn runs(&self) -> &[Run] {
        match self {
            Step::Copy(run) => std::slice::from_ref(run),
            Step::Pack(runs) => runs,
        }
    }
}

/// The runs of `parts` when the first byte is at `from` of the piece, neighbours joined. `region_bytes` bounds them.
///
/// # Errors
/// `InvalidArgument` for parts that are not within the region.
pub(super) fn runs(parts: &[Part], mut from: u64, region_bytes: u64) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for part in parts {
        if let Some((to, len)) = part.destination()? {
            if to.checked_add(len).is_none_or(|end| end > region_bytes) {
                let message = format!("{len} bytes at {to} are not within a region of {region_bytes} bytes");
                return Err(Error::new(Code::InvalidArgument, message));
            }
            let run = match *part {
                Part::Rows { row_bytes, skip_bytes, rows, .. } if rows > 1 && skip_bytes > 0 => {
                    Run { from, row_bytes, pitch_bytes: row_bytes.saturating_add(skip_bytes), rows, to }
                }
                _ => Run { from, row_bytes: len, pitch_bytes: len, rows: 1, to },
            };
            push(&mut runs, run);
        }
        from = from.saturating_add(part.len_bytes());
    }
    Ok(runs)
}

/// Appends a run, or lengthens the last one.
fn push(runs: &mut Vec<Run>, run: Run) {
    if run.len_bytes() == 0 {
        return;
    }
    if let Some(last) = runs.last_mut()
        && last.rows == 1
        && run.rows == 1
        && last.end() == run.to
        && last.from.saturating_add(last.row_bytes) == run.from
    {
        last.row_bytes += run.row_bytes;
        last.pitch_bytes = last.row_bytes;
        return;
    }
    runs.push(run);
}

/// The copies for `runs`, and the padding that they write zeros to. `is_free` says whether nothing else was or will be
/// sent to a range as far as is known.
pub(super) fn steps(runs: Vec<Run>, is_free: impl Fn(&Range<u64>) -> bool) -> (Vec<Step>, Vec<Range<u64>>) {
    let (mut steps, mut padding) = (Vec::new(), Vec::new());
    let mut pack: Vec<Run> = Vec::new();
    let flush = |pack: &mut Vec<Run>, steps: &mut Vec<Step>| match pack.as_slice() {
        [] => {}
        [run] if !run.is_thin() => steps.push(Step::Copy(pack.remove(0))),
        _ => steps.push(Step::Pack(std::mem::take(pack))),
    };
    for run in runs.into_iter().flat_map(cut) {
        if !run.is_small() {
            flush(&mut pack, &mut steps);
            steps.push(Step::Copy(run));
            continue;
        }
        if let (Some(first), Some(last)) = (pack.first(), pack.last()) {
            let gap = last.end()..run.to;
            let follows = gap.start <= gap.end
                && gap.end - gap.start < ALIGNMENT_BYTES
                && (gap.is_empty() || run.to.is_multiple_of(ALIGNMENT_BYTES) && is_free(&gap))
                && run.end() - first.to <= PACK_BYTES_MAX
                && pack.len() < PACK_RUNS_MAX;
            if !follows {
                flush(&mut pack, &mut steps);
            } else if !gap.is_empty() {
                padding.push(gap);
            }
        }
        pack.push(run);
    }
    flush(&mut pack, &mut steps);
    (steps, padding)
}

/// Thin rows in portions that fit in a pack.
fn cut(run: Run) -> impl Iterator<Item = Run> {
    let rows_max = if run.is_thin() { PACK_BYTES_MAX / run.row_bytes } else { run.rows };
    (0..run.rows.div_ceil(rows_max)).map(move |portion| {
        let first = portion * rows_max;
        Run {
            from: run.from + first * run.pitch_bytes,
            rows: rows_max.min(run.rows - first),
            to: run.to + first * run.row_bytes,
            ..run
        }
    })
}

#[cfg(test)]
mod tests;
