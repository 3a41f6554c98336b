//! The way over a socket: ask, read the head, land the body.

use std::fs::File;
use std::io::IoSliceMut;
use std::sync::atomic::Ordering::Relaxed;

use longshore_memory::Landing;
use longshore_types::checkpoint::AttemptId;
use longshore_types::{Code, Error, Result};

use crate::client::connection::{Connection, Failure, violation};
use crate::client::patience::Patience;
use crate::client::pool::{Lease, Pool};
use crate::client::receive::Receiver;
use crate::client::{Endpoint, Fetched};
use crate::http::request::Accept;
use crate::http::response::{CONTINUE, Framing, HandedOver, ResponseHead};
use crate::http::{request, status, target};
use crate::service::{ChunkRequest, PutRequest, Tier};
use crate::stats::{ClientCounters, Put};

mod open;

pub(crate) use open::Opened;

/// The most of an error's text that is read and passed on.
const ERROR_BODY_BYTES_MAX: usize = 4 << 10;
/// Dead pooled connections replaced for one request. After the first, all that were idle then are gone, and only one
/// that another thread has just put back could be dead too.
const REPLACED_MAX: usize = 3;

pub(crate) fn fetch(
    pool: &Pool,
    counters: &ClientCounters,
    endpoint: &Endpoint,
    request: &ChunkRequest,
    landing: &mut Landing,
    patience: &Patience,
) -> Result<Fetched> {
    let target = target::encode(request);
    let (mut lease, head) = ask(pool, counters, endpoint, patience, |host, unix| {
        let accept = if unix { Accept::FileOrMemory } else { Accept::Bytes };
        request::encode_chunk(&target, host, request, accept)
    })?;
    let keep_alive = head.keep_alive;
    let fetched = land(lease.connection()?, head, request, landing)?;
    if keep_alive {
        lease.give_back();
    }
    Ok(fetched)
}

/// Asks whether the chunk is wanted, and sends it if so.
pub(crate) fn put(
    pool: &Pool,
    counters: &ClientCounters,
    endpoint: &Endpoint,
    request: &PutRequest,
    bytes: &[u8],
    patience: &Patience,
) -> Result<Put> {
    let target = target::encode_put(request);
    let (mut lease, head) =
        ask(pool, counters, endpoint, patience, |host, _| request::encode_put(&target, host, request))?;
    if head.status != CONTINUE {
        end_small(lease, &head)?;
        return Ok(Put::There);
    }
    // Nothing is repeated from here on: the server may have kept the chunk already.
    let head = match lease.connection()?.ask(bytes) {
        Ok(head) if (200..300).contains(&head.status) => head,
        Ok(head) => return Err(refused(lease, &head)),
        Err(Failure::Dead(error) | Failure::Failed(error)) => return Err(error),
    };
    end_small(lease, &head)?;
    Ok(Put::Sent)
}

pub(crate) fn release(
    pool: &Pool,
    counters: &ClientCounters,
    endpoint: &Endpoint,
    attempt: &AttemptId,
    patience: &Patience,
) -> Result<()> {
    let target = target::encode_hold(attempt);
    let (lease, head) = ask(pool, counters, endpoint, patience, |host, _| request::encode_delete(&target, host))?;
    end_small(lease, &head)
}

/// The end of a good answer that has nothing to say.
fn end_small(lease: Lease<'_>, head: &ResponseHead) -> Result<()> {
    if head.framing != Framing::Length(0) || head.status == CONTINUE {
        return Err(violation("more of an answer than there should be"));
    }
    if head.keep_alive {
        lease.give_back();
    }
    Ok(())
}

pub(crate) fn page(
    pool: &Pool,
    counters: &ClientCounters,
    endpoint: &Endpoint,
    path: &str,
    len_max: usize,
    patience: &Patience,
) -> Result<Vec<u8>> {
    if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::new(Code::InvalidArgument, "a page is asked for by its path, from / on"));
    }
    let (mut lease, head) = ask(pool, counters, endpoint, patience, |host, _| request::encode_get(path, host))?;
    let Framing::Length(len) = head.framing else { return Err(violation("a page without a length")) };
    if head.status == CONTINUE {
        return Err(violation("a page that asks for more"));
    }
    if len > len_max as u64 {
        return Err(Error::new(Code::Exhausted, format!("{len} bytes where {len_max} are the most")));
    }
    let body = read_small(lease.connection()?, len as usize)?;
    if head.keep_alive {
        lease.give_back();
    }
    Ok(body)
}

/// Sends a request and reads the head of a good answer. A pooled connection that turns out to be dead is replaced:
/// the server closed it while nobody was looking, which says nothing about its health. A new one gets no second try.
fn ask<'a>(
    pool: &'a Pool,
    counters: &ClientCounters,
    endpoint: &Endpoint,
    patience: &Patience,
    encode: impl Fn(&str, bool) -> String,
) -> Result<(Lease<'a>, ResponseHead)> {
    let host = match endpoint {
        Endpoint::Tcp(address) => address.as_str(),
        _ => "localhost",
    };
    let mut replaced = 0;
    loop {
        let mut lease = pool.lease(endpoint, patience)?;
        counters.connects.fetch_add((!lease.reused).into(), Relaxed);
        let reused = lease.reused;
        let connection = lease.connection()?;
        let encoded = encode(host, connection.is_unix());
        match connection.ask(encoded.as_bytes()) {
            Ok(head) if head.status == CONTINUE || (200..300).contains(&head.status) => return Ok((lease, head)),
            Ok(head) => return Err(refused(lease, &head)),
            Err(Failure::Dead(_)) if reused && replaced < REPLACED_MAX => {
                counters.stale_connections.fetch_add(1, Relaxed);
                replaced += 1;
                drop(lease);
                pool.forget_idle(endpoint);
            }
            Err(Failure::Dead(error) | Failure::Failed(error)) => return Err(error),
        }
    }
}

/// The error that an answer tells of, with as much of its text as we take.
fn refused(mut lease: Lease<'_>, head: &ResponseHead) -> Error {
    let code = head.code.unwrap_or_else(|| status::to_code(head.status));
    let len = match head.framing {
        Framing::Length(len) => len,
        Framing::Chunked => 0,
    };
    let taken = len.min(ERROR_BODY_BYTES_MAX as u64) as usize;
    let body = lease.connection().and_then(|connection| read_small(connection, taken));
    let text = body.as_deref().map(clean_text).unwrap_or_default();
    if body.is_ok() && taken as u64 == len && head.framing != Framing::Chunked && head.keep_alive {
        lease.give_back();
    }
    if text.is_empty() {
        return Error::new(code, format!("refused with status {}", head.status));
    }
    Error::new(code, text)
}

/// Text from the peer, fit for a log line.
fn clean_text(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Reads a body that has been checked to be small.
fn read_small(connection: &mut Connection, len: usize) -> Result<Vec<u8>> {
    let mut body = vec![0; len];
    let mut at = 0;
    while at < len {
        at += connection.read(&mut [IoSliceMut::new(&mut body[at..])])?;
    }
    Ok(body)
}

/// Lands the body of a good answer.
fn land(
    connection: &mut Connection,
    head: ResponseHead,
    request: &ChunkRequest,
    landing: &mut Landing,
) -> Result<Fetched> {
    let tier = head.tier.ok_or_else(|| violation("a chunk without its tier"))?;
    let mut receiver = Receiver::new(landing, request);
    match head.handed_over {
        Some(HandedOver { offset_bytes, is_memory: false }) => {
            return land_file(connection, &head, offset_bytes, receiver, request, tier);
        }
        Some(HandedOver { offset_bytes, is_memory: true }) => {
            return land_memory(connection, &head, offset_bytes, receiver, request, tier);
        }
        None => {}
    }
    match head.framing {
        Framing::Length(len) if len == request.range.end - request.range.start => {
            let checksums = checksums(&head, request)?;
            for (index, wanted) in request.blocks().zip(checksums) {
                receiver.block(index, *wanted, |slices, _| connection.read(slices))?;
            }
        }
        Framing::Length(_) => return Err(violation("a body of another length than was asked for")),
        Framing::Chunked => land_chunked(connection, &mut receiver, request)?,
    }
    Ok(receiver.fetched(tier, false))
}

fn land_file(
    connection: &mut Connection,
    head: &ResponseHead,
    offset_bytes: u64,
    mut receiver: Receiver<'_>,
    request: &ChunkRequest,
    tier: Tier,
) -> Result<Fetched> {
    let file = take_file(connection)?;
    if head.framing != Framing::Length(0) {
        return Err(violation("a file, and a body beside it"));
    }
    receiver.file(&file, offset_bytes, checksums(head, request)?)?;
    Ok(receiver.fetched(tier, true))
}

/// Lands blocks out of the server's memory, which may still be filling.
fn land_memory(
    connection: &mut Connection,
    head: &ResponseHead,
    offset_bytes: u64,
    mut receiver: Receiver<'_>,
    request: &ChunkRequest,
    tier: Tier,
) -> Result<Fetched> {
    let file = take_file(connection)?;
    match head.framing {
        Framing::Length(0) => receiver.file(&file, offset_bytes, checksums(head, request)?)?,
        Framing::Length(_) => return Err(violation("memory, and a body beside it")),
        Framing::Chunked => {
            for index in request.blocks() {
                let wanted = connection.checksum_piece()?;
                receiver.block_of_file(&file, offset_bytes, index, wanted)?;
            }
            end_chunked(connection)?;
        }
    }
    connection.say_done();
    Ok(receiver.fetched(tier, true))
}

/// The file that came with the head. Nothing but a file is read from: its reads end.
fn take_file(connection: &mut Connection) -> Result<File> {
    let file = File::from(connection.take_fd()?);
    match file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        true => Ok(file),
        false => Err(violation("a descriptor that is no file")),
    }
}

fn land_chunked(connection: &mut Connection, receiver: &mut Receiver<'_>, request: &ChunkRequest) -> Result<()> {
    for index in request.blocks() {
        let (len, checksum) = connection.chunk_line()?;
        if len != receiver.block_len(index) {
            return Err(violation("a piece that is not one block"));
        }
        let wanted = checksum.ok_or_else(|| violation("a piece without its checksum"))?;
        receiver.block(index, wanted, |slices, _| connection.read(slices))?;
        if !connection.line()?.is_empty() {
            return Err(violation("a piece longer than it said"));
        }
    }
    end_chunked(connection)
}

fn end_chunked(connection: &mut Connection) -> Result<()> {
    let (len, _) = connection.chunk_line()?;
    if len != 0 || !connection.line()?.is_empty() {
        return Err(violation("more than was asked for"));
    }
    Ok(())
}

/// The checksums of exactly the blocks that were asked for.
fn checksums<'a>(head: &'a ResponseHead, request: &ChunkRequest) -> Result<&'a [longshore_types::BlockChecksum]> {
    head.checksums
        .as_deref()
        .filter(|checksums| checksums.len() == request.blocks().len())
        .ok_or_else(|| violation("not one checksum for each block"))
}
