//! A hard budget: eviction, leases, and an error that says who holds what.

use longshore_testkit::modelgen::ModelSpec;
use longshore_types::Code;

use crate::fixture::{Fixture, Setup, assert_loaded};

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
