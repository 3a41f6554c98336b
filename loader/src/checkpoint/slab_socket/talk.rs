//! One connection, from hello to its end.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use longshore_checkpoint::{SlabGranted, SlabSession};
use longshore_memory::slabs::SlabPiece;
use longshore_proto::v1;
use longshore_types::{Code, Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{MESSAGE_BYTES_MAX, REQUEST_BYTES_MAX, REQUEST_TIMEOUT, SlabSource, answer};
use crate::holder::frame;

/// Requests that a client may send without having read their answers. So there is always somebody who sees its end.
const REQUESTS_MAX: usize = 32;

/// How long a client that lives may take to come back, or to let go of its memory, after its connection ended.
const LINGER: Duration = Duration::from_secs(30);

/// How often a process that hung up is looked at: one that dies closes its socket some moments before it has ended.
const FIRST_LOOK: Duration = Duration::from_millis(2);
const LAST_LOOK: Duration = Duration::from_millis(500);

/// How a conversation ended.
enum End {
    /// The client left.
    Left,
    /// This process goes.
    Leaving,
}

/// # Errors
/// What ended the connection before there was a session, and what it failed with.
pub(super) async fn client(stream: UnixStream, source: &impl SlabSource, token: &CancellationToken) -> Result<()> {
    let peer = stream.peer_cred().map_err(frame::left)?;
    let (uid, process) = (peer.uid(), Process::open(peer.pid()));
    let (mut requests, answers) = stream.into_split();
    let mut speaker = Speaker { stream: answers, pieces_told: 0 };
    let opened = token.run_until_cancelled(async {
        let request = timeout(REQUEST_TIMEOUT, frame::read(&mut requests, REQUEST_BYTES_MAX)).await;
        let request = request.map_err(|_| Error::new(Code::Timeout, "no hello came"))??;
        let hello = answer::hello(request, uid)?;
        let slabs = source.slabs().await?;
        let (session, welcome) = slabs.hello(hello).await?;
        Ok((session, welcome, slabs.slab_bytes()))
    });
    let (session, welcome, slab_bytes) = match opened.await {
        None => return Ok(()),
        Some(Ok(opened)) => opened,
        Some(Err(error)) => {
            let _ = timeout(REQUEST_TIMEOUT, speaker.last_words(&error)).await;
            // Unread bytes in a socket that is closed would take the answer with them.
            let _ = timeout(REQUEST_TIMEOUT, until_end(&mut requests)).await;
            return Err(error);
        }
    };
    tracing::debug!(session = %session.id(), uid, "slab session");
    let (sender, receiver) = mpsc::channel(REQUESTS_MAX + 1);
    let talking = async {
        let pieces = speaker.new_pieces(&session);
        let lengths = pieces.iter().map(|piece| piece.len_bytes()).collect();
        let message = answer::welcome(&welcome, slab_bytes, lengths);
        let control = session.control().fd();
        speaker.say(&message, [control].into_iter().chain(pieces.iter().map(|piece| piece.fd()))).await?;
        answer_all(&session, &mut speaker, receiver).await
    };
    let end = tokio::select! {
        _ = listen(&mut requests, sender) => End::Left,
        // A client that takes no answer has left, or is about to: its end shows in what it says.
        Err(error) = talking => {
            tracing::debug!(session = %session.id(), %error, "a client takes no answers");
            tokio::select! {
                () = until_end(&mut requests) => End::Left,
                () = token.cancelled() => End::Leaving,
            }
        }
        () = token.cancelled() => End::Leaving,
    };
    match end {
        End::Left => {
            let absence = session.disconnect();
            // Memory that a living client may still copy to is not taken from under it.
            match token.run_until_cancelled(timeout(LINGER, process.end())).await {
                Some(_) => drop(absence),
                None => absence.leave(),
            }
        }
        End::Leaving => session.leave(),
    }
    Ok(())
}

/// The client's process, as far as it can be seen.
enum Process {
    Seen(OwnedFd),
    Ended,
    /// In another container, or the kernel is too old.
    Unseen,
}

impl Process {
    fn open(pid: Option<i32>) -> Process {
        let Some(pid) = pid.and_then(Pid::from_raw) else { return Process::Unseen };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => Process::Seen(fd),
            Err(Errno::SRCH) => Process::Ended,
            Err(_) => Process::Unseen,
        }
    }

    /// Returns when it has ended, and never when that cannot be known.
    async fn end(&self) {
        match self {
            Process::Ended => {}
            Process::Seen(fd) => {
                let mut pause = FIRST_LOOK;
                while !has_ended(fd) {
                    tokio::time::sleep(pause).await;
                    pause = (2 * pause).min(LAST_LOOK);
                }
            }
            Process::Unseen => std::future::pending().await,
        }
    }
}

/// A descriptor of a process becomes readable with its end. Does not wait.
fn has_ended(process: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(process, PollFlags::IN)];
    poll(&mut asked, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Reads requests until the client is gone. After one that is wrong nothing more is read, but its end is waited for: while
/// the client lives it has the memory, and so it keeps its session.
async fn listen(stream: &mut OwnedReadHalf, requests: mpsc::Sender<Result<v1::SlabRequest>>) {
    loop {
        let request = match next(stream).await {
            Err(error) if error.code() == Code::Unavailable => return,
            Ok(_) if requests.capacity() <= 1 => Err(Error::new(
                Code::InvalidArgument,
                format!("more than {REQUESTS_MAX} requests without their answers read"),
            )),
            other => other,
        };
        let is_last = request.is_err();
        // There is room: this is the only sender.
        if requests.try_send(request).is_err() || is_last {
            return until_end(stream).await;
        }
    }
}

async fn next(stream: &mut OwnedReadHalf) -> Result<v1::SlabRequest> {
    let length = frame::length(stream, REQUEST_BYTES_MAX).await?;
    let body = timeout(REQUEST_TIMEOUT, frame::body(stream, length)).await;
    body.map_err(|_| Error::new(Code::Timeout, "the rest of a request did not come"))?
}

async fn until_end(stream: &mut OwnedReadHalf) {
    let mut ignored = [0; 4096];
    while stream.read(&mut ignored).await.is_ok_and(|count| count > 0) {}
}

/// Works on requests as they come and answers them in order. Ends only when no answer can be given any more; after the
/// answer to a wrong request it waits for the end that the listener sees.
async fn answer_all(
    session: &SlabSession,
    speaker: &mut Speaker,
    mut requests: mpsc::Receiver<Result<v1::SlabRequest>>,
) -> Result<()> {
    let mut working = FuturesOrdered::new();
    let mut is_open = true;
    loop {
        tokio::select! {
            request = requests.recv(), if is_open && working.len() < REQUESTS_MAX => match request {
                Some(request) => {
                    is_open = request.is_ok();
                    working.push_back(worked(session, request));
                }
                None => is_open = false,
            },
            Some(outcome) = working.next() => match outcome {
                Outcome::Answer(Ok(granted)) => speaker.grant(session, granted).await?,
                Outcome::Answer(Err(error)) => speaker.say(&answer::failed(&error), []).await?,
                Outcome::Last(error) => speaker.last_words(&error).await?,
            },
            else => std::future::pending().await,
        }
    }
}

/// What becomes of a request.
enum Outcome {
    Answer(Result<Option<SlabGranted>>),
    Last(Error),
}

async fn worked(session: &SlabSession, request: Result<v1::SlabRequest>) -> Outcome {
    match request {
        Ok(request) => Outcome::Answer(answer::work(session, request).await),
        Err(error) => Outcome::Last(error),
    }
}

/// The half of the connection that answers.
struct Speaker {
    stream: OwnedWriteHalf,
    pieces_told: usize,
}

impl Speaker {
    /// Pieces that the client does not know; from now on it does.
    fn new_pieces(&mut self, session: &SlabSession) -> Vec<Arc<SlabPiece>> {
        let pieces = session.pieces(self.pieces_told);
        self.pieces_told += pieces.len();
        pieces
    }

    async fn grant(&mut self, session: &SlabSession, granted: Option<SlabGranted>) -> Result<()> {
        let Some(granted) = granted else {
            return self.say(&v1::SlabResponse::default(), []).await;
        };
        let pieces = self.new_pieces(session);
        let lengths = pieces.iter().map(|piece| piece.len_bytes()).collect();
        self.say(&answer::granted(&granted, lengths), pieces.iter().map(|piece| piece.fd())).await
    }

    async fn say<'a>(
        &mut self,
        message: &v1::SlabResponse,
        fds: impl IntoIterator<Item = BorrowedFd<'a>>,
    ) -> Result<()> {
        let fds: Vec<BorrowedFd<'_>> = fds.into_iter().collect();
        frame::write(&mut self.stream, &frame::encode(message, MESSAGE_BYTES_MAX)?).await?;
        frame::send_fds(self.stream.as_ref(), &fds).await
    }

    async fn last_words(&mut self, error: &Error) -> Result<()> {
        self.say(&answer::failed(error), []).await?;
        self.stream.shutdown().await.map_err(frame::left)
    }
}
