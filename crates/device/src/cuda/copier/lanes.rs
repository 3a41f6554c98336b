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
        let (context, replies) = (Arc::clone(context), Arc::clone(replies));
        let name = subject.to_owned();
        let thread =
            thread::Builder::new().name("copier-lane".into()).spawn(move || wait(&context, &inflight, &replies, &name));
        let thread = thread.map_err(|error| {
            Error::new(Code::Exhausted, format!("cannot start a thread: {error}")).with_source(error)
        })?;
        Ok(Lane { stream, queue: Some(queue), thread: Some(thread) })
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

fn wait(context: &Arc<Context>, inflight: &Receiver<Inflight>, replies: &Replies, subject: &str) {
    let entered = context.enter();
    for work in inflight {
        let result = match &entered {
            Ok(_) => work.event.synchronize(),
            Err(error) => Err(*error),
        };
        let id = work.id;
        // Before the answer: a region may be unmapped as soon as its last copy was answered.
        drop(work);
        match (result, id) {
            (Ok(()), Some(id)) => replies.reply(id, Ok(Answer::Done)),
            (Ok(()), None) => {}
            (Err(error), id) => replies.failed(id, error, subject),
        }
    }
}
