//! Messages on the holder's sockets and that of the slabs: a little-endian `u32` length and that many bytes of protobuf, then descriptors.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use longshore_memory::fdpass::{FDS_PER_MESSAGE_MAX, recv_with_fds, send_with_fds};
use longshore_types::{Code, Error, Result};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// What is allocated before any byte of a message is there.
const FIRST_BYTES: u64 = 64 << 10;

/// Reads the length of a message. It may be waited for long; what follows may not.
///
/// # Errors
/// [`Code::InvalidArgument`] for one over `bytes_max`, [`Code::Unavailable`] when the other side left.
pub(crate) async fn length(stream: &mut (impl AsyncRead + Unpin), bytes_max: usize) -> Result<u32> {
    let length = stream.read_u32_le().await.map_err(left)?;
    match length as usize <= bytes_max {
        true => Ok(length),
        false => {
            let message = format!("a message of {length} bytes, at most {bytes_max} are accepted");
            Err(Error::new(Code::InvalidArgument, message))
        }
    }
}

/// Reads a message of that length.
///
/// # Errors
/// [`Code::InvalidArgument`] for what is no protobuf, [`Code::Unavailable`] when the other side left.
pub(crate) async fn body<M: Message + Default>(stream: &mut (impl AsyncRead + Unpin), length: u32) -> Result<M> {
    let length = u64::from(length);
    let mut bytes = Vec::with_capacity(length.min(FIRST_BYTES) as usize);
    // Not a byte more: with the next one descriptors may come.
    stream.take(length).read_to_end(&mut bytes).await.map_err(left)?;
    if (bytes.len() as u64) < length {
        return Err(left(std::io::ErrorKind::UnexpectedEof.into()));
    }
    M::decode(bytes.as_slice())
        .map_err(|error| Error::new(Code::InvalidArgument, format!("the message is not valid: {error}")))
}

/// Reads a message.
///
/// # Errors
/// As [`length`] and [`body`].
pub(crate) async fn read<M: Message + Default>(stream: &mut (impl AsyncRead + Unpin), bytes_max: usize) -> Result<M> {
    let length = length(stream, bytes_max).await?;
    body(stream, length).await
}

/// Writes a message that is encoded.
///
/// # Errors
/// [`Code::Unavailable`] when the other side left.
pub(crate) async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes).await.map_err(left)
}

/// A message with its length in front.
///
/// # Errors
/// [`Code::Exhausted`] for one over `bytes_max`.
pub(crate) fn encode(message: &impl Message, bytes_max: usize) -> Result<Vec<u8>> {
    let length = message.encoded_len();
    let prefix = prefix(length, bytes_max)?;
    let mut bytes = Vec::with_capacity(4 + length);
    bytes.extend_from_slice(&prefix);
    message.encode_raw(&mut bytes);
    Ok(bytes)
}

/// # Errors
/// [`Code::Exhausted`] for a message over `bytes_max`.
pub(crate) fn prefix(length: usize, bytes_max: usize) -> Result<[u8; 4]> {
    let fits = u32::try_from(length).ok().filter(|_| length <= bytes_max);
    fits.map(u32::to_le_bytes)
        .ok_or_else(|| Error::new(Code::Exhausted, format!("a message of {length} bytes is over the limit")))
}

/// Sends descriptors behind a message.
///
/// # Errors
/// [`Code::Unavailable`] when the other side left or takes no more.
pub(crate) async fn send_fds(stream: &UnixStream, fds: &[BorrowedFd<'_>]) -> Result<()> {
    for batch in fds.chunks(FDS_PER_MESSAGE_MAX) {
        let sent = stream.async_io(Interest::WRITABLE, || send_with_fds(stream.as_fd(), &[0], batch)).await;
        sent.map_err(|error| {
            Error::new(Code::Unavailable, format!("cannot hand over {} descriptors: {error}", batch.len()))
        })?;
    }
    Ok(())
}

/// Receives the descriptors behind a message.
///
/// # Errors
/// [`Code::InvalidArgument`] when others come than were announced; [`Code::Unavailable`] when the other side left.
pub(crate) async fn receive_fds(stream: &UnixStream, count: usize) -> Result<Vec<OwnedFd>> {
    let mut fds = Vec::new();
    while fds.len() < count {
        let before = fds.len();
        let mut data = [0; 1];
        let receive = || recv_with_fds(stream.as_fd(), &mut data, &mut fds);
        let bytes = stream.async_io(Interest::READABLE, receive).await.map_err(left)?;
        check_batch(bytes, before, fds.len(), count)?;
    }
    Ok(fds)
}

/// One batch of descriptors, on either side.
///
/// # Errors
/// As [`receive_fds`].
pub(crate) fn check_batch(bytes: usize, before: usize, after: usize, count: usize) -> Result<()> {
    match (bytes, after - before, after <= count) {
        (0, ..) => Err(left(std::io::ErrorKind::UnexpectedEof.into())),
        (_, 0, _) | (_, _, false) => Err(Error::new(
            Code::InvalidArgument,
            format!("{count} descriptors were announced and {after} came with a message that should have them"),
        )),
        _ => Ok(()),
    }
}

/// The other side is gone, or as good as.
pub(crate) fn left(error: std::io::Error) -> Error {
    Error::new(Code::Unavailable, format!("the other side left: {error}")).with_source(error)
}
