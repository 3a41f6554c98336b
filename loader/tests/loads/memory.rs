//! A hard budget: eviction, leases, and an error that says who holds what.

use longshore_loader::LoaderOptions;
use longshore_testkit::modelgen::ModelSpec;
use longshore_types::{ByteSize, Code};

use crate::fixture::{Fixture, Setup, assert_loaded, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unused_models_make_room_and_leased_ones_do_not() {
    let fixture = Fixture::new(Setup { memory_bytes: 100 << 20, ..Setup::default() });
    let models: Vec<_> = (1..=4).map(|seed| ModelSpec::sized(seed, 40 << 20, 5).build()).collect();
    let requests: Vec<_> = models.iter().enumerate().map(|(i, model)| fixture.put(&format!("m{i}"), model)).collect();
    let first = fixture.load(requests[0].clone()).await.unwrap();
    drop(fixture.load(requests[1].clone()).await.unwrap());
    let third = fixture.load(requests[2].clone()).await.unwrap();
    let urls: Vec<String> = fixture.loader.list().iter().map(|state| state.key.url.clone()).collect();
    assert_eq!(urls, [requests[0].uri.clone(), requests[2].uri.clone()], "the second had no lease");

    let error = fixture.load(requests[3].clone()).await.unwrap_err();
    assert_eq!(error.code(), Code::Exhausted);
    assert!(error.message().contains(&requests[0].uri) && error.message().contains("1 lease"), "{error}");
    assert_loaded(&first, &models[0]);
    assert_loaded(&third, &models[2]);
    drop(first);
    assert_loaded(&fixture.load(requests[3].clone()).await.unwrap(), &models[3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_can_never_fit_evicts_nothing() {
    let fixture = Fixture::new(Setup { memory_bytes: 60 << 20, ..Setup::default() });
    let small = ModelSpec::sized(1, 20 << 20, 5).build();
    let large = ModelSpec::sized(2, 80 << 20, 5).build();
    drop(fixture.load(fixture.put("small", &small)).await.unwrap());
    let error = fixture.load(fixture.put("large", &large)).await.unwrap_err();
    assert_eq!(error.code(), Code::Exhausted);
    assert!(error.message().contains("--include"), "{error}");
    assert_eq!(fixture.loader.list().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_was_touched_before_becomes_the_next_model_and_is_in_nobodys_way() {
    const READY_BYTES: u64 = 60 << 20;
    let options = LoaderOptions { prefault: Some(ByteSize(READY_BYTES)), ..LoaderOptions::from_environment().unwrap() };
    let fixture = Fixture::new(Setup { memory_bytes: 200 << 20, options, ..Setup::default() });
    let arena = fixture.arena.clone();
    eventually("memory is ready", || arena.stats().ready_bytes == READY_BYTES).await;
    let host = fixture.loader.status().devices.remove(0).info;
    assert!(host.name.contains("62.9 MB prefaulted"), "{}", host.name);
    assert_eq!((host.used_bytes, host.free_bytes), (0, 200 << 20), "it is free to whoever needs it");

    let small = ModelSpec::sized(1, 40 << 20, 5).build();
    let first = fixture.load(fixture.put("small", &small)).await.unwrap();
    assert_loaded(&first, &small);
    assert_eq!(arena.ready_used_bytes(), arena.leased_bytes());
    eventually("it is ready again", || arena.stats().ready_bytes == READY_BYTES).await;

    let large = ModelSpec::sized(2, 120 << 20, 5).build();
    let second = fixture.load(fixture.put("large", &large)).await.unwrap();
    assert_loaded(&second, &large);
    assert_loaded(&first, &small);
    let leased_bytes = arena.leased_bytes();
    assert!(arena.ready_used_bytes() > READY_BYTES, "the larger one grew what was ready");
    let metrics = fixture.loader.metrics().registry().render().unwrap();
    let line = format!("longshore_loader_prefaulted_used_bytes_total {}", arena.ready_used_bytes());
    assert!(String::from_utf8(metrics).unwrap().contains(&line));
    // As far as there is room beside both models.
    eventually("what is left is ready", || arena.stats().ready_bytes + leased_bytes > (190 << 20)).await;
    drop((first, second));
}
