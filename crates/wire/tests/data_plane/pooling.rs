//! Connections are kept, shared, bounded and replaced without anybody noticing.

use std::time::Duration;

use longshore_types::Code;
use longshore_wire::{ChunkRequest, ClientOptions, DataClient, DataServer, Endpoint, ServerOptions};
use tokio_util::sync::CancellationToken;

use crate::support::*;

#[test]
fn thousands_of_requests_share_one_connection() {
    let len = 5000;
    let (bytes, key, client) = (content(len), key(len), client());
    for body in [file_body(&bytes), memory_body(&key, &bytes)] {
        let server = start(ServerOptions::default(), Service::of(body));
        for endpoint in server.endpoints() {
            for _ in 0..2000 {
                assert!(fetch(&client, &endpoint, &ChunkRequest::whole(key.clone())).unwrap().0 == bytes);
            }
        }
        assert_eq!(server.stats().accepted, 2);
        assert_eq!(server.stats().requests, 4000);
    }
}

#[test]
fn fetches_at_once_stay_within_the_bound() {
    let len = 1 << 20;
    let (bytes, key) = (content(len), key(len));
    let server = start(ServerOptions::default(), Service::of(file_body(&bytes)));
    let client = DataClient::new(ClientOptions { connections_per_endpoint_max: 2, ..ClientOptions::default() });
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert!(fetch(&client, &server.tcp(), &ChunkRequest::whole(key.clone())).unwrap().0 == bytes);
                }
            });
        }
    });
    assert!(server.stats().accepted <= 2, "{:?}", server.stats());
    assert_eq!(client.stats().fetches, 160);
}

#[test]
fn a_wait_for_a_connection_ends() {
    let key = key(100);
    let (writer, chunk) = growing(&key);
    let server = start(ServerOptions::default(), Service::of(longshore_wire::ChunkBody::Memory(chunk)));
    let client = DataClient::new(ClientOptions {
        connections_per_endpoint_max: 1,
        stall_timeout: Duration::from_millis(300),
        ..ClientOptions::default()
    });
    std::thread::scope(|scope| {
        let first = scope.spawn(|| fetch(&client, &server.tcp(), &ChunkRequest::whole(key.clone())));
        until("the only connection is busy", || server.stats().requests == 1);
        let error = client.page(&server.tcp(), "/healthz", 10);
        // Whichever of the two gives up first: both do.
        if let Err(error) = error {
            assert_eq!(error.code(), Code::Timeout, "{error}");
        }
        assert_eq!(first.join().unwrap().unwrap_err().code(), Code::Timeout);
    });
    drop(writer);
}

#[test]
fn a_server_that_came_back_is_not_held_against() {
    let len = 1 << 20;
    let (bytes, key, client) = (content(len), key(len), client());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.sock");
    for round in 0..3 {
        let options = ServerOptions { unix: Some(path.clone()), ..ServerOptions::default() };
        let server = DataServer::bind(options, Service::of(file_body(&bytes))).unwrap();
        let token = CancellationToken::new();
        let handle = server.spawn(token.clone()).unwrap();
        let endpoint = Endpoint::Unix(path.clone());
        for _ in 0..2 {
            assert!(fetch(&client, &endpoint, &ChunkRequest::whole(key.clone())).unwrap().0 == bytes);
        }
        assert_eq!(client.stats().stale_connections, round);
        token.cancel();
        handle.join();
    }
    assert_eq!(client.stats().failures, 0);
    // And one that stays away is unavailable.
    let error = fetch(&client, &Endpoint::Unix(path), &ChunkRequest::whole(key)).unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
}

#[test]
fn old_idle_connections_are_not_used() {
    let server = start(ServerOptions::default(), Service::with(|_| Err(not_found())));
    let client = DataClient::new(ClientOptions { idle_timeout: Duration::ZERO, ..ClientOptions::default() });
    for _ in 0..3 {
        client.page(&server.tcp(), "/healthz", 10).unwrap();
    }
    assert_eq!(client.stats().connects, 3);
    until("the old ones are closed", || server.stats().connections <= 1);
}

#[test]
fn unreachable_endpoints_say_so() {
    let client = client();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for endpoint in [Endpoint::Tcp(closed), Endpoint::Tcp("no port".into()), Endpoint::Unix("/nowhere/x.sock".into())] {
        let error = client.page(&endpoint, "/healthz", 10).unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert!(error.message().contains(&endpoint.to_string()), "{error}");
    }
}
