//! A chunk on its way in, the same for both ways to bring it: block after block, each compared before the next is taken.

use longshore_types::{Code, Error, Result};

use crate::service::{Incoming, PutRequest};

/// Bytes taken at most before they are checksummed, see `client/receive.rs`.
const PIECE_BYTES: usize = 256 << 10;

/// Fills an incoming chunk. `read` gets memory, and says how many bytes it put there, at least one.
///
/// # Errors
/// [`Code::Corrupt`] for a block that is not what was announced, and whatever `read` says.
pub(crate) fn land(
    incoming: &mut dyn Incoming,
    request: &PutRequest,
    mut read: impl FnMut(&mut [u8]) -> Result<usize>,
) -> Result<()> {
    let writer = incoming.writer();
    let len = request.key.len_bytes();
    if writer.remaining_bytes() != len {
        return Err(Error::new(Code::Internal, format!("{request} was given room of another size")));
    }
    for (index, wanted) in request.checksums.iter().enumerate() {
        let end = crate::block_range(index, len).end;
        while writer.written_bytes() < end {
            let room = writer.spare();
            let room_bytes = room.len().min(PIECE_BYTES);
            let count = read(&mut room[..room_bytes])?;
            if count == 0 || count > room_bytes {
                return Err(Error::new(
                    Code::Internal,
                    format!("a read of {count} bytes into {room_bytes} bytes of memory"),
                ));
            }
            writer.commit(count)?;
        }
        match writer.block_checksum(index) {
            Some(got) if got == *wanted => {}
            Some(got) => {
                let why = format!("block {index} of {request} came with checksum {got} instead of {wanted}");
                return Err(Error::new(Code::Corrupt, why));
            }
            None => return Err(Error::new(Code::Internal, format!("block {index} of {request} has no checksum"))),
        }
    }
    Ok(())
}
