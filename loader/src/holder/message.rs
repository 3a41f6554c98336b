//! What a loader and a holder process say to each other, to and from domain types.

use std::time::{Duration, Instant};

use longshore_memory::OwnedSegment;
use longshore_proto::{MESSAGE_BYTES_MAX, v1};
use longshore_types::{Code, Error, Result};

use super::uses::{ModelUse, Uses, ago};
use super::{Adopted, Removed, Summary};

/// The version of the protocol.
pub(super) const PROTOCOL: u32 = 1;
/// Longest message between the two: a description and a record, each within the limit of its own.
pub(super) const CONTROL_BYTES_MAX: usize = 2 * MESSAGE_BYTES_MAX + (1 << 20);

impl From<&Uses> for v1::HeldState {
    fn from(uses: &Uses) -> v1::HeldState {
        let now = Instant::now();
        let model = |(id, of): (&String, &ModelUse)| v1::HeldUse {
            model_id: id.clone(),
            leases: of.leases,
            idle_milliseconds: now.saturating_duration_since(of.last_used).as_millis() as u64,
            forgotten: of.is_forgotten,
        };
        let device = |(device, used_bytes): (&String, &u64)| v1::HeldOnDevice {
            device: device.clone(),
            used_bytes: *used_bytes,
        };
        v1::HeldState {
            version: uses.version,
            models: uses.models.iter().map(model).collect(),
            devices: uses.devices.iter().map(device).collect(),
            attached: uses.attached as u64,
        }
    }
}

impl From<v1::HeldState> for Uses {
    fn from(state: v1::HeldState) -> Uses {
        let model = |of: v1::HeldUse| {
            let last_used = ago(Duration::from_millis(of.idle_milliseconds));
            (of.model_id, ModelUse { leases: of.leases, last_used, is_forgotten: of.forgotten })
        };
        Uses {
            version: state.version,
            models: state.models.into_iter().map(model).collect(),
            devices: state.devices.into_iter().map(|of| (of.device, of.used_bytes)).collect(),
            attached: state.attached as usize,
        }
    }
}

impl From<Removed> for v1::RemoveOutcome {
    fn from(removed: Removed) -> v1::RemoveOutcome {
        match removed {
            Removed::Freed => v1::RemoveOutcome::Freed,
            Removed::Leased => v1::RemoveOutcome::Leased,
            Removed::NotFound => v1::RemoveOutcome::NotFound,
        }
    }
}

/// # Errors
/// [`Code::Internal`] for an outcome that this version does not know.
pub(super) fn removed(outcome: v1::RemoveOutcome) -> Result<Removed> {
    match outcome {
        v1::RemoveOutcome::Freed => Ok(Removed::Freed),
        v1::RemoveOutcome::Leased => Ok(Removed::Leased),
        v1::RemoveOutcome::NotFound => Ok(Removed::NotFound),
        v1::RemoveOutcome::Unspecified => Err(strange("what removing did")),
    }
}

/// Regions as a message, and their descriptors in its order.
pub(super) fn regions(regions: Vec<(String, Vec<OwnedSegment>)>) -> (Vec<v1::HeldRegion>, Vec<OwnedSegment>) {
    let mut all = Vec::new();
    let mut messages = Vec::with_capacity(regions.len());
    for (device, segments) in regions {
        let segment_bytes = segments.iter().map(|segment| segment.len_bytes).collect();
        messages.push(v1::HeldRegion { device, segment_bytes });
        all.extend(segments);
    }
    (messages, all)
}

impl From<&Summary> for v1::HeldSummary {
    fn from(summary: &Summary) -> v1::HeldSummary {
        let region =
            |(device, bytes): &(String, u64)| v1::HeldRegion { device: device.clone(), segment_bytes: vec![*bytes] };
        v1::HeldSummary { model_id: summary.id.clone(), regions: summary.bytes.iter().map(region).collect() }
    }
}

impl From<v1::HeldSummary> for Summary {
    fn from(summary: v1::HeldSummary) -> Summary {
        let bytes = |region: v1::HeldRegion| {
            let bytes = region.segment_bytes.iter().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
            (region.device, bytes)
        };
        Summary { id: summary.model_id, bytes: summary.regions.into_iter().map(bytes).collect() }
    }
}

/// A model with the descriptors that came behind it.
///
/// # Errors
/// [`Code::Internal`] when they are not as many as its regions have.
pub(super) fn adopted(model: v1::HeldModel, fds: Vec<std::os::fd::OwnedFd>) -> Result<Adopted> {
    let mut fds = fds.into_iter();
    let mut regions = Vec::with_capacity(model.regions.len());
    for v1::HeldRegion { device, segment_bytes } in model.regions {
        regions.push((device, segments(segment_bytes, &mut fds)?));
    }
    match fds.next() {
        None => Ok(Adopted { record: model.record, regions }),
        Some(_) => Err(strange("descriptors")),
    }
}

/// The next descriptors with their sizes.
///
/// # Errors
/// [`Code::Internal`] when there are too few.
pub(super) fn segments(
    segment_bytes: Vec<u64>,
    fds: &mut impl Iterator<Item = std::os::fd::OwnedFd>,
) -> Result<Vec<OwnedSegment>> {
    let segment = |len_bytes| Ok(OwnedSegment { fd: fds.next().ok_or_else(|| strange("descriptors"))?, len_bytes });
    segment_bytes.into_iter().map(segment).collect()
}

/// The other side said something that makes no sense.
pub(super) fn strange(what: &str) -> Error {
    Error::new(Code::Internal, format!("the loader and its holder do not understand each other: {what}"))
}
