//! Takes a model from the loader over its attach socket. The open socket is the lease.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use longshore_memory::fdpass::recv_with_fds;
use longshore_proto::{MESSAGE_BYTES_MAX, v1};
use longshore_types::{Code, Error, Result};
use prost::Message;

/// How long the loader may take for each part of its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// More descriptors than any model has regions.
const FDS_MAX: u32 = 4096;

/// A model that is attached; it stays in the loader's memory as long as the socket is open.
pub struct Attached {
    /// The lease.
    pub socket: UnixStream,
    /// The memory, segment by segment.
    pub memory: Vec<File>,
    /// What lies where in it.
    pub model: v1::LoadedModel,
}

/// Attaches to a loaded model. Blocks.
///
/// # Errors
/// [`Code::Unavailable`] naming the socket, or the loader's own answer.
pub fn attach(socket: &Path, model_id: &str) -> Result<Attached> {
    let failed = |what: &str, error: std::io::Error| {
        let path = socket.display();
        Error::new(Code::Unavailable, format!("cannot {what} the loader's attach socket {path}: {error}"))
            .with_source(error)
    };
    let mut stream = UnixStream::connect(socket).map_err(|error| failed("connect to", error))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(|error| failed("use", error))?;
    let request = v1::AttachRequest { model_id: model_id.to_owned() };
    write_frame(&mut stream, &request.encode_to_vec()).map_err(|error| failed("write to", error))?;
    let answer = read_frame(&mut stream)?.map_err(|error| failed("read from", error))?;
    let answer = v1::AttachResponse::decode(answer.as_slice())
        .map_err(|error| Error::new(Code::Corrupt, format!("the loader's attach answer is malformed: {error}")))?;
    if !answer.error_code.is_empty() {
        return Err(Error::new(Code::from_name(&answer.error_code), answer.error_message));
    }
    if answer.fd_count > FDS_MAX {
        return Err(Error::new(Code::Corrupt, format!("the loader announces {} descriptors", answer.fd_count)));
    }
    let mut fds: Vec<OwnedFd> = Vec::new();
    while fds.len() < answer.fd_count as usize {
        let mut byte = [0];
        match recv_with_fds(stream.as_fd(), &mut byte, &mut fds) {
            Ok(0) => return Err(failed("read from", std::io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(error) => return Err(failed("read from", error)),
        }
    }
    let memory = fds.into_iter().map(File::from).collect();
    Ok(Attached { socket: stream, memory, model: answer.model.unwrap_or_default() })
}

/// A little-endian `u32` of length, and that many bytes.
fn write_frame(stream: &mut UnixStream, bytes: &[u8]) -> std::io::Result<()> {
    let len = u32::try_from(bytes.len()).map_err(std::io::Error::other)?;
    stream.write_all(&len.to_le_bytes())?;
    stream.write_all(bytes)
}

/// The outer error is ours (a length beyond the limit), the inner one the socket's.
fn read_frame(stream: &mut UnixStream) -> Result<std::io::Result<Vec<u8>>> {
    let mut len = [0; 4];
    if let Err(error) = stream.read_exact(&mut len) {
        return Ok(Err(error));
    }
    let len = u32::from_le_bytes(len) as usize;
    if len > MESSAGE_BYTES_MAX {
        return Err(Error::new(Code::Corrupt, format!("the loader announces an attach answer of {len} bytes")));
    }
    let mut bytes = vec![0; len];
    Ok(stream.read_exact(&mut bytes).map(|()| bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn answer(bytes: Vec<u8>) -> Result<Attached> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("attach.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let request = read_frame(&mut stream).unwrap().unwrap();
            assert_eq!(v1::AttachRequest::decode(request.as_slice()).unwrap().model_id, "m1");
            stream.write_all(&bytes).unwrap();
        });
        let attached = attach(&path, "m1");
        server.join().unwrap();
        attached
    }

    fn frame(message: &v1::AttachResponse) -> Vec<u8> {
        let body = message.encode_to_vec();
        [(body.len() as u32).to_le_bytes().to_vec(), body].concat()
    }

    #[test]
    fn refusals_and_nonsense_are_errors() {
        let refused = v1::AttachResponse {
            error_code: "not_found".into(),
            error_message: "no such model".into(),
            ..Default::default()
        };
        assert_eq!(answer(frame(&refused)).err().unwrap().code(), Code::NotFound);
        assert_eq!(answer(u32::MAX.to_le_bytes().to_vec()).err().unwrap().code(), Code::Corrupt);
        assert_eq!(answer(vec![4, 0, 0, 0, 255, 255, 255, 255]).err().unwrap().code(), Code::Corrupt);
        assert_eq!(answer(vec![4, 0, 0, 0, 1]).err().unwrap().code(), Code::Unavailable);
        let cut_off = v1::AttachResponse { fd_count: 1, ..Default::default() };
        assert_eq!(answer(frame(&cut_off)).err().unwrap().code(), Code::Unavailable);
        let many = v1::AttachResponse { fd_count: u32::MAX, ..Default::default() };
        assert_eq!(answer(frame(&many)).err().unwrap().code(), Code::Corrupt);
    }

    #[test]
    fn nobody_there_names_the_socket() {
        let error = attach(Path::new("/nonexistent/attach.sock"), "m").err().unwrap();
        assert!(error.code() == Code::Unavailable && error.message().contains("/nonexistent/attach.sock"), "{error}");
    }
}
