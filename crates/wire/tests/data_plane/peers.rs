//! Servers that lie, break off or say nothing. The client gives an error, in time, and allocates nothing they ask for.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use longshore_memory::Landing;
use longshore_memory::fdpass::send_with_fds;
use longshore_types::{BlockChecksum, Code, Error};
use longshore_wire::{ChunkRequest, ClientOptions, DataClient, Endpoint};
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use crate::support::*;

const LEN: usize = (1 << 20) + 100;

/// Fetches from a peer that reads one request and then does `answer`.
fn ask(client: &DataClient, answer: impl Fn(UnixStream) + Send) -> Result<Vec<u8>, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peer.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            read_head(&mut stream);
            answer(stream);
        });
        fetch(client, &Endpoint::Unix(path), &ChunkRequest::whole(key(LEN))).map(|(bytes, _)| bytes)
    })
}

/// An answer of fixed bytes. The client may hang up before it has all of them.
fn say(bytes: Vec<u8>) -> impl Fn(UnixStream) + Send {
    move |mut stream| drop(stream.write_all(&bytes))
}

fn sums() -> String {
    let sums: Vec<String> = BlockChecksum::of_blocks(&content(LEN)).iter().map(ToString::to_string).collect();
    sums.join(",")
}

/// A chunked body of the right blocks, each with the checksum `wrong` makes of the right one.
fn chunked_body(spoil: impl Fn(u64) -> u64) -> Vec<u8> {
    let mut body = b"HTTP/1.1 200 OK\r\nLongshore-Tier: origin\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for block in content(LEN).chunks(1 << 20) {
        let sum = BlockChecksum(spoil(BlockChecksum::of(block).0));
        body.extend(format!("{:x};crc64nvme={sum}\r\n", block.len()).into_bytes());
        body.extend(block);
        body.extend(b"\r\n");
    }
    body
}

#[test]
fn a_peer_that_keeps_to_the_protocol_is_understood() {
    let mut plain =
        format!("HTTP/1.1 200 OK\r\nLongshore-Tier: disk\r\nLongshore-Checksums: {}\r\n", sums()).into_bytes();
    plain.extend(format!("Content-Length: {LEN}\r\n\r\n").into_bytes());
    plain.extend(content(LEN));
    assert!(ask(&client(), say(plain)).unwrap() == content(LEN));
    let mut chunked = chunked_body(|sum| sum);
    chunked.extend(b"0\r\n\r\n");
    assert!(ask(&client(), say(chunked)).unwrap() == content(LEN));
}

#[test]
fn who_gives_up_is_not_kept_by_a_silent_peer() {
    let (gone, left) = std::sync::mpsc::channel::<()>();
    let left = std::sync::Mutex::new(left);
    let silences: [(&str, Vec<u8>); 3] = [
        ("no answer at all", Vec::new()),
        ("half a head", b"HTTP/1.1 200 OK\r\nConte".to_vec()),
        ("half a body", chunked_body(|sum| sum)[..500_000].to_vec()),
    ];
    for (what, begin) in silences {
        let stop = CancellationToken::new();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                read_head(&mut stream);
                stream.write_all(&begin).unwrap();
                stop.cancel();
                // Silent, and there, until the client has left.
                left.lock().unwrap().recv().unwrap();
            });
            let began = std::time::Instant::now();
            let mut landing =
                Landing::builder().buffer(buffer(LEN), std::iter::once(0..LEN).collect()).build().unwrap();
            let request = ChunkRequest::whole(key(LEN));
            let error = client().fetch_until(&Endpoint::Unix(path), &request, &mut landing, &stop).unwrap_err();
            gone.send(()).unwrap();
            assert_eq!(error.code(), Code::Cancelled, "{what}: {error}");
            assert!(began.elapsed() < PATIENCE / 2, "{what}: within a small part of the stall timeout");
        });
    }
}

#[test]
fn lies_and_cuts_are_errors() {
    let head = "HTTP/1.1 200 OK\r\nLongshore-Tier: disk\r\n";
    let sums = sums();
    let client = client();
    let unavailable = |bytes: Vec<u8>, why: &str| {
        let error = ask(&client, say(bytes)).unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert!(error.message().contains(why), "{error} lacks: {why}");
    };
    unavailable(Vec::new(), "closed the connection");
    unavailable(b"HTTP/1.1 200 OK\r\nConte".to_vec(), "closed the connection");
    unavailable(b"SSH-2.0-OpenSSH_9\r\n".to_vec(), "not HTTP");
    unavailable(format!("HTTP/1.1 200 OK\r\nContent-Length: {LEN}\r\n\r\n").into(), "without its tier");
    unavailable(format!("{head}Content-Length: 5\r\n\r\n12345").into(), "another length");
    unavailable(format!("{head}Content-Length: {}\r\n\r\n", u64::MAX).into(), "another length");
    unavailable(format!("{head}Content-Length: {LEN}\r\n\r\n").into(), "one checksum for each block");
    unavailable(
        format!("{head}Longshore-Checksums: {}\r\nContent-Length: {LEN}\r\n\r\n", &sums[..16]).into(),
        "one checksum",
    );
    unavailable(format!("{head}Longshore-Checksums: {sums}\r\nContent-Length: {LEN}\r\n\r\nshort").into(), "closed");
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
    unavailable(format!("{chunked}0\r\n\r\n").into(), "not one block");
    unavailable(format!("{chunked}ffffffffffffffff;crc64nvme=0123456789abcdef\r\n").into(), "not one block");
    unavailable(format!("{chunked}100000\r\n").into(), "without its checksum");
    unavailable(format!("{chunked}{}", "1".repeat(1000)).into(), "too long");
    unavailable(chunked_body(|sum| sum), "closed the connection");
    let mut more = chunked_body(|sum| sum);
    more.extend(b"5;crc64nvme=0123456789abcdef\r\nhello\r\n0\r\n\r\n");
    unavailable(more, "more than was asked for");
    let endless = format!("HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n{}", u64::MAX, "no\u{7}".repeat(9000));
    let error = ask(&client, say(endless.into())).unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().len() < 5000 && !error.message().contains('\u{7}'));
    assert_eq!(ask(&client, say(chunked_body(|sum| sum ^ 1))).unwrap_err().code(), Code::Corrupt);
}

#[test]
fn silence_is_a_timeout_wherever_it_falls() {
    let stall_timeout = Duration::from_millis(50);
    let client = DataClient::new(ClientOptions { stall_timeout, ..ClientOptions::default() });
    let head = format!("HTTP/1.1 200 OK\r\nLongshore-Tier: disk\r\nLongshore-Checksums: {}\r\n", sums());
    for begin in ["", "HTTP/1.1 2", &format!("{head}Content-Length: {LEN}\r\n\r\nsome bytes")] {
        let error = ask(&client, |mut stream| {
            stream.write_all(begin.as_bytes()).unwrap();
            // Until the client hangs up.
            let _ = stream.read(&mut [0]);
        });
        let error = error.unwrap_err();
        assert_eq!(error.code(), Code::Timeout, "{error}");
        assert!(error.message().contains("50ms"), "{error}");
    }
}

#[test]
fn descriptors_are_taken_only_as_agreed() {
    let (pipe, _write) = std::io::pipe().unwrap();
    let file = tempfile::tempfile().unwrap();
    let fds = [pipe.as_fd(), file.as_fd()];
    let head = "HTTP/1.1 200 OK\r\nLongshore-Tier: disk\r\nLongshore-Fd: 1\r\n";
    let good = format!("{head}Longshore-Offset: 0\r\nLongshore-Checksums: {}\r\nContent-Length: 0\r\n\r\n", sums());
    let with_body = good.replace("Content-Length: 0", "Content-Length: 5") + "12345";
    let beyond = good.replace("Offset: 0", &format!("Offset: {}", u64::MAX));
    for (head, fds, code) in [
        (&good, &fds[..1], Code::Unavailable),
        (&good, &fds[..], Code::Unavailable),
        (&good, &[], Code::Unavailable),
        (&with_body, &fds[1..], Code::Unavailable),
        (&good, &fds[1..], Code::Corrupt),
        (&beyond, &fds[1..], Code::Unavailable),
    ] {
        let error = ask(&client(), |stream| {
            assert_eq!(send_with_fds(stream.as_fd(), head.as_bytes(), fds).unwrap(), head.len());
        });
        assert_eq!(error.unwrap_err().code(), code, "{} descriptors: {head}", fds.len());
    }
}

#[test]
fn memory_of_a_peer_is_believed_no_more_than_its_bytes() {
    let (pipe, _write) = std::io::pipe().unwrap();
    let [good, other, short] = [content(LEN), content(LEN + 1)[1..].to_vec(), content(LEN / 2)].map(|bytes| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    });
    let head = "HTTP/1.1 200 OK\r\nLongshore-Tier: memory\r\nLongshore-Memory: 1\r\nLongshore-Offset: 0\r\n";
    let whole = format!("{head}Longshore-Checksums: {}\r\nContent-Length: 0\r\n\r\n", sums());
    let pieces: String = sums().split(',').map(|sum| format!("10\r\n{sum}\r\n")).collect();
    let growing = format!("{head}Transfer-Encoding: chunked\r\n\r\n{pieces}0\r\n\r\n");
    for answer in [&whole, &growing] {
        let hand_over = |file: &(dyn AsFd + Sync)| {
            ask(&client(), |stream| {
                assert_eq!(send_with_fds(stream.as_fd(), answer.as_bytes(), &[file.as_fd()]).unwrap(), answer.len());
            })
        };
        assert!(hand_over(&good).unwrap() == content(LEN));
        // As when the memory has been used for something else meanwhile.
        assert_eq!(hand_over(&other).unwrap_err().code(), Code::Corrupt);
        assert_eq!(hand_over(&short).unwrap_err().code(), Code::Corrupt);
        assert_eq!(hand_over(&pipe).unwrap_err().code(), Code::Unavailable);
        assert_eq!(ask(&client(), say(answer.clone().into())).unwrap_err().code(), Code::Unavailable);
    }
    for wrong in [
        whole.replace("Content-Length: 0", "Content-Length: 5") + "12345",
        whole.replace("Longshore-Offset: 0\r\n", ""),
        growing.replacen("10\r\n", "11\r\n", 1),
        growing.replacen("10\r\n", "0\r\n\r\n10\r\n", 1),
        growing.replace("\r\n0\r\n", "\r\n10\r\n"),
        growing.replace("0\r\n\r\n", ""),
    ] {
        let error = ask(&client(), |stream| {
            assert_eq!(send_with_fds(stream.as_fd(), wrong.as_bytes(), &[good.as_fd()]).unwrap(), wrong.len());
        });
        assert_eq!(error.unwrap_err().code(), Code::Unavailable, "{wrong}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn garbage_is_an_error(front in 0usize..4, cut in 0usize..200, bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let fronts = [
            String::new(),
            "HTTP/1.1 200 OK\r\n".into(),
            "HTTP/1.1 200 OK\r\nLongshore-Tier: disk\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            format!("HTTP/1.1 206 Partial Content\r\nLongshore-Tier: disk\r\nLongshore-Checksums: {}\r\nContent-Length: {LEN}\r\n\r\n", sums()),
        ];
        let front = fronts[front].as_bytes();
        let answer = [&front[..front.len().saturating_sub(cut / 50)], &bytes].concat();
        let client = DataClient::new(ClientOptions { stall_timeout: Duration::from_secs(5), ..ClientOptions::default() });
        prop_assert!(ask(&client, say(answer)).is_err());
    }
}
