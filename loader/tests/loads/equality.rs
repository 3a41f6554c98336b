//! What is in memory is what the origin has, byte for byte.

use longshore_loader::{LoadRequest, SourceTier};
use longshore_testkit::modelgen::{ModelSpec, TensorSpec, bad_models, unknown_dtype};
use longshore_types::Code;

use crate::fixture::{Fixture, Setup, assert_loaded};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_of_every_kind_are_equal_through_the_workers() {
    let fixture = Fixture::new(Setup::default());
    let specs = [
        ModelSpec::small(1),
        ModelSpec::every_dtype(2),
        ModelSpec::sized(3, 70 << 20, 40),
        ModelSpec::sized(4, 90 << 20, 12).shards(5),
        ModelSpec::random(5, 1 << 20),
        ModelSpec::random(6, 1 << 16).shards(3),
    ];
    for (number, spec) in specs.into_iter().enumerate() {
        let model = spec.build();
        let request = fixture.put(&format!("model-{number}"), &model);
        let loaded = fixture.load(request).await.unwrap();
        assert_loaded(&loaded, &model);
        let report = loaded.report();
        assert_eq!(report.bytes_from(SourceTier::Memory), report.bytes, "{report:?}");
        assert!(report.fallbacks.is_empty() && report.retries == 0, "{report:?}");
        assert!(!loaded.is_reattached());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_workers_the_origin_is_read_directly_and_that_is_no_fallback() {
    let fixture = Fixture::new(Setup { workers: 0, ..Setup::default() });
    let model = ModelSpec::sized(7, 50 << 20, 9).build();
    let loaded = fixture.load(fixture.put("m", &model)).await.unwrap();
    assert_loaded(&loaded, &model);
    let report = loaded.report();
    assert_eq!(report.bytes_from(SourceTier::Origin), report.bytes);
    assert!(report.fallbacks.is_empty(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_files_are_read_in_place_and_noticed_when_they_change() {
    let fixture = Fixture::new(Setup::default());
    let folder = tempfile::tempdir().unwrap();
    let model = ModelSpec::sized(8, 40 << 20, 9).shards(2).build();
    model.write_to(folder.path()).unwrap();
    let request = LoadRequest::new(folder.path().to_str().unwrap());
    let loaded = fixture.load(request.clone()).await.unwrap();
    assert_loaded(&loaded, &model);
    assert_eq!(fixture.workers.iter().map(|worker| worker.requests()).sum::<u64>(), 0);

    // The same names, other bytes: another revision, and another model.
    let other = ModelSpec::sized(9, 40 << 20, 9).shards(2).build();
    other.write_to(folder.path()).unwrap();
    let second = fixture.load(request).await.unwrap();
    assert_loaded(&second, &other);
    assert_ne!(second.key.revision, loaded.key.revision);
    assert_loaded(&loaded, &model);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_file_and_a_model_of_nothing_load() {
    let fixture = Fixture::new(Setup::default());
    let model = ModelSpec::of(1, vec![TensorSpec::new("nothing", "F32", [0, 4])]).build();
    let request = fixture.put("empty", &model);
    assert_loaded(&fixture.load(request.clone()).await.unwrap(), &model);
    let mut file = request;
    file.uri.push_str("/model.safetensors");
    let loaded = fixture.load(file).await.unwrap();
    assert_eq!((loaded.manifest.tensors.len(), loaded.layout.tensors[0].place.length_bytes), (1, 0));
    assert!(loaded.regions[0].size_bytes() > 0, "there is something to map");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_models_are_refused_by_name_and_leave_nothing_behind() {
    let fixture = Fixture::new(Setup::default());
    for bad in bad_models() {
        let request = fixture.put(bad.name, &bad.model);
        let error = fixture.load(request).await.expect_err(bad.name);
        assert_eq!(error.code(), bad.code, "{}: {error}", bad.name);
        for part in bad.says {
            assert!(error.to_string().contains(part), "{}: {error}", bad.name);
        }
    }
    assert_eq!(fixture.arena.used_bytes(), 0);
    assert!(fixture.loader.list().is_empty());
    let model = unknown_dtype();
    let loaded = fixture.load(fixture.put("unknown", &model)).await.unwrap();
    assert_loaded(&loaded, &model);
    assert!(!loaded.manifest.warnings.is_empty());
    let missing = fixture.load(LoadRequest::new("s3://bucket/not-there")).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
}
