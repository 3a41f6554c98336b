//! Origins that keep less of the protocol than they should, and one conformance list for all of them.

use longshore_testkit::cluster::{Cluster, ClusterSpec};
use longshore_testkit::modelgen::{Model, ModelSpec};
use longshore_testkit::origin::Quirks;
use longshore_testkit::{Content, Dialect, FakeOrigin, Fault, FaultKind, OriginConfig};
use longshore_types::Code;

use crate::common::{Embedded, check, load, load_and_check, wait_until};
use crate::failure::nothing_is_left;

const MIB: u64 = 1 << 20;

fn with_quirks(dialect: Dialect, quirks: Quirks) -> FakeOrigin {
    FakeOrigin::with(OriginConfig { dialect, quirks, ..OriginConfig::default() })
}

/// A model of one plain file.
fn plain(name: &str, content: Content) -> Model {
    Model { files: vec![(name.to_owned(), content)], tensors: Vec::new() }
}

#[test]
fn a_server_that_ignores_conditions_cannot_mix_two_versions() {
    for dialect in [Dialect::S3, Dialect::Gcs, Dialect::Http] {
        let origin = with_quirks(dialect, Quirks { ignores_conditions: true, ..Quirks::default() });
        origin.put_content("bucket/model/weights.gguf", Content::generated(1, 120 * MIB + 5));
        let cluster = Cluster::start(ClusterSpec::new(2, 1).origin(&origin));
        origin.fault(Fault::new(FaultKind::Replace).skip(3).times(1));
        match load(&cluster, 0, &origin.model_url("bucket/model/weights.gguf")) {
            Ok(loaded) => {
                let now = origin.content("bucket/model/weights.gguf").unwrap();
                check(&loaded, &plain("weights.gguf", now));
            }
            Err(error) => {
                assert_eq!(error.code(), Code::FailedPrecondition, "{dialect:?}: {error}");
                nothing_is_left(&cluster);
            }
        }
    }
}

#[test]
fn a_server_without_ranges_or_etags_gives_right_bytes_or_a_clear_error() {
    let quirks =
        [Quirks { ignores_ranges: true, ..Quirks::default() }, Quirks { has_no_etag: true, ..Quirks::default() }];
    for quirks in quirks {
        let origin = with_quirks(Dialect::Http, quirks.clone());
        let content = Content::generated(3, 20 * MIB + 1);
        origin.put_content("files/model.gguf", content.clone());
        let cluster = Cluster::start(ClusterSpec::new(1, 1));
        match load(&cluster, 0, &origin.model_url("files/model.gguf")) {
            Ok(loaded) => drop(check(&loaded, &plain("model.gguf", content))),
            Err(error) => {
                println!("{quirks:?}: {}: {error}", error.code());
                assert_ne!(error.code(), Code::Internal, "{quirks:?}: {error}");
                assert!(error.message().contains("model.gguf"), "{quirks:?}: {error}");
            }
        }
    }
}

#[test]
fn listings_come_in_pages() {
    for dialect in [Dialect::S3, Dialect::Gcs, Dialect::Hub] {
        let origin = FakeOrigin::with(OriginConfig { dialect, page_size: 7, ..OriginConfig::default() });
        let model = ModelSpec::sized(4, 2 * MIB, 60).shards(30).build();
        model.put_into(&origin, "org/name");
        let embedded = Embedded::with(&origin);
        embedded.exec_and_check(&origin.model_url("org/name"), &model);
        let pages = (model.files.len() as u64).div_ceil(7);
        let lists = origin.counters().list;
        assert!((pages..=pages + 2).contains(&lists), "{dialect:?}: {lists} questions for {pages} pages");
    }
}

#[test]
fn a_new_revision_is_seen_when_it_is_asked_for_and_after_the_time_to_live() {
    let origin = FakeOrigin::start();
    let (old, new) = (ModelSpec::small(1).build(), ModelSpec::small(2).build());
    old.put_into(&origin, "bucket/model");
    let spec = ClusterSpec::new(2, 1).origin(&origin).env("LONGSHORE_WORKER_METADATA_TTL_MS", "1500");
    let cluster = Cluster::start(spec);
    let first = load_and_check(&cluster, 0, "s3://bucket/model", &old);
    new.put_into(&origin, "bucket/model");
    let mut client = longshore_tests::Client::connect(&cluster.loader_socket(0)).unwrap();
    let request = longshore_proto::v1::LoadModelRequest {
        uri: "s3://bucket/model".to_owned(),
        device: "host".to_owned(),
        revalidate: true,
        ..Default::default()
    };
    let second = client.load_with(request).unwrap();
    assert_ne!(second.model.revision, first.model.revision);
    let held = check(&second, &new);
    // A lease on the old one would keep it; here both may be in memory, each with its own bytes.
    old.put_into(&origin, "bucket/model");
    let mut third = client.load("s3://bucket/model").unwrap();
    wait_until("the time to live has passed", || {
        third = client.load("s3://bucket/model").unwrap();
        third.model.revision == first.model.revision
    });
    check(&third, &old);
    held.check(&new).unwrap();
}

#[test]
fn a_prefix_is_a_folder_and_not_the_begin_of_a_name() {
    let origin = FakeOrigin::start();
    let model = ModelSpec::small(1).build();
    model.put_into(&origin, "bucket/model");
    ModelSpec::small(2).build().put_into(&origin, "bucket/model-v2");
    origin.put("bucket/model.txt", b"not part of it".to_vec());
    let embedded = Embedded::with(&origin);
    embedded.exec_and_check("s3://bucket/model", &model);
    embedded.exec_and_check("s3://bucket/model/", &model);
}
