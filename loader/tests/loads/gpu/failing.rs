//! Cards that break down, sources that fail, loads that are given up: the next load finds everything as it should be.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use longshore_loader::{FallbackKind, SourceTier};
use longshore_testkit::modelgen::ModelSpec;
use longshore_testkit::{Fault, FaultKind};
use longshore_types::Code;

use super::fixture::{Fixture, MIB, Setup, assert_on_card, files_of, on};
use crate::fixture::eventually;
use crate::workers::Behaviour;

/// Nothing is left of a load that failed: no model, no memory of the card, no block that somebody still fills.
fn assert_clean(fixture: &Fixture) {
    assert!(fixture.loader.list().is_empty());
    let status = fixture.loader.status();
    assert_eq!(status.devices[1].info.used_bytes, 0);
    let pinned = status.pinned.unwrap();
    assert_eq!((pinned.staging_bytes, pinned.capacity_bytes), (0, fixture.arena.leased_bytes()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_card_that_breaks_down_once_costs_a_repetition_of_the_load() {
    let model = ModelSpec::sized(1, 150 * MIB, 12).side_file("extra.json", "{}".as_bytes()).build();
    for (break_at, break_finishes) in [(1, 0), (6, 0), (0, 1)] {
        let fixture = Fixture::new(Setup::default());
        let request = fixture.put("m", &model);
        let orders = &fixture.cards[0].orders;
        orders.break_at.store(break_at, Ordering::SeqCst);
        orders.break_finishes.store(break_finishes, Ordering::SeqCst);
        let loaded = fixture.load(&request).await.unwrap();
        assert_on_card(&loaded, &model);
        let report = loaded.report();
        assert_eq!(report.fallback_count(FallbackKind::DeviceRestarted), 1, "{report:?}");
        assert!(report.fallbacks[0].last_detail.contains("broke down"), "{report:?}");
        assert!(report.bytes_from(SourceTier::Pinned) > 0, "what was fetched is not fetched again: {report:?}");
        // A fetch that the end of the first attempt cut off is the only one that is repeated.
        assert!(fixture.worker.requests() <= model.chunks() + files_of(&model) + 4);
        assert_eq!(fixture.loader.list().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_card_that_breaks_down_again_fails_the_load_and_not_the_next() {
    let fixture = Fixture::new(Setup::default());
    let model = ModelSpec::sized(1, 50 * MIB, 12).build();
    let request = fixture.put("m", &model);
    fixture.cards[0].orders.break_finishes.store(2, Ordering::SeqCst);
    let error = fixture.load(&request).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Unavailable, "the card broke down"));
    assert_clean(&fixture);
    assert_on_card(&fixture.load(&request).await.unwrap(), &model);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_fails_is_no_reason_to_repeat_and_leaves_no_block_claimed() {
    let fixture = Fixture::new(Setup::default());
    let request = fixture.put("m", &ModelSpec::sized(1, 100 * MIB, 12).build());
    fixture.worker.set(Behaviour::Fails(Code::Internal));
    fixture.origin.fault(Fault::new(FaultKind::Replace).on("bucket/m/*.safetensors").skip(4).times(1));
    let error = fixture.load(&request).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert_clean(&fixture);
    let page = String::from_utf8(fixture.loader.metrics().registry().render().unwrap()).unwrap();
    assert!(page.contains("longshore_loader_fallbacks_total{kind=\"device_restarted\"} 0"), "{page}");
    // Chunks of the old version are there, and are no chunks of the new one.
    fixture.worker.open_gate();
    let other = ModelSpec::sized(2, 100 * MIB, 12).build();
    let loaded = fixture.load(&fixture.put("m", &other)).await.unwrap();
    assert_on_card(&loaded, &other);
    assert_eq!(loaded.report().bytes_from(SourceTier::Pinned), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_does_not_match_its_checksum_never_gets_into_page_locked_memory() {
    let fixture = Fixture::new(Setup::default());
    let model = ModelSpec::sized(1, 60 * MIB, 12).build();
    let request = fixture.put("m", &model);
    fixture.worker.set(Behaviour::CorruptUntilRecheck);
    for _ in 0..2 {
        let loaded = fixture.load(&request).await.unwrap();
        assert_on_card(&loaded, &model);
        fixture.loader.unload(&loaded.id).await.unwrap();
    }
    fixture.worker.set(Behaviour::Corrupt);
    let other = ModelSpec::sized(2, 60 * MIB, 12).build();
    let loaded = fixture.load(&fixture.put("other", &other)).await.unwrap();
    assert_on_card(&loaded, &other);
    assert!(loaded.report().fallback_count(FallbackKind::OriginDirect) >= 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_is_given_up_hands_its_claims_to_the_one_that_waits() {
    let cards = vec![256 * MIB; 2];
    let fixture = Arc::new(Fixture::new(Setup { cards, fetches: 4, ..Setup::default() }));
    let model = ModelSpec::sized(1, 100 * MIB, 12).build();
    let request = fixture.put("m", &model);
    fixture.worker.set(Behaviour::Gated);
    let load = |device: &str| {
        let (fixture, request) = (fixture.clone(), on(&request, device));
        tokio::spawn(async move { fixture.load(&request).await })
    };
    let first = load("cuda:0");
    eventually("the first load fetches", || fixture.worker.waiting() == 4).await;
    let second = load("cuda:1");
    eventually("both run", || fixture.loader.status().loads_in_flight == 2).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    fixture.worker.open_gate();
    let loaded = second.await.unwrap().unwrap();
    assert_on_card(&loaded, &model);
    eventually("the memory of the first is free", || fixture.loader.status().devices[1].info.used_bytes == 0).await;
}

/// Loads of the same models onto two cards, over fewer slots than threads, given up at any moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_that_come_and_go_never_block_each_other() {
    let cards = vec![256 * MIB; 2];
    let fixture = Arc::new(Fixture::new(Setup { cards, slots: 3, fetches: 4, ..Setup::default() }));
    let models: Vec<_> = (1..4).map(|seed| ModelSpec::sized(seed, 50 * MIB, 7).build()).collect();
    let requests: Vec<_> =
        (0..).zip(&models).map(|(i, model): (u32, _)| fixture.put(&format!("m{i}"), model)).collect();
    let mut random = 1u64;
    let mut below = |bound: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    for _ in 0..8 {
        let loads: Vec<_> = (0..6)
            .map(|_| {
                let (request, card) = (requests[below(3) as usize].clone(), format!("cuda:{}", below(2)));
                let (fixture, patience) = (fixture.clone(), Duration::from_millis(below(300)));
                tokio::spawn(async move {
                    let request = on(&request, &card);
                    let loaded = tokio::time::timeout(patience, fixture.load(&request)).await;
                    loaded.ok().map(|loaded| loaded.unwrap().id.clone())
                })
            })
            .collect();
        for load in loads {
            if let Some(id) = load.await.unwrap() {
                // Another one of these may have been faster.
                let _ = fixture.loader.unload(&id).await;
            }
        }
    }
    for card in ["cuda:0", "cuda:1"] {
        for (request, model) in requests.iter().zip(&models) {
            let loaded = fixture.load(&on(request, card)).await.unwrap();
            assert_on_card(&loaded, model);
            fixture.loader.unload(&loaded.id).await.unwrap();
        }
    }
    eventually("nothing is left of loads that were given up", || {
        let status = fixture.loader.status();
        status.pinned.unwrap().staging_bytes == 0 && status.devices[1..].iter().all(|card| card.info.used_bytes == 0)
    })
    .await;
}
