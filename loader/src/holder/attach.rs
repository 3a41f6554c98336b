//! The attach socket: hands a model's memory to a process, as descriptors. The open connection is the lease.
//!
//! The protocol is documented at the end of `longshore/v1/loader.proto`. Attaching makes no call to a driver and copies
//! nothing but the description.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use longshore_proto::{MESSAGE_BYTES_MAX, v1};
use longshore_types::{Code, Error, Result};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::frame;
use super::keep::{HeldLease, Holder, Published};

/// Longest request, in bytes: it holds one id.
const REQUEST_BYTES_MAX: usize = 4096;
/// How long a client may take to say what it wants, and to take what it gets.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The same for a client that will be refused.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Clients that are told at once why they are refused.
const REFUSALS_MAX: usize = 64;

/// Field of the model in an `AttachResponse`.
const MODEL_FIELD: u32 = 4;

/// Accepts clients until the token is cancelled. Connections that stand hold their leases until they end.
pub(crate) async fn serve(
    listener: UnixListener,
    holder: Arc<Holder>,
    path: Arc<Path>,
    connections_max: usize,
    token: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(connections_max.clamp(1, Semaphore::MAX_PERMITS)));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    while let Some(accepted) = token.run_until_cancelled(listener.accept()).await {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: give clients time to leave.
                tracing::warn!(%error, "cannot accept an attach connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            // Beyond these, clients see a closed connection.
            if let Ok(refusal) = refusals.clone().try_acquire_owned() {
                let refused = refuse(stream, slots_are_taken(connections_max));
                tokio::spawn(async move {
                    refused.await;
                    drop(refusal);
                });
            }
            continue;
        };
        let (holder, path) = (holder.clone(), path.clone());
        tokio::spawn(async move {
            let counted = Attached::count(&holder);
            if let Err(error) = client(stream, &holder, &path).await {
                tracing::debug!(%error, "an attach connection ended early");
            }
            drop(counted);
            drop(slot);
        });
    }
}

/// One connection, in the count of them.
struct Attached<'a>(&'a watch::Sender<usize>);

impl Attached<'_> {
    fn count(holder: &Holder) -> Attached<'_> {
        holder.attached().send_modify(|count| *count += 1);
        Attached(holder.attached())
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// One client, from its request to the end of its lease.
async fn client(mut stream: UnixStream, holder: &Arc<Holder>, path: &Path) -> Result<()> {
    let request = timeout(HANDSHAKE_TIMEOUT, frame::read::<v1::AttachRequest>(&mut stream, REQUEST_BYTES_MAX)).await;
    let request = request.map_err(|_| Error::new(Code::Timeout, "no attach request came"))??;
    let lease = match holder.lease(&request.model_id) {
        Ok(lease) => lease,
        Err(error) => {
            let _ = timeout(HANDSHAKE_TIMEOUT, write(&mut stream, &error_answer(&error))).await;
            return Ok(());
        }
    };
    timeout(HANDSHAKE_TIMEOUT, hand_over(&mut stream, &lease, path))
        .await
        .map_err(|_| Error::new(Code::Timeout, "the client does not take the model"))??;
    let model = &lease.published().id;
    tracing::debug!(model, "attached");
    wait_for_end(&mut stream).await;
    tracing::debug!(model, "lease ended");
    Ok(())
}

async fn hand_over(stream: &mut UnixStream, lease: &HeldLease, path: &Path) -> Result<()> {
    let published = lease.published();
    let segments = published.regions.iter().flat_map(|region| region.segments());
    let fds: Vec<BorrowedFd<'_>> = segments.map(|segment| segment.fd.as_fd()).collect();
    frame::write(stream, &answer(published, fds.len(), lease, path)?).await?;
    frame::send_fds(stream, &fds).await
}

/// The whole answer. The description is a message whose last fields are missing: they are put behind it.
fn answer(published: &Published, fd_count: usize, lease: &HeldLease, path: &Path) -> Result<Vec<u8>> {
    let head = v1::AttachResponse { fd_count: fd_count as u32, ..Default::default() }.encode_to_vec();
    let facts = v1::LoadedModel {
        leases: lease.others,
        idle_seconds: lease.idle.as_secs_f64(),
        attach_socket: path.to_string_lossy().into_owned(),
        ..Default::default()
    }
    .encode_to_vec();
    let model_bytes = published.description.len() + facts.len();
    let mut key = Vec::new();
    encode_key(MODEL_FIELD, WireType::LengthDelimited, &mut key);
    encode_varint(model_bytes as u64, &mut key);
    let length = head.len() + key.len() + model_bytes;
    let mut bytes = Vec::with_capacity(4 + length);
    bytes.extend_from_slice(&frame::prefix(length, MESSAGE_BYTES_MAX)?);
    for part in [&head, &key, &published.description, &facts] {
        bytes.extend_from_slice(part);
    }
    Ok(bytes)
}

/// The client says nothing more: what it sends is read and dropped, its end is the end of the lease.
async fn wait_for_end(stream: &mut UnixStream) {
    let mut unexpected = [0; 256];
    while stream.read(&mut unexpected).await.is_ok_and(|count| count > 0) {}
}

/// Tells a client that there is no room for it. Its request is read first: a socket that is closed with unread bytes
/// takes the answer with it.
async fn refuse(mut stream: UnixStream, error: Error) {
    let exchange = async {
        frame::read::<v1::AttachRequest>(&mut stream, REQUEST_BYTES_MAX).await?;
        write(&mut stream, &error_answer(&error)).await
    };
    if timeout(REFUSAL_TIMEOUT, exchange).await.is_err() {
        tracing::debug!("a client that was to be refused said nothing");
    }
}

async fn write(stream: &mut UnixStream, message: &v1::AttachResponse) -> Result<()> {
    frame::write(stream, &frame::encode(message, MESSAGE_BYTES_MAX)?).await
}

fn slots_are_taken(max: usize) -> Error {
    Error::new(Code::Exhausted, format!("{max} clients are attached already; raise --attach-connections-max"))
}

fn error_answer(error: &Error) -> v1::AttachResponse {
    v1::AttachResponse {
        error_code: error.code().as_str().to_owned(),
        error_message: error.message().to_owned(),
        fd_count: 0,
        model: None,
    }
}
