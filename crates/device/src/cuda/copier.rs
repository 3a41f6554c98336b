//! The copier's side of a [`super::CudaDevice`]: the only process with a CUDA context.
//!
//! Three kinds of threads: this one listens to the daemon and fills a bounded queue; one device thread ([`worker`])
//! makes all calls that start work; one thread for each stream ([`lanes`]) waits until work is done and says so. Where
//! the card reads files by itself, a few more do nothing else ([`storage`]). An
//! error that loses the context is reported, then everything ends: the daemon starts another copier.

mod check;
mod lanes;
mod pack;
mod storage;
mod worker;

use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use longshore_memory::OwnedSegment;
use longshore_types::{Code, Error, Result};
use parking_lot::Mutex;

use super::error::{CudaError, ErrorClass};
use super::protocol::{Answer, Fault, Receiver, Reply, Request, SEGMENTS_MAX, send};

/// Requests that wait for the device thread at most; more wait in the socket.
const QUEUE_MAX: usize = 64;

/// A request and the descriptors that belong to it.
struct Command {
    request: Request,
    segments: Vec<OwnedSegment>,
}

/// A copier's life: serves the daemon at the other end of `socket` until that closes it, then gives everything back.
/// A process that does this should ignore SIGINT and SIGTERM, as those that [`super::CudaDevice`] starts do: its end is
/// the daemon's.
///
/// # Errors
/// What ended it before: an error of the driver, or a message that makes no sense.
pub fn copier_main(socket: OwnedFd) -> Result<()> {
    let socket = Arc::new(UnixStream::from(socket));
    let replies = Arc::new(Replies { socket: Mutex::new(Arc::clone(&socket)), lost: Mutex::new(None) });
    let (queue, commands) = sync_channel(QUEUE_MAX);
    let worker = {
        let replies = Arc::clone(&replies);
        let work = move || {
            // Without this thread nothing is answered any more, however it ends.
            let _end = EndOnDrop(Arc::clone(&replies));
            worker::run(&commands, &replies)
        };
        thread::Builder::new().name("copier-device".into()).spawn(work)
    };
    let worker = worker.map_err(|error| {
        Error::new(Code::Exhausted, format!("cannot start the device thread: {error}")).with_source(error)
    })?;
    let heard = listen(&mut Receiver::new(&*socket), &queue);
    // The device thread finishes what is in the queue, then gives everything back.
    drop(queue);
    let worked = worker.join().unwrap_or_else(|_| Err(Error::new(Code::Internal, "the device thread panicked")));
    match replies.lost.lock().take() {
        Some(lost) => Err(lost),
        None => worked.and(heard),
    }
}

/// Passes requests on until the daemon is gone or nobody takes them.
fn listen(receiver: &mut Receiver<&UnixStream>, queue: &SyncSender<Command>) -> Result<()> {
    let mut pending: Vec<OwnedSegment> = Vec::new();
    loop {
        let received = receiver.receive::<Request>().map_err(|error| {
            Error::new(Code::Internal, format!("the daemon's message makes no sense: {error}")).with_source(error)
        })?;
        let Some(request) = received else { return Ok(()) };
        let fds = receiver.take_fds();
        let segments = match &request {
            Request::Segments { lens_bytes } => {
                if lens_bytes.len() != fds.len() || pending.len() + fds.len() > SEGMENTS_MAX {
                    let message = format!("{} descriptors came for {} segments", fds.len(), lens_bytes.len());
                    return Err(Error::new(Code::Internal, message));
                }
                let segments = fds.into_iter().zip(lens_bytes);
                pending.extend(segments.map(|(fd, &len_bytes)| OwnedSegment { fd, len_bytes }));
                continue;
            }
            Request::Start { .. } | Request::Map { .. } | Request::OpenFile { .. } => std::mem::take(&mut pending),
            _ => Vec::new(),
        };
        if queue.send(Command { request, segments }).is_err() {
            // The device thread ended; it knows why.
            return Ok(());
        }
    }
}

/// The way back to the daemon, shared by all threads.
struct Replies {
    socket: Mutex<Arc<UnixStream>>,
    /// The error that lost the context.
    lost: Mutex<Option<Error>>,
}

impl Replies {
    fn reply(&self, id: u64, result: Result<Answer>) {
        let reply = Reply { id, result: result.as_ref().map_err(Fault::from).copied() };
        // A daemon that is gone needs no answer; the listener sees its end.
        let _ = send(&**self.socket.lock(), &reply, &[]);
    }

    /// Answers with what the driver said about `subject`; a lost context ends the copier.
    fn failed(&self, id: u64, error: CudaError, subject: &str) {
        if error.class() == ErrorClass::ContextLost {
            return self.lost(Some(id), error, subject);
        }
        self.reply(id, Err(error.about(subject)));
    }

    /// As [`Replies::failed`] when nobody knows what is still under way, whatever the driver said: ends the copier.
    fn lost(&self, id: Option<u64>, error: CudaError, subject: &str) {
        let error = Error::new(Code::Unavailable, error.about(subject).message()).with_source(error);
        if let Some(id) = id {
            self.reply(id, Err(error.clone()));
        }
        self.lost.lock().get_or_insert(error);
        self.end();
    }

    /// Wakes the listener and lets the daemon know. What was sent is still received.
    fn end(&self) {
        let _ = self.socket.lock().shutdown(Shutdown::Both);
    }
}

struct EndOnDrop(Arc<Replies>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(test)]
mod tests;
