//! The node's loader: its devices with the models on them, page-locked memory, and who keeps it all.

use std::fmt::Write;

use longshore_proto::v1;
use longshore_types::{format_bytes, redact_url};
use serde_json::{Value, json as object};

use crate::output::{row, seconds, table};
use crate::{saver, saves};

/// How host memory is called among devices.
const HOST: &str = "host";

pub(super) fn to_json(address: &str, status: &v1::LoaderStatus) -> Value {
    object!({
        "address": address,
        "version": status.version,
        "uptime_seconds": status.uptime_seconds,
        "attach_socket": status.attach_socket,
        "arena_capacity_bytes": status.arena_capacity_bytes,
        "arena_used_bytes": status.arena_used_bytes,
        "loads_in_flight": status.loads_in_flight,
        "devices": status.devices.iter().map(device).collect::<Vec<_>>(),
        "pinned": status.pinned.as_ref().map(pinned),
        "holder": status.holder.as_ref().map(holder),
        "models": status.models.iter().map(model).collect::<Vec<_>>(),
        "members": status.members.iter().map(member).collect::<Vec<_>>(),
        "checkpoints": status.checkpoints.as_ref().map(checkpoints),
    })
}

fn checkpoints(state: &v1::CheckpointStatus) -> Value {
    object!({
        "dir": state.dir,
        "open": state.open,
        "error": Some(&state.error).filter(|error| !error.is_empty()),
        "slabs_socket": state.slabs_socket,
        "slab_capacity_bytes": state.slab_capacity_bytes,
        "slab_used_bytes": state.slab_used_bytes,
        "disk_capacity_bytes": state.disk_capacity_bytes,
        "disk_used_bytes": state.disk_used_bytes,
        "sessions": state.sessions,
        "saves": state.saves.iter().map(saver::to_json).collect::<Vec<_>>(),
    })
}

fn device(device: &v1::DeviceStatus) -> Value {
    object!({
        "device": device.device, "uuid": device.uuid, "name": device.name,
        "capacity_bytes": device.capacity_bytes, "used_bytes": device.used_bytes, "free_bytes": device.free_bytes,
        "state": device.state, "restarts": device.restarts,
    })
}

fn pinned(pinned: &v1::PinnedStatus) -> Value {
    object!({
        "capacity_bytes": pinned.capacity_bytes, "staging_bytes": pinned.staging_bytes,
        "cached_bytes": pinned.cached_bytes, "pages": pinned.pages,
    })
}

fn holder(holder: &v1::HolderStatus) -> Value {
    let unknown = |model: &v1::UnknownModel| {
        object!({
            "model_id": model.model_id, "reason": model.reason, "bytes": model.size_bytes, "leases": model.leases,
        })
    };
    object!({
        "process": holder.process, "pid": holder.pid, "uptime_seconds": holder.uptime_seconds,
        "models_adopted": holder.models_adopted,
        "unknown": holder.unknown.iter().map(unknown).collect::<Vec<_>>(),
    })
}

fn model(model: &v1::LoadedModel) -> Value {
    object!({
        "rank": model.parallel.as_ref().map(|parallel| parallel.rank),
        "world_size": model.parallel.as_ref().map(|parallel| parallel.world_size),
        "model_id": model.model_id, "uri": redact_url(&model.uri), "revision": model.revision,
        "device": model.device, "bytes": model.size_bytes, "tensors": model.tensor_count,
        "leases": model.leases, "idle_seconds": model.idle_seconds,
    })
}

fn member(member: &v1::WorkerMember) -> Value {
    object!({
        "id": member.id, "address": member.address, "weight": member.weight, "reachable": member.reachable,
    })
}

pub(super) fn write_text(text: &mut String, address: &str, status: &v1::LoaderStatus) {
    let (used, capacity) = (format_bytes(status.arena_used_bytes), format_bytes(status.arena_capacity_bytes));
    let up = seconds(status.uptime_seconds);
    let _ = writeln!(text, "loader {address}: version {}, up {up}, memory {used} of {capacity}", status.version);
    if let Some(holder) = status.holder.as_ref().filter(|holder| holder.process) {
        let (up, adopted) = (seconds(holder.uptime_seconds), holder.models_adopted);
        let _ = writeln!(text, "  holder  process {}, up {up}, {adopted} models taken over from it", holder.pid);
    } else if status.holder.is_some() {
        text.push_str("  holder  none of its own: models end with the loader\n");
    }
    for model in status.holder.iter().flat_map(|holder| &holder.unknown) {
        let v1::UnknownModel { model_id, reason, size_bytes, leases } = model;
        let size = format_bytes(*size_bytes);
        let _ = writeln!(text, "  held, unknown: model {model_id}, {size}, {leases} leases: {reason}");
    }
    if let Some(v1::PinnedStatus { capacity_bytes, staging_bytes, cached_bytes, pages }) = &status.pinned {
        let [capacity, staging, cached] =
            [capacity_bytes, staging_bytes, cached_bytes].map(|bytes| format_bytes(*bytes));
        let pages = if pages.is_empty() { "not allocated yet".to_owned() } else { format!("pages {pages}") };
        let _ = writeln!(text, "  pinned  {staging} staging and {cached} cached of {capacity}, {pages}");
    }
    for host in status.devices.iter().filter(|device| device.device == HOST) {
        let _ = writeln!(text, "  host    {}", host.name);
    }
    for gpu in status.devices.iter().filter(|device| device.device != HOST) {
        write_gpu(text, gpu);
    }
    let rows: Vec<_> = status.models.iter().map(model_row).collect();
    text.push_str(&table(&rows));
    if let Some(state) = status.checkpoints.as_ref().filter(|state| state.open || !state.error.is_empty()) {
        write_checkpoints(text, state);
    }
}

/// Only for a loader that saves, or should.
fn write_checkpoints(text: &mut String, state: &v1::CheckpointStatus) {
    if !state.error.is_empty() {
        let _ = writeln!(text, "  saves   cannot be made: {}", state.error);
        return;
    }
    let [slabs, slab_capacity] = [state.slab_used_bytes, state.slab_capacity_bytes].map(format_bytes);
    let [disk, disk_capacity] = [state.disk_used_bytes, state.disk_capacity_bytes].map(format_bytes);
    let sessions = state.sessions;
    let _ = writeln!(text, "  slabs   {slabs} of {slab_capacity}, {sessions} processes connected");
    let _ = writeln!(text, "  spool   {disk} of {disk_capacity} in {}", state.dir);
    let mut saves = String::new();
    saves::write_rows(&mut saves, &state.saves);
    saves.lines().for_each(|line| {
        let _ = writeln!(text, "  {line}");
    });
}

fn write_gpu(text: &mut String, gpu: &v1::DeviceStatus) {
    let v1::DeviceStatus { device, uuid, name, state, restarts, .. } = gpu;
    let [used, capacity, free] = [gpu.used_bytes, gpu.capacity_bytes, gpu.free_bytes].map(format_bytes);
    let _ = write!(text, "  {device}  {used} of {capacity}, {free} free, {state}");
    if *restarts > 0 {
        let _ = write!(text, ", its copier was restarted {restarts} times");
    }
    let _ = writeln!(text, "; {name}, {uuid}");
}

fn model_row(model: &v1::LoadedModel) -> Vec<String> {
    let used = match model.leases {
        0 => format!("idle {}", seconds(model.idle_seconds)),
        1 => "1 lease".to_owned(),
        leases => format!("{leases} leases"),
    };
    let part = match &model.parallel {
        Some(v1::Parallel { rank, world_size, .. }) => format!("rank {rank} of {world_size}"),
        None => String::new(),
    };
    row([" ", &redact_url(&model.uri), &model.device, &format_bytes(model.size_bytes), &used, &part])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> v1::LoaderStatus {
        let device = |device: &str, state: &str, restarts| v1::DeviceStatus {
            device: device.into(),
            uuid: format!("UUID-{device}"),
            name: if device == HOST { "host memory, pages".into() } else { "Card".into() },
            capacity_bytes: 4_000_000,
            used_bytes: 1_000_000,
            free_bytes: 2_000_000,
            state: state.into(),
            restarts,
        };
        let model = |device: &str, leases| v1::LoadedModel {
            uri: "https://user:secret@host/m".into(),
            parallel: (leases > 0).then(|| v1::Parallel { rank: 3, world_size: 8, rules: Vec::new() }),
            device: device.into(),
            size_bytes: 1_000_000,
            leases,
            ..Default::default()
        };
        v1::LoaderStatus {
            version: "1".into(),
            devices: vec![device("host", "ready", 0), device("cuda:0", "the copier of cuda:0 ended", 2)],
            models: vec![model("cuda:0", 1), model("host", 0)],
            pinned: Some(v1::PinnedStatus {
                capacity_bytes: 9_000_000,
                staging_bytes: 3_000_000,
                cached_bytes: 5_000_000,
                pages: "hugetlb 2 MiB".into(),
            }),
            holder: Some(v1::HolderStatus {
                process: true,
                pid: 7,
                uptime_seconds: 5.0,
                models_adopted: 3,
                unknown: vec![v1::UnknownModel {
                    model_id: "m9".into(),
                    reason: "its device is not here".into(),
                    size_bytes: 6_000_000,
                    leases: 2,
                }],
            }),
            checkpoints: Some(v1::CheckpointStatus {
                dir: "/spool".into(),
                open: true,
                slab_capacity_bytes: 8_000_000,
                slab_used_bytes: 1_000_000,
                disk_capacity_bytes: 9_000_000,
                disk_used_bytes: 2_000_000,
                sessions: 4,
                saves: vec![v1::SaveStatus {
                    attempt: "0a1b".into(),
                    url: "s3://bucket/run/step-7".into(),
                    state: v1::SaveState::Staged.into(),
                    bytes_total: 4_000_000,
                    bytes_durable: 1_000_000,
                    waiting_for: "room on the disk".into(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn one_look_shows_gpus_page_locked_memory_and_the_holder() {
        let mut text = String::new();
        write_text(&mut text, "unix:///s", &status());
        for part in [
            "holder  process 7, up 5.0 s, 3 models",
            "held, unknown: model m9, 6.0 MB, 2 leases: its device is not here",
            "\n  host    host memory, pages\n",
            "pinned  3.0 MB staging and 5.0 MB cached of 9.0 MB, pages hugetlb 2 MiB",
            "cuda:0  1.0 MB of 4.0 MB, 2.0 MB free, the copier of cuda:0 ended, its copier was restarted 2 times; Card",
            "cuda:0  1.0 MB  1 lease    rank 3 of 8",
            "slabs   1.0 MB of 8.0 MB, 4 processes connected",
            "spool   2.0 MB of 9.0 MB in /spool",
            "  0a1b  staged, 1.0 MB of 4.0 MB on the disk  s3://bucket/run/step-7\n    waits for room on the disk",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains("secret") && !text.contains("UUID-host"), "{text}");
    }

    #[test]
    fn programs_get_the_same() {
        let value = to_json("unix:///s", &status());
        assert_eq!(value["pinned"]["cached_bytes"], 5_000_000);
        assert_eq!(
            (&value["devices"][1]["restarts"], &value["devices"][1]["free_bytes"]),
            (&2.into(), &2_000_000.into())
        );
        assert_eq!((&value["holder"]["process"], &value["holder"]["models_adopted"]), (&true.into(), &3.into()));
        assert_eq!(value["holder"]["unknown"][0]["leases"], 2);
        assert_eq!(value["checkpoints"]["saves"][0]["waiting_for"], "room on the disk");
        assert_eq!(to_json("a", &v1::LoaderStatus::default())["pinned"], Value::Null);
    }
}
