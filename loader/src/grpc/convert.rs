//! The loader's answers as messages.

use std::path::{Path, PathBuf};

use longshore_device::DeviceRegion;
use longshore_device::cuda::CopierState;
use longshore_proto::convert::{piece_to_proto, skipped_to_proto};
use longshore_proto::{MESSAGE_BYTES_MAX, v1};
use longshore_types::{Code, Error, Result};
use prost::Message;

use crate::VERSION;
use crate::checkpoint::CheckpointsState;
use crate::cluster::MemberState;
use crate::devices::DeviceStatus;
use crate::load::LoadProgress;
use crate::loader::{HolderState, LoadedModel, LoaderStatus, ModelState, UnknownModel};
use crate::model::Model;
use crate::pinned::PinnedUse;
use crate::plan::{Place, PlacedTensor};
use crate::report::{Fallback, FallbackKind, LoadReport, SourceTier, Step, StepTime, TraceEvent};

/// What a holder adds to a description.
const ATTACH_BYTES_SPARE: usize = 16 << 10;

/// How much of a model a message holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Everything.
    Full,
    /// Without tensors, files and events.
    Listing,
}

/// A model with its tensors, as an answer to one client.
pub(crate) fn model(loaded: &LoadedModel, state: &ModelState, attach_socket: &Path, detail: Detail) -> v1::LoadedModel {
    v1::LoadedModel {
        reattached: loaded.is_reattached(),
        report: Some(report(&loaded.report(), detail)),
        ..used(loaded.model(), state, attach_socket, detail)
    }
}

/// A model in a list.
pub(crate) fn listed(state: &ModelState, attach_socket: &Path) -> v1::LoadedModel {
    used(state, state, attach_socket, Detail::Listing)
}

fn used(model: &Model, state: &ModelState, attach_socket: &Path, detail: Detail) -> v1::LoadedModel {
    v1::LoadedModel {
        leases: state.leases,
        idle_seconds: state.idle.as_secs_f64(),
        attach_socket: attach_socket.to_string_lossy().into_owned(),
        ..described(model, detail)
    }
}

/// What a holder answers with to who attaches, but for what only it knows: the use, and where it listens. The events of
/// a traced load are not in it; they went to who asked for them.
///
/// # Errors
/// [`Code::Exhausted`] for a message over the limit of the protocol.
pub(crate) fn description(model: &Model) -> Result<Vec<u8>> {
    let message = v1::LoadedModel {
        reattached: true,
        report: Some(report(&model.report, Detail::Listing)),
        ..described(model, Detail::Full)
    };
    match message.encoded_len() + ATTACH_BYTES_SPARE <= MESSAGE_BYTES_MAX {
        true => Ok(message.encode_to_vec()),
        false => Err(Error::new(
            Code::Exhausted,
            format!("the description of the model has {} bytes, over the limit", message.encoded_len()),
        )),
    }
}

fn described(model: &Model, detail: Detail) -> v1::LoadedModel {
    let (tensors, files) = match detail {
        Detail::Full => (tensors(model), files(model)),
        Detail::Listing => (Vec::new(), Vec::new()),
    };
    v1::LoadedModel {
        model_id: model.id.as_str().to_owned(),
        uri: model.key.url.clone(),
        revision: model.key.revision.clone(),
        device: model.key.device.to_string(),
        device_uuid: model.device_uuid.clone(),
        size_bytes: model.size_bytes(),
        tensor_count: model.layout.tensors.len() as u32,
        regions: model.regions.iter().map(|region| self::region(model, &**region)).collect(),
        tensors,
        files,
        skipped: skipped_to_proto(&model.manifest.skipped),
        warnings: model.warnings().cloned().collect(),
        leases: 0,
        idle_seconds: 0.0,
        report: Some(report(&model.report, detail)),
        reattached: false,
        attach_socket: String::new(),
        parallel: model.key.parallel.as_ref().map(v1::Parallel::from),
    }
}

fn region(model: &Model, region: &dyn DeviceRegion) -> v1::Region {
    let device = if region.host_bytes().is_some() { "host" } else { &model.device_uuid };
    v1::Region {
        size_bytes: region.size_bytes(),
        segment_bytes: region.segments().iter().map(|segment| segment.len_bytes).collect(),
        device: device.to_owned(),
    }
}

fn tensors(model: &Model) -> Vec<v1::PlacedTensor> {
    let placed = model.tensors().map(|PlacedTensor { tensor, shape, place }| v1::PlacedTensor {
        name: tensor.name.clone(),
        dtype: tensor.dtype_name.clone(),
        shape: shape.to_vec(),
        region: place.region,
        offset_bytes: place.offset_bytes,
        length_bytes: place.length_bytes,
        piece: tensor.piece.as_ref().map(piece_to_proto),
    });
    placed.collect()
}

fn files(model: &Model) -> Vec<v1::PlacedFile> {
    let placed = model.layout.files.iter();
    placed
        .map(|&(file, Place { region, offset_bytes, length_bytes })| v1::PlacedFile {
            name: model.manifest.files[file].name.clone(),
            region,
            offset_bytes,
            length_bytes,
        })
        .collect()
}

/// A report; its events only in full detail.
pub(crate) fn report(report: &LoadReport, detail: Detail) -> v1::LoadReport {
    let events = if detail == Detail::Full { report.events.iter().map(event).collect() } else { Vec::new() };
    v1::LoadReport {
        seconds: report.seconds,
        bytes: report.bytes,
        bytes_by_tier: report
            .bytes_by_tier
            .iter()
            .map(|&(source, bytes)| v1::TierBytes { tier: tier(source).into(), bytes })
            .collect(),
        fallbacks: report
            .fallbacks
            .iter()
            .map(|fallback| v1::Fallback {
                kind: fallback.kind.as_str().to_owned(),
                count: fallback.count,
                last_detail: fallback.last_detail.clone(),
            })
            .collect(),
        retries: report.retries,
        checksum_mismatches: report.checksum_mismatches,
        steps: report
            .steps
            .iter()
            .map(|time| v1::StepTime {
                step: step(time.step).into(),
                start_seconds: time.start_seconds,
                end_seconds: time.end_seconds,
                busy_seconds: time.busy_seconds,
            })
            .collect(),
        events,
        events_dropped: report.events_dropped,
    }
}

/// A report without its events. What this version has no name for is left out.
pub(crate) fn report_from_proto(report: v1::LoadReport) -> LoadReport {
    let tier_of = |bytes: &v1::TierBytes| SourceTier::ALL.into_iter().find(|known| tier(*known) == bytes.tier());
    let step_of = |time: &v1::StepTime| Step::ALL.into_iter().find(|known| step(*known) == time.step());
    let kind_of = |kind: &str| FallbackKind::ALL.into_iter().find(|known| known.as_str() == kind);
    let fallback = |fallback: v1::Fallback| {
        let v1::Fallback { kind, count, last_detail } = fallback;
        Some(Fallback { kind: kind_of(&kind)?, count, last_detail })
    };
    let step_time = |time: &v1::StepTime| {
        let &v1::StepTime { start_seconds, end_seconds, busy_seconds, .. } = time;
        Some(StepTime { step: step_of(time)?, start_seconds, end_seconds, busy_seconds })
    };
    LoadReport {
        seconds: report.seconds,
        bytes: report.bytes,
        bytes_by_tier: report.bytes_by_tier.iter().filter_map(|of| Some((tier_of(of)?, of.bytes))).collect(),
        fallbacks: report.fallbacks.into_iter().filter_map(fallback).collect(),
        retries: report.retries,
        checksum_mismatches: report.checksum_mismatches,
        steps: report.steps.iter().filter_map(step_time).collect(),
        events: Vec::new(),
        events_dropped: report.events_dropped,
    }
}

fn event(event: &TraceEvent) -> v1::TraceEvent {
    v1::TraceEvent {
        name: event.name.to_owned(),
        category: event.category.as_str().to_owned(),
        thread: event.thread,
        start_us: event.start_us,
        duration_us: event.duration_us,
        bytes: event.bytes,
        source: event.source.clone(),
    }
}

fn tier(tier: SourceTier) -> v1::Tier {
    match tier {
        SourceTier::Device => v1::Tier::Device,
        SourceTier::Pinned => v1::Tier::Pinned,
        SourceTier::Memory => v1::Tier::Memory,
        SourceTier::Disk => v1::Tier::Disk,
        SourceTier::Peer => v1::Tier::Peer,
        SourceTier::Origin => v1::Tier::Origin,
    }
}

fn step(step: Step) -> v1::LoadStep {
    match step {
        Step::Resolve => v1::LoadStep::Resolve,
        Step::Plan => v1::LoadStep::Plan,
        Step::Fetch => v1::LoadStep::Fetch,
        Step::Verify => v1::LoadStep::Verify,
        Step::Upload => v1::LoadStep::Upload,
        Step::Publish => v1::LoadStep::Publish,
    }
}

/// Progress of a load.
pub(super) fn progress(progress: &LoadProgress) -> v1::LoadProgress {
    v1::LoadProgress {
        step: step(progress.step).into(),
        bytes_done: progress.bytes_done,
        bytes_total: progress.bytes_total,
        elapsed_seconds: progress.elapsed.as_secs_f64(),
    }
}

/// The loader at one moment.
pub(super) fn status(status: &LoaderStatus, attach_socket: &Path) -> v1::LoaderStatus {
    let (arena_capacity_bytes, arena_used_bytes) = status.arena_bytes();
    v1::LoaderStatus {
        version: VERSION.to_owned(),
        arena_capacity_bytes,
        arena_used_bytes,
        devices: status.devices.iter().map(device).collect(),
        models: status.models.iter().map(|state| listed(state, attach_socket)).collect(),
        members: status.members.iter().map(member).collect(),
        loads_in_flight: status.loads_in_flight as u32,
        attach_socket: attach_socket.to_string_lossy().into_owned(),
        uptime_seconds: status.uptime.as_secs_f64(),
        pinned: status.pinned.as_ref().map(pinned),
        holder: Some(holder(&status.holder)),
        checkpoints: Some(checkpoints(&status.checkpoints)),
    }
}

fn device(device: &DeviceStatus) -> v1::DeviceStatus {
    let DeviceStatus { info, state, restarts } = device;
    v1::DeviceStatus {
        device: info.id.to_string(),
        uuid: info.uuid.clone(),
        name: info.name.clone(),
        capacity_bytes: info.capacity_bytes,
        used_bytes: info.used_bytes,
        free_bytes: info.free_bytes,
        state: match state {
            CopierState::Ready => "ready".to_owned(),
            CopierState::Starting => "starting".to_owned(),
            CopierState::Failed(reason) => reason.clone(),
        },
        restarts: *restarts,
    }
}

fn pinned(pinned: &PinnedUse) -> v1::PinnedStatus {
    v1::PinnedStatus {
        capacity_bytes: pinned.capacity_bytes,
        staging_bytes: pinned.staging_bytes,
        cached_bytes: pinned.cached_bytes,
        pages: pinned.pages.map_or_else(String::new, |pages| pages.to_string()),
    }
}

fn holder(holder: &HolderState) -> v1::HolderStatus {
    let unknown = |model: &UnknownModel| v1::UnknownModel {
        model_id: model.id.clone(),
        reason: model.reason.clone(),
        size_bytes: model.size_bytes,
        leases: model.leases,
    };
    v1::HolderStatus {
        process: holder.facts.is_process,
        pid: holder.facts.pid,
        uptime_seconds: holder.facts.uptime.as_secs_f64(),
        models_adopted: holder.models_adopted,
        unknown: holder.unknown.iter().map(unknown).collect(),
    }
}

fn checkpoints(state: &CheckpointsState) -> v1::CheckpointStatus {
    let path =
        |path: &Option<PathBuf>| path.as_ref().map_or_else(String::new, |path| path.to_string_lossy().into_owned());
    v1::CheckpointStatus {
        slabs_socket: path(&state.slabs_socket),
        dir: path(&state.folder),
        open: state.is_open,
        error: state.failure.as_ref().map_or_else(String::new, |error| error.message().to_owned()),
        slab_capacity_bytes: state.slab_capacity_bytes,
        slab_used_bytes: state.slab_used_bytes,
        disk_capacity_bytes: state.disk_capacity_bytes,
        disk_used_bytes: state.disk_used_bytes,
        sessions: state.sessions,
        saves: state.saves.iter().map(|status| crate::checkpoint::status_to_proto(status)).collect(),
    }
}

fn member(member: &MemberState) -> v1::WorkerMember {
    v1::WorkerMember {
        id: member.id.clone(),
        address: member.address.clone(),
        weight: member.weight,
        reachable: member.is_reachable,
    }
}
