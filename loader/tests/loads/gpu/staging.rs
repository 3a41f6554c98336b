//! Page-locked memory: what is fetched once is used by all, and less of it than a model is enough.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use longshore_loader::{LoadRequest, SourceTier, Step};
use longshore_testkit::modelgen::ModelSpec;
use longshore_types::Code;

use super::fixture::{Fixture, MIB, Setup, assert_on_card, files_of, on};
use crate::fixture::eventually;
use crate::workers::Behaviour;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_of_every_kind_are_equal_and_their_files_lie_in_host_memory() {
    let fixture = Fixture::new(Setup::default());
    let specs = [
        ModelSpec::small(1),
        ModelSpec::every_dtype(2),
        ModelSpec::sized(3, 70 * MIB, 40).shards(3),
        ModelSpec::random(4, MIB),
        ModelSpec::sized(5, MIB, 3).side_file("extra.json", "{}".as_bytes()),
    ];
    for (number, spec) in specs.into_iter().enumerate() {
        let model = spec.build();
        let loaded = fixture.load(&fixture.put(&format!("model-{number}"), &model)).await.unwrap();
        assert_on_card(&loaded, &model);
        assert_eq!(loaded.key.device.to_string(), "cuda:0");
        assert_eq!(loaded.regions.len(), 1 + usize::from(!loaded.layout.files.is_empty()));
        let report = loaded.report();
        assert!(report.fallbacks.is_empty() && report.retries == 0, "{report:?}");
        let upload = report.steps.iter().find(|time| time.step == Step::Upload).unwrap();
        assert!(upload.end_seconds <= report.seconds, "{report:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fewer_slots_than_chunks_threads_or_copies_are_enough() {
    for (slots, fetches) in [(1, 1), (1, 4), (2, 4), (5, 4)] {
        let fixture = Fixture::new(Setup { slots, fetches, ..Setup::default() });
        let model = ModelSpec::sized(slots, 200 * MIB, 20).build();
        let request = fixture.put("m", &model);
        for _ in 0..2 {
            let loaded = fixture.load(&request).await.unwrap();
            assert_on_card(&loaded, &model);
            fixture.loader.unload(&loaded.id).await.unwrap();
        }
        let pinned = fixture.loader.status().pinned.unwrap();
        assert_eq!((pinned.staging_bytes, pinned.cached_bytes), (0, pinned.capacity_bytes));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_cards_that_load_one_model_at_once_fetch_it_once() {
    let cards = vec![256 * MIB; 2];
    let fixture = Arc::new(Fixture::new(Setup { cards, fetches: 6, ..Setup::default() }));
    let model = ModelSpec::sized(1, 150 * MIB, 12).build();
    let request = fixture.put("m", &model);
    fixture.worker.set(Behaviour::Gated);
    let load = |request: LoadRequest| {
        let fixture = fixture.clone();
        tokio::spawn(async move { fixture.load(&request).await.unwrap() })
    };
    let loads = [load(on(&request, "cuda:0")), load(on(&request, "cuda:1"))];
    // No thread waits for what another one fetches: there are other chunks.
    eventually("all threads fetch", || fixture.loader.status().loads_in_flight == 2 && fixture.worker.waiting() == 6)
        .await;
    fixture.worker.open_gate();
    let mut bytes = [0, 0];
    for load in loads {
        let loaded = load.await.unwrap();
        assert_on_card(&loaded, &model);
        let report = loaded.report();
        let files: u64 = loaded.layout.files.iter().map(|(_, place)| place.length_bytes).sum();
        let pinned = report.bytes_from(SourceTier::Pinned);
        bytes = [bytes[0] + pinned, bytes[1] + report.bytes - pinned - files];
    }
    assert_eq!(bytes[0], bytes[1], "each byte was fetched by one of them and found by the other");
    assert_eq!(fixture.worker.requests(), model.chunks() + files_of(&model), "plain files go to each of them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_larger_than_the_tier_finds_the_part_of_it_that_is_left() {
    let fixture = Fixture::new(Setup { slots: 8, ..Setup::default() });
    let model = ModelSpec::sized(1, 15 * 16 * MIB, 20).build();
    let request = fixture.put("m", &model);
    for round in 0..3 {
        let loaded = fixture.load(&request).await.unwrap();
        assert_on_card(&loaded, &model);
        let pinned = loaded.report().bytes_from(SourceTier::Pinned);
        // Each thread may send away a chunk that another one is just about to take.
        assert!(round == 0 || pinned >= 4 * 16 * MIB, "{pinned} bytes of eight chunks were found");
        fixture.loader.unload(&loaded.id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn freeing_a_uri_takes_its_chunks_from_page_locked_memory_and_nobody_else_s() {
    let fixture = Fixture::new(Setup::default());
    let models = [ModelSpec::sized(1, 40 * MIB, 5).build(), ModelSpec::sized(2, 20 * MIB, 5).build()];
    let requests = [fixture.put("m", &models[0]), fixture.put("m-2", &models[1])];
    for request in &requests {
        let id = fixture.load(request).await.unwrap().id.clone();
        fixture.loader.unload(&id).await.unwrap();
    }
    assert_eq!(fixture.loader.status().pinned.unwrap().cached_bytes, 5 * 16 * MIB);
    let freed = fixture.loader.unload_uri(&requests[0].uri).await.unwrap();
    assert_eq!((freed.models, freed.bytes_freed), (0, 3 * 16 * MIB));
    assert_eq!(fixture.loader.status().pinned.unwrap().cached_bytes, 2 * 16 * MIB);
    assert_eq!(fixture.loader.unload_uri(&requests[0].uri).await.unwrap_err().code(), Code::NotFound);
    let report = fixture.load(&requests[1]).await.unwrap().report();
    assert!(report.bytes_from(SourceTier::Pinned) > 20 * MIB, "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_files_are_read_into_slots() {
    let fixture = Fixture::new(Setup::default());
    let folder = tempfile::tempdir().unwrap();
    let model = ModelSpec::sized(1, 50 * MIB, 9).shards(2).build();
    model.write_to(folder.path()).unwrap();
    let request = LoadRequest::new(folder.path().to_str().unwrap());
    let loaded = fixture.load(&request).await.unwrap();
    assert_on_card(&loaded, &model);
    assert_eq!(fixture.worker.requests(), 0);
    fixture.loader.unload(&loaded.id).await.unwrap();
    // The same names, other bytes: what is in the slots is of another version.
    let other = ModelSpec::sized(2, 50 * MIB, 9).shards(2).build();
    other.write_to(folder.path()).unwrap();
    assert_on_card(&fixture.load(&request).await.unwrap(), &other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_that_do_not_end_hold_a_load_up_and_nothing_else() {
    let fixture = Arc::new(Fixture::new(Setup { slots: 4, ..Setup::default() }));
    let model = ModelSpec::sized(1, 120 * MIB, 12).build();
    let request = fixture.put("m", &model);
    let orders = fixture.cards[0].orders.clone();
    orders.shut();
    let load = tokio::spawn({
        let (fixture, request) = (fixture.clone(), request.clone());
        async move { fixture.load(&request).await }
    });
    eventually("all slots are full", || orders.uploads.load(Ordering::SeqCst) == 4).await;
    // A model for the host needs no slot.
    let other = ModelSpec::small(2).build();
    let on_host = fixture.loader.load(on(&fixture.put("other", &other), "host"), None);
    // The fetch threads wait for slots: they are given back when that load is given up.
    load.abort();
    assert!(load.await.unwrap_err().is_cancelled());
    assert_eq!(on_host.await.unwrap().regions.len(), 1);
    orders.open();
    let loaded = fixture.load(&request).await.unwrap();
    assert_on_card(&loaded, &model);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fits_nowhere_is_said() {
    let fixture = Fixture::new(Setup { cards: vec![40 * MIB], memory_bytes: 256 * MIB, ..Setup::default() });
    let model = ModelSpec::sized(1, 50 * MIB, 5).build();
    let error = fixture.load(&fixture.put("large", &model)).await.unwrap_err();
    assert_eq!(error.code(), Code::Exhausted);
    assert!(error.message().contains("cuda:0 has") && error.message().contains("--gpu-memory"), "{error}");
    let model = ModelSpec::small(2).side_file("large.bin", vec![7; 70 << 20]).build();
    let request = LoadRequest { include: vec!["*".to_owned()], ..fixture.put("files", &model) };
    let error = fixture.load(&request).await.unwrap_err();
    assert_eq!(error.code(), Code::Exhausted, "{error}");
    assert!(error.message().contains("host"), "{error}");
    assert_eq!(fixture.cards[0].orders.uploads.load(Ordering::SeqCst), 0);
    let missing = fixture.load(&on(&request, "cuda:7")).await.unwrap_err();
    assert_eq!(missing.code(), Code::Unsupported);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auto_finds_a_model_on_whichever_card_it_is() {
    let fixture = Fixture::new(Setup { cards: vec![100 * MIB, 200 * MIB], ..Setup::default() });
    let model = ModelSpec::sized(1, 50 * MIB, 9).build();
    let request = fixture.put("m", &model);
    let there = fixture.load(&on(&request, "cuda:0")).await.unwrap();
    // The other card has more room.
    let again = fixture.load(&on(&request, "auto")).await.unwrap();
    assert!(again.is_reattached() && again.id == there.id, "{:?}", again.key.device);
    let other = fixture.put("other", &ModelSpec::sized(2, 50 * MIB, 9).build());
    assert_eq!(fixture.load(&on(&other, "auto")).await.unwrap().key.device.to_string(), "cuda:1");
    let named = fixture.load(&on(&request, "cuda:1")).await.unwrap();
    assert!(!named.is_reattached(), "a card that is named is meant");
}
