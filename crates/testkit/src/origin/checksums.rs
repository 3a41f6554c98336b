//! Checksums that clients send along and ask for, in the words of S3.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use crc_fast::CrcAlgorithm;
use longshore_types::BlockChecksum;
use sha2::{Digest, Sha256};

use super::request::Ask;
use super::stores::Failure;
use super::{Dialect, Quirks};

const PREFIX: &str = "x-amz-checksum-";
/// Words behind the prefix that are no algorithms.
const WORDS: [&str; 3] = ["algorithm", "mode", "type"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Crc64Nvme,
    Crc32,
    Crc32c,
    Sha256,
}

impl Algorithm {
    const ALL: [Algorithm; 4] = [Algorithm::Crc64Nvme, Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Sha256];

    /// As in `x-amz-checksum-algorithm` and in elements of XML.
    pub(super) fn name(self) -> &'static str {
        match self {
            Algorithm::Crc64Nvme => "CRC64NVME",
            Algorithm::Crc32 => "CRC32",
            Algorithm::Crc32c => "CRC32C",
            Algorithm::Sha256 => "SHA256",
        }
    }

    pub(super) fn header(self) -> &'static str {
        match self {
            Algorithm::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Algorithm::Crc32 => "x-amz-checksum-crc32",
            Algorithm::Crc32c => "x-amz-checksum-crc32c",
            Algorithm::Sha256 => "x-amz-checksum-sha256",
        }
    }

    pub(super) fn parse(name: &str) -> Result<Algorithm, Failure> {
        let found = Algorithm::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name));
        found.ok_or_else(|| Failure::new(501, "NotImplemented", format!("checksum algorithm {name} is not known here")))
    }

    pub(super) fn hasher(self) -> Hasher {
        let crc = |algorithm| Hasher::Crc(self, crc_fast::Digest::new(algorithm));
        match self {
            Algorithm::Crc64Nvme => crc(CrcAlgorithm::Crc64Nvme),
            Algorithm::Crc32 => crc(CrcAlgorithm::Crc32IsoHdlc),
            Algorithm::Crc32c => crc(CrcAlgorithm::Crc32Iscsi),
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
        }
    }
}

/// A checksum in the making.
pub(super) enum Hasher {
    Crc(Algorithm, crc_fast::Digest),
    Sha256(Sha256),
}

impl Hasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Crc(_, digest) => digest.update(bytes),
            Hasher::Sha256(digest) => digest.update(bytes),
        }
    }

    /// Most significant byte first.
    pub(super) fn finish(self) -> Vec<u8> {
        match self {
            Hasher::Crc(Algorithm::Crc64Nvme, digest) => digest.finalize().to_be_bytes().to_vec(),
            Hasher::Crc(_, digest) => digest.finalize().to_be_bytes()[4..].to_vec(),
            Hasher::Sha256(digest) => digest.finalize().to_vec(),
        }
    }
}

/// A checksum as it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stated {
    pub(super) algorithm: Algorithm,
    /// In base64; of an object of several parts, with `-N` behind it when it is the checksum of their checksums.
    pub(super) text: String,
}

impl Stated {
    pub(super) fn of(algorithm: Algorithm, raw: &[u8]) -> Stated {
        Stated { algorithm, text: BASE64_STANDARD.encode(raw) }
    }

    pub(super) fn crc64(checksum: BlockChecksum) -> Stated {
        Stated::of(Algorithm::Crc64Nvme, &checksum.0.to_be_bytes())
    }

    /// The checksum of the checksums of parts.
    pub(super) fn composite<'a>(algorithm: Algorithm, parts: impl ExactSizeIterator<Item = &'a Stated>) -> Stated {
        let count = parts.len();
        let mut hasher = algorithm.hasher();
        parts.for_each(|part| hasher.update(&BASE64_STANDARD.decode(&part.text).unwrap_or_default()));
        Stated { algorithm, text: format!("{}-{count}", BASE64_STANDARD.encode(hasher.finish())) }
    }

    /// The checksum of parts of these lengths, one behind the other; only of CRCs.
    pub(super) fn combined<'a>(algorithm: Algorithm, parts: impl Iterator<Item = (&'a Stated, u64)>) -> Stated {
        let crc = match algorithm {
            Algorithm::Crc32c => CrcAlgorithm::Crc32Iscsi,
            Algorithm::Crc32 => CrcAlgorithm::Crc32IsoHdlc,
            _ => CrcAlgorithm::Crc64Nvme,
        };
        let raw = |stated: &Stated| {
            let bytes = BASE64_STANDARD.decode(&stated.text).unwrap_or_default();
            bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let combine = |sum, (part, len): (&Stated, u64)| crc_fast::checksum_combine(crc, sum, raw(part), len);
        let sum = parts.fold(crc_fast::Digest::new(crc).finalize(), combine);
        let bytes = sum.to_be_bytes();
        Stated::of(algorithm, if algorithm == Algorithm::Crc64Nvme { &bytes } else { &bytes[4..] })
    }

    pub(super) fn kind(&self) -> &'static str {
        if self.text.contains('-') { "COMPOSITE" } else { "FULL_OBJECT" }
    }

    /// The header that says so in an answer of S3 or of Google.
    pub(super) fn answer_header(&self, dialect: Dialect) -> (&'static str, String) {
        match dialect {
            Dialect::Gcs => (GOOGLE_HASH, format!("crc32c={}", self.text)),
            _ => (self.algorithm.header(), self.text.clone()),
        }
    }

    pub(super) fn element(&self) -> String {
        let name = self.algorithm.name();
        format!("<Checksum{name}>{}</Checksum{name}>", self.text)
    }
}

/// The checksum that a request states in a header.
pub(super) fn stated(ask: &Ask, quirks: &Quirks) -> Result<Option<Stated>, Failure> {
    if quirks.rejects_checksums && ask.headers.keys().any(|name| name.as_str().starts_with(PREFIX)) {
        return Err(not_implemented());
    }
    if quirks.has_no_checksums {
        return Ok(None);
    }
    let mut found = None;
    for (name, value) in &ask.headers {
        let Some(word) = name.as_str().strip_prefix(PREFIX).filter(|word| !WORDS.contains(word)) else { continue };
        let text = value.to_str().unwrap_or_default().to_owned();
        if found.replace(Stated { algorithm: Algorithm::parse(word)?, text }).is_some() {
            let message = "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.";
            return Err(Failure::new(400, "InvalidRequest", message));
        }
    }
    Ok(found)
}

/// Google's header for the CRC-32C that it keeps of every object.
pub(super) const GOOGLE_HASH: &str = "x-goog-hash";

/// The CRC-32C that a request to Google states.
pub(super) fn stated_to_google(ask: &Ask) -> Option<Stated> {
    let hashes = ask.headers.get_all(GOOGLE_HASH).iter().filter_map(|value| value.to_str().ok());
    let mut kinds = hashes.flat_map(|hashes| hashes.split(','));
    let text = kinds.find_map(|hash| hash.trim().strip_prefix("crc32c="))?;
    Some(Stated { algorithm: Algorithm::Crc32c, text: text.to_owned() })
}

/// The checksum that a request states behind its body.
pub(super) fn trailer(ask: &Ask, quirks: &Quirks) -> Result<Option<Algorithm>, Failure> {
    let Some(name) = ask.text("x-amz-trailer").and_then(|name| name.strip_prefix(PREFIX)) else { return Ok(None) };
    if quirks.rejects_checksums {
        return Err(not_implemented());
    }
    if quirks.has_no_checksums { Ok(None) } else { Algorithm::parse(name).map(Some) }
}

fn not_implemented() -> Failure {
    Failure::new(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
}

/// The error of S3 for bytes that are not those that were sent.
pub(super) fn mismatch(algorithm: Algorithm) -> Failure {
    let name = algorithm.name();
    Failure::new(400, "BadDigest", format!("The {name} you specified did not match the calculated checksum."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        // Check values of the catalogue of parametrised CRC algorithms, of "123456789".
        let of = |algorithm: Algorithm| {
            let mut hasher = algorithm.hasher();
            hasher.update(b"123456789");
            hasher.finish()
        };
        assert_eq!(of(Algorithm::Crc64Nvme), 0xae8b_1486_0a79_9888_u64.to_be_bytes());
        assert_eq!(of(Algorithm::Crc32), 0xcbf4_3926_u32.to_be_bytes());
        assert_eq!(of(Algorithm::Crc32c), 0xe306_9283_u32.to_be_bytes());
        assert_eq!(
            Stated::crc64(BlockChecksum::of(b"123456789")),
            Stated::of(Algorithm::Crc64Nvme, &of(Algorithm::Crc64Nvme))
        );
    }
}
