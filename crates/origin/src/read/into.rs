//! A range read into memory of the caller's, on the caller's thread: the loop around [`Backend::open_straight`].

use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use longshore_types::{Artifact, Code, Error, Result};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::{check_range, cut_off, stalled, too_much};
use crate::backend::{Backend, Opened};
use crate::fault::{Attempt, Fault};
use crate::lane::Budget;
use crate::sink::{Sink, scatter};
use crate::stats::count;

/// Most bytes received at once. Half of a small level-2 cache: what the sink does with them costs no trip to memory.
const PIECE_BYTES: usize = 256 << 10;

/// Reads exactly `range` of that version of the object into `sink`, or fails.
pub(crate) fn read_into(
    backend: &Arc<dyn Backend>,
    artifact: &Artifact,
    range: Range<u64>,
    sink: &mut dyn Sink,
    runtime: &Handle,
    token: &CancellationToken,
) -> Result<()> {
    check_range(artifact, &range)?;
    let budget = backend.lane().budget();
    let (next, end) = (range.start, range.end);
    let mut reader = Reader { backend, artifact, next, end, budget, open: None, runtime, token, refusal: None };
    while reader.next < reader.end {
        match reader.attempt(sink) {
            Ok(()) => {}
            Err(fault) => {
                reader.open = None;
                if let Some(error) = reader.refusal.take() {
                    return Err(error);
                }
                reader.pause(fault)?;
            }
        }
    }
    Ok(())
}

struct Reader<'a> {
    backend: &'a Arc<dyn Backend>,
    artifact: &'a Artifact,
    /// First byte not yet handed on.
    next: u64,
    end: u64,
    budget: Budget,
    open: Option<OpenBody>,
    runtime: &'a Handle,
    token: &'a CancellationToken,
    /// What the sink or the caller said: no attempt is repeated for it.
    refusal: Option<Error>,
}

/// A body that is being received. The connection counts against the origin's bound until this is dropped.
struct OpenBody {
    body: Opened,
    _connection: Option<OwnedSemaphorePermit>,
}

impl Reader<'_> {
    /// Receives some bytes.
    fn attempt(&mut self, sink: &mut dyn Sink) -> Attempt<()> {
        if self.open.is_none() {
            self.open = Some(self.open()?);
        }
        match self.open.as_mut().map(|open| &mut open.body) {
            Some(Opened::Straight(_)) => self.receive(sink),
            Some(Opened::Streamed(_)) => self.take_piece(sink),
            None => Ok(()),
        }
    }

    fn open(&mut self) -> Attempt<OpenBody> {
        let (backend, artifact, range) = (self.backend, self.artifact, self.next..self.end);
        let opened: Option<Attempt<OpenBody>> = self.runtime.block_on(self.token.run_until_cancelled(async {
            let connection = backend.lane().connection().await;
            let body = backend.open_straight(artifact, range).await?;
            Ok(OpenBody { body, _connection: connection })
        }));
        let open = match opened {
            Some(opened) => opened?,
            None => return Err(self.given_up()),
        };
        let counters = &self.backend.lane().counters;
        match &open.body {
            Opened::Straight(body) if body.left() > self.end - self.next => {
                return Err(too_much(self.artifact, self.next, self.end));
            }
            Opened::Straight(_) => count(&counters.straight_reads, 1),
            Opened::Streamed(_) => count(&counters.streamed_reads, 1),
        }
        Ok(open)
    }

    /// From the connection, until something came.
    fn receive(&mut self, sink: &mut dyn Sink) -> Attempt<()> {
        let Some(OpenBody { body: Opened::Straight(body), .. }) = &mut self.open else { return Ok(()) };
        if body.left() == 0 {
            return Err(cut_off(self.artifact, self.next, self.end));
        }
        let room = usize::try_from(body.left()).unwrap_or(usize::MAX).min(PIECE_BYTES);
        let (stall, began) = (self.backend.lane().limits.stall, Instant::now());
        let len = loop {
            if self.token.is_cancelled() {
                return Err(self.given_up());
            }
            let mut spare = sink.spare(room);
            if spare.iter().all(|slice| slice.is_empty()) {
                drop(spare);
                return Err(self.refuse(no_room(self.artifact)));
            }
            match body.receive(&mut spare) {
                Ok(0) => return Err(cut_off(self.artifact, self.next, self.end)),
                Ok(len) => break len,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if began.elapsed() >= stall {
                        return Err(stalled(self.artifact, self.next, stall));
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    let text = format!("the answer for {} broke off: {error}", self.artifact.url());
                    return Err(Fault::passing(Code::Unavailable, text));
                }
            }
        };
        self.note(len, sink)
    }

    /// From the library's stream.
    fn take_piece(&mut self, sink: &mut dyn Sink) -> Attempt<()> {
        let Some(OpenBody { body: Opened::Streamed(body), .. }) = &mut self.open else { return Ok(()) };
        let stall = self.backend.lane().limits.stall;
        let waited = self.token.run_until_cancelled(async { tokio::time::timeout(stall, body.next()).await });
        let piece = match self.runtime.block_on(waited) {
            None => return Err(self.given_up()),
            Some(Err(_)) => return Err(stalled(self.artifact, self.next, stall)),
            Some(Ok(None)) => return Err(cut_off(self.artifact, self.next, self.end)),
            Some(Ok(Some(piece))) => piece?,
        };
        if piece.len() as u64 > self.end - self.next {
            return Err(too_much(self.artifact, self.next, self.end));
        }
        let mut rest = &piece[..];
        while !rest.is_empty() {
            let len = scatter(rest, &mut sink.spare(rest.len().min(PIECE_BYTES)));
            if len == 0 {
                return Err(self.refuse(no_room(self.artifact)));
            }
            self.note(len, sink)?;
            rest = &rest[len..];
        }
        Ok(())
    }

    /// Hands on what is in the sink's memory.
    fn note(&mut self, len: usize, sink: &mut dyn Sink) -> Attempt<()> {
        if let Err(error) = sink.filled(len) {
            return Err(self.refuse(error));
        }
        self.next += len as u64;
        self.budget.progressed(len as u64);
        count(&self.backend.lane().counters.bytes, len as u64);
        Ok(())
    }

    fn pause(&mut self, fault: Fault) -> Result<()> {
        let pause = self.backend.lane().pause(&mut self.budget, fault);
        let paused = self.runtime.block_on(self.token.run_until_cancelled(pause));
        paused.unwrap_or_else(|| Err(cancelled()))
    }

    fn given_up(&mut self) -> Fault {
        self.refuse(cancelled())
    }

    fn refuse(&mut self, error: Error) -> Fault {
        self.refusal = Some(error.clone());
        error.into()
    }
}

fn cancelled() -> Error {
    Error::new(Code::Cancelled, "the read was given up")
}

fn no_room(artifact: &Artifact) -> Error {
    Error::new(Code::Internal, format!("a read of {} into memory that has no room for it", artifact.url()))
}
