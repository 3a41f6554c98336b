//! A loader's connection to a holder process.
//!
//! Two connections: one for requests, which is the session, and one that the holder sends its state over whenever that
//! changes, so that looking at it never waits, and the end of the holder is noticed at once. Once a link is down every
//! request fails; [`Link::connect`] again makes it good.

mod talk;

use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore_memory::OwnedSegment;
use longshore_proto::v1;
use longshore_proto::v1::holder_request::Request;
use longshore_proto::v1::holder_response::Answer;
use longshore_types::{Code, Error, Result};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::frame::left;
use super::keep::{Part, Publication, Remove, Removed};
use super::message::{self, strange};
use super::uses::Uses;
use super::{Adopted, Summary};
use talk::{Talk, error_of};

/// Whether there is a holder at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinkState {
    /// Counts the connections that were made.
    pub epoch: u64,
    pub is_up: bool,
}

/// A connection that is made again when the holder comes back.
pub(crate) struct Link {
    path: PathBuf,
    shared: Arc<Shared>,
    talk: Mutex<Option<Talk>>,
}

/// What the thread that listens for changes needs.
struct Shared {
    seen: Mutex<(u64, Arc<Uses>)>,
    welcome: Mutex<(v1::HolderWelcome, Instant)>,
    changes: watch::Sender<u64>,
    attached: watch::Sender<usize>,
    state: watch::Sender<LinkState>,
    /// Shut down when the link is, so that nobody waits on them.
    sockets: Mutex<Vec<UnixStream>>,
}

impl Link {
    /// Connects to the holder at `path`. Blocks.
    ///
    /// # Errors
    /// [`Code::NotFound`] when nothing listens there, [`Code::FailedPrecondition`] when another loader uses the holder or
    /// its version is not one this one can talk to, [`Code::PermissionDenied`] for another user's.
    pub(crate) fn open(path: &Path) -> Result<Arc<Link>> {
        let link = Link {
            path: path.to_owned(),
            shared: Arc::new(Shared {
                seen: Mutex::new((0, Arc::new(Uses::none()))),
                welcome: Mutex::new((v1::HolderWelcome::default(), Instant::now())),
                changes: watch::Sender::new(0),
                attached: watch::Sender::new(0),
                state: watch::Sender::new(LinkState { epoch: 0, is_up: false }),
                sockets: Mutex::default(),
            }),
            talk: Mutex::new(None),
        };
        link.connect()?;
        Ok(Arc::new(link))
    }

    /// Connects, or connects again. Blocks.
    ///
    /// # Errors
    /// As [`Link::open`].
    pub(crate) fn connect(&self) -> Result<()> {
        let mut talk = self.talk.lock();
        let before = self.shared.state.borrow().epoch;
        self.shared.down(before);
        let (mut session, welcome, _) = Talk::open(&self.path, v1::HolderRole::Loader)?;
        // The later look: what changes after it is heard of.
        let (watcher, _, uses) = Talk::open(&self.path, v1::HolderRole::Watcher)?;
        watcher.stream.set_read_timeout(None).map_err(left)?;
        let clones = [&session, &watcher].map(|talk| talk.stream.try_clone());
        let clones = clones.into_iter().collect::<std::io::Result<Vec<_>>>().map_err(left)?;
        let epoch = self.shared.state.borrow().epoch + 1;
        *self.shared.seen.lock() = (epoch, Arc::new(uses));
        *self.shared.welcome.lock() = (welcome, Instant::now());
        session.epoch = epoch;
        *talk = Some(session);
        let mut sockets = self.shared.sockets.lock();
        *sockets = clones;
        self.shared.state.send_replace(LinkState { epoch, is_up: true });
        drop(sockets);
        let shared = self.shared.clone();
        let listen = move || shared.listen(watcher, epoch);
        let thread = std::thread::Builder::new().name("longshore-holder".into()).spawn(listen);
        thread.map(drop).map_err(|error| {
            self.shared.down(epoch);
            Error::new(Code::Exhausted, format!("cannot start a thread: {error}")).with_source(error)
        })
    }

    /// As if the holder had gone.
    #[cfg(test)]
    pub(crate) fn cut(&self) {
        let epoch = self.shared.state.borrow().epoch;
        self.shared.down(epoch);
    }

    pub(crate) fn state(&self) -> watch::Receiver<LinkState> {
        self.shared.state.subscribe()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.shared.welcome.lock().0.pid
    }

    pub(crate) fn version(&self) -> String {
        self.shared.welcome.lock().0.version.clone()
    }

    pub(crate) fn uptime(&self) -> Duration {
        let (welcome, since) = &*self.shared.welcome.lock();
        let before = Duration::try_from_secs_f64(welcome.uptime_seconds).unwrap_or_default();
        before + since.elapsed()
    }

    pub(crate) fn attach_socket(&self) -> PathBuf {
        PathBuf::from(&self.shared.welcome.lock().0.attach_socket)
    }

    pub(crate) fn uses(&self) -> Arc<Uses> {
        self.shared.seen.lock().1.clone()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    pub(crate) fn attached(&self) -> watch::Receiver<usize> {
        self.shared.attached.subscribe()
    }

    pub(crate) fn look(&self) -> Result<Arc<Uses>> {
        self.ask(Request::Look(v1::LookAtHeld {}), &[])?;
        Ok(self.uses())
    }

    pub(crate) fn list(&self) -> Result<Vec<Summary>> {
        match self.ask(Request::List(v1::ListHeld {}), &[])? {
            (Some(Answer::List(list)), _) => Ok(list.models.into_iter().map(Summary::from).collect()),
            _ => Err(strange("the answer to a list")),
        }
    }

    pub(crate) fn adopt(&self, id: &str) -> Result<Adopted> {
        match self.ask(Request::Adopt(v1::AdoptHeld { model_id: id.to_owned() }), &[])? {
            (Some(Answer::Model(model)), fds) => message::adopted(model, fds),
            _ => Err(strange("the answer to a model's loader")),
        }
    }

    pub(crate) fn create(&self, label: &str, device_uuid: &str, size_bytes: u64) -> Result<Vec<OwnedSegment>> {
        let (label, device_uuid) = (label.to_owned(), device_uuid.to_owned());
        match self.ask(Request::Create(v1::CreateMemory { label, device_uuid, size_bytes }), &[])? {
            (Some(Answer::Created(created)), fds) if created.segment_bytes.len() == fds.len() => {
                message::segments(created.segment_bytes, &mut fds.into_iter())
            }
            _ => Err(strange("the answer to a request for memory")),
        }
    }

    pub(crate) fn release(&self, label: &str) {
        // When the holder is gone, so is the memory.
        if let Err(error) = self.ask(Request::Release(v1::ReleaseMemory { label: label.to_owned() }), &[]) {
            tracing::debug!(%error, label, "memory was not given back to the holder");
        }
    }

    pub(crate) fn publish(&self, publication: Publication) -> Result<()> {
        let Publication { id: model_id, description, record, regions } = publication;
        let mut fds = Vec::new();
        let mut messages = Vec::with_capacity(regions.len());
        for part in regions {
            messages.push(match part {
                Part::Made(label) => v1::PublishedRegion { label, segment_bytes: Vec::new() },
                Part::Host(segments) => {
                    let segment_bytes = segments.iter().map(|segment| segment.len_bytes).collect();
                    fds.extend(segments.into_iter().map(|segment| segment.fd));
                    v1::PublishedRegion { label: String::new(), segment_bytes }
                }
            });
        }
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(OwnedFd::as_fd).collect();
        let publish = v1::PublishHeld { model_id, description, record, regions: messages };
        self.ask(Request::Publish(publish), &fds).map(drop)
    }

    pub(crate) fn remove(&self, id: &str, when: Remove) -> Result<Removed> {
        let request = v1::RemoveHeld { model_id: id.to_owned(), forget: when == Remove::Forget };
        match self.ask(Request::Remove(request), &[])? {
            (Some(Answer::Removed(removed)), _) => message::removed(removed.outcome()),
            _ => Err(strange("the answer to a removal")),
        }
    }

    /// One request and its answer. A failure of the connection, unlike an error in an answer, ends it.
    fn ask(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<(Option<Answer>, Vec<OwnedFd>)> {
        let mut slot = self.talk.lock();
        let Some(talk) = slot.as_mut().filter(|talk| self.shared.is_up(talk.epoch)) else { return Err(self.gone()) };
        let epoch = talk.epoch;
        let exchanged = talk.exchange(request, fds);
        let (response, fds) = match exchanged {
            Ok(exchanged) => exchanged,
            Err(error) => {
                *slot = None;
                drop(slot);
                self.shared.down(epoch);
                tracing::warn!(%error, "the connection to the holder failed");
                return Err(self.gone().with_source(error));
            }
        };
        drop(slot);
        if let Some(state) = response.state {
            self.shared.see(epoch, Uses::from(state));
        }
        match error_of(&response.error_code, response.error_message) {
            Some(error) => Err(error),
            None => Ok((response.answer, fds)),
        }
    }

    fn gone(&self) -> Error {
        let (path, pid) = (self.path.display(), self.pid());
        let message = format!(
            "the holder at {path} (process id {pid}) has ended, and its models with it; start `longshore holder` again"
        );
        Error::new(Code::Unavailable, message)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let epoch = self.shared.state.borrow().epoch;
        self.shared.down(epoch);
    }
}

impl Shared {
    fn is_up(&self, epoch: u64) -> bool {
        *self.state.borrow() == LinkState { epoch, is_up: true }
    }

    fn see(&self, epoch: u64, uses: Uses) {
        let mut seen = self.seen.lock();
        if seen.0 != epoch || uses.version < seen.1.version {
            return;
        }
        let attached = uses.attached;
        *seen = (epoch, Arc::new(uses));
        drop(seen);
        self.attached.send_if_modified(|count| std::mem::replace(count, attached) != attached);
        self.changes.send_modify(|count| *count += 1);
    }

    /// The holder's changes, until it ends.
    fn listen(&self, mut watcher: Talk, epoch: u64) {
        let error = loop {
            match watcher.receive() {
                Ok((response, _)) => {
                    if let Some(state) = response.state {
                        self.see(epoch, Uses::from(state));
                    }
                }
                Err(error) => break error,
            }
        };
        tracing::debug!(%error, "the holder is not heard of any more");
        self.down(epoch);
    }

    fn down(&self, epoch: u64) {
        // Held over both, so that the sockets of a connection that is just made are never those that are shut down.
        let mut sockets = self.sockets.lock();
        let was_up = self.state.send_if_modified(|state| {
            let is_this = *state == LinkState { epoch, is_up: true };
            state.is_up &= !is_this;
            is_this
        });
        if was_up {
            for socket in sockets.drain(..) {
                // It may be closed already.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }
}
