//! Clients that do not behave.

use super::*;

/// Sends bytes and reads what comes back.
async fn provoke(fixture: &Fixture, hello_first: bool, bytes: &[u8]) -> Option<v1::SlabResponse> {
    let mut stream = match hello_first {
        true => fixture.client().await.stream,
        false => UnixStream::connect(fixture.path()).await.unwrap(),
    };
    stream.write_all(bytes).await.unwrap();
    let (response, fds) = receive(&mut stream).await?;
    assert!(fds.is_empty());
    // After the answer the other side has nothing more to say.
    assert!(receive(&mut stream).await.is_none());
    Some(response)
}

fn request(request: Request) -> Vec<u8> {
    frame::encode(&v1::SlabRequest { request: Some(request) }, MESSAGE_BYTES_MAX).unwrap()
}

#[tokio::test]
async fn nonsense_is_answered_and_ends_the_conversation() {
    let fixture = Fixture::new(8).await;
    let oversized = u32::MAX.to_le_bytes().to_vec();
    let too_long = (REQUEST_BYTES_MAX as u32 + 1).to_le_bytes().to_vec();
    let no_protobuf = [&4_u32.to_le_bytes()[..], &[0xff; 4]].concat();
    for bytes in [oversized, too_long, no_protobuf] {
        for hello_first in [false, true] {
            let response = provoke(&fixture, hello_first, &bytes).await.unwrap();
            assert_eq!(response.error_code, "invalid_argument", "{response:?}");
        }
    }
    let hello = |protocol, session: &str| {
        request(Request::Hello(v1::SlabHello { protocol, session: session.to_owned(), ..Default::default() }))
    };
    let cases = [
        (request(acquire(0, SOON)), "invalid_argument"),
        (request(Request::Seal(v1::SealSlab { slab: 0 })), "invalid_argument"),
        (0_u32.to_le_bytes().to_vec(), "invalid_argument"),
        (hello(2, ""), "unsupported"),
        (hello(1, "../../etc"), "invalid_argument"),
        (hello(1, ATTEMPT), "not_found"),
    ];
    for (bytes, code) in cases {
        assert_eq!(provoke(&fixture, false, &bytes).await.unwrap().error_code, code);
    }
    eventually(|| fixture.slabs.stats().filling_slabs == 0).await;
    // A request that never ends, and a client that says nothing, are in nobody's way.
    let mut partial = UnixStream::connect(fixture.path()).await.unwrap();
    partial.write_all(&100_u32.to_le_bytes()).await.unwrap();
    let silent = UnixStream::connect(fixture.path()).await.unwrap();
    fixture.client().await.save(0).await;
    drop((partial, silent));
}

#[tokio::test]
async fn wrong_requests_are_refused_and_the_session_goes_on() {
    let mut fixture = Fixture::new(8).await;
    let mut client = fixture.client().await;
    let hello = Request::Hello(v1::SlabHello { protocol: 1, ..Default::default() });
    assert_eq!(client.ask(hello).await.unwrap_err(), "invalid_argument");
    let no_key = Request::Acquire(v1::AcquireSlab { key: None, wait_ms: u64::MAX });
    assert_eq!(client.ask(no_key).await.unwrap_err(), "invalid_argument");
    for (attempt, code) in
        [("", "invalid_argument"), (&ATTEMPT.replace('1', "2"), "not_found"), ("é", "invalid_argument")]
    {
        let key = v1::SlabKey { attempt: attempt.to_owned(), file: 0, slab_index: 0 };
        let request = Request::Acquire(v1::AcquireSlab { key: Some(key), wait_ms: u64::MAX });
        assert_eq!(client.ask(request).await.unwrap_err(), code);
    }
    for slab in [0, 1, 1000, u32::MAX] {
        assert_ne!(client.seal(slab).await.unwrap_err(), "closed");
        let discard = Request::Discard(v1::DiscardSlab { slab });
        assert_ne!(client.ask(discard).await.unwrap_err(), "closed");
    }
    let grant = client.acquire(0).await.unwrap();
    assert_eq!(client.acquire(0).await.unwrap_err(), "failed_precondition");
    assert_eq!(client.seal(grant.slab).await.unwrap_err(), "failed_precondition");
    // Another session's slab of that number is not this one's.
    let mut other = fixture.client().await;
    assert_ne!(other.seal(grant.slab).await.unwrap_err(), "closed");
    client.fill(&grant, 0);
    client.seal(grant.slab).await.unwrap();
    assert!(is_whole(&fixture.sealed().await));
}

#[tokio::test]
async fn a_flood_of_requests_is_answered_up_to_a_bound() {
    let fixture = Fixture::new(1).await;
    let mut client = fixture.client().await;
    client.acquire(0).await.unwrap();
    let wait = Duration::from_secs(3600);
    let flood: Vec<u8> = (1..500).flat_map(|index| request(acquire(index, wait))).collect();
    // More than the other side reads may not even leave.
    let _ = timeout(Duration::from_millis(200), client.stream.write_all(&flood)).await;
    eventually(|| fixture.slabs.stats().waiting > 0).await;
    assert!(fixture.slabs.stats().waiting <= 40);
    drop(client);
    eventually(|| fixture.slabs.stats().waiting == 0 && fixture.slabs.stats().filling_slabs == 0).await;
}

#[tokio::test]
async fn a_thousand_connections_are_no_trouble() {
    let mut fixture = Fixture::new(8).await;
    let mut streams = Vec::new();
    for _ in 0..1000 {
        match UnixStream::connect(fixture.path()).await {
            Ok(stream) => streams.push(stream),
            // The kernel's queue of connections is full for a moment.
            Err(_) => tokio::task::yield_now().await,
        }
    }
    assert!(streams.len() > SLAB_SESSIONS_MAX);
    // One more is told, or sees a closed connection.
    let refused = Client::begin(fixture.path(), "").await.err();
    assert!(refused.as_deref().is_none_or(|code| ["exhausted", "closed"].contains(&code)), "{refused:?}");
    drop(streams);
    let deadline = tokio::time::Instant::now() + SOON;
    let mut client = loop {
        if let Ok(client) = Client::begin(fixture.path(), "").await {
            break client;
        }
        assert!(tokio::time::Instant::now() < deadline, "nobody is served any more");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    client.save(0).await;
    assert!(is_whole(&fixture.sealed().await));
}

#[tokio::test]
async fn descriptors_that_a_client_sends_are_dropped() {
    let mut fixture = Fixture::new(8).await;
    let mut client = fixture.client().await;
    let mine = client.control.try_clone().unwrap();
    let before = fixture.descriptors();
    let bytes = request(acquire(0, SOON));
    let fds = vec![std::os::fd::AsFd::as_fd(&mine); 60];
    let sent = longshore_memory::fdpass::send_with_fds(std::os::fd::AsFd::as_fd(&client.stream), &bytes, &fds).unwrap();
    assert_eq!(sent, bytes.len());
    let grant = granted(client.answer().await.unwrap());
    // The new pieces, once here and once there.
    assert_eq!(fixture.descriptors(), before + 2 * grant.new_piece_bytes.len());
    client.fill(&grant, 0);
    client.seal(grant.slab).await.unwrap();
    assert!(is_whole(&fixture.sealed().await));
}
