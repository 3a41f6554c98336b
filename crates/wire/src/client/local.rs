//! The way without sockets: the service is in this process.

use longshore_memory::Landing;
use longshore_types::{Code, Error, Result};

use crate::client::Fetched;
use crate::client::patience::Patience;
use crate::client::receive::{Receiver, scatter};
use crate::http::status;
use crate::put::land;
use crate::service::{ChunkBody, ChunkRequest, ChunkService, Page, PutRequest, PutStart};
use crate::stats::Put;

pub(crate) fn fetch(
    service: &dyn ChunkService,
    request: &ChunkRequest,
    landing: &mut Landing,
    patience: &Patience,
) -> Result<Fetched> {
    patience.check()?;
    let reply = service.get(request)?;
    let mut receiver = Receiver::new(landing, request);
    match &reply.body {
        ChunkBody::File { file, offset_bytes, checksums } => {
            let checksums = checksums
                .get(request.blocks())
                .ok_or_else(|| Error::new(Code::Internal, format!("{request} has {} checksums", checksums.len())))?;
            receiver.file(file, *offset_bytes, checksums)?;
        }
        ChunkBody::Memory(chunk) => {
            for index in request.blocks() {
                let (bytes, checksum) = patience.wait(|time| chunk.block(index, time))?;
                receiver.block(index, checksum, |slices, at| Ok(scatter(bytes.get(at..).unwrap_or(&[]), slices)))?;
            }
        }
    }
    Ok(receiver.fetched(reply.tier, false))
}

pub(crate) fn put(service: &dyn ChunkService, request: &PutRequest, bytes: &[u8], patience: &Patience) -> Result<Put> {
    patience.check()?;
    let mut incoming = match service.put(request)? {
        PutStart::There => return Ok(Put::There),
        PutStart::Take(incoming) => incoming,
    };
    let mut rest = bytes;
    land(incoming.as_mut(), request, |room| {
        let count = room.len().min(rest.len());
        room[..count].copy_from_slice(&rest[..count]);
        rest = &rest[count..];
        Ok(count)
    })?;
    incoming.keep()?;
    Ok(Put::Sent)
}

pub(crate) fn page(service: &dyn ChunkService, path: &str, len_max: usize) -> Result<Vec<u8>> {
    let Page { status, body, .. } =
        service.page(path).ok_or_else(|| Error::new(Code::NotFound, "there is no such page"))?;
    if !(200..300).contains(&status) {
        let text = String::from_utf8_lossy(&body);
        return Err(Error::new(status::to_code(status), format!("status {status}: {}", text.trim())));
    }
    if body.len() > len_max {
        return Err(Error::new(Code::Exhausted, format!("{} bytes where {len_max} are the most", body.len())));
    }
    Ok(body)
}
