//! What sending a part costs beside writing the same bytes to a socket. The server is a thread that throws bytes away.
//!
//! Hypothesis: one pass for the checksum and one for the kernel's copy, so at most a third above the plain write.
//! `cargo run --release --example upload_cost -p longshore-origin`; both ways in turns, the best of five each.

// An example may fail as a test may.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use longshore_origin::{OriginOptions, Origins, UploadId};

const PART_BYTES: usize = 32 << 20;
const PARTS: u32 = 16;
const AT_ONCE: usize = 4;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nETag: \"x\"\r\nContent-Length: 0\r\n\r\n";

/// Answers every request with an ETag, after reading its body.
fn serve(connection: TcpStream) -> Option<()> {
    let mut writer = connection.try_clone().ok()?;
    let mut reader = BufReader::with_capacity(1 << 20, connection);
    let mut line = String::new();
    loop {
        let mut len: u64 = 0;
        loop {
            line.clear();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let header = line.trim_end().to_ascii_lowercase();
            if let Some(value) = header.strip_prefix("content-length: ") {
                len = value.parse().ok()?;
            }
            if header.is_empty() {
                break;
            }
        }
        let mut body = reader.by_ref().take(len);
        loop {
            let n = body.fill_buf().ok()?.len();
            if n == 0 {
                break;
            }
            body.consume(n);
        }
        writer.write_all(ANSWER).ok()?;
    }
}

fn start() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            std::thread::spawn(move || serve(connection));
        }
    });
    address
}

fn plain(address: SocketAddr, part: &Bytes) -> Duration {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                let mut connection = TcpStream::connect(address).unwrap();
                for _ in 0..PARTS as usize / AT_ONCE {
                    let head = format!("PUT /x HTTP/1.1\r\nContent-Length: {}\r\n\r\n", part.len());
                    connection.write_all(head.as_bytes()).unwrap();
                    connection.write_all(part).unwrap();
                    let mut answer = [0; ANSWER.len()];
                    connection.read_exact(&mut answer).unwrap();
                }
            });
        }
    });
    start.elapsed()
}

async fn ours(origins: &Origins, part: &Bytes) -> Duration {
    use futures::StreamExt;
    let id: UploadId = serde_json::from_str("\"c id\"").unwrap();
    let start = Instant::now();
    let sends = (0..PARTS).map(|i| origins.upload_part("s3://bucket/x", &id, i, part.clone()));
    let sent: Vec<_> = futures::stream::iter(sends).buffer_unordered(AT_ONCE).collect().await;
    assert!(sent.into_iter().all(|part| part.is_ok()));
    start.elapsed()
}

#[tokio::main]
async fn main() {
    let address = start();
    let options = OriginOptions {
        s3_endpoint: Some(format!("http://{address}")),
        s3_access_key_id: Some("id".to_owned()),
        s3_secret_access_key: Some("secret".into()),
        ..OriginOptions::default()
    };
    let origins = Origins::new(options).unwrap();
    let part = Bytes::from(vec![7; PART_BYTES]);
    let (mut best_plain, mut best_ours) = (Duration::MAX, Duration::MAX);
    for _ in 0..5 {
        let for_plain = part.clone();
        let plain = tokio::task::spawn_blocking(move || plain(address, &for_plain)).await.unwrap();
        best_plain = best_plain.min(plain);
        best_ours = best_ours.min(ours(&origins, &part).await);
    }
    let rate = |time: Duration| PART_BYTES as f64 * f64::from(PARTS) / 1e6 / time.as_secs_f64();
    println!("plain {:.0} MB/s, ours {:.0} MB/s", rate(best_plain), rate(best_ours));
}
