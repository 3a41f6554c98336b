//! A connection to one copier: many requests at once, answered in any order. When the copier ends, everything that is
//! unanswered fails, after its process is gone for good.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use longshore_memory::fdpass::FDS_PER_MESSAGE_MAX;
use longshore_types::{Code, Error, Result};
use parking_lot::Mutex;

use super::process::Running;
use super::supervisor::Status;
use super::{CopierStart, CopyTicket, SILENCE_MAX};
use crate::cuda::protocol::{Answer, Receiver, Reply, Request, send};

/// Page-locking takes about a second for every few GiB.
const START_TIME_MAX: Duration = Duration::from_secs(600);

/// Descriptors and lengths, in order.
pub(in crate::cuda) type Segments<'a> = Vec<(BorrowedFd<'a>, u64)>;

/// One copier. Dropping it ends the copier and waits until it is gone.
pub(in crate::cuda) struct Link {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
    pid: Option<u32>,
}

struct Shared {
    /// What messages call it: `cuda:0`.
    name: String,
    socket: UnixStream,
    /// Whoever sends; requests that belong together are sent under one lock.
    sending: Mutex<()>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next_id: u64,
    waiting: HashMap<u64, Waiter>,
    /// Why there will be no answers any more.
    ended: Option<Error>,
    /// The copier said that it ends.
    ending: bool,
    /// The end was asked for from this side.
    closing: bool,
}

enum Waiter {
    Call(SyncSender<Result<Answer>>),
    Copy(CopyTicket),
}

impl Waiter {
    fn answer(self, result: Result<Answer>) {
        match self {
            // Who does not wait any more needs no answer.
            Waiter::Call(caller) => drop(caller.try_send(result)),
            Waiter::Copy(mut ticket) => ticket.finish(result.map(|_| ())),
        }
    }
}

impl Link {
    /// Starts a copier for the GPU with this UUID, with page-locked memory, and waits until it is ready.
    pub(super) fn open(
        start: &CopierStart,
        name: &str,
        gpu: &str,
        pinned: Segments<'_>,
        status: Arc<Status>,
    ) -> Result<Arc<Link>> {
        let (ours, theirs) = UnixStream::pair().map_err(|error| {
            Error::new(Code::Exhausted, format!("{name}: cannot make a socket: {error}")).with_source(error)
        })?;
        let shared = Arc::new(Shared {
            name: name.into(),
            socket: ours,
            sending: Mutex::new(()),
            table: Mutex::new(Table::default()),
        });
        // Before the copier: whoever reaps it must be there.
        let (give, take) = sync_channel::<Running>(1);
        let reader = {
            let shared = Arc::clone(&shared);
            let work = move || {
                if let Ok(running) = take.recv() {
                    read(&shared, running, &status);
                }
            };
            thread::Builder::new().name("copier-link".into()).spawn(work)
        };
        let reader = reader.map_err(|error| {
            Error::new(Code::Exhausted, format!("{name}: cannot start a thread: {error}")).with_source(error)
        })?;
        let running = Running::start(start, OwnedFd::from(theirs)).map_err(|error| error.context(name))?;
        let link = Arc::new(Link { shared, reader: Some(reader), pid: running.pid() });
        // The thread takes it before anything else.
        let _ = give.send(running);
        link.call_within(START_TIME_MAX, pinned, |id| Request::Start { id, gpu: gpu.into() })?;
        Ok(link)
    }

    /// Whether the copier is there, as far as is known.
    pub(in crate::cuda) fn is_alive(&self) -> bool {
        let table = self.shared.table.lock();
        table.ended.is_none() && !table.ending
    }

    /// The process, if the copier is one.
    pub(in crate::cuda) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Ends a copier that does not answer.
    pub(in crate::cuda) fn give_up(&self) {
        let _ = self.shared.socket.shutdown(Shutdown::Both);
    }

    /// Sends a request and waits for its answer.
    pub(in crate::cuda) fn call(&self, segments: Segments<'_>, make: impl FnOnce(u64) -> Request) -> Result<Answer> {
        self.call_within(SILENCE_MAX, segments, make)
    }

    /// Asks for something that may as well stay unanswered.
    pub(in crate::cuda) fn ask(&self, timeout: Duration, make: impl FnOnce(u64) -> Request) -> Option<Answer> {
        let (sender, receiver) = sync_channel(1);
        self.request(Vec::new(), make, Waiter::Call(sender));
        receiver.recv_timeout(timeout).ok()?.ok()
    }

    /// Sends a copy, which was announced to its region; the ticket takes the outcome.
    pub(in crate::cuda) fn copy(&self, ticket: CopyTicket, make: impl FnOnce(u64) -> Request) {
        self.request(Vec::new(), make, Waiter::Copy(ticket));
    }

    fn call_within(
        &self,
        timeout: Duration,
        segments: Segments<'_>,
        make: impl FnOnce(u64) -> Request,
    ) -> Result<Answer> {
        let (sender, receiver) = sync_channel(1);
        self.request(segments, make, Waiter::Call(sender));
        receiver.recv_timeout(timeout).unwrap_or_else(|error| {
            self.give_up();
            let why = match error {
                RecvTimeoutError::Timeout => format!("did not answer within {timeout:?} and is ended"),
                RecvTimeoutError::Disconnected => "lost a request".into(),
            };
            Err(Error::new(Code::Unavailable, format!("the copier of {} {why}", self.shared.name)))
        })
    }

    fn request(&self, segments: Segments<'_>, make: impl FnOnce(u64) -> Request, waiter: Waiter) {
        let shared = &self.shared;
        let mut table = shared.table.lock();
        if let Some(error) = table.ended.clone() {
            drop(table);
            return waiter.answer(Err(error));
        }
        let id = table.next_id;
        table.next_id += 1;
        table.waiting.insert(id, waiter);
        drop(table);
        let request = make(id);
        let _sending = shared.sending.lock();
        let announced = segments.chunks(FDS_PER_MESSAGE_MAX).try_for_each(|segments| {
            let lens_bytes = segments.iter().map(|(_, len_bytes)| *len_bytes).collect();
            let fds: Vec<_> = segments.iter().map(|(fd, _)| *fd).collect();
            send(&shared.socket, &Request::Segments { lens_bytes }, &fds)
        });
        if announced.and_then(|()| send(&shared.socket, &request, &[])).is_err() {
            // The copier is gone, or half a message is in its socket: the reader fails whatever is unanswered.
            self.give_up();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.table.lock().closing = true;
        self.give_up();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Passes answers on until the copier ends, then sees to its end.
fn read(shared: &Shared, running: Running, status: &Status) {
    let mut receiver = Receiver::new(&shared.socket);
    let mut last_words: Option<String> = None;
    let broken = loop {
        match receiver.receive::<Reply>() {
            Ok(Some(Reply { id, result })) => {
                let result = result.map_err(|fault| Error::from(fault).context(&shared.name));
                // Nothing else is unavailable to a copier: it has lost its context, and ends.
                if let Err(error) = &result
                    && error.code() == Code::Unavailable
                {
                    last_words.get_or_insert_with(|| error.message().into());
                }
                let waiter = {
                    let mut table = shared.table.lock();
                    table.ending |= last_words.is_some();
                    table.waiting.remove(&id)
                };
                if let Some(waiter) = waiter {
                    waiter.answer(result);
                }
            }
            Ok(None) => break None,
            Err(error) => break Some(format!("its answer makes no sense: {error}")),
        }
    };
    // Also the copier's sign to go, if it is still there. What it mapped is free before anybody hears of its end.
    let _ = shared.socket.shutdown(Shutdown::Both);
    let how = running.wait();
    let why = last_words.or(broken).unwrap_or(how);
    let error = Error::new(Code::Unavailable, format!("the copier of {} ended: {why}", shared.name));
    let mut table = shared.table.lock();
    table.ended = Some(error.clone());
    let waiting = std::mem::take(&mut table.waiting);
    if !table.closing {
        status.failed(&error);
    }
    drop(table);
    for waiter in waiting.into_values() {
        waiter.answer(Err(error.clone()));
    }
}
