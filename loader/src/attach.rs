//! The attach socket: hands a model's memory to a process, as descriptors. The open connection is the lease.
//!
//! The protocol is documented at the end of `longshore/v1/loader.proto`.

mod frame;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use longshore_memory::fdpass::{FDS_PER_MESSAGE_MAX, send_with_fds};
use longshore_proto::v1;
use longshore_types::{Code, Error, Result};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::grpc::convert;
use crate::loader::Loader;
use crate::model::ModelId;
use crate::registry::Lease;

/// How long a client may take to say what it wants, and to take what it gets.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The same for a client that will be refused.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Clients that are told at once why they are refused.
const REFUSALS_MAX: usize = 64;

/// Accepts clients until the token is cancelled. Connections that stand hold their leases until they end.
pub(crate) async fn serve(listener: UnixListener, loader: Arc<Loader>, path: Arc<Path>, token: CancellationToken) {
    let slots = Arc::new(Semaphore::new(loader.options().attach_connections_max.clamp(1, Semaphore::MAX_PERMITS)));
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
                let refused = refuse(stream, slots_are_taken(&loader));
                tokio::spawn(async move {
                    refused.await;
                    drop(refusal);
                });
            }
            continue;
        };
        let (loader, path) = (loader.clone(), path.clone());
        tokio::spawn(async move {
            let _counted = loader.count_attached();
            if let Err(error) = client(stream, &loader, &path).await {
                tracing::debug!(%error, "an attach connection ended early");
            }
            drop(slot);
        });
    }
}

/// One client, from its request to the end of its lease.
async fn client(mut stream: UnixStream, loader: &Arc<Loader>, path: &Path) -> Result<()> {
    let request = timeout(HANDSHAKE_TIMEOUT, frame::read::<v1::AttachRequest>(&mut stream)).await;
    let request = request.map_err(|_| Error::new(Code::Timeout, "no attach request came"))??;
    let answer = match loader.get(&ModelId::from_client(request.model_id)) {
        Ok(answer) => answer,
        Err(error) => {
            let _ = timeout(HANDSHAKE_TIMEOUT, frame::write(&mut stream, &error_answer(&error))).await;
            return Ok(());
        }
    };
    let lease = answer.lease().clone();
    let model = convert::model(&answer, &loader.state_of(&answer), path, convert::Detail::Full);
    drop(answer);
    lease.touch();
    timeout(HANDSHAKE_TIMEOUT, hand_over(&mut stream, model, &lease))
        .await
        .map_err(|_| Error::new(Code::Timeout, "the client does not take the model"))??;
    tracing::debug!(model = %lease.model().id, "attached");
    wait_for_end(&mut stream).await;
    lease.touch();
    tracing::debug!(model = %lease.model().id, "lease ended");
    Ok(())
}

async fn hand_over(stream: &mut UnixStream, model: v1::LoadedModel, lease: &Lease) -> Result<()> {
    let regions = &lease.model().regions;
    let segments: Vec<_> = regions.iter().flat_map(|region| region.segments()).collect();
    let fds: Vec<BorrowedFd<'_>> = segments.iter().map(|segment| segment.fd).collect();
    let answer = v1::AttachResponse {
        error_code: String::new(),
        error_message: String::new(),
        fd_count: fds.len() as u32,
        model: Some(model),
    };
    frame::write(stream, &answer).await?;
    for batch in fds.chunks(FDS_PER_MESSAGE_MAX) {
        let sent = stream.async_io(Interest::WRITABLE, || send_with_fds(stream.as_fd(), &[0], batch)).await;
        sent.map_err(|error| {
            Error::new(Code::Unavailable, format!("cannot hand over {} descriptors: {error}", batch.len()))
        })?;
    }
    Ok(())
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
        frame::read::<v1::AttachRequest>(&mut stream).await?;
        frame::write(&mut stream, &error_answer(&error)).await
    };
    if timeout(REFUSAL_TIMEOUT, exchange).await.is_err() {
        tracing::debug!("a client that was to be refused said nothing");
    }
}

fn slots_are_taken(loader: &Loader) -> Error {
    let max = loader.options().attach_connections_max;
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
