//! Streams: threads that do what was asked, in order, later.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::codes::{self, Code};
use crate::copy::{Fill, Transfer};
use crate::driver::Driver;
use crate::events::Event;
use crate::usage::UsageFile;

/// Handles are numbers from here on, so that other numbers are none.
const HANDLES_FROM: u64 = 0x5000_0000;
/// The default stream's handles: none, `CU_STREAM_LEGACY`, `CU_STREAM_PER_THREAD`.
const DEFAULT_HANDLES: std::ops::RangeInclusive<u64> = 0..=2;
/// Work that a stream takes before it makes callers wait, as the real one does.
const QUEUE_MAX: usize = 1024;

/// All streams of this process.
#[derive(Default)]
pub(crate) struct Streams {
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    made: u64,
    named: HashMap<u64, Arc<Stream>>,
    /// The default stream of each context, once it is used.
    default: HashMap<usize, Arc<Stream>>,
}

/// What a stream does.
#[derive(Debug)]
pub(crate) enum Job {
    Transfer(Transfer),
    Fill(Fill),
    /// Passes this record of an event.
    Record(Arc<Event>, u64),
    /// Waits for this record of an event.
    Wait(Arc<Event>, u64),
    /// Waits until another stream has done this many.
    After(Arc<Stream>, u64),
    /// An error that a card finds while it works.
    Fail(Code),
}

/// A stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) device: usize,
    /// Whether it keeps order with the default stream.
    blocking: bool,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    submitted: u64,
    done: u64,
    closed: bool,
}

impl Streams {
    /// A new stream.
    pub(crate) fn create(&self, device: usize, blocking: bool, usage: &UsageFile) -> Result<u64, Code> {
        let stream = Stream::start(device, blocking)?;
        let mut all = self.all.lock();
        all.made += 1;
        let handle = HANDLES_FROM + all.made;
        all.named.insert(handle, stream);
        usage.streams(all.named.len() as u64);
        Ok(handle)
    }

    /// The handle is no more; what was asked is still done.
    pub(crate) fn destroy(&self, handle: u64, usage: &UsageFile) -> Result<(), Code> {
        let mut all = self.all.lock();
        let stream = all.named.remove(&handle).ok_or(codes::INVALID_HANDLE)?;
        usage.streams(all.named.len() as u64);
        stream.close();
        Ok(())
    }

    /// The stream of a handle, in the context of this device.
    pub(crate) fn get(&self, handle: u64, device: usize) -> Result<Arc<Stream>, Code> {
        let mut all = self.all.lock();
        if !DEFAULT_HANDLES.contains(&handle) {
            let stream = all.named.get(&handle).filter(|stream| stream.device == device);
            return stream.cloned().ok_or(codes::INVALID_HANDLE);
        }
        if let Some(stream) = all.default.get(&device) {
            return Ok(Arc::clone(stream));
        }
        let stream = Stream::start(device, true)?;
        all.default.insert(device, Arc::clone(&stream));
        Ok(stream)
    }

    /// Puts work into a stream, in order with the default stream where the stream keeps it.
    pub(crate) fn submit(&self, stream: &Arc<Stream>, job: Job) {
        let others = self.ordered_before(stream);
        for (other, submitted) in others {
            stream.push(Job::After(other, submitted));
        }
        stream.push(job);
    }

    /// Streams whose work so far comes before what is put into this one now.
    fn ordered_before(&self, stream: &Arc<Stream>) -> Vec<(Arc<Stream>, u64)> {
        let all = self.all.lock();
        let default = all.default.get(&stream.device);
        let others: Vec<&Arc<Stream>> = match default {
            Some(default) if Arc::ptr_eq(default, stream) => {
                all.named.values().filter(|other| other.blocking && other.device == stream.device).collect()
            }
            Some(default) if stream.blocking => vec![default],
            _ => Vec::new(),
        };
        let busy = others.into_iter().filter_map(|other| Some((Arc::clone(other), other.unfinished()?)));
        busy.collect()
    }

    /// Waits for all streams of a context, or only for those that keep order with the default one.
    pub(crate) fn drain(&self, device: usize, only_blocking: bool) {
        let all = self.all.lock();
        let of_context = all.named.values().chain(all.default.values()).filter(|stream| stream.device == device);
        let wanted = of_context.filter(|stream| stream.blocking || !only_blocking);
        let streams: Vec<Arc<Stream>> = wanted.cloned().collect();
        drop(all);
        streams.iter().for_each(|stream| stream.drain());
    }

    /// All streams of a context end, with what they have to do.
    pub(crate) fn close_all(&self, device: usize, usage: &UsageFile) {
        self.drain(device, false);
        let mut all = self.all.lock();
        let keep = |stream: &Arc<Stream>| {
            if stream.device == device {
                stream.close();
            }
            stream.device != device
        };
        all.named.retain(|_, stream| keep(stream));
        all.default.retain(|_, stream| keep(stream));
        usage.streams(all.named.len() as u64);
    }
}

impl Stream {
    fn start(device: usize, blocking: bool) -> Result<Arc<Stream>, Code> {
        let stream = Arc::new(Stream { device, blocking, queue: Mutex::default(), changed: Condvar::new() });
        let worker = Arc::clone(&stream);
        let started = std::thread::Builder::new().name("fake-cuda-stream".to_owned()).spawn(move || worker.work());
        started.map_err(|_| codes::OUT_OF_MEMORY)?;
        Ok(stream)
    }

    fn push(&self, job: Job) {
        let mut queue = self.queue.lock();
        while queue.jobs.len() >= QUEUE_MAX {
            self.changed.wait(&mut queue);
        }
        queue.submitted += 1;
        queue.jobs.push_back(job);
        self.changed.notify_all();
    }

    fn close(&self) {
        self.queue.lock().closed = true;
        self.changed.notify_all();
    }

    /// How much was submitted, when not all of it is done.
    fn unfinished(&self) -> Option<u64> {
        let queue = self.queue.lock();
        (queue.done < queue.submitted).then_some(queue.submitted)
    }

    /// Whether all is done.
    pub(crate) fn is_idle(&self) -> bool {
        self.unfinished().is_none()
    }

    /// Waits until all that was submitted is done.
    pub(crate) fn drain(&self) {
        if let Some(submitted) = self.unfinished() {
            self.wait_done(submitted);
        }
    }

    fn wait_done(&self, count: u64) {
        let mut queue = self.queue.lock();
        while queue.done < count {
            self.changed.wait(&mut queue);
        }
    }

    fn work(&self) {
        let Some(driver) = Driver::get() else { return };
        while let Some(job) = self.next() {
            self.execute(driver, &job);
            // Staged bytes go before anybody hears that it is done.
            drop(job);
            self.queue.lock().done += 1;
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                self.changed.notify_all();
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            self.changed.wait(&mut queue);
        }
    }

    /// After an error nothing is moved any more, but who waits is let go.
    fn execute(&self, driver: &Driver, job: &Job) {
        let sane = driver.poisoned(Some(self.device)).is_ok();
        let done = match job {
            Job::Record(event, record) => {
                event.pass(*record);
                Ok(())
            }
            Job::Wait(event, record) => {
                event.wait(*record);
                Ok(())
            }
            Job::After(stream, count) => {
                stream.wait_done(*count);
                Ok(())
            }
            Job::Transfer(transfer) if sane => transfer.execute(driver),
            Job::Fill(fill) if sane => fill.execute(driver),
            Job::Fail(code) => Err(*code),
            Job::Transfer(_) | Job::Fill(_) => Ok(()),
        };
        if let Err(code) = done {
            driver.poison(Some(self.device), code);
        }
    }
}
