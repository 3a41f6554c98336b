//! Every way a chunk can travel brings the same bytes, and finds the same damage.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use longshore_types::{Code, chunk::block_aligned};
use longshore_wire::{ChunkRequest, Endpoint, Mode, ServerOptions, Tier};
use parking_lot::Mutex;

use crate::support::*;

const LEN: usize = (3 << 20) + 12_345;

#[test]
fn all_ways_bring_all_ranges() {
    let (bytes, key, client) = (content(LEN), key(LEN), client());
    for body in [file_body(&bytes), memory_body(&key, &bytes)] {
        let is_file = matches!(body, longshore_wire::ChunkBody::File { .. });
        let service = Service::of(body);
        let server = start(ServerOptions::default(), service.clone());
        for endpoint in [server.tcp(), server.unix(), Endpoint::InProcess(service)] {
            for range in [0..LEN, 0..1, LEN - 1..LEN, (1 << 20)..(2 << 20), (1 << 20) + 5..LEN - 9] {
                let range = block_aligned(range.start as u64..range.end as u64, LEN as u64);
                let request = ChunkRequest { range: range.clone(), ..ChunkRequest::whole(key.clone()) };
                let (landed, fetched) = fetch(&client, &endpoint, &request).unwrap();
                assert!(landed == bytes[range.start as usize..range.end as usize], "{endpoint} {range:?}");
                assert_eq!(fetched.bytes, range.end - range.start);
                assert_eq!(fetched.tier, Tier::Disk);
                assert_eq!(fetched.via_fd, is_file && matches!(endpoint, Endpoint::Unix(_)));
            }
        }
    }
    assert_eq!(client.stats().failures, 0);
}

#[test]
fn a_full_chunk_lands_through_many_pieces_and_the_scratch() {
    let len = 16 << 20;
    let (bytes, key, client) = (content(len), key(len), client());
    let server = start(ServerOptions::default(), Service::of(file_body(&bytes)));
    for endpoint in server.endpoints() {
        // Two hundred pieces of the first half, then nothing but bytes to drop.
        let pieces: Vec<_> = (0..200).map(|i| i * 41_000..i * 41_000 + 40_000).collect();
        let kept: usize = pieces.iter().map(|piece| piece.len()).sum();
        let mut landing = longshore_memory::Landing::builder()
            .buffer(buffer(200 * 41_000), pieces.clone())
            .scratch(len - kept)
            .build()
            .unwrap();
        client.fetch(&endpoint, &ChunkRequest::whole(key.clone()), &mut landing).unwrap();
        let landed = landing.into_buffers().remove(0);
        let landed: Vec<u8> = pieces.into_iter().flat_map(|piece| landed[piece].to_vec()).collect();
        assert!(landed == bytes[..kept]);
    }
}

#[test]
fn a_flipped_bit_is_found_on_every_way() {
    let (bytes, key, client) = (content(LEN), key(LEN), client());
    let body = file_body(&bytes);
    let at = (2 << 20) + 77;
    file_of(&body).write_all_at(&[bytes[at] ^ 4], 4096 + at as u64).unwrap();
    let service = Service::of(body);
    let server = start(ServerOptions::default(), service.clone());
    for endpoint in [server.tcp(), server.unix(), Endpoint::InProcess(service)] {
        let error = fetch(&client, &endpoint, &ChunkRequest::whole(key.clone())).unwrap_err();
        assert_eq!(error.code(), Code::Corrupt, "{error}");
        assert!(error.message().contains("block 2") && error.message().contains("m+1.safetensors"), "{error}");
        let range = 0..2 << 20;
        fetch(&client, &endpoint, &ChunkRequest { range, ..ChunkRequest::whole(key.clone()) }).unwrap();
    }
    assert_eq!((client.stats().corrupt, client.stats().fetches), (3, 3));
}

#[test]
fn a_file_that_ends_early_is_found_on_every_way() {
    let (bytes, key, client) = (content(LEN), key(LEN), client());
    let body = file_body(&bytes);
    file_of(&body).set_len(4096 + (1 << 20) + 5).unwrap();
    let service = Service::of(body);
    let server = start(ServerOptions::default(), service.clone());
    for (endpoint, code) in [
        (server.tcp(), Code::Unavailable),
        (server.unix(), Code::Corrupt),
        (Endpoint::InProcess(service), Code::Corrupt),
    ] {
        let error = fetch(&client, &endpoint, &ChunkRequest::whole(key.clone())).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    until("the cut is counted", || server.stats().cut == 1);
}

#[test]
fn the_request_arrives_as_it_was_made() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let service = Service::with({
        let seen = seen.clone();
        move |request| {
            seen.lock().push(request.clone());
            Err(not_found())
        }
    });
    let (key, client) = (key(LEN), client());
    let server = start(ServerOptions::default(), service);
    for mode in [Mode::Fill, Mode::OnlyIfCached, Mode::FromPeer] {
        for recheck in [false, true] {
            // What the blocks should be goes along with a recheck only.
            let expected = recheck.then(|| (0..3).map(longshore_types::BlockChecksum).collect());
            let request = ChunkRequest {
                key: key.clone(),
                range: 1 << 20..LEN as u64,
                mode,
                recheck,
                expected,
                prefers_file: recheck,
            };
            fetch(&client, &server.tcp(), &request).unwrap_err();
            assert_eq!(seen.lock().pop(), Some(request));
        }
    }
}

#[test]
fn errors_keep_their_code_and_text_and_the_connection() {
    let (key, client) = (key(LEN), client());
    for code in Code::ALL {
        let service = Service::with(move |_| Err(longshore_types::Error::new(code, "why it is so")));
        let server = start(ServerOptions::default(), service);
        for endpoint in server.endpoints() {
            for _ in 0..2 {
                let error = fetch(&client, &endpoint, &ChunkRequest::whole(key.clone())).unwrap_err();
                assert_eq!(error.code(), code);
                assert!(error.message().ends_with("why it is so"), "{error}");
            }
        }
        assert_eq!(server.stats().accepted, 2);
    }
}

#[test]
fn wrong_calls_are_refused_before_anything_is_sent() {
    let (key, client) = (key(LEN), client());
    let nowhere = Endpoint::Tcp("127.0.0.1:1".into());
    for range in [0..0, 5..LEN as u64, 0..5, 0..LEN as u64 + 1] {
        let request = ChunkRequest { range, ..ChunkRequest::whole(key.clone()) };
        let mut landing = longshore_memory::Landing::builder().scratch(LEN).build().unwrap();
        let error = client.fetch(&nowhere, &request, &mut landing).unwrap_err();
        assert!(matches!(error.code(), Code::Internal | Code::InvalidArgument), "{error}");
    }
    assert_eq!(client.stats().connects, 0);
}

#[test]
fn pages() {
    let client = client();
    let service = Service::with(|_| Err(not_found()));
    let server = start(ServerOptions::default(), service.clone());
    for endpoint in [server.tcp(), server.unix(), Endpoint::InProcess(service)] {
        assert_eq!(client.page(&endpoint, "/healthz", 100).unwrap(), b"ok\n");
        assert_eq!(client.page(&endpoint, "/nothing", 100).unwrap_err().code(), Code::NotFound);
        assert_eq!(client.page(&endpoint, "/big", 99_999).unwrap_err().code(), Code::Exhausted);
        assert_eq!(client.page(&endpoint, "/big", 100_000).unwrap().len(), 100_000);
        let error = client.page(&endpoint, "/broken", 100).unwrap_err();
        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.message().contains("not yet"), "{error}");
    }
    assert_eq!(client.page(&server.tcp(), "/a b", 100).unwrap_err().code(), Code::InvalidArgument);
}
