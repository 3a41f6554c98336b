//! Bad input: a clear error that names the file and the reason, an exit code, and nothing half-loaded.

use std::os::unix::fs::PermissionsExt;

use longshore_testkit::cluster::{Cluster, ClusterSpec, free_port};
use longshore_testkit::modelgen::{ModelSpec, bad_models};
use longshore_testkit::{Dialect, FakeOrigin, OriginConfig};
use longshore_tests::Client;
use longshore_types::Code;

use crate::common::{Embedded, chunk_files, load, load_and_check};
use crate::failure::nothing_is_left;
use crate::small_disk::{SmallDisk, on_small_disk};

const MIB: u64 = 1 << 20;

#[test]
fn every_bad_model_is_refused_by_a_loader() {
    let origin = FakeOrigin::start();
    let cluster = Cluster::start(ClusterSpec::new(2, 1).origin(&origin));
    for bad in bad_models() {
        bad.model.put_into(&origin, &format!("bucket/{}", bad.name));
        let error = load(&cluster, 0, &format!("s3://bucket/{}", bad.name)).expect_err(bad.name);
        assert_eq!(error.code(), bad.code, "{}: {error}", bad.name);
        for word in &bad.says {
            assert!(error.message().contains(word), "{}: {word:?} is not in: {error}", bad.name);
        }
        assert!(error.message().len() < 2000, "{}: {error}", bad.name);
        nothing_is_left(&cluster);
    }
    for daemon in cluster.workers().iter().chain(cluster.loaders()) {
        assert!(daemon.is_running() && !daemon.log().contains("panicked"), "{}", daemon.log_tail(50));
        assert!(daemon.memory().peak_bytes < 600 * MIB, "{}: {:?}", daemon.name(), daemon.memory());
    }
}

#[test]
fn every_bad_model_is_refused_by_the_command_line() {
    let embedded = Embedded::new();
    for bad in bad_models() {
        let folder = embedded.folder.path().join("models").join(bad.name);
        bad.model.write_to(&folder).unwrap();
        let output = embedded.run(&["load", folder.to_str().unwrap(), "--device", "host"]);
        assert_eq!(output.code(), bad.code.exit_code(), "{}: {output}", bad.name);
        for word in &bad.says {
            assert!(output.stderr.contains(word), "{}: {word:?} is not in: {output}", bad.name);
        }
        assert!(!output.stderr.contains("panicked") && output.stdout.is_empty(), "{}: {output}", bad.name);
    }
}

/// Runs a load that must fail, and returns what it said.
fn refused(embedded: &Embedded, uri: &str, code: Code, says: &[&str]) -> String {
    let output = embedded.run(&["load", uri, "--device", "host"]);
    assert_eq!(output.code(), code.exit_code(), "{output}");
    for word in says {
        assert!(output.stderr.contains(word), "{word:?} is not in: {output}");
    }
    assert!(!output.stderr.contains("panicked"), "{output}");
    output.stderr
}

#[test]
fn wrong_credentials() {
    let keys = |id: &str, secret: &str| Some((id.to_owned(), secret.to_owned()));
    let origin = FakeOrigin::with(OriginConfig { access_key: keys("id", "secret"), ..OriginConfig::default() });
    ModelSpec::small(1).build().put_into(&origin, "bucket/m");
    for (id, secret) in [("nobody", "secret"), ("id", "wrong-secret")] {
        let embedded = Embedded::with(&origin).env("AWS_ACCESS_KEY_ID", id).env("AWS_SECRET_ACCESS_KEY", secret);
        let output = embedded.run(&["load", "s3://bucket/m", "--device", "host"]);
        let codes = [Code::PermissionDenied.exit_code(), Code::Unauthenticated.exit_code()];
        assert!(codes.contains(&output.code()) && output.stderr.contains("s3://bucket/m"), "{output}");
        assert!(!output.stderr.contains("wrong-secret"), "{output}");
    }
    let hub = FakeOrigin::with(OriginConfig {
        dialect: Dialect::Hub,
        token: Some("right".to_owned()),
        ..OriginConfig::default()
    });
    ModelSpec::small(1).build().put_into(&hub, "org/name");
    let said = refused(
        &Embedded::with(&hub).env("HF_TOKEN", "hf_wrong"),
        "hf://org/name",
        Code::Unauthenticated,
        &["org/name"],
    );
    assert!(!said.contains("hf_wrong"), "{said}");
}

#[test]
fn what_is_not_there() {
    let origin = FakeOrigin::start();
    origin.create_bucket("bucket");
    let embedded = Embedded::with(&origin);
    refused(&embedded, "s3://no-such-bucket/m", Code::NotFound, &["no-such-bucket"]);
    refused(&embedded, "s3://bucket/no-such-model", Code::NotFound, &["no-such-model"]);
    refused(&embedded, "/no/such/folder", Code::NotFound, &["/no/such/folder"]);
    refused(&embedded, "gopher://bucket/m", Code::InvalidArgument, &["gopher", "s3://"]);
    let empty = tempfile::tempdir().unwrap();
    refused(&embedded, empty.path().to_str().unwrap(), Code::NotFound, &[]);
    let hub = FakeOrigin::speaking(Dialect::Hub);
    ModelSpec::small(1).build().put_into(&hub, "org/name");
    refused(&Embedded::with(&hub), "hf://org/name@no-such-revision", Code::NotFound, &["no-such-revision"]);
}

#[test]
fn an_endpoint_that_nobody_listens_at() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let embedded = Embedded::with(&FakeOrigin::start())
        .env("AWS_ENDPOINT_URL", &url)
        .env("LONGSHORE_ORIGIN_RETRY_TIME_MS_MAX", "2000");
    let said = refused(&embedded, "s3://bucket/m", Code::Unavailable, &["s3://bucket/m"]);
    assert!(said.to_lowercase().contains("connect"), "{said}");
}

#[test]
fn one_bad_use_of_the_command_line_is_exit_code_2() {
    let embedded = Embedded::new();
    for args in
        [&["load"][..], &["load", "/x", "--device", "gpu:one"], &["no-such-command"], &["load", "/x", "--nonsense"]]
    {
        assert_eq!(embedded.run(args).code(), 2, "{args:?}");
    }
    let folder = embedded.folder.path().join("m");
    ModelSpec::small(1).build().write_to(&folder).unwrap();
    let output = embedded.run(&["load", folder.to_str().unwrap(), "--device", "cuda:7"]);
    assert_eq!(output.code(), Code::Unsupported.exit_code(), "{output}");
    assert!(output.stderr.contains("cuda:7"), "{output}");
}

#[test]
fn two_workers_on_one_cache_folder() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::sized(1, 20 * MIB, 4).build();
    model.put_into(&origin, "bucket/m");
    let cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&origin));
    let folder = cluster.cache_folder(0);
    let address = || format!("127.0.0.1:{}", free_port());
    let output = cluster
        .cli(0)
        .args(["worker", "--cache-dir", folder.to_str().unwrap()])
        .args(["--data-listen", &address(), "--control-listen", &address(), "--ops-listen", &address()])
        .run();
    assert!(!output.success(), "{output}");
    assert!(output.stderr.contains(folder.to_str().unwrap()), "names the folder: {output}");
    load_and_check(&cluster, 0, "s3://bucket/m", &model);

    // The command line without a daemon works beside the one that has the folder.
    let embedded = Embedded::with(&origin).env("LONGSHORE_CACHE_DIR", folder.to_str().unwrap());
    let output = embedded.run(&["load", "s3://bucket/m", "--device", "host", "--json"]);
    if !output.success() {
        assert!(output.stderr.contains(folder.to_str().unwrap()), "or says why not: {output}");
    }
}

#[test]
fn two_daemons_on_one_address() {
    let cluster = Cluster::start(ClusterSpec::new(1, 1));
    let free = || format!("127.0.0.1:{}", free_port());
    let cache = cluster.folder().join("other-cache");
    let taken = cluster.workers()[0].data_plane();
    let output = cluster
        .cli(0)
        .args(["worker", "--cache-dir", cache.to_str().unwrap(), "--data-listen", taken])
        .args(["--control-listen", &free(), "--ops-listen", &free()])
        .run();
    assert!(!output.success() && output.stderr.contains(taken), "{output}");

    let sockets = cluster.loader_socket(0).parent().unwrap().to_owned();
    let output = cluster
        .cli(0)
        .args(["loader", "--socket-dir", sockets.to_str().unwrap(), "--listen", "none", "--ops-listen", "none"])
        .run();
    assert!(!output.success() && output.stderr.contains("loader.sock"), "{output}");
    Client::connect(&cluster.loader_socket(0)).unwrap().status().expect("the first one still answers at its socket");
}

#[test]
fn a_socket_that_a_killed_loader_left_is_taken_over() {
    let mut cluster = Cluster::start(ClusterSpec::new(0, 1));
    cluster.loader(0).kill();
    assert!(cluster.loader_socket(0).exists());
    cluster.loader(0).start_again();
    Client::connect(&cluster.loader_socket(0)).unwrap().status().unwrap();
}

/// A worker whose disk takes (almost) nothing passes everything through, and counts that.
fn passes_through(spec: ClusterSpec) -> Cluster {
    let origin = FakeOrigin::start();
    let model = ModelSpec::sized(1, 120 * MIB, 10).build();
    model.put_into(&origin, "bucket/m");
    let cluster = Cluster::start(spec.origin(&origin));
    load_and_check(&cluster, 0, "s3://bucket/m", &model);
    let metrics = cluster.workers()[0].metrics();
    let told = metrics.sum("longshore_worker_disk_errors_total")
        + metrics.sum("longshore_worker_disk_writes_skipped_total")
        + metrics.sum("longshore_worker_disk_evictions_total");
    assert!(told > 0.0, "it is counted: {:?}", metrics.samples);
    cluster
}

#[test]
fn a_full_cache_disk_degrades_to_pass_through() {
    on_small_disk("bad_input::a_full_cache_disk_degrades_to_pass_through", 40 * MIB, |path| {
        passes_through(ClusterSpec::new(1, 1).env("LONGSHORE_CACHE_DIR", path.to_str().unwrap()));
    });
}

#[test]
fn a_disk_with_less_free_than_its_floor_degrades_to_pass_through() {
    let cluster = passes_through(ClusterSpec::new(1, 1).env("LONGSHORE_WORKER_DISK_FREE_FLOOR", "900TiB"));
    assert!(chunk_files(&cluster.cache_folder(0)).is_empty());
}

#[test]
fn a_read_only_cache_folder() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::sized(1, 40 * MIB, 10).build();
    model.put_into(&origin, "bucket/m");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache");
    let disk = SmallDisk::mount(&path, 10 * MIB, ",ro");
    let path = match disk {
        Some(_) => path,
        // Nobody may write there, whatever they are allowed elsewhere.
        None if rustix::process::getuid().is_root() => "/sys/kernel".into(),
        None => {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o555)).unwrap();
            path
        }
    };
    let embedded = Embedded::with(&origin).env("LONGSHORE_CACHE_DIR", path.to_str().unwrap());
    let output = embedded.run(&["load", "s3://bucket/m", "--device", "host", "--json"]);
    assert!(output.stderr.contains(path.to_str().unwrap()), "names the folder: {output}");
    if output.success() {
        assert_eq!(output.json()["tensors"], 10, "{output}");
    }
    assert!(chunk_files(&path).is_empty());
}
