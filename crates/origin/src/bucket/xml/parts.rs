//! What is remembered of a part that was sent, and the checksums that travel with bytes.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use crc_fast::CrcAlgorithm;
use longshore_types::{BlockChecksum, Code};

use crate::body::Body;
use crate::fault::{Attempt, Fault};
use crate::write::PartId;

/// Bytes up to which checksums are worked out where the call is: less than a tenth of a millisecond.
const INLINE_BYTES_MAX: u64 = 256 << 10;

/// The CRC-32C that Google keeps for every object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Crc32c(pub u32);

impl Crc32c {
    fn of(bytes: &[u8]) -> Self {
        // The value of a 32-bit CRC fills the low half.
        Crc32c(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32)
    }

    fn combine(self, next: Crc32c, next_len_bytes: u64) -> Self {
        let combined =
            crc_fast::checksum_combine(CrcAlgorithm::Crc32Iscsi, self.0.into(), next.0.into(), next_len_bytes);
        Crc32c(combined as u32)
    }

    pub fn base64(self) -> String {
        BASE64_STANDARD.encode(self.0.to_be_bytes())
    }

    /// The value in an `x-goog-hash` header, which may list several kinds.
    pub fn in_header(value: &str) -> Option<Self> {
        let text = value.split(',').find_map(|hash| hash.trim().strip_prefix("crc32c="))?;
        let bytes = BASE64_STANDARD.decode(text).ok()?;
        Some(Crc32c(u32::from_be_bytes(bytes.try_into().ok()?)))
    }
}

/// CRC-64/NVME as S3 writes it.
pub(super) fn base64_of(checksum: BlockChecksum) -> String {
    BASE64_STANDARD.encode(checksum.0.to_be_bytes())
}

/// The inverse of [`base64_of`]; `None` for a checksum of checksums (`...-3`).
pub(super) fn from_base64(text: &str) -> Option<BlockChecksum> {
    let bytes = BASE64_STANDARD.decode(text).ok()?;
    Some(BlockChecksum(u64::from_be_bytes(bytes.try_into().ok()?)))
}

/// The checksums of a run of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sums {
    pub crc64: BlockChecksum,
    /// Only worked out for Google.
    pub crc32c: Option<Crc32c>,
    pub len_bytes: u64,
}

impl Sums {
    pub async fn of(body: &Body, is_google: bool) -> Attempt<Sums> {
        let is_known = body.checksum().is_some() && !is_google;
        if is_known || body.len_bytes() <= INLINE_BYTES_MAX {
            return Ok(Sums::of_pieces(body, is_google));
        }
        let body = body.clone();
        tokio::task::spawn_blocking(move || Sums::of_pieces(&body, is_google))
            .await
            .map_err(|error| Fault::fatal(Code::Cancelled, format!("a checksum was not worked out: {error}")))
    }

    fn of_pieces(body: &Body, is_google: bool) -> Sums {
        let nothing = BlockChecksum::of(&[]);
        let mut sums = Sums { crc64: nothing, crc32c: is_google.then(|| Crc32c::of(&[])), len_bytes: 0 };
        for piece in body.pieces() {
            let len_bytes = piece.len() as u64;
            if body.checksum().is_none() {
                sums.crc64 = sums.crc64.combine(BlockChecksum::of(piece), len_bytes);
            }
            sums.crc32c = sums.crc32c.map(|crc| crc.combine(Crc32c::of(piece), len_bytes));
        }
        Sums { crc64: body.checksum().unwrap_or(sums.crc64), len_bytes: body.len_bytes(), ..sums }
    }
}

/// One part, as its [`PartId`] says: `crc64 crc32c length etag`, `-` for what is not known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Part {
    /// `None` when the store has not kept it with the part.
    pub crc64: Option<BlockChecksum>,
    pub crc32c: Option<Crc32c>,
    pub len_bytes: u64,
    pub etag: String,
}

impl Part {
    pub fn to_id(&self) -> PartId {
        let crc64 = self.crc64.map_or_else(|| "-".to_owned(), |crc| crc.to_string());
        let crc32c = self.crc32c.map_or_else(|| "-".to_owned(), |crc| format!("{:08x}", crc.0));
        PartId(format!("{crc64} {crc32c} {} {}", self.len_bytes, self.etag))
    }

    pub fn parse(id: &PartId, url: &str) -> Attempt<Part> {
        let parse = || {
            let mut words = id.0.splitn(4, ' ');
            let crc64 = match words.next()? {
                "-" => None,
                text => Some(BlockChecksum::parse(text)?),
            };
            let crc32c = match words.next()? {
                "-" => None,
                text => Some(Crc32c(u32::from_str_radix(text, 16).ok()?)),
            };
            let len_bytes = words.next()?.parse().ok()?;
            let etag = words.next().filter(|etag| !etag.is_empty())?.to_owned();
            Some(Part { crc64, crc32c, len_bytes, etag })
        };
        parse().ok_or_else(|| {
            Fault::fatal(Code::InvalidArgument, format!("a part of {url} is not one that this store gave"))
        })
    }
}

/// The checksums of the object that parts make; `None` when one of them is not known.
pub(super) fn whole(parts: &[Part]) -> Option<Sums> {
    let mut whole = Sums::of_pieces(&Body::default(), true);
    for part in parts {
        whole.crc64 = whole.crc64.combine(part.crc64?, part.len_bytes);
        whole.crc32c = Some(whole.crc32c?.combine(part.crc32c?, part.len_bytes));
        whole.len_bytes += part.len_bytes;
    }
    Some(whole)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn known_answers() {
        // The check value of CRC-32C in the catalogue of parametrised CRC algorithms.
        assert_eq!(Crc32c::of(b"123456789"), Crc32c(0xe306_9283));
        assert_eq!(Crc32c::in_header("crc32c=4waSgw==,md5=x"), Some(Crc32c(0xe306_9283)));
        assert_eq!(Crc32c::in_header("md5=x"), None);
        assert_eq!(from_base64(&base64_of(BlockChecksum(7))), Some(BlockChecksum(7)));
        assert_eq!(from_base64("AAAAAAAAAAc=-3"), None);
    }

    #[test]
    fn parts_survive_their_text_and_make_the_whole() {
        let part = |text: &str| {
            let sums = Sums::of_pieces(&Bytes::from(text.to_owned()).into(), true);
            Part { crc64: Some(sums.crc64), crc32c: sums.crc32c, len_bytes: sums.len_bytes, etag: "\"a b\"".to_owned() }
        };
        let parts = [part("1234"), part("56789")];
        for part in &parts {
            assert_eq!(&Part::parse(&part.to_id(), "u").unwrap(), part);
        }
        assert_eq!(whole(&parts), Some(Sums::of_pieces(&Bytes::from_static(b"123456789").into(), true)));
        let unknown = Part { crc64: None, ..part("x") };
        assert_eq!(Part::parse(&unknown.to_id(), "u").unwrap(), unknown);
        assert_eq!(whole(&[unknown]), None);
        for text in ["", "-", "- - 5", "- - x e", "zz - 5 e"] {
            assert_eq!(Part::parse(&PartId(text.to_owned()), "u").unwrap_err().code(), Code::InvalidArgument, "{text}");
        }
    }
}
