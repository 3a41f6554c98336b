//! A range read that goes on where it was cut off: the loop around [`Backend::open`].

mod into;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use longshore_types::{Artifact, Code, Error, Result};
use tokio::sync::OwnedSemaphorePermit;

use crate::backend::{Backend, Body};
use crate::fault::{Attempt, Fault};
use crate::lane::Budget;
use crate::stats::count;

pub(crate) use into::read_into;

/// Streams exactly `range` of that version of the object, or ends with an error.
pub(crate) fn read(
    backend: Arc<dyn Backend>,
    artifact: Arc<Artifact>,
    range: Range<u64>,
) -> BoxStream<'static, Result<Bytes>> {
    if let Err(error) = check_range(&artifact, &range) {
        return stream::once(async { Err(error) }).boxed();
    }
    let budget = backend.lane().budget();
    let reader = Reader { backend, artifact, next: range.start, end: range.end, budget, open: None };
    stream::try_unfold(reader, |mut reader| async move {
        let piece = reader.next_piece().await?;
        Ok(piece.map(|piece| (piece, reader)))
    })
    .boxed()
}

fn check_range(artifact: &Artifact, range: &Range<u64>) -> Result<()> {
    if range.start <= range.end && range.end <= artifact.size_bytes() {
        return Ok(());
    }
    let (start, end, url, size) = (range.start, range.end, artifact.url(), artifact.size_bytes());
    let text = format!("bytes {start}..{end} are not within {url}, which has {size} bytes");
    Err(Error::new(Code::InvalidArgument, text))
}

fn cut_off(artifact: &Artifact, next: u64, end: u64) -> Fault {
    let text = format!("{} was cut off at byte {next} of a read up to byte {end}", artifact.url());
    Fault::passing(Code::Unavailable, text)
}

fn stalled(artifact: &Artifact, next: u64, stall: Duration) -> Fault {
    let (url, seconds) = (artifact.url(), stall.as_secs_f64());
    Fault::passing(Code::Timeout, format!("{url} stalled at byte {next}: no byte came for {seconds:.1} s"))
}

fn too_much(artifact: &Artifact, next: u64, end: u64) -> Fault {
    let url = artifact.url();
    let text = format!("{url}: the origin sent more than the bytes {next}..{end} that were asked for");
    Fault::fatal(Code::Corrupt, text)
}

struct Reader {
    backend: Arc<dyn Backend>,
    artifact: Arc<Artifact>,
    /// First byte not yet handed out.
    next: u64,
    end: u64,
    budget: Budget,
    open: Option<OpenBody>,
}

/// A body that is being received. The connection counts against the origin's bound until this is dropped.
struct OpenBody {
    body: Body,
    _connection: Option<OwnedSemaphorePermit>,
}

impl Reader {
    /// The next bytes, `None` at the end of the range. Failed attempts are repeated from the byte reached.
    async fn next_piece(&mut self) -> Result<Option<Bytes>> {
        while self.next < self.end {
            match self.attempt().await {
                Ok(piece) => {
                    let len = piece.len() as u64;
                    self.next += len;
                    self.budget.progressed(len);
                    count(&self.backend.lane().counters.bytes, len);
                    if len > 0 {
                        return Ok(Some(piece));
                    }
                }
                Err(fault) => {
                    self.open = None;
                    self.backend.lane().pause(&mut self.budget, fault).await?;
                }
            }
        }
        Ok(None)
    }

    async fn attempt(&mut self) -> Attempt<Bytes> {
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let connection = self.backend.lane().connection().await;
                let body = self.backend.open(&self.artifact, self.next..self.end).await?;
                self.open.insert(OpenBody { body, _connection: connection })
            }
        };
        let stall = self.backend.lane().limits.stall;
        let (next, end) = (self.next, self.end);
        let piece = match tokio::time::timeout(stall, open.body.next()).await {
            Ok(Some(piece)) => piece?,
            Ok(None) => return Err(cut_off(&self.artifact, next, end)),
            Err(_) => return Err(stalled(&self.artifact, next, stall)),
        };
        if piece.len() as u64 > end - next {
            return Err(too_much(&self.artifact, next, end));
        }
        Ok(piece)
    }
}
