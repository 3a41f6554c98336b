//! Filling from other workers: block by block over the data plane, verified on arrival, resumed elsewhere on failure.

use std::sync::Arc;

use longshore_memory::{Buffer, Landing};
use longshore_types::{BLOCK_BYTES, Code, Result};
use longshore_wire::{ChunkRequest, GrowingWriter, Mode, Tier};

use super::{Chunks, Fill, PEER_STEP_BYTES};
use crate::peers::{Ask, endpoint};

impl Chunks {
    /// Asks the workers of the fill's route in order. True when the chunk is whole; otherwise the writer stands at a
    /// block boundary, from where the origin goes on. No failure of a peer fails the fill: each is counted.
    pub(super) async fn write_from_peers(self: &Arc<Self>, fill: &Fill, writer: &mut GrowingWriter) -> bool {
        for ask in &fill.route.asks {
            if self.peers.health.is_suspect(ask.member.id()) {
                self.metrics.fallback("peer_suspect");
                continue;
            }
            let Err(error) = self.write_from_peer(fill, ask, writer).await else {
                self.peers.report(ask.member.id(), None);
                return true;
            };
            self.peers.report(ask.member.id(), Some(error.code()));
            if ask.mode == Mode::OnlyIfCached && error.code() == Code::NotFound {
                continue;
            }
            self.metrics.fallback("peer_failed");
            tracing::warn!(peer = %ask.member.address, code = %error.code(), %error, "peer fill failed; next source");
        }
        false
    }

    async fn write_from_peer(self: &Arc<Self>, fill: &Fill, ask: &Ask, writer: &mut GrowingWriter) -> Result<()> {
        let step_bytes = PEER_STEP_BYTES.min(fill.flight.key.len_bytes());
        let mut buffer = None;
        let mut recheck = false;
        while writer.remaining_bytes() > 0 {
            let step = Step {
                chunks: self.clone(),
                ask: ask.clone(),
                request: ChunkRequest {
                    key: fill.flight.key.clone(),
                    range: writer.written_bytes()..(writer.written_bytes() + step_bytes).min(fill.chunk.len_bytes()),
                    mode: ask.mode,
                    recheck,
                    expected: None,
                    prefers_file: false,
                },
                buffer,
            };
            // The buffer moves into the blocking call and comes back with its result.
            let fetched = tokio::task::spawn_blocking(move || step.fetch()).await;
            let fetched = fetched.map_err(|error| {
                longshore_types::Error::new(Code::Internal, format!("a fetch from a peer ended: {error}"))
            })?;
            match fetched {
                Ok((filled, len)) => {
                    fill.flight.start(Ok((fill.chunk.clone(), Tier::Peer)));
                    for block in filled[..len].chunks(BLOCK_BYTES as usize) {
                        writer.write(block)?;
                    }
                    self.metrics.fill_bytes.with_label_values(&[Tier::Peer.as_str()]).inc_by(len as u64);
                    buffer = Some(filled);
                    recheck = false;
                }
                // Once: the peer drops its bad copy and fills it again.
                Err(error) if error.code() == Code::Corrupt && !recheck => {
                    self.metrics.checksum_mismatches.with_label_values(&[Tier::Peer.as_str()]).inc();
                    buffer = None;
                    recheck = true;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// One range of a chunk, fetched from one worker.
struct Step {
    chunks: Arc<Chunks>,
    ask: Ask,
    request: ChunkRequest,
    buffer: Option<Buffer>,
}

impl Step {
    fn fetch(self) -> Result<(Buffer, usize)> {
        let len = (self.request.range.end - self.request.range.start) as usize;
        let buffer = match self.buffer {
            Some(buffer) if buffer.len() >= len => buffer,
            _ => self.chunks.store.memory.buffer(len, self.chunks.options.wait)?,
        };
        let whole = 0..len;
        let mut landing = Landing::builder().buffer(buffer, vec![whole]).build()?;
        let client = match self.ask.mode {
            Mode::OnlyIfCached => &self.chunks.copies_client,
            Mode::Fill | Mode::FromPeer => &self.chunks.client,
        };
        client.fetch(&endpoint(&self.ask.member), &self.request, &mut landing)?;
        let buffer = landing.into_buffers().pop().ok_or_else(|| {
            longshore_types::Error::new(Code::Internal, "a landing lost the buffer that it was given")
        })?;
        Ok((buffer, len))
    }
}
