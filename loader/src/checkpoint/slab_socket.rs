//! The slab socket: shared memory for training processes, as descriptors. The open connection is the session.
//!
//! The protocol is documented at the end of `longshore/v1/checkpoint.proto` and in `docs/checkpoint-protocol.md`; what a
//! session may do is in `longshore_checkpoint`. Nothing here touches bytes of slabs. Requests of a connection are worked on
//! at the same time, so that a seal does not wait for a slab that it may free; answers go out in the order of the requests.

mod answer;
mod talk;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use longshore_checkpoint::{SLAB_SESSIONS_MAX, Slabs};
use longshore_proto::v1;
use longshore_types::{Code, Error, Result};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::Checkpoints;
use crate::holder::frame;

/// Longest message of either side.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Longest request: it holds a few numbers and two ids.
const REQUEST_BYTES_MAX: usize = 4096;
/// How long a client may take to say hello, and to send a request once it has begun.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for a client that will be refused.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Clients that are told at once why they are refused.
const REFUSALS_MAX: usize = 64;

/// Where a socket finds the slabs: they may not be there before somebody asks.
pub(crate) trait SlabSource: Send + Sync + 'static {
    /// The slabs.
    ///
    /// # Errors
    /// Why there are none.
    fn slabs(&self) -> impl Future<Output = Result<Slabs>> + Send;
}

impl SlabSource for Checkpoints {
    async fn slabs(&self) -> Result<Slabs> {
        Ok(self.engine().await?.slabs().clone())
    }
}

/// Accepts clients until the token is cancelled. Then their sessions are left as they are, for the next process.
pub(crate) async fn serve<S: SlabSource>(listener: UnixListener, source: Arc<S>, token: CancellationToken) {
    let slots = Arc::new(Semaphore::new(SLAB_SESSIONS_MAX));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    while let Some(accepted) = token.run_until_cancelled(listener.accept()).await {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: give clients time to leave.
                tracing::warn!(%error, "cannot accept a slab connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            // Beyond these, clients see a closed connection.
            if let Ok(refusal) = refusals.clone().try_acquire_owned() {
                tokio::spawn(async move {
                    refuse(stream).await;
                    drop(refusal);
                });
            }
            continue;
        };
        let (source, token) = (source.clone(), token.clone());
        tokio::spawn(async move {
            if let Err(error) = talk::client(stream, &*source, &token).await {
                tracing::debug!(%error, "a slab connection ended early");
            }
            drop(slot);
        });
    }
}

/// Tells a client that there is no room for it. Its request is read first: a socket that is closed with unread bytes
/// takes the answer with it.
async fn refuse(mut stream: UnixStream) {
    let message = format!("{SLAB_SESSIONS_MAX} processes are connected already; end some of the processes that save");
    let error = Error::new(Code::Exhausted, message);
    let exchange = async {
        frame::read::<v1::SlabRequest>(&mut stream, REQUEST_BYTES_MAX).await?;
        frame::write(&mut stream, &frame::encode(&answer::failed(&error), MESSAGE_BYTES_MAX)?).await
    };
    if timeout(REFUSAL_TIMEOUT, exchange).await.is_err() {
        tracing::debug!("a client that was to be refused said nothing");
    }
}
