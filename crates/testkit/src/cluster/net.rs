//! Ports and the smallest HTTP client.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

/// Where ports for servers are taken from: below those that the kernel gives to clients, so that no connection of
/// another test sits on one between its choice and its use.
const PORTS: std::ops::Range<u16> = 12_000..30_000;
const TIMEOUT: Duration = Duration::from_secs(5);

/// A port of the loopback on which nobody listens, and which no other call in this process gets.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    // Test processes run side by side: each begins elsewhere.
    let first = (std::process::id().wrapping_mul(7919) % u32::from(count)) as u16;
    for _ in 0..count {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % count;
        let port = PORTS.start + (first + step) % count;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port in {PORTS:?}");
}

/// Status and body of `GET http://ADDRESS/PATH`.
///
/// # Errors
/// Those of the connection, and `InvalidData` when the answer is not HTTP.
pub fn http_get(address: &str, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let parsed = text.split_once("\r\n\r\n").and_then(|(head, body)| {
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    });
    parsed.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP answer: {text:?}")))
}
