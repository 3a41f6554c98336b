//! What the topics share.

use longshore_testkit::FakeOrigin;
use longshore_testkit::cluster::{Cli, CliOutput, Cluster};
use longshore_testkit::modelgen::Model;
use longshore_tests::{Attached, Client, Loaded};
use longshore_types::Result;
use serde_json::Value;
use tempfile::TempDir;

/// The command line with no daemon: a home and a cache folder of its own.
pub struct Embedded {
    pub folder: TempDir,
    env: Vec<(String, String)>,
}

impl Embedded {
    pub fn new() -> Embedded {
        let folder = tempfile::Builder::new().prefix("longshore-embedded-").tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let env = vec![
            ("LONGSHORE_CACHE_DIR".to_owned(), path("cache")),
            ("LONGSHORE_SOCKET_DIR".to_owned(), path("no-sockets")),
            ("LONGSHORE_LOADER_MEMORY".to_owned(), "1GiB".to_owned()),
            ("LONGSHORE_WORKER_DISK".to_owned(), "4GiB".to_owned()),
            ("LONGSHORE_WORKER_DISK_FREE_FLOOR".to_owned(), "0".to_owned()),
            ("LONGSHORE_CHECKPOINT_DISK".to_owned(), "8GiB".to_owned()),
        ];
        Embedded { folder, env }
    }

    pub fn with(origin: &FakeOrigin) -> Embedded {
        Embedded::new().envs(origin.client_env())
    }

    pub fn envs(mut self, env: Vec<(String, String)>) -> Embedded {
        self.env.extend(env);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Embedded {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn cli(&self, args: &[&str]) -> Cli {
        Cli::new(self.folder.path()).envs(&self.env).args(args)
    }

    pub fn run(&self, args: &[&str]) -> CliOutput {
        self.cli(args).run()
    }

    /// Loads through `exec`, and compares what the child attached to with what it must be.
    pub fn exec_and_check(&self, uri: &str, model: &Model) -> CliOutput {
        let output = self.run(&["exec", "--model", uri, "--device", "host", "--", env!("CARGO_BIN_EXE_attach-check")]);
        assert!(output.success(), "{output}");
        check_found(&output.json(), model);
        output
    }
}

/// Compares what `attach-check` printed with what the model must hold.
pub fn check_found(found: &Value, model: &Model) {
    let wanted = model.expectation();
    let strip = |list: &Value, names: bool| -> Vec<Value> {
        let mut entries: Vec<Value> = list.as_array().unwrap().clone();
        entries.retain(|entry| !names || !entry["name"].as_str().unwrap().ends_with(".safetensors"));
        for entry in &mut entries {
            entry.as_object_mut().unwrap().remove("file");
        }
        entries.sort_by_key(|entry| entry["name"].as_str().unwrap().to_owned());
        entries
    };
    let (got, want) = (strip(&found["tensors"], false), strip(&wanted["tensors"], false));
    assert_eq!(got.len(), want.len(), "number of tensors");
    for (got, want) in got.iter().zip(&want) {
        assert_eq!(got, want);
    }
    assert_eq!(strip(&found["files"], true), strip(&wanted["files"], true));
}

/// Loads through a loader of the cluster.
pub fn load(cluster: &Cluster, loader: usize, uri: &str) -> Result<Loaded> {
    Client::connect(&cluster.loader_socket(loader))?.load(uri)
}

/// Loads through a loader of the cluster, attaches, and compares every byte.
pub fn load_and_check(cluster: &Cluster, loader: usize, uri: &str, model: &Model) -> Loaded {
    let loaded = load(cluster, loader, uri).unwrap_or_else(|error| panic!("{uri}: {}: {error}", error.code()));
    check(&loaded, model);
    loaded
}

/// Attaches to what was loaded, and compares every byte.
pub fn check(loaded: &Loaded, model: &Model) -> Attached {
    let socket = std::path::Path::new(&loaded.model.attach_socket);
    let attached = Attached::attach(socket, &loaded.model.model_id).unwrap();
    attached.check(model).unwrap_or_else(|error| panic!("{}: {error:#}", loaded.model.uri));
    attached
}

/// Forgets a model at every loader, so that the next load moves bytes again.
pub fn unload_everywhere(cluster: &Cluster, uri: &str) {
    for loader in 0..cluster.loaders().len() {
        Client::connect(&cluster.loader_socket(loader)).unwrap().unload(uri).unwrap();
    }
}

/// Waits for a state that only another process knows.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "waited a minute for: {what}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// The chunk files below a folder, by path.
pub fn chunk_files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => files.extend(chunk_files(&path)),
            false if entry.metadata().is_ok_and(|meta| meta.len() > 1 << 20) => files.push(path),
            false => {}
        }
    }
    files.sort();
    files
}
