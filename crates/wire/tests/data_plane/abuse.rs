//! Clients that are slow, stuck, too many or not clients at all. None of them costs more than its own connection.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use longshore_types::Code;
use longshore_wire::{ChunkRequest, ServerOptions};
use proptest::prelude::*;

use crate::support::*;

const SHORT: Duration = Duration::from_millis(100);
const LEN: usize = 2 << 20;

fn nothing() -> std::sync::Arc<dyn longshore_wire::ChunkService> {
    Service::with(|_| Err(not_found()))
}

#[test]
fn a_head_that_never_ends_is_given_up() {
    let server = start(ServerOptions { head_timeout: SHORT, ..ServerOptions::default() }, nothing());
    let answer = talk(server.connect(), b"GET /healthz HTTP/1.1\r\nHost:");
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
    // Drop by drop is no better: the time runs from the first byte.
    let mut stream = server.connect();
    let mut dropping = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || while dropping.write_all(b"x").is_ok() {});
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        stream.shutdown(std::net::Shutdown::Both).ok();
        assert!(answer.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&answer));
    });
    until("both are gone", || server.stats().connections == 0);
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let server = start(ServerOptions { idle_timeout: SHORT, ..ServerOptions::default() }, nothing());
    assert_eq!(talk(server.connect(), b""), b"");
    let mut stream = server.connect();
    stream.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").unwrap();
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 200 "));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"ok\n");
}

#[test]
fn one_connection_too_many_gets_503() {
    let server = start(ServerOptions { connections_max: 2, ..ServerOptions::default() }, nothing());
    let seated: Vec<TcpStream> = (0..2)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").unwrap();
            read_head(&mut stream);
            stream
        })
        .collect();
    let answer = talk(server.connect(), b"GET /healthz HTTP/1.1\r\n\r\n");
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: 1\r\n"), "{answer}");
    let error = fetch(&client(), &server.tcp(), &ChunkRequest::whole(key(LEN))).unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("too many connections"), "{error}");
    assert_eq!(server.stats().refused, 2);

    drop(seated);
    until("places are free again", || server.stats().connections == 0);
    assert_eq!(client().page(&server.unix(), "/healthz", 10).unwrap(), b"ok\n");
}

#[test]
fn a_reader_that_is_stuck_is_cut_off() {
    let len = 16 << 20;
    let (bytes, key) = (content(len), key(len));
    for body in [file_body(&bytes), memory_body(&key, &bytes)] {
        let server = start(ServerOptions { write_timeout: SHORT, ..ServerOptions::default() }, Service::of(body));
        let mut stream = server.connect();
        // A small window, so that the kernel cannot take it all.
        rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 64 << 10).unwrap();
        stream.write_all(plain_request(&key, "").as_bytes()).unwrap();
        until("it is cut off", || server.stats().cut == 1 && server.stats().connections == 0);
    }
}

#[test]
fn what_is_no_request_is_refused_and_closed() {
    let server = start(ServerOptions::default(), nothing());
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000));
    for (bytes, status) in [
        (&b"POST /v1/chunk HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"[..], "405"),
        (b"GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "400"),
        (long.as_bytes(), "431"),
    ] {
        let answer = String::from_utf8(talk(server.connect(), bytes)).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains("Connection: close\r\n"), "{answer}");
    }
}

#[test]
fn wrong_chunk_requests_leave_the_connection_open() {
    let key = key(LEN);
    let server = start(ServerOptions::default(), Service::of(file_body(&content(LEN))));
    let mut stream = server.connect();
    for (request, status) in [
        ("GET /v1/chunk HTTP/1.1\r\n\r\n".to_owned(), "400"),
        ("GET /v1/chunk?url=u&version=v&size=1&index=7 HTTP/1.1\r\n\r\n".to_owned(), "400"),
        (plain_request(&key, &format!("Range: bytes={LEN}-\r\n")), "416"),
        (plain_request(&key, "Range: bytes=0-1,5-6\r\n"), "200"),
    ] {
        stream.write_all(request.as_bytes()).unwrap();
        let head = read_head(&mut stream);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        let len = head.split("Content-Length: ").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap();
        let mut body = vec![0; len];
        stream.read_exact(&mut body).unwrap();
    }
    assert_eq!(server.stats().accepted, 1);
}

#[test]
fn a_panic_in_the_service_costs_one_connection() {
    let server = start(ServerOptions::default(), nothing());
    assert_eq!(talk(server.connect(), b"GET /panic HTTP/1.1\r\n\r\n"), b"");
    until("its place is free", || server.stats().connections == 0);
    assert_eq!(client().page(&server.tcp(), "/healthz", 10).unwrap(), b"ok\n");
}

#[test]
fn requests_may_be_cut_and_joined_anywhere() {
    let server = start(ServerOptions::default(), nothing());
    let one = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let three = format!("{one}{one}{}", one.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
    let whole = talk(server.connect(), three.as_bytes());
    assert_eq!(String::from_utf8_lossy(&whole).matches("\r\n\r\nok\n").count(), 3);
    for cut in 1..three.len() {
        let mut stream = server.connect();
        stream.set_nodelay(true).unwrap();
        stream.write_all(&three.as_bytes()[..cut]).unwrap();
        assert_eq!(talk(stream, &three.as_bytes()[cut..]), whole, "cut at {cut}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn garbage_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2000), start_well: bool) {
        let options = ServerOptions { head_timeout: Duration::from_millis(20), idle_timeout: SHORT, ..ServerOptions::default() };
        let server = start(options, nothing());
        let mut stream = server.connect();
        let front: &[u8] = if start_well { b"GET /v1/chunk?url=" } else { b"" };
        let sent = stream.write_all(&[front, &bytes].concat());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let got = stream.read_to_end(&mut answer);
        prop_assert!(sent.is_err() || got.is_err() || answer.is_empty() || answer.starts_with(b"HTTP/1.1 "));
        prop_assert_eq!(client().page(&server.tcp(), "/healthz", 10).unwrap(), b"ok\n");
    }
}
