//! Clients that behave.

use super::*;

#[tokio::test]
async fn a_client_saves_through_the_socket() {
    let mut fixture = Fixture::new(32).await;
    let mut client = fixture.client().await;
    for index in 0..8 {
        client.save(index).await;
        let sealed = fixture.sealed().await;
        assert!(is_whole(&sealed));
        fixture.plans.durable.lock().insert(*sealed.key());
    }
    assert!(!client.pieces.is_empty());
    assert!(client.acquire(3).await.unwrap().already_durable);
    let grant = client.acquire(100).await.unwrap();
    client.ask(Request::Discard(v1::DiscardSlab { slab: grant.slab })).await.unwrap();
    assert_eq!(client.seal(grant.slab).await.unwrap_err(), "failed_precondition");
}

#[tokio::test]
async fn a_seal_does_not_wait_for_the_slab_that_it_frees() {
    let mut fixture = Fixture::new(1).await;
    let mut client = fixture.client().await;
    let first = client.acquire(0).await.unwrap();
    client.fill(&first, 0);
    send(&mut client.stream, acquire(1, SOON)).await;
    send(&mut client.stream, Request::Seal(v1::SealSlab { slab: first.slab })).await;
    let sealed = fixture.sealed().await;
    drop(sealed);
    // In the order of the requests.
    let second = granted(client.answer().await.unwrap());
    assert_eq!(second.slab, first.slab);
    assert_eq!(client.answer().await.unwrap(), v1::SlabResponse::default());
}

#[tokio::test]
async fn a_session_goes_on_after_a_restart() {
    let mut fixture = Fixture::new(16).await;
    let mut client = fixture.client().await;
    client.save(0).await;
    client.save(1).await;
    let first = fixture.sealed().await;
    fixture.plans.durable.lock().insert(*first.key());
    drop(first);
    let open = client.acquire(2).await.unwrap();
    let mut fixture = fixture.restart(16).await;
    assert!(receive(&mut client.stream).await.is_none());
    assert_eq!(fixture.recovered.len(), 1);
    assert!(is_whole(&fixture.recovered[0]));
    let mut again = Client::begin(fixture.path(), &client.session).await.unwrap();
    assert_eq!((&again.session, again.pieces.len()), (&client.session, client.pieces.len()));
    let sealed: Vec<u32> = again.sealed.iter().map(|key| key.slab_index).collect();
    assert_eq!(sealed, [1]);
    assert!(again.acquire(0).await.unwrap().already_durable);
    assert_eq!(again.seal(open.slab).await.unwrap_err(), "failed_precondition");
    again.save(2).await;
    assert!(is_whole(&fixture.sealed().await));
    assert_eq!(Client::begin(fixture.path(), &client.session).await.err().unwrap(), "not_found");
}

#[tokio::test]
async fn a_living_client_that_hung_up_may_come_back() {
    let mut fixture = Fixture::new(16).await;
    let mut client = fixture.client().await;
    client.save(0).await;
    client.acquire(1).await.unwrap();
    drop(client.stream);
    assert!(is_whole(&fixture.sealed().await));
    let SlabEvent::SessionClosed { lost, .. } = fixture.events.recv().await.unwrap() else { panic!() };
    assert_eq!(lost.len(), 1);
    let mut client = Client::begin(fixture.path(), &client.session).await.unwrap();
    client.save(1).await;
    assert!(is_whole(&fixture.sealed().await));
}
