//! Azure's way of uploading in parts: blocks with names, which a list makes a blob.

use std::collections::BTreeMap;
use std::time::SystemTime;

use hyper::{Response, StatusCode, header};
use longshore_types::BlockChecksum;
use serde::Deserialize;

use super::super::body::{self, Body};
use super::super::request::Ask;
use super::super::serve::{Call, built};
use super::super::state::{NewObject, State};
use super::super::stores::Failure;
use super::super::write::{Condition, check_bucket, etag, malformed};
use super::super::{azure, checksums::Stated};
use super::{Part, Upload};
use crate::content::Content;

/// All blocks of a blob that wait for their list are one upload.
pub(super) const UPLOAD: &str = "azure";
const BLOCKS_MAX: usize = 50_000;

/// The number of a block: as its name came in.
pub(in crate::origin) fn number_of_block(state: &State, ask: &Ask, path: &str) -> u32 {
    let mut open = state.uploads.open.lock();
    let upload = open.entry((path.to_owned(), UPLOAD.to_owned())).or_insert_with(|| Upload {
        number: state.next_number(),
        begun: SystemTime::now(),
        algorithm: None,
        is_composite: false,
        parts: BTreeMap::new(),
        blocks: BTreeMap::new(),
    });
    let name = ask.param("blockid").unwrap_or_default();
    let next = upload.blocks.len() as u32 + 1;
    match upload.blocks.get(name) {
        Some(number) => *number,
        // It is refused when it has come in.
        None if upload.blocks.len() >= BLOCKS_MAX => next,
        None => *upload.blocks.entry(name.to_owned()).or_insert(next),
    }
}

pub(in crate::origin) fn put_block(call: Call) -> Response<Body> {
    match try_put_block(&call) {
        Ok(()) => call.text(StatusCode::CREATED, "text/plain", String::new()),
        Err(failure) => call.fail(failure),
    }
}

fn try_put_block(call: &Call) -> Result<(), Failure> {
    check_bucket(call)?;
    let received = &call.received;
    let part = Part {
        content: received.content.clone(),
        etag: etag(received),
        checksum: received.checksum,
        stated: None::<Stated>,
        received: SystemTime::now(),
    };
    let mut open = call.state.uploads.open.lock();
    let upload = open.get_mut(&(call.path.clone(), UPLOAD.to_owned())).ok_or_else(invalid_list)?;
    let name = call.ask.param("blockid").unwrap_or_default();
    if name.is_empty() || upload.blocks.keys().any(|known| known.len() != name.len()) {
        let message =
            "The specified block ID is invalid. The block ID must be Base64-encoded, and all of a blob of one length.";
        return Err(Failure::new(400, "InvalidBlobOrBlock", message));
    }
    let number = upload.blocks.get(name).copied().ok_or_else(invalid_list)?;
    upload.parts.insert(number, part);
    drop(open);
    call.ticket.part_stored();
    Ok(())
}

fn invalid_list() -> Failure {
    Failure::new(400, "InvalidBlockList", "The specified block list is invalid.")
}

#[derive(Deserialize)]
struct BlockList {
    #[serde(rename = "$value", default)]
    blocks: Vec<Listed>,
}

/// Blocks of the blob that is there (`Committed`) are not kept here.
#[derive(Deserialize)]
enum Listed {
    Uncommitted(String),
    Latest(String),
}

pub(in crate::origin) fn put_block_list(call: Call) -> Response<Body> {
    match try_put_block_list(&call) {
        Ok(etag) => {
            call.ticket.status(201);
            let response = Response::builder().status(StatusCode::CREATED).header(header::ETAG, etag);
            built(response.body(body::empty()))
        }
        Err(failure) => call.fail(failure),
    }
}

fn try_put_block_list(call: &Call) -> Result<String, Failure> {
    check_bucket(call)?;
    let body = call.received.content.to_vec();
    let list: BlockList = quick_xml::de::from_reader(&body[..]).map_err(|_| malformed())?;
    let condition = Condition::of(call)?;
    let mut open = call.state.uploads.open.lock();
    let key = (call.path.clone(), UPLOAD.to_owned());
    let upload = open.get(&key);
    let find = |listed: &Listed| match listed {
        Listed::Uncommitted(name) | Listed::Latest(name) => {
            let upload = upload?;
            upload.parts.get(upload.blocks.get(name)?)
        }
    };
    let parts: Option<Vec<&Part>> = list.blocks.iter().map(find).collect();
    let parts = parts.ok_or_else(invalid_list)?;
    let content = Content::concat(parts.iter().map(|part| part.content.clone()));
    let checksum =
        parts.iter().fold(BlockChecksum::of(b""), |sum, part| sum.combine(part.checksum, part.content.len_bytes()));
    let new = NewObject { content, etag: azure::new_etag(&call.state), checksum, stated: None };
    let object = call.state.put_if(&call.path, new, |current| azure::holds(&condition, current))?;
    // What is not in the list is dropped.
    open.remove(&key);
    Ok(object.etag.clone())
}
