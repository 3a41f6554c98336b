//! The coding `aws-chunked`, in which Amazon's own clients send bodies whose checksum comes behind them.
//!
//! Signatures of chunks are not looked at.

use bytes::{Buf, Bytes, BytesMut};

use super::stores::Failure;

/// Longest line of a head or a trailer.
const LINE_BYTES_MAX: usize = 4096;

enum Expects {
    Head,
    Data {
        left: u64,
    },
    /// The end of the line behind the data.
    End,
    Trailer,
    Nothing,
}

pub(super) struct Decoder {
    expects: Expects,
    line: BytesMut,
    trailers: Vec<(String, String)>,
}

impl Decoder {
    pub(super) fn new() -> Decoder {
        Decoder { expects: Expects::Head, line: BytesMut::new(), trailers: Vec::new() }
    }

    /// The next bytes of the content that `coded` begins with, taken from it; `None` when it is used up.
    pub(super) fn next(&mut self, coded: &mut Bytes) -> Result<Option<Bytes>, Failure> {
        while !coded.is_empty() {
            if let Expects::Data { left } = &mut self.expects {
                let data = coded.split_to((*left).min(coded.len() as u64) as usize);
                *left -= data.len() as u64;
                if *left == 0 {
                    self.expects = Expects::End;
                }
                return Ok(Some(data));
            }
            let Some(line) = self.line(coded)? else { break };
            self.expects = match self.expects {
                Expects::Head => {
                    let size = line.split(';').next().unwrap_or_default();
                    match u64::from_str_radix(size, 16).map_err(|_| incomplete())? {
                        0 => Expects::Trailer,
                        left => Expects::Data { left },
                    }
                }
                Expects::End if line.is_empty() => Expects::Head,
                Expects::Trailer if line.is_empty() => Expects::Nothing,
                Expects::Trailer => {
                    let (name, value) = line.split_once(':').ok_or_else(incomplete)?;
                    self.trailers.push((name.trim().to_lowercase(), value.trim().to_owned()));
                    Expects::Trailer
                }
                _ => return Err(incomplete()),
            };
        }
        Ok(None)
    }

    /// A line without its end, when all of it is there.
    fn line(&mut self, coded: &mut Bytes) -> Result<Option<String>, Failure> {
        let end = coded.iter().position(|byte| *byte == b'\n');
        let part = coded.split_to(end.unwrap_or(coded.len()));
        if self.line.len() + part.len() > LINE_BYTES_MAX {
            return Err(incomplete());
        }
        self.line.extend_from_slice(&part);
        if end.is_none() {
            return Ok(None);
        }
        coded.advance(1);
        let line = String::from_utf8_lossy(&self.line.split()).trim_end_matches('\r').to_owned();
        Ok(Some(line))
    }

    /// A trailer, after the end.
    pub(super) fn trailer(&self, name: &str) -> Result<Option<&str>, Failure> {
        // The last line may be left out by those who close the body instead.
        if !matches!(self.expects, Expects::Nothing | Expects::Trailer) {
            return Err(incomplete());
        }
        Ok(self.trailers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str()))
    }
}

fn incomplete() -> Failure {
    let message = "The request body terminated unexpectedly";
    Failure::new(400, "IncompleteBody", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODED: &[u8] = b"5;chunk-signature=abc\r\nhello\r\n6\r\n world\r\n0\r\nX-Amz-Checksum-Crc32:DUoRhQ==\r\n\r\n";

    #[test]
    fn any_pieces_decode_to_the_content() {
        for size in 1..CODED.len() {
            let (mut decoder, mut content) = (Decoder::new(), Vec::new());
            for piece in CODED.chunks(size) {
                let mut piece = Bytes::from_static(piece);
                while let Some(data) = decoder.next(&mut piece).unwrap() {
                    content.extend_from_slice(&data);
                }
            }
            assert_eq!(content, b"hello world");
            assert_eq!(decoder.trailer("x-amz-checksum-crc32").unwrap(), Some("DUoRhQ=="));
        }
    }

    #[test]
    fn what_ends_early_or_is_none_is_refused() {
        for coded in [&CODED[..20], &CODED[..30], b"zz\r\n", b"3\r\nhello\r\n"] {
            let (mut decoder, mut bytes) = (Decoder::new(), Bytes::from_static(coded));
            let broken = loop {
                match decoder.next(&mut bytes) {
                    Ok(Some(_)) => {}
                    Ok(None) => break decoder.trailer("x").is_err(),
                    Err(_) => break true,
                }
            };
            assert!(broken, "{coded:?}");
        }
    }
}
