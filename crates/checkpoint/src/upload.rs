//! How many parts are on their way at once, and the memory that they take.
//!
//! All saves of a node share the permits: the number of connections and the bytes in buffers are bounded whatever happens.

use std::sync::Arc;
use std::time::Duration;

use longshore_memory::{Arena, Reservation};
use longshore_types::{Code, Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::options::CheckpointOptions;

/// How long one look for free memory takes; then the caller's token is looked at.
const MEMORY_WAIT: Duration = Duration::from_millis(500);

/// The uploads of one node.
#[derive(Debug)]
pub(crate) struct Uploads {
    permits: Arc<Semaphore>,
    memory: Arena,
    /// Parts at once.
    pub(crate) count: usize,
    /// Wanted size of a part.
    pub(crate) part_bytes: u64,
}

/// Room for one part.
pub(crate) struct Slot {
    _permit: OwnedSemaphorePermit,
    _memory: Reservation,
}

impl Uploads {
    /// Bounded as the options say.
    pub(crate) fn new(options: &CheckpointOptions, memory: &Arena) -> Uploads {
        let count = options.uploads.clamp(1, 256);
        Uploads {
            permits: Arc::new(Semaphore::new(count)),
            memory: memory.clone(),
            count,
            part_bytes: options.part_bytes.0.max(1),
        }
    }

    /// Waits for a permit and for `bytes` of memory.
    pub(crate) async fn slot(&self, bytes: u64) -> Result<Slot> {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|error| Error::new(Code::Internal, format!("uploads have ended: {error}")))?;
        let memory = self.reserve(bytes).await?;
        Ok(Slot { _permit: permit, _memory: memory })
    }

    /// Waits for memory alone.
    pub(crate) async fn reserve(&self, bytes: u64) -> Result<Reservation> {
        if bytes > self.memory.capacity_bytes() {
            return Err(Error::new(
                Code::Exhausted,
                format!(
                    "a part of {bytes} bytes does not fit the memory budget of {} bytes: lower --checkpoint-part-bytes",
                    self.memory.capacity_bytes()
                ),
            ));
        }
        loop {
            if let Some(memory) = self.memory.try_reserve(bytes) {
                return Ok(memory);
            }
            let arena = self.memory.clone();
            let waited = tokio::task::spawn_blocking(move || arena.wait_reserve(bytes, MEMORY_WAIT)).await;
            match waited {
                Ok(Ok(memory)) => return Ok(memory),
                Ok(Err(_)) => {}
                Err(error) => return Err(Error::new(Code::Internal, format!("waiting for memory ended: {error}"))),
            }
        }
    }
}
