//! What the loader inside this process answers, in the form of a loader daemon's answer: one report for both.

use longshore_loader::{LoadReport, LoadedModel, SourceTier, Step};
use longshore_proto::convert::skipped_to_proto;
use longshore_proto::v1;

/// A loaded model without its tensors, which a report does not need.
pub fn to_message(model: &LoadedModel) -> v1::LoadedModel {
    v1::LoadedModel {
        model_id: model.id.as_str().to_owned(),
        uri: model.key.url.clone(),
        revision: model.key.revision.clone(),
        device: model.key.device.to_string(),
        device_uuid: model.device_uuid.clone(),
        size_bytes: model.size_bytes(),
        tensor_count: u32::try_from(model.layout.tensors.len()).unwrap_or(u32::MAX),
        files: model
            .layout
            .files
            .iter()
            .filter_map(|(file, place)| {
                Some(v1::PlacedFile {
                    name: model.manifest.files.get(*file)?.name.clone(),
                    region: place.region,
                    offset_bytes: place.offset_bytes,
                    length_bytes: place.length_bytes,
                })
            })
            .collect(),
        skipped: skipped_to_proto(&model.manifest.skipped),
        warnings: model.warnings().cloned().collect(),
        report: Some(report(&model.report())),
        reattached: model.is_reattached(),
        parallel: model.key.parallel.as_ref().map(v1::Parallel::from),
        ..v1::LoadedModel::default()
    }
}

fn report(report: &LoadReport) -> v1::LoadReport {
    let tiers = report.bytes_by_tier.iter().map(|(source, bytes)| v1::TierBytes { tier: tier(*source), bytes: *bytes });
    let fallbacks = report.fallbacks.iter().map(|fallback| v1::Fallback {
        kind: fallback.kind.as_str().to_owned(),
        count: fallback.count,
        last_detail: fallback.last_detail.clone(),
    });
    let steps = report.steps.iter().map(|time| v1::StepTime {
        step: step(time.step),
        start_seconds: time.start_seconds,
        end_seconds: time.end_seconds,
        busy_seconds: time.busy_seconds,
    });
    let events = report.events.iter().map(|event| v1::TraceEvent {
        name: event.name.to_owned(),
        category: event.category.as_str().to_owned(),
        thread: event.thread,
        start_us: event.start_us,
        duration_us: event.duration_us,
        bytes: event.bytes,
        source: event.source.clone(),
    });
    v1::LoadReport {
        seconds: report.seconds,
        bytes: report.bytes,
        bytes_by_tier: tiers.collect(),
        fallbacks: fallbacks.collect(),
        retries: report.retries,
        checksum_mismatches: report.checksum_mismatches,
        steps: steps.collect(),
        events: events.collect(),
        events_dropped: report.events_dropped,
    }
}

fn tier(tier: SourceTier) -> i32 {
    let tier = match tier {
        SourceTier::Device => v1::Tier::Device,
        SourceTier::Pinned => v1::Tier::Pinned,
        SourceTier::Memory => v1::Tier::Memory,
        SourceTier::Disk => v1::Tier::Disk,
        SourceTier::Peer => v1::Tier::Peer,
        SourceTier::Origin => v1::Tier::Origin,
    };
    tier.into()
}

fn step(step: Step) -> i32 {
    let step = match step {
        Step::Resolve => v1::LoadStep::Resolve,
        Step::Plan => v1::LoadStep::Plan,
        Step::Fetch => v1::LoadStep::Fetch,
        Step::Verify => v1::LoadStep::Verify,
        Step::Upload => v1::LoadStep::Upload,
        Step::Publish => v1::LoadStep::Publish,
    };
    step.into()
}
