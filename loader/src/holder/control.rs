//! The control socket of a holder process: requests of the one loader, and who watches.
//!
//! Whoever connects is this user or root, and is still not trusted: every size is bounded before anything is allocated,
//! and what makes no sense ends the connection, not the holder.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use longshore_memory::OwnedSegment;
use longshore_proto::v1;
use longshore_proto::v1::holder_request::Request;
use longshore_proto::v1::holder_response::Answer;
use longshore_types::{Code, Error, Result};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::frame;
use super::keep::{Holder, Part, Publication, Remove, SEGMENTS_MAX};
use super::message::{self, CONTROL_BYTES_MAX, PROTOCOL, strange};
use crate::VERSION;

/// Connections at once: a loader has two, its successor two more, and tools may look.
const CONNECTIONS_MAX: usize = 16;
/// Longest greeting, in bytes.
const HELLO_BYTES_MAX: usize = 4096;
/// How long the rest of a message may take once it began, and how long an answer may wait to be taken.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a new loader waits for the session of one that is just ending.
const SESSION_WAIT: Duration = Duration::from_secs(2);
/// Least time between two states that a watcher is sent.
const WATCH_INTERVAL: Duration = Duration::from_millis(5);

/// Accepts loaders until the token is cancelled.
pub(super) async fn serve(
    listener: UnixListener,
    holder: Arc<Holder>,
    attach_socket: Arc<Path>,
    token: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Some(accepted) = token.run_until_cancelled(listener.accept()).await {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            tracing::warn!("more than {CONNECTIONS_MAX} control connections: one is closed");
            continue;
        };
        let connection = Connection { stream, holder: holder.clone(), attach_socket: attach_socket.clone() };
        tokio::spawn(async move {
            if let Err(error) = connection.serve().await {
                tracing::debug!(%error, "a control connection ended");
            }
            drop(slot);
        });
    }
}

struct Connection {
    stream: UnixStream,
    holder: Arc<Holder>,
    attach_socket: Arc<Path>,
}

impl Connection {
    async fn serve(mut self) -> Result<()> {
        let pid = match self.check_peer() {
            Ok(pid) => pid,
            Err(error) => {
                tracing::warn!(%error, "a control connection is refused");
                return self.answer(Err(error)).await;
            }
        };
        let hello = timeout(MESSAGE_TIMEOUT, frame::read::<v1::HolderRequest>(&mut self.stream, HELLO_BYTES_MAX)).await;
        let hello = hello.map_err(|_| Error::new(Code::Timeout, "nothing was said"))??;
        let Some(Request::Hello(hello)) = hello.request else {
            return self.answer(Err(strange("the greeting"))).await;
        };
        // The other side decides whether it can do with this version; it is told in any case.
        match hello.role() {
            v1::HolderRole::Loader => {
                let number = match self.session(pid).await {
                    Ok(number) => number,
                    Err(error) => return self.answer(Err(error)).await,
                };
                tracing::info!(pid, version = hello.version, "a loader is here");
                let ended = self.requests(number).await;
                let holder = self.holder.clone();
                drop(self.stream);
                let closed = tokio::task::spawn_blocking(move || holder.close_session(number)).await;
                tracing::info!(pid, "the loader is gone; its models stay");
                closed.map_err(|error| broke_off(&error)).and(ended)
            }
            v1::HolderRole::Watcher => self.watch().await,
            v1::HolderRole::Unspecified => self.answer(Err(strange("a role"))).await,
        }
    }

    /// # Errors
    /// [`Code::PermissionDenied`] for another user's process.
    fn check_peer(&self) -> Result<u32> {
        let peer = self.stream.peer_cred().map_err(frame::left)?;
        let own = rustix::process::geteuid().as_raw();
        match [0, own].contains(&peer.uid()) {
            true => Ok(peer.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0)),
            false => {
                let message = format!("a holder answers to its own user ({own}) and root, not to user {}", peer.uid());
                Err(Error::new(Code::PermissionDenied, message))
            }
        }
    }

    /// A session; that of a loader which has just ended may take a moment to be gone.
    async fn session(&self, pid: u32) -> Result<u64> {
        let mut changes = self.holder.changes();
        let deadline = Instant::now() + SESSION_WAIT;
        loop {
            let refusal = match self.holder.open_session(pid) {
                Ok(number) => return Ok(number),
                Err(refusal) => refusal,
            };
            match tokio::time::timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(refusal),
            }
        }
    }

    fn welcome(&self) -> Answer {
        Answer::Welcome(v1::HolderWelcome {
            protocol: PROTOCOL,
            version: VERSION.to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.holder.uptime().as_secs_f64(),
            attach_socket: self.attach_socket.to_string_lossy().into_owned(),
        })
    }

    /// The session, from its greeting to the end of the connection.
    async fn requests(&mut self, session: u64) -> Result<()> {
        let welcome = self.welcome();
        self.answer(Ok((Some(welcome), Vec::new()))).await?;
        loop {
            // A loader may have nothing to ask for days.
            let length = frame::length(&mut self.stream, CONTROL_BYTES_MAX).await?;
            let (request, fds) = timeout(MESSAGE_TIMEOUT, self.rest_of_request(length))
                .await
                .map_err(|_| Error::new(Code::Timeout, "a request broke off"))??;
            let holder = self.holder.clone();
            // Making and freeing memory takes a while.
            let work = tokio::task::spawn_blocking(move || handle(&holder, session, request, fds));
            let outcome = work.await.unwrap_or_else(|error| Err(broke_off(&error)));
            self.answer(outcome).await?;
        }
    }

    async fn rest_of_request(&mut self, length: u32) -> Result<(Request, Vec<OwnedFd>)> {
        let message: v1::HolderRequest = frame::body(&mut self.stream, length).await?;
        let count = message.fd_count as usize;
        if count > SEGMENTS_MAX {
            return Err(strange("the number of descriptors"));
        }
        let fds = frame::receive_fds(&self.stream, count).await?;
        let request = message.request.ok_or_else(|| strange("a request of a newer version"));
        Ok((request?, fds))
    }

    /// Sends the state whenever it changed, until the watcher leaves.
    async fn watch(&mut self) -> Result<()> {
        let mut changes = self.holder.changes();
        let welcome = self.welcome();
        self.answer(Ok((Some(welcome), Vec::new()))).await?;
        let mut unexpected = [0; 64];
        loop {
            tokio::select! {
                read = self.stream.read(&mut unexpected) => if read.map_err(frame::left)? == 0 { return Ok(()) },
                changed = changes.changed() => {
                    changed.map_err(|_| Error::new(Code::Cancelled, "the holder ends"))?;
                    self.answer(Ok((None, Vec::new()))).await?;
                    // Many changes in a row are one.
                    tokio::time::sleep(WATCH_INTERVAL).await;
                }
            }
        }
    }

    async fn answer(&mut self, outcome: Result<(Option<Answer>, Vec<OwnedSegment>)>) -> Result<()> {
        let (answer, segments, error) = match outcome {
            Ok((answer, segments)) => (answer, segments, None),
            Err(error) => (None, Vec::new(), Some(error)),
        };
        let response = v1::HolderResponse {
            error_code: error.as_ref().map(|error| error.code().as_str().to_owned()).unwrap_or_default(),
            error_message: error.map(|error| error.message().to_owned()).unwrap_or_default(),
            fd_count: segments.len() as u32,
            state: Some(v1::HeldState::from(&self.holder.uses())),
            answer,
        };
        let bytes = frame::encode(&response, CONTROL_BYTES_MAX)?;
        let fds: Vec<BorrowedFd<'_>> = segments.iter().map(|segment| segment.fd.as_fd()).collect();
        let sending = async {
            frame::write(&mut self.stream, &bytes).await?;
            frame::send_fds(&self.stream, &fds).await
        };
        timeout(MESSAGE_TIMEOUT, sending).await.map_err(|_| Error::new(Code::Timeout, "an answer is not taken"))?
    }
}

type Outcome = Result<(Option<Answer>, Vec<OwnedSegment>)>;

fn handle(holder: &Holder, session: u64, request: Request, fds: Vec<OwnedFd>) -> Outcome {
    if !fds.is_empty() && !matches!(request, Request::Publish(_)) {
        return Err(strange("descriptors that nobody asked for"));
    }
    let answer = match request {
        Request::Hello(_) => return Err(strange("a second greeting")),
        Request::Create(v1::CreateMemory { label, device_uuid, size_bytes }) => {
            let segments = holder.create(session, &label, &device_uuid, size_bytes)?;
            let segment_bytes = segments.iter().map(|segment| segment.len_bytes).collect();
            return Ok((Some(Answer::Created(v1::CreatedMemory { segment_bytes })), segments));
        }
        Request::Release(v1::ReleaseMemory { label }) => {
            holder.release(session, &label);
            None
        }
        Request::Publish(publish) => {
            holder.publish(session, publication(publish, fds)?)?;
            None
        }
        Request::Remove(v1::RemoveHeld { model_id, forget }) => {
            let when = if forget { Remove::Forget } else { Remove::IfUnleased };
            let outcome = v1::RemoveOutcome::from(holder.remove(&model_id, when));
            Some(Answer::Removed(v1::RemovedHeld { outcome: outcome.into() }))
        }
        Request::List(_) => {
            let models = holder.list().iter().map(v1::HeldSummary::from).collect();
            Some(Answer::List(v1::HeldList { models }))
        }
        Request::Adopt(v1::AdoptHeld { model_id }) => {
            let super::Adopted { record, regions } = holder.adopt(&model_id)?;
            let (regions, segments) = message::regions(regions);
            return Ok((Some(Answer::Model(v1::HeldModel { record, regions })), segments));
        }
        Request::Look(_) => None,
    };
    Ok((answer, Vec::new()))
}

fn publication(message: v1::PublishHeld, fds: Vec<OwnedFd>) -> Result<Publication> {
    let v1::PublishHeld { model_id: id, description, record, regions } = message;
    let mut fds = fds.into_iter();
    let mut parts = Vec::with_capacity(regions.len());
    for v1::PublishedRegion { label, segment_bytes } in regions {
        parts.push(match label.is_empty() {
            true => Part::Host(message::segments(segment_bytes, &mut fds)?),
            false => Part::Made(label),
        });
    }
    match fds.next() {
        None => Ok(Publication { id, description, record, regions: parts }),
        Some(_) => Err(strange("descriptors")),
    }
}

fn broke_off(error: &tokio::task::JoinError) -> Error {
    Error::new(Code::Internal, format!("a request broke off: {error}"))
}

#[cfg(test)]
mod tests;
