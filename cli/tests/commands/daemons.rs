//! The commands with daemons running.

use crate::support::{Bench, Daemon};

#[test]
fn commands_find_the_loader_of_the_node() {
    let bench = Bench::new();
    let arguments = ["loader", "--listen", "none", "--ops-listen", "none"];
    let loader = Daemon::start(bench.command(&arguments), "loader is ready");
    let address = format!("unix://{}", bench.path("run/loader.sock").display());

    // A relative path means the caller's folder.
    let first = bench.json(&["load", "model", "--json"]);
    assert_eq!((first["loader"].as_str(), first["reattached"].as_bool()), (Some(address.as_str()), Some(false)));
    let second = bench.json(&["load", "model", "--json"]);
    assert_eq!(second["reattached"], true);
    assert_eq!((&second["bytes_by_tier"]["device"], &second["model_id"]), (&first["bytes"], &first["model_id"]));
    assert_eq!(bench.json(&["load", "model", "--json", "--embedded"])["loader"], "embedded");

    let status = bench.json(&["status", "--json"]);
    assert_eq!(status["loader"]["models"][0]["model_id"], first["model_id"]);
    let freed = bench.json(&["free", "model", "--json"]);
    assert_eq!(freed["models_unloaded"], 1, "{freed}");
    let second_daemon = bench.run(&arguments);
    assert_eq!(second_daemon.status.code(), Some(6), "another daemon on one socket is refused");
    assert_eq!(loader.terminate(), Some(0));
    assert!(!bench.path("run/loader.sock").exists());
}

#[test]
fn commands_work_over_workers() {
    let bench = Bench::new();
    let worker = |folder: &str| {
        let cache = bench.path(folder);
        let any = "127.0.0.1:0";
        let mut command = bench.command(&["worker", "--allow-local-origin", "--cache-local-origin"]);
        command.args(["--data-listen", any, "--control-listen", any, "--ops-listen", any, "--memory", "128MiB"]);
        command.arg("--cache-dir").arg(cache);
        Daemon::start(command, "worker is ready")
    };
    let workers = [worker("one"), worker("two")];
    let address = |worker: &Daemon| {
        let text = worker.ready["data"].as_str().unwrap();
        text.trim_start_matches("Some(").trim_end_matches(')').to_owned()
    };
    let addresses: Vec<String> = workers.iter().map(address).collect();
    let list = addresses.join(",");

    let ring = bench.json(&["ring", "model", "--json", "--workers", &list]);
    let members = ring["members"].as_array().unwrap();
    assert_eq!(members.len(), 2, "{ring}");
    let owned: u64 = members.iter().map(|member| member["bytes"].as_u64().unwrap()).sum();
    assert_eq!(Some(owned), ring["bytes"].as_u64(), "every chunk has one owner");

    let status = bench.json(&["status", "--json", "--workers", &list]);
    assert_eq!(status["workers"].as_array().unwrap().len(), 2);
    let listing = bench.json(&["ls", "model", "--json", "--workers", &list]);
    assert_eq!(listing["files"].as_array().unwrap().len(), 2);
    assert_eq!(bench.json(&["stat", "model/config.json", "--json", "--workers", &list])["bytes"], 13);
    let warmed = bench.json(&["warm", "model", "--json", "--workers", &list]);
    assert_eq!(warmed["bytes"], ring["bytes"]);
    let freed = bench.json(&["free", "model", "--json", "--workers", &list]);
    assert!(freed["cache_chunks_freed"].as_u64() > Some(0), "{freed}");
    for worker in workers {
        assert_eq!(worker.terminate(), Some(0));
    }
}
