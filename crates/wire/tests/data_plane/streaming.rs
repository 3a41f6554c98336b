//! Chunks that are still filling: bytes go out as they come in, and a fill that fails is never mistaken for an end.

use std::io::{Read, Write};

use longshore_types::{BLOCK_BYTES, BlockChecksum, Code};
use longshore_wire::{ChunkBody, ChunkRequest, Endpoint, ServerOptions};

use crate::support::*;

const BLOCK: usize = BLOCK_BYTES as usize;
const LEN: usize = 3 * BLOCK + 1000;

/// Reads one piece of a chunked body: its line and its bytes.
fn read_piece(stream: &mut impl Read) -> (String, Vec<u8>) {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).unwrap();
    let len = usize::from_str_radix(line.trim_end().split(';').next().unwrap(), 16).unwrap();
    let mut bytes = vec![0; len + 2];
    stream.read_exact(&mut bytes).unwrap();
    assert!(bytes.ends_with(b"\r\n"));
    bytes.truncate(len);
    (line, bytes)
}

#[test]
fn blocks_go_out_while_the_fill_goes_on() {
    let (bytes, key) = (content(LEN), key(LEN));
    let (mut writer, chunk) = growing(&key);
    let server = start(ServerOptions::default(), Service::of(ChunkBody::Memory(chunk)));
    let mut stream = server.connect();
    stream.write_all(plain_request(&key, "").as_bytes()).unwrap();
    // Each block is written only when the one before it has been read to its end.
    for (index, block) in bytes.chunks(BLOCK).enumerate() {
        writer.write(block).unwrap();
        if index == 0 {
            let head = read_head(&mut stream);
            assert!(
                head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("Transfer-Encoding: chunked\r\n"),
                "{head}"
            );
            assert!(!head.contains("Longshore-Checksums"), "{head}");
        }
        let (line, piece) = read_piece(&mut stream);
        assert!(piece == block);
        assert_eq!(line, format!("{:x};crc64nvme={}\r\n", block.len(), BlockChecksum::of(block)));
    }
    writer.finish().unwrap();
    assert_eq!(read_piece(&mut stream), ("0\r\n".into(), Vec::new()));
}

#[test]
fn a_range_of_a_filling_chunk_is_cut_within_its_blocks() {
    let (bytes, key) = (content(LEN), key(LEN));
    let (mut writer, chunk) = growing(&key);
    writer.write(&bytes[..2 * BLOCK]).unwrap();
    let server = start(ServerOptions::default(), Service::of(ChunkBody::Memory(chunk)));
    let mut stream = server.connect();
    let range = BLOCK - 10..BLOCK + 20;
    let headers = format!("Range: bytes={}-{}\r\n", range.start, range.end - 1);
    stream.write_all(plain_request(&key, &headers).as_bytes()).unwrap();
    let head = read_head(&mut stream);
    assert!(head.starts_with("HTTP/1.1 206 Partial Content\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Range: bytes {}-{}/{LEN}\r\n", range.start, range.end - 1)), "{head}");
    assert_eq!(read_piece(&mut stream).1, bytes[BLOCK - 10..BLOCK]);
    assert_eq!(read_piece(&mut stream).1, bytes[BLOCK..BLOCK + 20]);
    assert_eq!(read_piece(&mut stream).1, b"");
    writer.write(&bytes[2 * BLOCK..]).unwrap();
    writer.finish().unwrap();
}

#[test]
fn the_client_lands_a_chunk_that_fills_meanwhile() {
    let (bytes, key, client) = (content(LEN), key(LEN), client());
    for way in 0..3 {
        let (mut writer, chunk) = growing(&key);
        let service = Service::of(ChunkBody::Memory(chunk));
        let server = start(ServerOptions::default(), service.clone());
        let endpoint = [server.tcp(), server.unix(), Endpoint::InProcess(service)][way].clone();
        writer.write(&bytes[..BLOCK + 5]).unwrap();
        std::thread::scope(|scope| {
            let fetching = scope.spawn(|| fetch(&client, &endpoint, &ChunkRequest::whole(key.clone())).unwrap());
            if way < 2 {
                // Only then is the answer bound to come in pieces.
                until("the first block is sent", || server.stats().sent_bytes >= BLOCK_BYTES);
            }
            for piece in bytes[BLOCK + 5..].chunks(100_001) {
                writer.write(piece).unwrap();
            }
            writer.finish().unwrap();
            let (landed, fetched) = fetching.join().unwrap();
            assert!(landed == bytes);
            assert_eq!(fetched.bytes, LEN as u64);
        });
        // The connection is as good as new: the chunk is complete now and comes with its checksums.
        assert!(fetch(&client, &endpoint, &ChunkRequest::whole(key.clone())).unwrap().0 == bytes);
        assert_eq!(server.stats().accepted, u64::from(way < 2));
    }
}

#[test]
fn a_fill_that_fails_midway_cuts_the_answer() {
    let (bytes, key, client) = (content(LEN), key(LEN), client());
    let (mut writer, chunk) = growing(&key);
    let server = start(ServerOptions::default(), Service::of(ChunkBody::Memory(chunk)));
    writer.write(&bytes[..BLOCK]).unwrap();
    std::thread::scope(|scope| {
        let fetching = scope.spawn(|| fetch(&client, &server.tcp(), &ChunkRequest::whole(key.clone())));
        until("the first block is sent", || server.stats().sent_bytes == BLOCK_BYTES);
        writer.fail(not_found());
        let error = fetching.join().unwrap().unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error}");
    });
    until("the cut is counted", || server.stats().cut == 1);
}

#[test]
fn a_fill_that_fails_before_its_first_block_says_why() {
    let (key, client) = (key(LEN), client());
    for way in 0..3 {
        let (writer, chunk) = growing(&key);
        let service = Service::of(ChunkBody::Memory(chunk));
        let server = start(ServerOptions::default(), service.clone());
        let endpoint = [server.tcp(), server.unix(), Endpoint::InProcess(service)][way].clone();
        std::thread::scope(|scope| {
            let fetching = scope.spawn(|| fetch(&client, &endpoint, &ChunkRequest::whole(key.clone())));
            if way < 2 {
                until("the request has arrived", || server.stats().requests == 1);
            }
            writer.fail(not_found());
            let error = fetching.join().unwrap().unwrap_err();
            assert_eq!(error.code(), Code::NotFound);
            assert!(error.message().ends_with("no such object"), "{error}");
        });
    }
}

#[test]
fn a_client_of_http_1_0_gets_a_plain_body() {
    let (bytes, key) = (content(LEN), key(LEN));
    let (mut writer, chunk) = growing(&key);
    let server = start(ServerOptions::default(), Service::of(ChunkBody::Memory(chunk)));
    std::thread::scope(|scope| {
        let request = plain_request(&key, "").replace("HTTP/1.1", "HTTP/1.0");
        let stream = server.connect();
        let talking = scope.spawn(move || talk(stream, request.as_bytes()));
        until("the request has arrived", || server.stats().requests == 1);
        writer.write(&bytes).unwrap();
        let answer = talking.join().unwrap();
        let head = read_head(&mut &answer[..]);
        assert!(head.contains(&format!("Content-Length: {LEN}\r\n")) && !head.contains("chunked"), "{head}");
        assert!(answer[head.len()..] == bytes);
        writer.finish().unwrap();
    });
}
