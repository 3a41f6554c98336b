//! A body on its connection.

use std::io::{self, IoSliceMut};
use std::sync::Arc;

use super::pool::{Place, Pool};
use super::wire::Wire;
use crate::sink::scatter;

/// A body that is yet to be received, by a thread that may block. Dropped before its end, it closes the connection.
pub(crate) struct StraightBody {
    wire: Option<Wire>,
    /// What came with the head, and how much of it was taken.
    early: Vec<u8>,
    early_at: usize,
    /// Bytes that are yet to come, the early ones included.
    left: u64,
    pool: Option<(Arc<Pool>, Place)>,
    is_blocking: bool,
}

impl StraightBody {
    pub(super) fn new(wire: Wire, early: Vec<u8>, len: u64, pool: Option<(Arc<Pool>, Place)>) -> StraightBody {
        let has_more = early.len() as u64 > len;
        // What comes behind the body was not asked for.
        let pool = pool.filter(|_| !has_more);
        StraightBody { wire: Some(wire), early, early_at: 0, left: len, pool, is_blocking: false }
    }

    /// Bytes that are yet to come.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// Receives into the front of `slices`, which must not have more room than bytes are left. 0: the connection ended.
    ///
    /// # Errors
    /// `WouldBlock` after a tick without a byte, else what broke the connection.
    pub(crate) fn receive(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let Some(wire) = &mut self.wire else { return Ok(0) };
        let early = &self.early[self.early_at..];
        let early = &early[..early.len().min(usize::try_from(self.left).unwrap_or(usize::MAX))];
        let len = if early.is_empty() {
            if !std::mem::replace(&mut self.is_blocking, true) {
                wire.block()?;
            }
            wire.receive(slices)?
        } else {
            let len = scatter(early, slices);
            self.early_at += len;
            len
        };
        self.left = self.left.saturating_sub(len as u64);
        if self.left == 0
            && let (Some(wire), Some((pool, place))) = (self.wire.take(), self.pool.take())
            && let Some(wire) = wire.into_idle()
        {
            pool.put(place, wire);
        }
        Ok(len)
    }
}
