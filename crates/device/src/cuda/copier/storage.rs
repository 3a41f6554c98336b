//! Reads by the card itself: they block, so a few threads make them, which start when the first one is asked for.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use longshore_memory::OwnedSegment;
use longshore_types::{Code, Error, Result};
use parking_lot::Mutex;

use super::Replies;
use crate::cuda::context::Context;
use crate::cuda::memory::Mapping;
use crate::cuda::protocol::{Answer, Request};
use crate::cuda::storage::{StorageFile, cufile};

/// Reads at once: as many as keep a few disks busy.
const THREADS: usize = 8;
/// Requests that wait at most. The daemon has one for each of its fetch threads, which are fewer.
const QUEUE_MAX: usize = 1024;
/// Files that are open at most.
const FILES_MAX: usize = 1024;

/// A file of a region: both numbers are the daemon's.
type FileKey = (u64, u64);
type Files = Arc<Mutex<HashMap<FileKey, Arc<StorageFile>>>>;

/// What a thread is to do.
enum Work {
    /// Say whether cards can read files here.
    Offer,
    /// Make a file known.
    Open { key: FileKey, fd: OwnedFd },
    /// Read a part of a file.
    Read { key: FileKey, mapping: Arc<Mapping>, from: u64, len_bytes: u64, to: u64 },
}

/// The threads and what they share. Dropping it waits for them.
pub(super) struct Storage {
    context: Arc<Context>,
    replies: Arc<Replies>,
    subject: String,
    files: Files,
    queue: Option<SyncSender<(u64, Work)>>,
    threads: Vec<JoinHandle<()>>,
}

impl Storage {
    pub(super) fn new(context: &Arc<Context>, replies: &Arc<Replies>, subject: &str) -> Storage {
        Storage {
            context: Arc::clone(context),
            replies: Arc::clone(replies),
            subject: subject.into(),
            files: Files::default(),
            queue: None,
            threads: Vec::new(),
        }
    }

    /// Hands a request to the threads, which answer it.
    ///
    /// # Errors
    /// What the request is to be answered with instead.
    pub(super) fn take(
        &mut self,
        request: Request,
        segments: Vec<OwnedSegment>,
        regions: &HashMap<u64, Arc<Mapping>>,
    ) -> Result<()> {
        let wrong = |message: String| Error::new(Code::InvalidArgument, message);
        // Files are closed with their region.
        let mapped = |region| {
            let mapping = regions.get(&region).cloned();
            mapping.ok_or_else(|| wrong(format!("region {region} is not mapped")))
        };
        match request {
            Request::Storage { id } => self.submit(id, Work::Offer),
            Request::OpenFile { id, region, file } => {
                mapped(region)?;
                let one = <[OwnedSegment; 1]>::try_from(segments);
                let [segment] = one.map_err(|all| wrong(format!("{} descriptors came for one file", all.len())))?;
                self.submit(id, Work::Open { key: (region, file), fd: segment.fd })
            }
            Request::ReadFile { id, region, file, from, len_bytes, to } => {
                let mapping = mapped(region)?;
                self.submit(id, Work::Read { key: (region, file), mapping, from, len_bytes, to })
            }
            _ => Err(Error::new(Code::Internal, "a request that has nothing to do with files")),
        }
    }

    fn submit(&mut self, id: u64, work: Work) -> Result<()> {
        if self.queue.is_none() {
            self.start()?;
        }
        let sent = self.queue.as_ref().map(|queue| queue.try_send((id, work)));
        match sent {
            Some(Ok(())) => Ok(()),
            Some(Err(TrySendError::Full(_))) => Err(Error::new(Code::Unsupported, "too many reads of files at once")),
            _ => Err(Error::new(Code::Internal, "the threads that read files are gone")),
        }
    }

    /// Closes the files of a region.
    pub(super) fn forget(&self, region: u64) {
        self.files.lock().retain(|key, _| key.0 != region);
    }

    fn start(&mut self) -> Result<()> {
        let (queue, work) = sync_channel(QUEUE_MAX);
        let work = Arc::new(Mutex::new(work));
        for _ in 0..THREADS {
            let (context, replies, subject) =
                (Arc::clone(&self.context), Arc::clone(&self.replies), self.subject.clone());
            let (files, work) = (Arc::clone(&self.files), Arc::clone(&work));
            let serve = move || serve(&work, &files, &context, &replies, &subject);
            let thread = thread::Builder::new().name("copier-storage".into()).spawn(serve).map_err(|error| {
                Error::new(Code::Exhausted, format!("cannot start a thread: {error}")).with_source(error)
            })?;
            self.threads.push(thread);
        }
        self.queue = Some(queue);
        Ok(())
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(work: &Mutex<Receiver<(u64, Work)>>, files: &Files, context: &Context, replies: &Replies, subject: &str) {
    loop {
        // One thread waits for work, the others for their turn to.
        let next = work.lock().recv();
        let Ok((id, work)) = next else { return };
        // What the work holds is let go before the answer: a region may be unmapped after it.
        let result = match context.enter() {
            Ok(_entered) => carry_out(work, files),
            Err(error) => {
                drop(work);
                replies.failed(id, error, subject);
                continue;
            }
        };
        replies.reply(id, result.map(|()| Answer::Done).map_err(|error| error.context(subject)));
    }
}

fn carry_out(work: Work, files: &Files) -> Result<()> {
    match work {
        Work::Offer => cufile().map(drop),
        Work::Open { key, fd } => {
            let file = Arc::new(StorageFile::register(cufile()?, fd)?);
            let mut files = files.lock();
            if files.len() >= FILES_MAX {
                return Err(Error::new(Code::Unsupported, format!("{FILES_MAX} files are open already")));
            }
            files.insert(key, file);
            Ok(())
        }
        Work::Read { key, mapping, from, len_bytes, to } => {
            let file = files.lock().get(&key).cloned();
            let file = file.ok_or_else(|| Error::new(Code::InvalidArgument, format!("there is no file {key:?}")))?;
            let end = to.checked_add(len_bytes).filter(|end| *end <= mapping.len_bytes());
            let end = end.filter(|_| from.checked_add(len_bytes).is_some()).ok_or_else(|| {
                let message = format!("{len_bytes} bytes at {to} are not within the region {}", key.0);
                Error::new(Code::InvalidArgument, message)
            })?;
            // A read never crosses the end of a segment: to the driver, each is memory of its own.
            for (start, len) in mapping.parts() {
                let part = to.max(start)..end.min(start + len);
                if part.start < part.end {
                    let from = from + (part.start - to);
                    // SAFETY: within a part of the mapping, which stays until this is done.
                    unsafe { file.read(mapping.start() + start, from, part.end - part.start, part.start - start) }?;
                }
            }
            Ok(())
        }
    }
}
