//! Shutdown: nobody new is taken in, requests in flight finish, idle connections end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use longshore_wire::{ChunkBody, ServerOptions};

use crate::support::*;

const LEN: usize = 3 << 20;

#[test]
fn a_request_in_flight_finishes() {
    let (bytes, key) = (content(LEN), key(LEN));
    let (mut writer, chunk) = growing(&key);
    let server = start(ServerOptions::default(), Service::of(ChunkBody::Memory(chunk)));
    let mut idle = server.connect();
    idle.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").unwrap();
    read_head(&mut idle);
    let mut busy = server.connect();
    busy.write_all(plain_request(&key, "").as_bytes()).unwrap();
    writer.write(&bytes[..1 << 20]).unwrap();
    read_head(&mut busy);

    server.token.cancel();
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"ok\n");
    until("new clients are turned away", || TcpStream::connect(&server.tcp).is_err());
    until("only the busy one is left", || server.stats().connections == 1);

    writer.write(&bytes[1 << 20..]).unwrap();
    writer.finish().unwrap();
    let mut body = Vec::new();
    busy.read_to_end(&mut body).unwrap();
    assert!(body.ends_with(b"\r\n0\r\n\r\n") && body.len() > LEN);
    let (unix, stats) = (server.unix.clone(), server.stats());
    assert_eq!(stats.cut, 0);
    server.join();
    assert!(!unix.exists(), "the socket file stayed");
}

#[test]
fn a_request_that_takes_too_long_is_cut() {
    let (bytes, key) = (content(LEN), key(LEN));
    let (mut writer, chunk) = growing(&key);
    let options = ServerOptions {
        drain_timeout: Duration::from_millis(50),
        fill_timeout: Duration::from_millis(200),
        ..ServerOptions::default()
    };
    let server = start(options, Service::of(ChunkBody::Memory(chunk)));
    let mut busy = server.connect();
    busy.write_all(plain_request(&key, "").as_bytes()).unwrap();
    writer.write(&bytes[..1 << 20]).unwrap();
    read_head(&mut busy);
    server.join();
    let mut body = Vec::new();
    let _ = busy.read_to_end(&mut body);
    assert!(!body.ends_with(b"0\r\n\r\n"));
}
