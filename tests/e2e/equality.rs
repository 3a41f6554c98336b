//! Every tensor and every file, byte for byte: through the embedded default, through processes, from every origin.

use longshore_proto::v1;
use longshore_testkit::cluster::{Cluster, ClusterSpec};
use longshore_testkit::modelgen::{HeaderStyle, Model, ModelSpec, TensorSpec, unknown_dtype};
use longshore_testkit::{Dialect, FakeOrigin, OriginConfig};

use crate::common::{Embedded, check, load, load_and_check};

const MIB: u64 = 1 << 20;

/// Every dtype and shape, one to two hundred tensors, one byte to many chunks, one to thirty shards.
fn models() -> Vec<(&'static str, Model)> {
    vec![
        ("every-dtype", ModelSpec::every_dtype(1).build()),
        ("every-dtype-sharded", ModelSpec::every_dtype(2).shards(7).header(HeaderStyle::Shuffled).build()),
        ("one-byte", ModelSpec::of(3, vec![TensorSpec::new("b", "U8", [1])]).build()),
        ("no-tensors", ModelSpec::of(4, Vec::new()).build()),
        ("many", ModelSpec::sized(5, 60 * MIB, 200).shards(30).header(HeaderStyle::Odd).build()),
        ("large", ModelSpec::sized(6, 100 * MIB, 9).header(HeaderStyle::Odd).build()),
        ("big-header", ModelSpec::of(7, small_tensors(20_000)).build()),
        ("random-a", ModelSpec::random(8, 3 * MIB).build()),
        ("random-b", ModelSpec::random(9, MIB).build()),
        ("random-c", ModelSpec::random(10, 100).build()),
        ("side-files", side_files()),
    ]
}

/// A header of more than a MiB, which does not come with the first read.
fn small_tensors(count: usize) -> Vec<TensorSpec> {
    (0..count).map(|i| TensorSpec::new(format!("layers.{i}.norm.weight"), "F16", [i as u64 % 5])).collect()
}

fn side_files() -> Model {
    ModelSpec::small(11)
        .side_file("tokenizer.json", b"{\"version\": \"1.0\"}".to_vec())
        .side_file("sub/folder/vocab.txt", longshore_testkit::Content::generated(1, 20 * MIB + 3))
        .side_file("empty.txt", Vec::new())
        .side_file("name with spaces & signs+.txt", b"x".to_vec())
        .build()
}

#[test]
fn through_the_embedded_default() {
    let origin = FakeOrigin::start();
    let embedded = Embedded::with(&origin);
    for (name, model) in models() {
        model.put_into(&origin, &format!("bucket/{name}"));
        let uri = format!("s3://bucket/{name}");
        embedded.exec_and_check(&uri, &model);
        let folder = embedded.folder.path().join("pulled").join(name);
        let pulled = embedded.run(&["pull", &uri, folder.to_str().unwrap()]);
        assert!(pulled.success(), "{pulled}");
        for (file, content) in &model.files {
            let bytes = std::fs::read(folder.join(file)).unwrap_or_else(|error| panic!("{name}/{file}: {error}"));
            assert!(content.equals(&bytes), "{name}/{file} differs");
        }
    }
}

#[test]
fn through_three_workers_over_tcp() {
    through_three_workers(ClusterSpec::new(3, 1));
}

#[test]
fn through_three_workers_on_the_same_host() {
    through_three_workers(ClusterSpec::new(3, 1).unix_sockets());
}

fn through_three_workers(spec: ClusterSpec) {
    let origin = FakeOrigin::start();
    let cluster = Cluster::start(spec.origin(&origin));
    for (name, model) in models() {
        model.put_into(&origin, &format!("bucket/{name}"));
        let uri = format!("s3://bucket/{name}");
        let loaded = load_and_check(&cluster, 0, &uri, &model);
        let report = loaded.model.report.clone().unwrap();
        assert!(report.fallbacks.is_empty() && report.checksum_mismatches == 0, "{name}: {report:?}");
        let again = load_and_check(&cluster, 0, &uri, &model);
        assert!(again.model.reattached, "{name} is in memory already");
    }
    let workers: Vec<f64> =
        cluster.workers().iter().map(|w| w.metrics().sum("longshore_worker_fill_bytes_total")).collect();
    assert!(workers.iter().all(|bytes| *bytes > 0.0), "each worker has its part: {workers:?}");
}

#[test]
fn a_tensor_of_more_than_two_gigabytes() {
    // `LONGSHORE_TEST_TENSOR_BYTES` makes it larger: five gigabytes do not fit into 32 bits in any way.
    let default = (2 << 30) + 12_345;
    let bytes: u64 = std::env::var("LONGSHORE_TEST_TENSOR_BYTES").map_or(default, |text| text.parse().unwrap());
    let origin = FakeOrigin::start();
    let tensors = [("small", 3), ("large", bytes), ("last", 5)].map(|(name, size)| TensorSpec::new(name, "U8", [size]));
    let model = ModelSpec::of(12, tensors.to_vec()).header(HeaderStyle::Odd).build();
    model.put_into(&origin, "bucket/m");
    let memory = format!("{}MiB", bytes / MIB + 200);
    let spec = ClusterSpec::new(2, 1).origin(&origin).unix_sockets().budgets("128MiB", &memory, &memory);
    let cluster = Cluster::start(spec);
    let loaded = load_and_check(&cluster, 0, "s3://bucket/m", &model);
    assert_eq!(loaded.model.size_bytes, loaded.model.regions.iter().map(|region| region.size_bytes).sum::<u64>());
    assert_eq!(origin.counters().bytes, model.size_bytes());
}

#[test]
fn the_comparison_itself_finds_what_is_wrong() {
    let origin = FakeOrigin::start();
    let spec = ModelSpec::small(30);
    let model = spec.build();
    model.put_into(&origin, "bucket/m");
    let cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&origin));
    let attached = check(&load(&cluster, 0, "s3://bucket/m").unwrap(), &model);
    assert!(attached.check(&ModelSpec::small(31).build()).is_err(), "other bytes");
    let mut renamed = spec.clone();
    renamed.tensors[1].name = "other".to_owned();
    assert!(attached.check(&renamed.build()).is_err(), "another name");
    let mut reshaped = spec;
    reshaped.tensors[1].shape = vec![32, 128];
    assert!(attached.check(&reshaped.build()).is_err(), "another shape");
}

#[test]
fn an_unknown_dtype_is_delivered_as_bytes_with_a_warning() {
    let origin = FakeOrigin::start();
    let model = unknown_dtype();
    model.put_into(&origin, "bucket/m");
    let cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&origin));
    let loaded = load_and_check(&cluster, 0, "s3://bucket/m", &model);
    let warnings = loaded.model.warnings.join("\n");
    assert!(warnings.contains("from.the.future") && warnings.contains("F3_E1M1"), "{warnings}");
    let output = Embedded::with(&origin).run(&["load", "s3://bucket/m", "--json", "--device", "host"]);
    assert!(output.success() && output.json()["warnings"].to_string().contains("from.the.future"), "{output}");
}

#[test]
fn from_every_kind_of_origin() {
    let model = ModelSpec::random(20, MIB).build();
    for dialect in [Dialect::Gcs, Dialect::Hub] {
        let token = Some("a-secret-token".to_owned());
        let origin =
            FakeOrigin::with(OriginConfig { dialect, token, redirects_large_files: true, ..Default::default() });
        model.put_into(&origin, "org/name");
        let uri = origin.model_url("org/name");
        let embedded = Embedded::with(&origin);
        let output = embedded.exec_and_check(&uri, &model);
        assert!(!format!("{output}").contains("a-secret-token"), "{output}");
        assert!(!origin.token_leaked(), "the token went to the redirect's target");
        let cluster = Cluster::start(ClusterSpec::new(2, 1).origin(&origin));
        load_and_check(&cluster, 0, &uri, &model);
        for daemon in cluster.workers().iter().chain(cluster.loaders()) {
            assert!(!daemon.log().contains("a-secret-token"), "{} logs the token", daemon.name());
        }
    }
    let folder = tempfile::tempdir().unwrap();
    model.write_to(folder.path()).unwrap();
    let path = folder.path().to_str().unwrap();
    Embedded::new().exec_and_check(path, &model);
    Embedded::new().exec_and_check(&format!("file://{path}"), &model);
}

#[test]
fn one_file_of_any_kind_over_http() {
    let origin = FakeOrigin::speaking(Dialect::Http);
    let single = ModelSpec::small(21).build();
    let weights = single.file("model.safetensors").unwrap().clone();
    origin.put_content("files/model.safetensors", weights);
    origin.generate("files/model.gguf", 7, 33 * MIB + 1);
    let cluster = Cluster::start(ClusterSpec::new(2, 1));
    let loaded = load(&cluster, 0, &origin.model_url("files/model.safetensors")).unwrap();
    let only_weights = Model { files: Vec::new(), tensors: single.tensors };
    check(&loaded, &only_weights);

    let loaded = load(&cluster, 0, &origin.model_url("files/model.gguf")).unwrap();
    let content = origin.content("files/model.gguf").unwrap();
    let gguf = Model { files: vec![("model.gguf".to_owned(), content)], tensors: Vec::new() };
    check(&loaded, &gguf);
}

#[test]
fn only_what_is_included() {
    let origin = FakeOrigin::start();
    side_files().put_into(&origin, "bucket/m");
    origin.generate("bucket/m/pytorch_model.bin", 1, 10_000);
    let cluster = Cluster::start(ClusterSpec::new(1, 1).origin(&origin));
    let mut client = longshore_tests::Client::connect(&cluster.loader_socket(0)).unwrap();
    let request = v1::LoadModelRequest {
        uri: "s3://bucket/m".to_owned(),
        device: "host".to_owned(),
        include: vec!["*.txt".to_owned()],
        ..Default::default()
    };
    let loaded = client.load_with(request).unwrap();
    let mut names: Vec<&str> = loaded.model.files.iter().map(|file| file.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["empty.txt", "name with spaces & signs+.txt", "sub/folder/vocab.txt"]);
    assert_eq!(loaded.model.tensor_count, 0);

    let all = client.load("s3://bucket/m").unwrap();
    let skipped: Vec<&str> = all.model.skipped.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(skipped, ["pytorch_model.bin"], "weights in another format beside safetensors");
}
