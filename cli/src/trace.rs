//! A load's timed events as a file for Perfetto or `chrome://tracing`.

use std::io::{BufWriter, Write};
use std::path::Path;

use longshore_proto::v1;
use longshore_types::Result;
use serde_json::{Value, json};

/// Writes the events of a load; the file appears whole or not at all.
///
/// # Errors
/// `PermissionDenied`, `NotFound` or `Exhausted`, naming the file.
pub fn write(path: &Path, model: &v1::LoadedModel) -> Result<()> {
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let written = write_to(&temporary, model).and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|error| {
        // The temporary file may not exist; the first failure is the one to tell.
        let _ = std::fs::remove_file(&temporary);
        crate::files::file_error("write the trace to", path, error)
    })
}

fn write_to(path: &Path, model: &v1::LoadedModel) -> std::io::Result<()> {
    let mut file = BufWriter::new(std::fs::File::create(path)?);
    let report = model.report.clone().unwrap_or_default();
    let mut events = vec![named("process_name", 0, "longshore load"), named("thread_name", 0, "steps")];
    events.extend(report.steps.iter().map(step));
    let mut threads: Vec<u32> = report.events.iter().map(|event| event.thread).collect();
    threads.sort_unstable();
    threads.dedup();
    events.extend(threads.iter().map(|thread| named("thread_name", lane(*thread), &format!("thread {thread}"))));
    events.extend(report.events.iter().map(event));
    let document = json!({
        "displayTimeUnit": "ms",
        "traceEvents": events,
        "otherData": {
            "uri": longshore_types::redact_url(&model.uri),
            "revision": model.revision,
            "events_dropped": report.events_dropped,
        },
    });
    serde_json::to_writer(&mut file, &document)?;
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.flush()
}

/// Lane 0 is the waterfall of steps; threads follow.
fn lane(thread: u32) -> u64 {
    u64::from(thread) + 1
}

fn named(what: &str, lane: u64, name: &str) -> Value {
    json!({"name": what, "ph": "M", "pid": 1, "tid": lane, "args": {"name": name}})
}

fn step(time: &v1::StepTime) -> Value {
    let start_us = time.start_seconds * 1e6;
    json!({
        "name": crate::report::step_name(time.step()), "cat": "step", "ph": "X", "pid": 1, "tid": 0,
        "ts": start_us, "dur": time.end_seconds * 1e6 - start_us,
        "args": {"busy_seconds": time.busy_seconds},
    })
}

fn event(event: &v1::TraceEvent) -> Value {
    json!({
        "name": event.name, "cat": event.category, "ph": "X", "pid": 1, "tid": lane(event.thread),
        "ts": event.start_us, "dur": event.duration_us,
        "args": {"bytes": event.bytes, "source": event.source},
    })
}

#[cfg(test)]
mod tests {
    use longshore_types::Code;

    use super::*;

    #[test]
    fn events_become_complete_events_in_microseconds() {
        let model = v1::LoadedModel {
            report: Some(v1::LoadReport {
                steps: vec![v1::StepTime { step: 3, start_seconds: 0.5, end_seconds: 1.5, busy_seconds: 2.0 }],
                events: vec![v1::TraceEvent { thread: 2, start_us: 7, duration_us: 9, bytes: 5, ..Default::default() }],
                ..Default::default()
            }),
            ..Default::default()
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        write(&path, &model).unwrap();
        let value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let events = value["traceEvents"].as_array().unwrap();
        let complete: Vec<&Value> = events.iter().filter(|event| event["ph"] == "X").collect();
        assert_eq!((complete[0]["name"].as_str(), complete[0]["dur"].as_f64()), (Some("fetch"), Some(1e6)));
        assert_eq!((complete[1]["tid"].as_u64(), complete[1]["ts"].as_u64()), (Some(3), Some(7)));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
        assert_eq!(write(Path::new("/nonexistent/t.json"), &model).unwrap_err().code(), Code::NotFound);
    }
}
