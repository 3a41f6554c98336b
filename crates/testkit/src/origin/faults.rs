//! What can be made to go wrong, and when.

mod misbehaviour;

use std::ops::Range;

use longshore_types::names;
use serde::{Deserialize, Serialize};

pub(super) use misbehaviour::Misbehaviour;

/// Kind of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Bytes of an object.
    Get,
    /// Metadata of an object.
    Head,
    /// A listing, or the hub's answers about a repository.
    List,
    /// An upload of a whole object.
    Put,
    /// A deletion of one object or of many.
    Delete,
    /// The begin of a multipart upload.
    CreateUpload,
    /// One part of it.
    UploadPart,
    /// Its completion.
    CompleteUpload,
    /// Its end without an object.
    AbortUpload,
    /// A listing of uploads, or of the parts of one.
    ListUploads,
}

impl Verb {
    /// Whether the body of the request, and not that of the answer, is the content of an object.
    pub(super) fn brings_content(self) -> bool {
        matches!(self, Verb::Put | Verb::UploadPart)
    }
}

/// What goes wrong. Of requests that bring a body, faults of bodies are about that one, of others about the answer's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The answer starts that much later.
    LatencyMs(u64),
    /// The body comes at that many bytes a second.
    BytesPerSecond(u64),
    /// The connection is cut after that many bytes of the body.
    CutAfter(u64),
    /// The answer is this HTTP status and an error in the words of the dialect.
    Status(u16),
    /// The answer is that error.
    Answer {
        /// HTTP status.
        status: u16,
        /// In the words of the store, for instance `SlowDown`.
        code: String,
        /// `Retry-After`, in seconds.
        #[serde(default)]
        retry_after_s: Option<u64>,
    },
    /// The byte at this offset of the object is served with one bit flipped; of an upload, the byte at this offset of
    /// its body comes in so. Counts only requests that cover it.
    FlipBit(u64),
    /// What is uploaded comes in well, and is kept with one bit flipped at this offset of the body. The version and the
    /// checksum that the store tells are those of what came in. Counts only requests that cover it.
    FlipStored(u64),
    /// The object is replaced by one with other bytes of the same length, and another ETag, before the answer.
    Replace,
    /// The object is deleted before the answer.
    Remove,
    /// No answer ever comes.
    Hang,
    /// The body stops after that many bytes, and the connection stays open.
    HangAfter(u64),
    /// What was asked for is done, and the connection is closed without an answer.
    ReplyLost,
    /// What was asked for is done, and no answer ever comes.
    ReplyHangs,
    /// Nothing is done, and the answer is 200 with an error in its body, as S3 answers when completing an upload or
    /// copying fails late.
    ErrorInBody,
}

impl FaultKind {
    /// An error in the words of the store.
    pub fn answer(status: u16, code: &str) -> FaultKind {
        FaultKind::Answer { status, code: code.to_owned(), retry_after_s: None }
    }

    /// 503 with `Retry-After`.
    pub fn slow_down(retry_after_s: u64) -> FaultKind {
        FaultKind::Answer { status: 503, code: "SlowDown".to_owned(), retry_after_s: Some(retry_after_s) }
    }

    /// Temporary credentials have expired. AWS says so with 400; others with 403, which [`FaultKind::answer`] can.
    pub fn expired_token() -> FaultKind {
        FaultKind::answer(400, "ExpiredToken")
    }

    /// The quota of the bucket is used up.
    pub fn quota() -> FaultKind {
        FaultKind::answer(403, "QuotaExceeded")
    }
}

fn forever() -> u64 {
    u64::MAX
}

fn everything() -> String {
    "*".to_owned()
}

/// A fault, and the requests it is for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fault {
    /// Pattern of the object's path (`*` and `?`), for instance `bucket/*.safetensors`.
    #[serde(default = "everything")]
    pub keys: String,
    /// Only for this kind of request.
    #[serde(default)]
    pub verb: Option<Verb>,
    /// So many matching requests are answered well first.
    #[serde(default)]
    pub skip: u64,
    /// Then so many are not.
    #[serde(default = "forever")]
    pub times: u64,
    /// What goes wrong.
    pub kind: FaultKind,
}

impl Fault {
    /// A fault of every GET of an object, for ever.
    pub fn new(kind: FaultKind) -> Fault {
        Fault { keys: everything(), verb: Some(Verb::Get), skip: 0, times: forever(), kind }
    }

    /// Only for paths like `pattern`.
    #[must_use]
    pub fn on(self, pattern: &str) -> Fault {
        Fault { keys: pattern.to_owned(), ..self }
    }

    /// For another kind of request.
    #[must_use]
    pub fn verb(self, verb: Verb) -> Fault {
        Fault { verb: Some(verb), ..self }
    }

    /// For every kind of request.
    #[must_use]
    pub fn any_verb(self) -> Fault {
        Fault { verb: None, ..self }
    }

    /// Only so many times.
    #[must_use]
    pub fn times(self, times: u64) -> Fault {
        Fault { times, ..self }
    }

    /// Only after so many matching requests.
    #[must_use]
    pub fn skip(self, skip: u64) -> Fault {
        Fault { skip, ..self }
    }

    /// Whether the request is one of those, counted down.
    fn strikes(&mut self, verb: Verb, path: &str, range: Option<&Range<u64>>) -> bool {
        let covered = match (&self.kind, range) {
            (FaultKind::FlipBit(offset) | FaultKind::FlipStored(offset), Some(range)) => range.contains(offset),
            (FaultKind::FlipBit(_) | FaultKind::FlipStored(_), None) => false,
            _ => true,
        };
        if self.times == 0 || !covered || self.verb.is_some_and(|v| v != verb) || !names::matches(&self.keys, path) {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.times -= 1;
        true
    }
}

/// Collects the faults that strike a request. `range` is what it asks for or brings, when it is about bytes.
pub(super) fn strike(faults: &mut [Fault], verb: Verb, path: &str, range: Option<&Range<u64>>) -> Misbehaviour {
    let mut all = Misbehaviour::default();
    for fault in faults.iter_mut() {
        if fault.strikes(verb, path, range) {
            all.add(&fault.kind);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_those_it_is_for_and_as_often_as_told() {
        let mut faults = [Fault::new(FaultKind::Status(503)).on("b/*.bin").skip(1).times(2)];
        let mut go = |verb, path| strike(&mut faults, verb, path, None).count;
        assert_eq!(go(Verb::Head, "b/x.bin"), 0);
        assert_eq!(go(Verb::Get, "b/x.txt"), 0);
        let struck: Vec<u64> = (0..5).map(|_| go(Verb::Get, "b/x.bin")).collect();
        assert_eq!(struck, [0, 1, 1, 0, 0]);
    }

    #[test]
    fn a_flip_counts_requests_that_cover_it() {
        let mut faults = [Fault::new(FaultKind::FlipBit(10)).times(1)];
        assert_eq!(strike(&mut faults, Verb::Get, "k", Some(&(0..10))).count, 0);
        assert_eq!(strike(&mut faults, Verb::Get, "k", Some(&(0..11))).flips, [10]);
        assert_eq!(strike(&mut faults, Verb::Get, "k", Some(&(0..11))).count, 0);
    }
}
