//! Streams, each with a thread that waits for what was put in it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use longshore_types::{Code, Error};

use super::Replies;
use super::pack::PackSlot;
use crate::cuda::context::{Context, Event, Stream};
use crate::cuda::error::CudaError;
use crate::cuda::memory::Mapping;
use crate::cuda::protocol::Answer;

/// Pieces of work in a stream at most.
const INFLIGHT_MAX: usize = 64;

/// Work in a stream, with what must stay until it is done.
struct Inflight {
    event: Event,
    /// The request that is done with it.
    id: Option<u64>,
    /// Kept, not looked at.
    _uses: (Arc<Mapping>, Option<PackSlot>),
}

/// A stream and its thread.
pub(super) struct Lane {
    pub(super) stream: Stream,
    queue: Option<SyncSender<Inflight>>,
    thread: Option<JoinHandle<()>>,
}

impl Lane {
    pub(super) fn start(context: &Arc<Context>, replies: &Arc<Replies>, subject: &str) -> Result<Lane, Error> {
        let stream = Stream::create(context).map_err(|error| error.about(subject))?;
        let (queue, inflight) = sync_channel(INFLIGHT_MAX);
        let (entered, has_entered) = sync_channel(1);
        let thread = {
            let (context, replies, subject) = (Arc::clone(context), Arc::clone(replies), subject.to_owned());
            let work = move || {
                let guard = context.enter();
                let _ = entered.send(guard.as_ref().map(|_| ()).map_err(|error| *error));
                if guard.is_ok() {
                    wait(&inflight, &replies, &subject);
                }
            };
            thread::Builder::new().name("copier-lane".into()).spawn(work)
        };
        let thread = thread.map_err(|error| {
            Error::new(Code::Exhausted, format!("cannot start a thread: {error}")).with_source(error)
        })?;
        let lane = Lane { stream, queue: Some(queue), thread: Some(thread) };
        match has_entered.recv() {
            Ok(Ok(())) => Ok(lane),
            Ok(Err(error)) => Err(error.about(subject)),
            Err(_) => Err(Error::new(Code::Internal, "a thread ended as it started")),
        }
    }

    /// Hands over what was put in the stream until now; waits while too much is in flight.
    pub(super) fn push(&self, id: Option<u64>, region: &Arc<Mapping>, pack: Option<PackSlot>) -> Result<(), CudaError> {
        let event = self.stream.record()?;
        let inflight = Inflight { event, id, _uses: (Arc::clone(region), pack) };
        // The thread is there as long as the queue, which goes only with `self`.
        let _ = self.queue.as_ref().map(|queue| queue.send(inflight));
        Ok(())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for one after the other; the context is current.
fn wait(inflight: &Receiver<Inflight>, replies: &Replies, subject: &str) {
    for work in inflight {
        let result = work.event.synchronize();
        let id = work.id;
        if let Err(error) = result {
            // Nobody knows when the work is done.
            replies.lost(id, error, subject);
        }
        // Before the answer: a region may be unmapped as soon as its last copy was answered.
        drop(work);
        if let (Ok(()), Some(id)) = (result, id) {
            replies.reply(id, Ok(Answer::Done));
        }
    }
}
