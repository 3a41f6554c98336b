//! Messages on the attach socket: a little-endian `u32` length and that many bytes of protobuf.

use longshore_proto::MESSAGE_BYTES_MAX;
use longshore_types::{Code, Error, Result};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest request, in bytes: it holds one id.
const REQUEST_BYTES_MAX: u32 = 4096;

/// Reads a request.
///
/// # Errors
/// [`Code::InvalidArgument`] for one that is too long or no protobuf, [`Code::Unavailable`] when the client left.
pub(super) async fn read<M: Message + Default>(stream: &mut (impl AsyncRead + Unpin)) -> Result<M> {
    let length = stream.read_u32_le().await.map_err(left)?;
    if length > REQUEST_BYTES_MAX {
        return Err(Error::new(
            Code::InvalidArgument,
            format!("an attach request of {length} bytes, at most {REQUEST_BYTES_MAX} are accepted"),
        ));
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await.map_err(left)?;
    M::decode(bytes.as_slice())
        .map_err(|error| Error::new(Code::InvalidArgument, format!("the attach request is not valid: {error}")))
}

/// Writes an answer.
///
/// # Errors
/// As [`encode`], or [`Code::Unavailable`] when the client left.
pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &impl Message) -> Result<()> {
    let bytes = encode(message)?;
    stream.write_all(&bytes).await.map_err(left)
}

/// # Errors
/// [`Code::Exhausted`] for a message over the limit of the protocol.
pub(super) fn encode(message: &impl Message) -> Result<Vec<u8>> {
    let length = message.encoded_len();
    let prefix = u32::try_from(length).ok().filter(|_| length <= MESSAGE_BYTES_MAX).ok_or_else(|| {
        Error::new(Code::Exhausted, format!("the description of the model has {length} bytes, over the limit"))
    })?;
    let mut bytes = Vec::with_capacity(4 + length);
    bytes.extend_from_slice(&prefix.to_le_bytes());
    message.encode_raw(&mut bytes);
    Ok(bytes)
}

fn left(error: std::io::Error) -> Error {
    Error::new(Code::Unavailable, format!("the client left: {error}"))
}
