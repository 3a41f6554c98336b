//! One session.

use super::*;

#[tokio::test]
async fn bytes_go_from_the_client_to_the_engine_and_the_slab_is_free_again() {
    let fixture = Fixture::new();
    let mut opened = fixture.open(4);
    let session = opened.hello().await;
    for index in [0, 1, 2, 999, 7, 8, 9] {
        let slab = fill(&session, key(1, index)).await;
        session.seal(slab).unwrap();
        let sealed = opened.sealed().await;
        assert_eq!((*sealed.key(), sealed.session()), (key(1, index), session.id()));
        assert!(is_whole(&sealed));
        assert_eq!(opened.slabs.stats().sealed_slabs, 1);
        assert_eq!(sealed.read(sealed.length_bytes(), &mut [0]).unwrap_err().code(), Code::Internal);
        assert_eq!(sealed.read(u64::MAX, &mut [0]).unwrap_err().code(), Code::Internal);
        fixture.plans.durable.lock().insert(*sealed.key());
        drop(sealed);
        let again = session.acquire(key(1, index), Duration::ZERO).await.unwrap();
        assert!(matches!(again, SlabGranted::AlreadyDurable { .. }));
    }
    let stats = opened.slabs.stats();
    assert_eq!((stats.sealed_slabs, stats.filling_slabs, stats.grants, stats.lost), (0, 0, 7, 0));
    assert!(stats.held_bytes <= 4 * SLAB);
}

#[tokio::test]
async fn a_client_that_leaves_loses_what_it_did_not_seal_and_nothing_else() {
    let fixture = Fixture::new();
    let mut opened = fixture.open(8);
    let session = opened.hello().await;
    let id = session.id();
    let slab = fill(&session, key(1, 0)).await;
    session.seal(slab).unwrap();
    fill(&session, key(1, 1)).await;
    acquire(&session, key(2, 5)).await.unwrap();
    drop(session);
    let sealed = opened.sealed().await;
    let SlabEvent::SessionClosed { session, mut lost } = opened.events.recv().await.unwrap() else { panic!() };
    lost.sort();
    assert_eq!((session, lost), (id, vec![key(1, 1), key(2, 5)]));
    assert!(is_whole(&sealed));
    assert_eq!((opened.slabs.stats().lost, fixture.folders()), (2, 1));
    // Another one may save the same now.
    let other = opened.hello().await;
    fill(&other, key(1, 1)).await;
    drop(sealed);
    eventually(|| fixture.folders() == 1).await;
    drop(other);
    eventually(|| fixture.folders() == 0 && fixture.arena.leased_bytes() == 0).await;
    assert_eq!(opened.slabs.stats().held_slabs, 0);
}

#[tokio::test]
async fn what_is_wrong_is_refused_and_changes_nothing() {
    let fixture = Fixture::new();
    let mut opened = fixture.open(4);
    let session = opened.hello().await;
    let code = |error: Error| error.code();
    assert_eq!(session.seal(0).map_err(code), Err(Code::InvalidArgument));
    assert_eq!(session.acquire(key(0, 0), SOON).await.map_err(code), Err(Code::NotFound));
    assert_eq!(session.acquire(key(1, 1000), SOON).await.map_err(code), Err(Code::InvalidArgument));
    let slab = acquire(&session, key(1, 0)).await.unwrap();
    assert_eq!(session.acquire(key(1, 0), SOON).await.map_err(code), Err(Code::FailedPrecondition));
    assert_eq!(session.seal(slab).map_err(code), Err(Code::FailedPrecondition));
    for word in [0, 1, 3, u32::MAX] {
        write_state(&session, slab, word);
        assert_eq!(session.seal(slab).map_err(code), Err(Code::FailedPrecondition));
    }
    for unknown in [slab + 1, 100, u32::MAX] {
        assert!(session.seal(unknown).is_err());
        assert!(session.discard(unknown).is_err());
    }
    session.discard(slab).unwrap();
    assert_eq!(session.discard(slab).map_err(code), Err(Code::FailedPrecondition));
    // Whatever is in the page, this process knows better.
    control(&session).write_all_at(&[0xff; 4096], 0).unwrap();
    let slab = fill(&session, key(1, 0)).await;
    session.seal(slab).unwrap();
    assert_eq!(session.seal(slab).map_err(code), Err(Code::FailedPrecondition));
    assert!(is_whole(&opened.sealed().await));
}

#[tokio::test]
async fn a_client_that_cuts_its_memory_hurts_only_itself() {
    let fixture = Fixture::new();
    let mut opened = fixture.open(8);
    let (session, other) = (opened.hello().await, opened.hello().await);
    let (first, second) = (fill(&session, key(1, 0)).await, fill(&session, key(1, 1)).await);
    let theirs = fill(&other, key(2, 0)).await;
    session.seal(first).unwrap();
    let piece: File = session.pieces(0)[0].fd().try_clone_to_owned().unwrap().into();
    piece.set_len(0).unwrap();
    let sealed = opened.sealed().await;
    let error = sealed.read(0, &mut [0; 100]).unwrap_err();
    assert_eq!(error.code(), Code::Corrupt, "{error}");
    assert_eq!(session.seal(second).unwrap_err().code(), Code::Corrupt);
    assert_eq!(session.acquire(key(1, 2), SOON).await.unwrap_err().code(), Code::FailedPrecondition);
    control(&session).set_len(0).unwrap();
    drop((sealed, session));
    other.seal(theirs).unwrap();
    let SlabEvent::SessionClosed { .. } = opened.events.recv().await.unwrap() else { panic!() };
    assert!(is_whole(&opened.sealed().await));
}

#[tokio::test]
async fn those_who_wait_are_served_in_order() {
    let fixture = Fixture::new();
    let mut opened = fixture.open(1);
    let session = opened.hello().await;
    let slab = fill(&session, key(1, 0)).await;
    session.seal(slab).unwrap();
    let (first, second) = (session.acquire(key(1, 1), SOON), session.acquire(key(1, 2), SOON));
    tokio::pin!(first, second);
    assert!(futures::poll!(&mut first).is_pending());
    assert!(futures::poll!(&mut second).is_pending());
    assert_eq!(opened.slabs.stats().waiting, 2);
    let error = session.acquire(key(1, 3), Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(error.code(), Code::Exhausted);
    assert!(error.message().contains("--checkpoint-memory"), "{error}");
    drop(opened.sealed().await);
    assert!(futures::poll!(&mut second).is_pending());
    let SlabGranted::Slab { slab, .. } = first.await.unwrap() else { panic!() };
    session.discard(slab).unwrap();
    second.await.unwrap();
    let stats = opened.slabs.stats();
    // The first one waited for its memory.
    assert_eq!((stats.waiting, stats.waits, stats.refusals), (0, 3, 1));
}

#[tokio::test]
async fn who_does_not_want_to_wait_is_refused_at_once() {
    let fixture = Fixture::new();
    let opened = fixture.open(2);
    let session = opened.hello().await;
    fixture.plans.refuses.store(true, Ordering::Relaxed);
    // Room that is only not prepared yet is no reason.
    acquire(&session, key(1, 0)).await.unwrap();
    acquire(&session, key(1, 1)).await.unwrap();
    let start = tokio::time::Instant::now();
    assert_eq!(session.acquire(key(1, 2), SOON).await.unwrap_err().code(), Code::Exhausted);
    assert!(start.elapsed() < SOON / 4);
}

#[tokio::test]
async fn an_attempt_that_ends_ends_waiting_for_it() {
    let fixture = Fixture::new();
    let mut opened = fixture.open(1);
    let session = opened.hello().await;
    let slab = fill(&session, key(1, 0)).await;
    let waiting = session.acquire(key(2, 0), SOON);
    tokio::pin!(waiting);
    assert!(futures::poll!(&mut waiting).is_pending());
    fixture.plans.ended.lock().extend([attempt(1), attempt(2)]);
    opened.slabs.recheck();
    assert_eq!(waiting.await.unwrap_err().code(), Code::Cancelled);
    assert_eq!(session.seal(slab).unwrap_err().code(), Code::Cancelled);
    assert_eq!(opened.slabs.stats().filling_slabs, 0);
    assert!(opened.events.try_recv().is_err());
}

#[tokio::test]
async fn memory_is_prepared_for_those_who_say_what_comes() {
    let fixture = Fixture::new();
    let opened = fixture.open(64);
    let hello = SlabHello { uid: UID, expected_bytes: 20 * SLAB + 1, clients: 2, session: None };
    let (session, _) = opened.slabs.hello(hello).await.unwrap();
    eventually(|| opened.slabs.stats().free_slabs == 21).await;
    let greedy = SlabHello { expected_bytes: u64::MAX, clients: 0, ..hello };
    let (other, _) = opened.slabs.hello(greedy).await.unwrap();
    // Half of what there is, less what is kept for those who come later.
    eventually(|| other.pieces(0).iter().map(|piece| piece.len_bytes() / SLAB).sum::<u64>() >= 15).await;
    eventually(|| opened.slabs.stats().free_slabs == opened.slabs.stats().held_slabs).await;
    assert!(opened.slabs.stats().held_slabs <= 64 - 14 * 2);
    drop((session, other));
    eventually(|| fixture.arena.leased_bytes() == 0).await;
}

#[tokio::test]
async fn memory_that_others_have_is_waited_for() {
    let fixture = Fixture { arena: Arena::new(4 * SLAB), ..Fixture::new() };
    let opened = fixture.open(4);
    let session = opened.hello().await;
    let others = fixture.arena.try_reserve(4 * SLAB - fixture.arena.leased_bytes()).unwrap();
    let error = session.acquire(key(1, 0), Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(error.code(), Code::Exhausted);
    let waiting = session.acquire(key(1, 0), SOON);
    tokio::pin!(waiting);
    assert!(futures::poll!(&mut waiting).is_pending());
    drop(others);
    waiting.await.unwrap();
    assert!(fixture.arena.leased_bytes() <= 4 * SLAB);
}

#[tokio::test]
async fn a_client_that_lost_its_connection_comes_back_or_is_gone() {
    let fixture = Fixture::new();
    let mut opened = fixture.open(8);
    let session = opened.hello().await;
    let slab = fill(&session, key(1, 0)).await;
    session.seal(slab).unwrap();
    fill(&session, key(1, 1)).await;
    let pieces = session.pieces(0).len();
    let hello = SlabHello { uid: UID, session: Some(session.id()), ..Default::default() };
    assert_eq!(opened.slabs.hello(hello).await.err().unwrap().code(), Code::NotFound);
    let absence = session.disconnect();
    let (session, welcome) = opened.slabs.hello(hello).await.unwrap();
    assert_eq!(welcome.sealed, [key(1, 0)]);
    // The first connection's end does not end the second one.
    drop(absence);
    assert_eq!(session.pieces(0).len(), pieces);
    let sealed = opened.sealed().await;
    let SlabEvent::SessionClosed { lost, .. } = opened.events.recv().await.unwrap() else { panic!() };
    assert_eq!(lost, [key(1, 1)]);
    fill(&session, key(1, 1)).await;
    drop(session.disconnect());
    let SlabEvent::SessionClosed { lost, .. } = opened.events.recv().await.unwrap() else { panic!() };
    assert_eq!(lost, [key(1, 1)]);
    assert_eq!(opened.slabs.hello(hello).await.err().unwrap().code(), Code::NotFound);
    assert!(is_whole(&sealed));
    drop(sealed);
    eventually(|| fixture.arena.leased_bytes() == 0).await;
}
