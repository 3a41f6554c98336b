//! Sessions beside each other.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_budget_holds_whatever_clients_do() {
    const SLABS: u64 = 24;
    let fixture = Fixture { arena: Arena::new(SLABS * SLAB + 64 * 4096), ..Fixture::new() };
    let Opened { slabs, mut events, .. } = fixture.open(SLABS);
    let mut clients = JoinSet::new();
    for number in 1..=9_u8 {
        let slabs = slabs.clone();
        clients.spawn(async move {
            let mut random = SmallRng::seed_from_u64(u64::from(number));
            let mut index = 0;
            for _ in 0..6 {
                let hello =
                    SlabHello { uid: UID, expected_bytes: random.random_range(0..40) * SLAB, ..Default::default() };
                let (session, _) = slabs.hello(hello).await.unwrap();
                // Of the two slabs that a session is sure to get: with both of them granted it would wait for itself.
                let mut stays_granted = false;
                for _ in 0..random.random_range(0..20) {
                    let slab = fill(&session, key(number, index)).await;
                    index += 1;
                    match random.random_range(0..10) {
                        0 => session.discard(slab).unwrap(),
                        1 if !stays_granted => stays_granted = true,
                        _ => session.seal(slab).unwrap(),
                    }
                    if random.random_range(0..4) == 0 {
                        break;
                    }
                }
            }
        });
    }
    let (done, mut ended) = (tokio_util::sync::CancellationToken::new(), 0);
    let flush = async {
        let mut kept = Vec::new();
        // Nothing comes any more: those who wait may be waiting for what is kept.
        let calm = Duration::from_millis(50);
        while let Some(event) = done.run_until_cancelled(tokio::time::timeout(calm, events.recv())).await {
            match event {
                Ok(Some(SlabEvent::SessionClosed { .. })) => ended += 1,
                Ok(Some(SlabEvent::Sealed(slab))) => {
                    assert!(is_whole(&slab), "{slab:?}");
                    kept.push(slab);
                }
                Ok(None) => break,
                Err(_) => kept.clear(),
            }
            if kept.len() >= 3 {
                kept.clear();
            }
            let stats = slabs.stats();
            assert!(stats.held_bytes <= SLABS * SLAB, "{stats:?}");
            assert!(fixture.arena.leased_bytes() <= fixture.arena.capacity_bytes());
        }
    };
    let work = async {
        while let Some(outcome) = clients.join_next().await {
            outcome.unwrap();
        }
        eventually(|| slabs.stats().sessions == 0 || slabs.stats().sealed_slabs > 0).await;
        done.cancel();
    };
    tokio::join!(flush, work);
    drop(events);
    eventually(|| slabs.stats().held_slabs == 0 && fixture.arena.leased_bytes() == 0).await;
    assert_eq!(fixture.folders(), 0);
    assert!(ended > 0);
}

#[tokio::test]
async fn nobody_is_kept_from_a_floor_by_one_who_came_first() {
    let fixture = Fixture::new();
    let opened = fixture.open(64);
    let first = opened.hello().await;
    let mut held = 0;
    while first.acquire(key(1, held), Duration::from_millis(400)).await.is_ok() {
        held += 1;
    }
    assert_eq!(held, 64 - 15 * 2);
    for number in 2..=9 {
        let session = opened.hello().await;
        acquire(&session, key(number, 0)).await.unwrap();
        acquire(&session, key(number, 1)).await.unwrap();
        std::mem::forget(session);
    }
}

#[tokio::test]
async fn sessions_are_counted() {
    let fixture = Fixture::new();
    let mut opened = fixture.open(4);
    let mut sessions = Vec::new();
    for _ in 0..SLAB_SESSIONS_MAX {
        sessions.push(opened.hello().await);
    }
    let hello = SlabHello { uid: UID, ..Default::default() };
    assert_eq!(opened.slabs.hello(hello).await.err().unwrap().code(), Code::Exhausted);
    sessions.pop();
    let SlabEvent::SessionClosed { .. } = opened.events.recv().await.unwrap() else { panic!() };
    eventually(|| opened.slabs.stats().sessions < SLAB_SESSIONS_MAX as u64).await;
    sessions.push(opened.hello().await);
    // Nobody takes the events: then there is an end to it, and no queue without a bound.
    sessions.clear();
    let mut refused = false;
    for _ in 0..2 * SLAB_SESSIONS_MAX {
        refused |= opened.slabs.hello(hello).await.is_err();
    }
    assert!(refused);
}
