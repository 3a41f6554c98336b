//! With no daemon: both parts inside the process.

use serde_json::Value;

use crate::support::{Bench, is_empty, json_of, stderr};

#[test]
fn load_reports_what_it_did() {
    let bench = Bench::new();
    let report = bench.json(&["load", "model", "--json", "--trace", "trace.json"]);
    assert_eq!(report["uri"], format!("file://{}", bench.path("model").display()));
    assert_eq!((report["tensors"].as_u64(), report["files"].as_u64()), (Some(2), Some(1)));
    assert_eq!((report["loader"].as_str(), report["device"].as_str()), (Some("embedded"), Some("host")));
    let files = std::fs::metadata(bench.path("model/model.safetensors")).unwrap().len();
    assert!(report["bytes_by_tier"]["origin"].as_u64().unwrap() >= 20 << 20 && files > 20 << 20, "{report}");
    for key in ["device", "pinned", "memory", "disk", "peer"] {
        assert_eq!(report["bytes_by_tier"][key], 0, "{report}");
    }
    for key in ["revision", "bytes", "seconds", "fallbacks", "retries", "checksum_mismatches", "skipped", "warnings"] {
        assert!(!report[key].is_null(), "{key} is missing: {report}");
    }
    let steps: Vec<&str> =
        report["waterfall"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert!(steps.starts_with(&["resolve", "plan", "fetch"]) && steps.ends_with(&["publish"]), "{steps:?}");
    let trace: Value = serde_json::from_slice(&std::fs::read(bench.path("trace.json")).unwrap()).unwrap();
    let fetches = trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["args"]["bytes"].is_u64());
    assert!(fetches.count() >= 2, "{trace}");
}

#[test]
fn load_prints_lines_for_people() {
    let bench = Bench::new();
    let output = bench.run(&["load", "model", "--include", "*.json"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("on host: ") && text.contains("0 tensors, 1 other files"), "{text}");
    assert!(text.contains("skipped   model.safetensors: matches no include pattern"), "{text}");
}

#[test]
fn pull_writes_the_same_files() {
    let bench = Bench::new();
    let report = bench.json(&["pull", "model", "out/deep", "--json"]);
    assert_eq!(report["files"], 2);
    for name in ["model.safetensors", "config.json"] {
        let (left, right) = (bench.path("model").join(name), bench.path("out/deep").join(name));
        assert!(std::fs::read(left).unwrap() == std::fs::read(right).unwrap(), "{name} differs");
    }
    assert_eq!(std::fs::read_dir(bench.path("out/deep")).unwrap().count(), 2, "no temporary file stays");
}

#[test]
fn a_local_folder_is_looked_at_anew() {
    let bench = Bench::new();
    assert_eq!(bench.json(&["ls", "model", "--json"])["files"].as_array().unwrap().len(), 2);
    std::fs::write(bench.path("model/new.txt"), "new").unwrap();
    assert_eq!(bench.json(&["ls", "model", "--json"])["files"].as_array().unwrap().len(), 3);
    assert_eq!(bench.json(&["pull", "model", "out", "--json"])["files"], 3);
}

#[test]
fn metadata_commands_answer() {
    let bench = Bench::new();
    let listing = bench.json(&["ls", "model", "--json"]);
    assert_eq!(listing["files"][0]["name"], "config.json");
    assert_eq!(listing["files"][0]["bytes"], 13);
    assert_eq!(bench.json(&["stat", "model/config.json", "--json"])["bytes"], 13);
    let ring = bench.json(&["ring", "model", "--json"]);
    assert_eq!(ring["chunks"].as_array().unwrap().len(), 3, "{ring}");
    let status = bench.json(&["status", "--json"]);
    assert!(status["loader"].is_null());
    assert_eq!(status["workers"][0]["cache_dir"], bench.path("cache").to_str().unwrap());
    assert_eq!(bench.json(&["warm", "model", "--json"])["bytes"], listing["bytes"]);
    assert_eq!(bench.json(&["free", "model", "--json"])["models_unloaded"], 0);
}

#[test]
fn failures_have_a_code_a_message_and_an_exit_code() {
    let bench = Bench::new();
    std::fs::write(bench.path("bad.toml"), "[load]\ncache_folder = 'x'\n").unwrap();
    std::fs::write(bench.path("model/broken.safetensors"), [255u8; 64]).unwrap();
    let cases: [(&[&str], i32, &str, &str); 8] = [
        (&["load", "nothing"], 3, "not_found", "nothing"),
        (&["load", "model", "--device", "cuda:7"], 12, "unsupported", "cuda:7"),
        (&["load", "ftp://host/x"], 2, "invalid_argument", "ftp"),
        (&["load", "model/broken.safetensors"], 7, "corrupt", "broken.safetensors"),
        (&["load", "model", "--loader", "unix:///nonexistent/l.sock"], 9, "unavailable", "/nonexistent/l.sock"),
        (&["load", "model", "--config", "bad.toml"], 2, "invalid_argument", "cache_folder"),
        (&["pull", "model", "model/config.json"], 6, "failed_precondition", "config.json"),
        (&["load"], 2, "invalid_argument", "required"),
    ];
    for (args, exit, code, named) in cases {
        let output = bench.run(&[args, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(exit), "{args:?}: {}", stderr(&output));
        let object: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(object["error"]["code"], code, "{args:?}: {object}");
        assert!(object["error"]["message"].as_str().unwrap().contains(named), "{args:?}: {object}");
        assert!(stderr(&output).contains("error: "), "{args:?}");
    }
}

#[test]
fn settings_come_from_the_file_and_can_be_printed() {
    let bench = Bench::new();
    std::fs::write(bench.path("l.toml"), "[load]\ninclude = ['*.json']\norigin_attempts_max = 3\n").unwrap();
    let report = bench.json(&["load", "model", "--json", "--config", "l.toml"]);
    assert_eq!((report["tensors"].as_u64(), report["files"].as_u64()), (Some(0), Some(1)));
    let mut command = bench.command(&["load", "model", "--config", "l.toml", "--print-config"]);
    let printed = String::from_utf8(command.env("HF_TOKEN", "hidden").output().unwrap().stdout).unwrap();
    assert!(printed.contains("origin_attempts_max = 3") && printed.contains("origin_hf_token = \"***\""), "{printed}");
    assert!(!printed.contains("hidden"), "{printed}");
}

#[test]
fn the_reference_page_is_current() {
    let page = String::from_utf8(Bench::new().run(&["reference"]).stdout).unwrap();
    let kept = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference.md")).unwrap();
    assert!(page == kept, "docs/reference.md is not what the binary says: run `make reference`");
    for text in ["## `longshore worker`", "`--metadata-ttl-ms`", "`LONGSHORE_CACHE_DIR`", "`LONGSHORE_MODEL_ID`"] {
        assert!(page.contains(text), "{text} is not in the reference");
    }
}

#[test]
fn the_demo_reads_the_origin_once_and_leaves_nothing_behind() {
    let bench = Bench::new();
    let output = bench.run(&["demo", "--json", "--size", "40MiB"]);
    let report = json_of(&output);
    assert_eq!(report["origin_bytes"], report["model_bytes"], "{report}");
    let steps: Vec<(&str, u64)> = report["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| (step["step"].as_str().unwrap(), step["origin_bytes"].as_u64().unwrap()))
        .collect();
    assert_eq!(steps.len(), 5, "{report}");
    assert!(steps[1..].iter().all(|(_, bytes)| *bytes == 0), "{report}");
    assert!(is_empty(&bench.path("tmp")), "{}", stderr(&output));
}
