//! What copies must be like before one of them is started.

use super::pack;
use crate::cuda::protocol::RUNS_MAX;
use crate::cuda::steps::{Run, Step};

/// Whether all steps stay within the piece and the region, and are no more than a message may have.
pub(super) fn are_within(steps: &[Step], piece_bytes: u64, region_bytes: u64) -> bool {
    let is_run = |run: &Run| {
        let from = run.source_end().is_some_and(|end| end <= piece_bytes);
        let len = run.row_bytes.checked_mul(run.rows).filter(|len| *len > 0 && run.row_bytes <= run.pitch_bytes);
        let to = len.and_then(|len| run.to.checked_add(len)).is_some_and(|end| end <= region_bytes);
        from && to
    };
    let is_step = |step: &Step| match step {
        Step::Copy(run) => is_run(run),
        Step::Pack(runs) => runs.iter().all(is_run) && pack::len_bytes(runs).is_some(),
    };
    let runs: usize = steps.iter().map(|step| step.runs().len()).sum();
    runs <= RUNS_MAX && steps.iter().all(is_step)
}
