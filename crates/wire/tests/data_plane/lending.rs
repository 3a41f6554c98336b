//! Chunks in memory that are handed over: whole or filling, and never used for something else while somebody reads them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use longshore_memory::fdpass::recv_with_fds;
use longshore_memory::{Arena, shared_memory};
use longshore_types::chunk::block_aligned;
use longshore_types::{BLOCK_BYTES, BlockChecksum, CHUNK_BYTES, ChunkKey, Code};
use longshore_wire::{
    ChunkBody, ChunkReply, ChunkRequest, ChunkService, Endpoint, FileReader, GrowingChunk, GrowingWriter, Mode,
    ReaderOptions, ServerOptions, Tier,
};

use crate::support::*;

const BLOCK: usize = BLOCK_BYTES as usize;
const LEN: usize = 3 * BLOCK + 1000;

/// Room for one chunk, in memory that can be handed over.
fn arena() -> Arena {
    Arena::with_shared_buffers(CHUNK_BYTES, shared_memory(), 16)
}

fn lendable(key: &ChunkKey, arena: &Arena) -> (GrowingWriter, ChunkBody) {
    let buffer = arena.try_shared_buffer(key.len_bytes() as usize).unwrap();
    let (writer, chunk) = GrowingChunk::begin(key.clone(), buffer).unwrap();
    (writer, ChunkBody::Memory(chunk))
}

/// A service that gives a chunk away, once, and has none after that.
fn once(body: ChunkBody) -> Arc<dyn ChunkService> {
    let body = Mutex::new(Some(body));
    Service::with(move |_| {
        let body = body.lock().unwrap().take().ok_or_else(not_found)?;
        Ok(ChunkReply { tier: Tier::Memory, body })
    })
}

fn connect(server: &Running) -> UnixStream {
    let stream = UnixStream::connect(&server.unix).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

const ACCEPT: &str = "Longshore-Accept-Fd: 1\r\nLongshore-Accept-Memory: 1\r\n";

/// Asks as the client does, and takes the first bytes of the answer with what came along.
fn ask(stream: &mut UnixStream, key: &ChunkKey, headers: &str) -> (String, Option<File>) {
    stream.write_all(plain_request(key, headers).as_bytes()).unwrap();
    let (mut answer, mut fds) = (Vec::new(), Vec::new());
    while !answer.windows(4).any(|four| four == b"\r\n\r\n") {
        let mut bytes = [0; 4096];
        let count = recv_with_fds(stream.as_fd(), &mut bytes, &mut fds).unwrap();
        assert!(count > 0, "closed after {answer:?}");
        answer.extend_from_slice(&bytes[..count]);
    }
    (String::from_utf8_lossy(&answer).into_owned(), fds.pop().map(File::from))
}

#[test]
fn a_whole_chunk_and_each_range_of_it_is_read_where_it_lies() {
    for len in [BLOCK, LEN, CHUNK_BYTES as usize] {
        let (bytes, key, client, arena) = (content(len), key(len), client(), arena());
        let (mut writer, body) = lendable(&key, &arena);
        writer.write(&bytes).unwrap();
        writer.finish().unwrap();
        let server = start(ServerOptions::default(), Service::of(body));
        let ranges = [0..len as u64, 0..BLOCK_BYTES, block_aligned(len as u64 - 1..len as u64, len as u64)];
        for (count, range) in ranges.into_iter().enumerate() {
            let request = ChunkRequest { range: range.clone(), ..ChunkRequest::whole(key.clone()) };
            let wanted = &bytes[range.start as usize..range.end as usize];
            let (landed, fetched) = fetch(&client, &server.unix(), &request).unwrap();
            assert!(landed == wanted && fetched.via_fd);
            assert_eq!(fetched.checksums, BlockChecksum::of_blocks(wanted));
            let stats = server.stats();
            assert_eq!((stats.memory_handed_over, stats.sent_bytes), (count as u64 + 1, 0));
        }
        assert_eq!(server.stats().accepted, 1, "the connection stays good");
        assert!(fetch(&client, &server.tcp(), &ChunkRequest::whole(key)).unwrap().0 == bytes);
        until("what went through TCP is counted", || server.stats().sent_bytes == len as u64);
    }
}

#[test]
fn a_chunk_is_read_while_it_fills() {
    let (bytes, key, client, arena) = (content(LEN), key(LEN), client(), arena());
    let (mut writer, body) = lendable(&key, &arena);
    let server = start(ServerOptions::default(), Service::of(body));
    // To its end, and an inner range of it.
    for (range, last) in [(BLOCK_BYTES..3 * BLOCK_BYTES, 3 * BLOCK), (0..LEN as u64, LEN)] {
        let request = ChunkRequest { range: range.clone(), ..ChunkRequest::whole(key.clone()) };
        let (first, before) = (writer.written_bytes() as usize, server.stats().memory_handed_over);
        std::thread::scope(|scope| {
            let fetching = scope.spawn(|| fetch(&client, &server.unix(), &request).unwrap());
            let begin = first.max(range.start as usize + BLOCK + 5);
            writer.write(&bytes[first..begin]).unwrap();
            until("the memory is handed over", || server.stats().memory_handed_over > before);
            for piece in bytes[begin..last].chunks(100_001) {
                writer.write(piece).unwrap();
            }
            let (landed, fetched) = fetching.join().unwrap();
            assert!(landed == bytes[range.start as usize..range.end as usize] && fetched.via_fd);
        });
    }
    writer.finish().unwrap();
    assert!(fetch(&client, &server.unix(), &ChunkRequest::whole(key)).unwrap().0 == bytes);
    let stats = server.stats();
    assert_eq!((stats.accepted, stats.memory_handed_over, stats.sent_bytes), (1, 3, 0));
}

#[test]
fn each_block_is_told_when_it_is_there() {
    let (bytes, key, arena) = (content(LEN), key(LEN), arena());
    let (mut writer, body) = lendable(&key, &arena);
    let server = start(ServerOptions::default(), Service::of(body));
    let mut stream = connect(&server);
    writer.write(&bytes[..BLOCK]).unwrap();
    let (head, file) = ask(&mut stream, &key, ACCEPT);
    assert!(head.contains("Longshore-Memory: 1\r\n") && head.contains("Longshore-Offset: 0\r\n"), "{head}");
    assert!(head.contains("Transfer-Encoding: chunked\r\n") && !head.contains("Longshore-Fd"), "{head}");
    let file = file.unwrap();
    let mut told = head.split_once("\r\n\r\n").unwrap().1.as_bytes().to_vec();
    for (index, block) in bytes.chunks(BLOCK).enumerate() {
        if index > 0 {
            writer.write(block).unwrap();
        }
        let line = format!("10\r\n{}\r\n", BlockChecksum::of(block));
        while told.len() < line.len() {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            told.push(byte[0]);
        }
        assert_eq!(String::from_utf8(std::mem::take(&mut told)).unwrap(), line);
        let mut landed = vec![0; block.len()];
        file.read_exact_at(&mut landed, (index * BLOCK) as u64).unwrap();
        assert!(landed == block);
    }
    let mut end = [0; 5];
    stream.read_exact(&mut end).unwrap();
    assert_eq!(&end, b"0\r\n\r\n");
}

#[test]
fn a_fill_that_fails_midway_cuts_its_readers() {
    let (bytes, key, client, arena) = (content(LEN), key(LEN), client(), arena());
    let (mut writer, body) = lendable(&key, &arena);
    let server = start(ServerOptions::default(), once(body));
    writer.write(&bytes[..BLOCK + 7]).unwrap();
    std::thread::scope(|scope| {
        let fetching = scope.spawn(|| fetch(&client, &server.unix(), &ChunkRequest::whole(key.clone())));
        until("the memory is handed over", || server.stats().memory_handed_over == 1);
        writer.fail(not_found());
        assert_eq!(fetching.join().unwrap().unwrap_err().code(), Code::Unavailable);
    });
    until("the cut is counted", || server.stats().cut == 1);
    until("the memory is free", || arena.leased_bytes() == 0);
}

#[test]
fn memory_stays_until_its_reader_is_done_and_a_late_one_sees_other_checksums() {
    let (bytes, key, arena) = (content(CHUNK_BYTES as usize), key(CHUNK_BYTES as usize), arena());
    let (mut writer, body) = lendable(&key, &arena);
    writer.write(&bytes).unwrap();
    writer.finish().unwrap();
    // The server's answer is all that holds it: as if it were evicted at once.
    let server = start(ServerOptions::default(), once(body));
    let mut stream = connect(&server);
    let (head, file) = ask(&mut stream, &key, ACCEPT);
    assert!(head.contains("Content-Length: 0\r\n"), "{head}");
    let file = file.unwrap();
    let block = || {
        let mut block = vec![0; BLOCK];
        file.read_exact_at(&mut block, BLOCK_BYTES).unwrap();
        BlockChecksum::of(&block)
    };
    let wanted = BlockChecksum::of(&bytes[BLOCK..2 * BLOCK]);
    assert!(head.contains(&wanted.to_string()));
    for _ in 0..3 {
        assert_eq!(
            arena.shared_buffer(CHUNK_BYTES as usize, Duration::from_millis(20)).unwrap_err().code(),
            Code::Exhausted
        );
        assert_eq!((arena.leased_bytes(), block()), (CHUNK_BYTES, wanted));
    }
    stream.write_all(b"\r\n").unwrap();
    let mut next = arena.shared_buffer(CHUNK_BYTES as usize, PATIENCE).unwrap();
    assert_eq!(arena.leased_bytes(), CHUNK_BYTES);
    next.fill(7);
    assert_ne!(block(), wanted, "recycled together with its file: no reader takes it for the chunk");
    // The connection goes on, after more empty lines too.
    stream.write_all(b"\r\n\r\n").unwrap();
    assert!(ask(&mut stream, &key, "").0.starts_with("HTTP/1.1 404 "));
    assert!(ask(&mut stream, &key, ACCEPT).0.starts_with("HTTP/1.1 404 "));
    assert_eq!((server.stats().cut, server.stats().accepted), (0, 1));
}

#[test]
fn the_next_request_says_that_a_reader_is_done() {
    let (key, arena) = (key(LEN), arena());
    let (mut writer, body) = lendable(&key, &arena);
    writer.write(&content(LEN)).unwrap();
    writer.finish().unwrap();
    let server = start(ServerOptions::default(), once(body));
    let mut stream = connect(&server);
    assert!(ask(&mut stream, &key, ACCEPT).1.is_some());
    assert!(ask(&mut stream, &key, ACCEPT).0.starts_with("HTTP/1.1 404 "));
    assert_eq!(arena.leased_bytes(), 0);
}

#[test]
fn a_reader_that_closes_or_takes_too_long_holds_nothing_any_more() {
    let bytes = content(LEN);
    for (filled, closes) in [(LEN, true), (LEN, false), (2 * BLOCK, true)] {
        let (key, arena) = (key(LEN), arena());
        let (mut writer, body) = lendable(&key, &arena);
        writer.write(&bytes[..filled]).unwrap();
        let writer = match filled {
            LEN => {
                writer.finish().unwrap();
                None
            }
            _ => Some(writer),
        };
        let patience = if closes { PATIENCE } else { Duration::from_millis(50) };
        let server = start(ServerOptions { write_timeout: patience, ..ServerOptions::default() }, once(body));
        let mut stream = connect(&server);
        assert!(ask(&mut stream, &key, ACCEPT).1.is_some());
        if closes {
            drop(stream);
        } else {
            // Cut, and told so by the end of the connection.
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
            assert_eq!(server.stats().cut, 1);
        }
        if let Some(mut writer) = writer {
            writer.write(&bytes[filled..]).unwrap();
            writer.finish().unwrap();
        }
        until("the memory is free", || arena.leased_bytes() == 0);
        until("the connection has ended", || server.stats().connections == 0);
    }
}

#[test]
fn a_drain_does_not_wait_for_a_reader() {
    let (key, arena) = (key(LEN), arena());
    let (mut writer, body) = lendable(&key, &arena);
    writer.write(&content(LEN)).unwrap();
    writer.finish().unwrap();
    let server = start(ServerOptions::default(), once(body));
    let mut stream = connect(&server);
    assert!(ask(&mut stream, &key, ACCEPT).1.is_some());
    let began = std::time::Instant::now();
    server.join();
    assert!(began.elapsed() < PATIENCE / 2);
}

#[test]
fn who_does_not_ask_for_memory_gets_bytes() {
    let (bytes, key, arena) = (content(LEN), key(LEN), arena());
    let (mut writer, body) = lendable(&key, &arena);
    writer.write(&bytes).unwrap();
    writer.finish().unwrap();
    let server = start(ServerOptions::default(), Service::of(body));
    for headers in ["", "Longshore-Accept-Fd: 1\r\n"] {
        let mut stream = connect(&server);
        stream.write_all(plain_request(&key, &format!("{headers}Connection: close\r\n")).as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer.ends_with(&bytes));
    }
    // Through TCP nothing can be handed over, whoever asks.
    let answer = talk(server.connect(), plain_request(&key, &format!("{ACCEPT}Connection: close\r\n")).as_bytes());
    assert!(answer.ends_with(&bytes));
    assert_eq!(server.stats().memory_handed_over, 0);
}

#[test]
fn a_file_reader_keeps_no_memory_of_the_server() {
    let (bytes, key, arena) = (content(LEN), key(LEN), arena());
    let (mut writer, body) = lendable(&key, &arena);
    writer.write(&bytes).unwrap();
    writer.finish().unwrap();
    let server = start(ServerOptions::default(), Service::of(body));
    let unix: Endpoint = server.unix();
    let ask_at = move |_: &ChunkKey| vec![(unix.clone(), Mode::Fill)];
    let reader = FileReader::new(client(), key.artifact().clone(), &ReaderOptions::default(), ask_at);
    let mut out = vec![0; LEN];
    assert_eq!(reader.read_at(0, &mut out).unwrap(), LEN);
    assert!(out == bytes);
    assert_eq!((reader.stats().open_files, server.stats().memory_handed_over), (0, 0));
}
