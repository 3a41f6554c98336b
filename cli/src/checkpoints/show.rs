//! Checkpoints as they are printed.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use longshore_proto::v1;
use longshore_types::{format_bytes, redact_url};
use serde_json::{Value, json};

use crate::output::{row, table};

/// Tensors that the text names; JSON has them all.
const TENSORS_SHOWN: usize = 200;

pub(super) fn list_json(uri: &str, found: &v1::ListCheckpointsResponse) -> Value {
    json!({
        "uri": redact_url(uri),
        "checkpoints": found.checkpoints.iter().map(summary_json).collect::<Vec<_>>(),
        "latest": found.checkpoints.last().map(|newest| newest.step),
        "uncommitted_steps": found.uncommitted_steps,
    })
}

fn summary_json(summary: &v1::CheckpointSummary) -> Value {
    json!({
        "step": summary.step,
        "url": redact_url(&summary.url),
        "attempt": summary.attempt,
        "created_ms": summary.created_ms,
        "bytes": summary.size_bytes,
        "own_bytes": summary.own_bytes,
        "tensors": summary.tensor_count,
        "files": summary.file_count,
        "parent_step": summary.parent_step,
        "metadata": summary.metadata,
    })
}

pub(super) fn write_list(text: &mut String, uri: &str, found: &v1::ListCheckpointsResponse) {
    if found.checkpoints.is_empty() {
        let _ = writeln!(text, "no committed checkpoint under {}", redact_url(uri));
    } else {
        let heading = row(["STEP", "AGE", "SIZE", "OWN", "FILES", "TENSORS", "PARENT"]);
        let rows = found.checkpoints.iter().map(|summary| {
            let parent = summary.parent_step.map_or_else(|| "-".to_owned(), |step| step.to_string());
            row([
                &summary.step.to_string(),
                &age(summary.created_ms),
                &format_bytes(summary.size_bytes),
                &format_bytes(summary.own_bytes),
                &summary.file_count.to_string(),
                &summary.tensor_count.to_string(),
                &parent,
            ])
        });
        text.push_str(&table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>()));
    }
    if !found.uncommitted_steps.is_empty() {
        let steps: Vec<String> = found.uncommitted_steps.iter().map(u64::to_string).collect();
        let _ = writeln!(text, "not committed: {}", steps.join(", "));
    }
}

pub(super) fn details_json(checkpoint: &v1::Checkpoint) -> Value {
    let file =
        |file: &v1::CheckpointFile| json!({"name": file.name, "bytes": file.size_bytes, "checksum": file.checksum});
    let piece = |piece: &v1::TensorPiece| {
        json!({
            "file": checkpoint.files.get(piece.file as usize).map(|file| &file.name),
            "offset_bytes": piece.offset_bytes, "length_bytes": piece.length_bytes,
            "start": piece.start, "shape": piece.shape, "checksum": piece.checksum,
        })
    };
    let tensor = |tensor: &v1::CheckpointTensor| {
        json!({
            "name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape,
            "pieces": tensor.pieces.iter().map(piece).collect::<Vec<_>>(),
        })
    };
    let alias = |alias: &v1::TensorAlias| json!({"group": alias.group, "name": alias.name, "target": alias.target});
    let mut value = checkpoint.summary.as_ref().map_or_else(|| json!({}), summary_json);
    value["files"] = checkpoint.files.iter().map(file).collect();
    value["tensors"] = checkpoint.tensors.iter().map(tensor).collect();
    value["aliases"] = checkpoint.aliases.iter().map(alias).collect();
    value
}

pub(super) fn write_details(text: &mut String, checkpoint: &v1::Checkpoint) {
    let summary = checkpoint.summary.clone().unwrap_or_default();
    let (size, own) = (format_bytes(summary.size_bytes), format_bytes(summary.own_bytes));
    let _ = writeln!(text, "url       {}", redact_url(&summary.url));
    let _ = writeln!(text, "attempt   {}", summary.attempt);
    let _ = writeln!(text, "committed {} ago", age(summary.created_ms));
    let _ = match summary.parent_step {
        Some(parent) => writeln!(text, "size      {size}, {own} of its own; a delta of step {parent}"),
        None => writeln!(text, "size      {size}"),
    };
    for (key, value) in &summary.metadata {
        let _ = writeln!(text, "metadata  {key}={value}");
    }
    let files = checkpoint.files.iter().map(|file| row([&format_bytes(file.size_bytes), &file.checksum, &file.name]));
    let _ = writeln!(text, "\nfiles");
    text.push_str(&table(&files.collect::<Vec<_>>()));
    if checkpoint.tensors.is_empty() {
        return;
    }
    let tensors = checkpoint.tensors.iter().take(TENSORS_SHOWN).map(|tensor| {
        let pieces = match tensor.pieces.len() {
            0 | 1 => String::new(),
            count => format!("{count} pieces"),
        };
        row([&tensor.name, &tensor.dtype, &format!("{:?}", tensor.shape), &pieces])
    });
    let _ = writeln!(text, "\ntensors");
    text.push_str(&table(&tensors.collect::<Vec<_>>()));
    if checkpoint.tensors.len() > TENSORS_SHOWN {
        let _ = writeln!(text, "{} more; --json lists all", checkpoint.tensors.len() - TENSORS_SHOWN);
    }
    for alias in &checkpoint.aliases {
        let folder = if alias.group.is_empty() { String::new() } else { format!("{}/", alias.group) };
        let _ = writeln!(text, "{folder}{} is {folder}{}", alias.name, alias.target);
    }
}

pub(super) fn verified_json(uri: &str, done: &v1::VerifyCheckpointResponse) -> Value {
    let problem = |problem: &v1::VerifyProblem| json!({"object": problem.object, "code": problem.code, "message": problem.message});
    json!({
        "uri": redact_url(uri),
        "step": done.step,
        "bytes": done.bytes_done,
        "objects": done.objects_done,
        "problem_count": done.problem_count,
        "problems": done.problems.iter().map(problem).collect::<Vec<_>>(),
    })
}

pub(super) fn write_verified(text: &mut String, uri: &str, done: &v1::VerifyCheckpointResponse) {
    let (uri, size) = (redact_url(uri), format_bytes(done.bytes_done));
    let (step, objects) = (done.step, done.objects_done);
    let _ = match done.problem_count {
        0 => writeln!(text, "step {step} of {uri} is what was saved: {objects} objects, {size} read and compared"),
        count => writeln!(text, "step {step} of {uri}: {count} of {objects} objects are not what was saved"),
    };
    for problem in &done.problems {
        let _ = writeln!(text, "  {} ({}): {}", problem.object, problem.code, problem.message);
    }
    let more = (done.problem_count as usize).saturating_sub(done.problems.len());
    if more > 0 {
        let _ = writeln!(text, "  and {more} more");
    }
}

/// Time since, for people: `5 min`, `3 h`, `12 d`.
fn age(created_ms: u64) -> String {
    let created = UNIX_EPOCH.checked_add(std::time::Duration::from_millis(created_ms)).unwrap_or(UNIX_EPOCH);
    // A clock that runs behind the saver's makes it now.
    let seconds = SystemTime::now().duration_since(created).map_or(0, |since| since.as_secs());
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(step: u64, parent_step: Option<u64>) -> v1::CheckpointSummary {
        v1::CheckpointSummary {
            step,
            url: format!("https://user:secret@host/run/step-{step}"),
            attempt: "0a1b".into(),
            created_ms: 1,
            size_bytes: 4_000_000,
            own_bytes: 1_000_000,
            tensor_count: 3,
            file_count: 2,
            parent_step,
            metadata: [("loss".to_owned(), "0.25".to_owned())].into(),
        }
    }

    #[test]
    fn a_list_names_parents_and_what_is_not_committed() {
        let found = v1::ListCheckpointsResponse {
            checkpoints: vec![summary(1, None), summary(2, Some(1))],
            uncommitted_steps: vec![3, 4],
        };
        let mut text = String::new();
        write_list(&mut text, "https://user:secret@host/run", &found);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("STEP") && lines[1].trim_end().ends_with('-'), "{text}");
        assert!(lines[2].contains("4.0 MB") && lines[2].contains("1.0 MB"), "{text}");
        assert_eq!(lines[3], "not committed: 3, 4");
        let value = list_json("https://user:secret@host/run", &found);
        assert_eq!((&value["latest"], &value["checkpoints"][1]["parent_step"]), (&2.into(), &1.into()));
        assert!(!value.to_string().contains("secret") && !text.contains("secret"));
    }

    #[test]
    fn details_name_files_tensors_and_metadata() {
        let piece = |file| v1::TensorPiece { file, length_bytes: 8, ..Default::default() };
        let tensor = v1::CheckpointTensor {
            name: "optim/exp_avg".into(),
            dtype: "F32".into(),
            shape: vec![4, 2],
            pieces: vec![piece(0), piece(1)],
        };
        let file =
            |name: &str| v1::CheckpointFile { name: name.into(), size_bytes: 2_000_000, checksum: "00ff".into() };
        let checkpoint = v1::Checkpoint {
            summary: Some(summary(2, Some(1))),
            files: vec![file("a.safetensors"), file("b.safetensors")],
            tensors: vec![tensor],
            aliases: vec![v1::TensorAlias { group: "optim".into(), name: "tied".into(), target: "exp_avg".into() }],
        };
        let mut text = String::new();
        write_details(&mut text, &checkpoint);
        for part in [
            "size      4.0 MB, 1.0 MB of its own; a delta of step 1",
            "metadata  loss=0.25",
            "2.0 MB  00ff  b.safetensors",
            "optim/exp_avg  F32  [4, 2]  2 pieces",
            "optim/tied is optim/exp_avg",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert_eq!(details_json(&checkpoint)["tensors"][0]["pieces"][1]["file"], "b.safetensors");
    }

    #[test]
    fn what_is_not_what_was_saved_is_named() {
        let problem = |object: &str| v1::VerifyProblem {
            object: object.into(),
            code: "corrupt".into(),
            message: "block 3 of tensor w".into(),
        };
        let done = v1::VerifyCheckpointResponse {
            step: 2,
            objects_done: 5,
            done: true,
            problems: vec![problem("step-2/a.safetensors")],
            problem_count: 3,
            ..Default::default()
        };
        let mut text = String::new();
        write_verified(&mut text, "s3://b/run", &done);
        assert!(text.contains("3 of 5 objects") && text.contains("tensor w") && text.contains("and 2 more"), "{text}");
        assert_eq!(verified_json("s3://b/run", &done)["problems"][0]["object"], "step-2/a.safetensors");
    }
}
