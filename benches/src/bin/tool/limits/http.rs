//! A ranged GET over a blocking socket, and nothing else of HTTP.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

/// Longest head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// What is asked for.
#[derive(Debug, Deserialize)]
pub struct Object {
    /// With the bucket, as in the request line.
    pub path: String,
    /// Its size.
    pub bytes: u64,
}

/// Fills `buffer`, which is as long as the range.
pub fn get(
    stream: &mut TcpStream,
    host: &str,
    path: &str,
    range: &Range<u64>,
    buffer: &mut [u8],
) -> anyhow::Result<()> {
    let (start, last) = (range.start, range.end - 1);
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nRange: bytes={start}-{last}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let (status, length, early) = read_head(stream)?;
    ensure!(status == 206 && length == buffer.len(), "GET {path} answered {status} with {length} bytes");
    ensure!(early.len() <= buffer.len(), "GET {path} answered with more than was asked for");
    buffer[..early.len()].copy_from_slice(&early);
    super::read_in_pieces(stream, &mut buffer[early.len()..])
}

/// Reads a response head: status, Content-Length, and the bytes of the body that came with it.
fn read_head(stream: &mut TcpStream) -> anyhow::Result<(u16, usize, Vec<u8>)> {
    let mut head = Vec::with_capacity(4096);
    let end = loop {
        if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        ensure!(head.len() < HEAD_BYTES_MAX, "a response head of more than 64 KiB");
        let mut piece = [0u8; 4096];
        match stream.read(&mut piece)? {
            0 => bail!("the server closed the connection"),
            len => head.extend_from_slice(&piece[..len]),
        }
    };
    let text = std::str::from_utf8(&head[..end])?;
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).context("a status line")?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok()).flatten()
    });
    Ok((status, length.unwrap_or(0), head.split_off(end)))
}
