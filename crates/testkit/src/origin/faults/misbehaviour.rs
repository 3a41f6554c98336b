//! What the faults of one request add up to.

use std::future::pending;
use std::io;
use std::time::Duration;

use bytes::Bytes;

use super::super::stores::Failure;
use super::FaultKind;

/// All that goes wrong with one request.
#[derive(Debug, Clone, Default)]
pub(in crate::origin) struct Misbehaviour {
    pub(in crate::origin) latency: Duration,
    pub(in crate::origin) bytes_per_second: Option<u64>,
    pub(in crate::origin) cut_after: Option<u64>,
    pub(in crate::origin) hang_after: Option<u64>,
    pub(in crate::origin) answer: Option<Failure>,
    pub(in crate::origin) flips: Vec<u64>,
    pub(in crate::origin) flips_stored: Vec<u64>,
    pub(in crate::origin) replace: bool,
    pub(in crate::origin) remove: bool,
    pub(in crate::origin) hang: bool,
    pub(in crate::origin) reply_lost: bool,
    pub(in crate::origin) reply_hangs: bool,
    pub(in crate::origin) error_in_body: bool,
    /// How many faults struck.
    pub(in crate::origin) count: u64,
}

impl Misbehaviour {
    pub(super) fn add(&mut self, kind: &FaultKind) {
        self.count += 1;
        match kind {
            FaultKind::LatencyMs(ms) => self.latency += Duration::from_millis(*ms),
            FaultKind::BytesPerSecond(rate) => self.bytes_per_second = Some((*rate).max(1)),
            FaultKind::CutAfter(bytes) => self.cut_after = Some(*bytes),
            FaultKind::HangAfter(bytes) => self.hang_after = Some(*bytes),
            FaultKind::Status(status) => self.answer = Some(Failure::of_status(*status)),
            FaultKind::Answer { status, code, retry_after_s } => {
                let failure = Failure::new(*status, code.clone(), format!("{code}, as told"));
                self.answer = Some(Failure { retry_after_s: *retry_after_s, ..failure });
            }
            FaultKind::FlipBit(offset) => self.flips.push(*offset),
            FaultKind::FlipStored(offset) => self.flips_stored.push(*offset),
            FaultKind::Replace => self.replace = true,
            FaultKind::Remove => self.remove = true,
            FaultKind::Hang => self.hang = true,
            FaultKind::ReplyLost => self.reply_lost = true,
            FaultKind::ReplyHangs => self.reply_hangs = true,
            FaultKind::ErrorInBody => self.error_in_body = true,
        }
    }

    /// Waits as long as it was told; for ever when it hangs.
    pub(in crate::origin) async fn wait(&self) {
        tokio::time::sleep(self.latency).await;
        if self.hang {
            pending::<()>().await;
        }
    }

    /// A piece of a body, which lies at `at` of the content, as it is when bits are flipped.
    pub(in crate::origin) fn spoil(&self, piece: Bytes, at: u64) -> Bytes {
        let here = at..at + piece.len() as u64;
        let mut flips = self.flips.iter().filter(|offset| here.contains(offset)).peekable();
        if flips.peek().is_none() {
            return piece;
        }
        let mut wrong = piece.to_vec();
        for offset in flips {
            wrong[(offset - at) as usize] ^= 0x10;
        }
        wrong.into()
    }

    /// As much of a piece of an upload, which lies at `at` of it, as comes in, and whether no more does.
    pub(in crate::origin) fn limit(&self, piece: Bytes, at: u64) -> (Bytes, bool) {
        let limit = [self.cut_after, self.hang_after].into_iter().flatten().min();
        match limit.map(|limit| limit.saturating_sub(at)) {
            Some(left) if left < piece.len() as u64 => (piece.slice(..left as usize), true),
            _ => (piece, false),
        }
    }

    /// The end of an upload at its limit.
    pub(in crate::origin) async fn end(&self) -> io::Error {
        if self.cut_after.is_none_or(|cut| self.hang_after.is_some_and(|hang| hang < cut)) {
            pending::<()>().await;
        }
        io::Error::other("cut off, as told")
    }
}
