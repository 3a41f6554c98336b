//! The index that Hugging Face tools read: which object holds which tensor.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use longshore_types::checkpoint::{FilePlace, StoredFile, StoredObject, step_folder};
use longshore_types::names::{folder_of, join};
use longshore_types::{BlockChecksum, Result};
use serde::Serialize;

use super::Writeback;
use super::objects::blocking;
use crate::failpoint;
use crate::plan::{INDEX_NAME, SavePlan};

#[derive(Serialize)]
struct Index<'a> {
    metadata: Metadata,
    weight_map: BTreeMap<&'a str, String>,
}

#[derive(Serialize)]
struct Metadata {
    total_size: u64,
}

/// The index over the tensors of the empty group; `None` when there are none, or the reason why there cannot be one.
fn build(plan: &SavePlan, is_chunked: impl Fn(u32) -> bool) -> Result<Option<Vec<u8>>, &'static str> {
    let mut index = Index { metadata: Metadata { total_size: 0 }, weight_map: BTreeMap::new() };
    let folder = format!("{}/", step_folder(plan.step));
    for (number, file) in (0u32..).zip(&plan.files) {
        if !file.is_tensors() || !folder_of(&file.name).is_empty() {
            continue;
        }
        if is_chunked(number) {
            return Err("a delta has no index for Hugging Face tools: its tensors lie in several objects");
        }
        let path = plan.object_path(file);
        let object = path.strip_prefix(&folder).unwrap_or(&path);
        for planned in &file.tensors {
            let tensor = &planned.tensor;
            if !tensor.start.is_empty() || !tensor.piece_shape.is_empty() {
                return Err("no index for Hugging Face tools: some tensors are in pieces");
            }
            index.metadata.total_size = index.metadata.total_size.saturating_add(planned.length_bytes);
            index.weight_map.insert(&tensor.name, object.to_owned());
        }
    }
    if index.weight_map.is_empty() {
        return Ok(None);
    }
    // Strings and numbers are always JSON.
    let mut text = serde_json::to_vec_pretty(&index).unwrap_or_default();
    text.push(b'\n');
    Ok(Some(text))
}

impl Writeback {
    /// Writes the index, when it is asked for and there can be one; it is a file of the checkpoint like any other.
    pub(super) async fn write_index(&self, is_delta: bool) -> Result<Vec<(StoredObject, StoredFile)>> {
        let plan = self.attempt.plan();
        if !plan.options.hf_index {
            return Ok(vec![]);
        }
        // The same on every node that may commit: a delta is one for all ranks.
        let bytes = match build(plan, |_| is_delta) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(vec![]),
            Err(note) => {
                self.attempt.note(note);
                return Ok(vec![]);
            }
        };
        failpoint::hit("before_index");
        let path = join(&step_folder(plan.step), INDEX_NAME);
        let (checksum, blocks) = (BlockChecksum::of(&bytes), BlockChecksum::of_blocks(&bytes));
        let size_bytes = bytes.len() as u64;
        let bytes = Bytes::from(bytes);
        let version = self.put_made(&self.run.url_of(&path), bytes.clone()).await?;
        failpoint::hit("after_index");
        let (keeper, kept) = (Arc::clone(&self.attempt), bytes.clone());
        if let Err(error) = blocking(move || keeper.keep_index(&kept)).await {
            self.attempt.note(format!("the index is not kept on this node: {error}"));
        }
        self.cache_made(&path, bytes, &blocks).await;
        let object =
            StoredObject { path, size_bytes, version: version.as_str().to_owned(), checksum, attempt: plan.attempt };
        let place = FilePlace::Object(0);
        Ok(vec![(object, StoredFile { name: INDEX_NAME.to_owned(), size_bytes, checksum, blocks, place })])
    }
}
