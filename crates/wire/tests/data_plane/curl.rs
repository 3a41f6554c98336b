//! The protocol as curl sees it: a client we did not write.

use std::process::{Command, Output};

use longshore_types::BlockChecksum;
use longshore_wire::{ChunkBody, ServerOptions};

use crate::support::*;

const LEN: usize = (2 << 20) + 10;

fn curl(arguments: &[&str]) -> Output {
    let output = Command::new("curl").args(["--silent", "--show-error", "--max-time", "30"]).args(arguments).output();
    output.expect("curl is needed by this test: install it")
}

fn url(server: &Running) -> String {
    let request = plain_request(&key(LEN), "");
    format!("http://{}{}", server.tcp, request.split(' ').nth(1).unwrap())
}

#[test]
fn ranges_heads_and_pages() {
    let bytes = content(LEN);
    let sums = BlockChecksum::of_blocks(&bytes);
    let server = start(ServerOptions::default(), Service::of(file_body(&bytes)));
    let url = url(&server);
    assert!(curl(&[&url]).stdout == bytes);
    assert_eq!(curl(&["-H", "Range: bytes=0-99", &url]).stdout, &bytes[..100]);
    assert_eq!(curl(&["-r", "-7", &url]).stdout, &bytes[LEN - 7..]);
    assert_eq!(curl(&["-r", "1048570-1048579", &url]).stdout, &bytes[1_048_570..1_048_580]);

    let head = String::from_utf8(curl(&["-I", "-r", "1048570-1048579", &url]).stdout).unwrap();
    assert!(head.starts_with("HTTP/1.1 206 Partial Content\r\n"), "{head}");
    for header in [
        format!("Content-Range: bytes 1048570-1048579/{LEN}"),
        "Content-Length: 10".into(),
        "Longshore-Tier: disk".into(),
        format!("Longshore-Checksums: {},{}", sums[0], sums[1]),
    ] {
        assert!(head.contains(&format!("{header}\r\n")), "{head} lacks {header}");
    }
    assert_eq!(curl(&[&format!("http://{}/healthz", server.tcp)]).stdout, b"ok\n");
    let unix = server.unix.to_str().unwrap();
    assert_eq!(curl(&["--unix-socket", unix, "http://localhost/healthz"]).stdout, b"ok\n");
    assert!(curl(&["--unix-socket", unix, &url.replace(&server.tcp, "localhost")]).stdout == bytes);
    assert_eq!(curl(&["-f", &format!("http://{}/nothing", server.tcp)]).status.code(), Some(22));
    assert!(curl(&["-0", &url]).stdout == bytes);
    let twice = curl(&[&url, &url]);
    assert_eq!(twice.stdout.len(), 2 * LEN);
}

#[test]
fn a_filling_chunk() {
    let (bytes, key) = (content(LEN), key(LEN));
    let (mut writer, chunk) = growing(&key);
    let server = start(ServerOptions::default(), Service::of(ChunkBody::Memory(chunk)));
    let url = url(&server);
    std::thread::scope(|scope| {
        let curling = scope.spawn(|| curl(&[&url]));
        writer.write(&bytes[..1 << 20]).unwrap();
        until("the first block is sent", || server.stats().sent_bytes == 1 << 20);
        writer.write(&bytes[1 << 20..]).unwrap();
        writer.finish().unwrap();
        assert!(curling.join().unwrap().stdout == bytes);
    });
}

#[test]
fn a_fill_that_fails_is_an_error_for_curl_too() {
    let (bytes, key) = (content(LEN), key(LEN));
    let (mut writer, chunk) = growing(&key);
    let server = start(ServerOptions::default(), Service::of(ChunkBody::Memory(chunk)));
    let url = url(&server);
    std::thread::scope(|scope| {
        let curling = scope.spawn(|| curl(&[&url]));
        writer.write(&bytes[..1 << 20]).unwrap();
        until("the first block is sent", || server.stats().sent_bytes == 1 << 20);
        writer.fail(not_found());
        let status = curling.join().unwrap().status;
        // 18: the transfer ended early. 56: the connection failed while receiving.
        assert!(matches!(status.code(), Some(18 | 56)), "{status}");
    });
}
