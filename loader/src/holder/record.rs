//! What a loader must know of a model to take it over from the holder, as bytes that outlive the loader.
//!
//! It is read by later versions, and perhaps by earlier ones: what cannot be read in full is not taken over at all.

use longshore_proto::convert::{manifest_from_proto, manifest_to_proto};
use longshore_proto::{MESSAGE_BYTES_MAX, v1};
use longshore_types::{Code, Error, Manifest, Result, Selection};
use prost::Message;

use crate::grpc::convert;
use crate::model::{Model, ModelId};
use crate::parallel::Parallel;
use crate::plan::{Layout, Place, TensorPlace};
use crate::report::LoadReport;

/// The version that this build writes and reads.
const VERSION: u32 = 1;

/// A model as a record has it: everything but the memory and the ordinal of its device.
#[derive(Debug, PartialEq)]
pub(crate) struct Record {
    pub id: ModelId,
    pub selection: Selection,
    pub parallel: Option<Parallel>,
    pub device_uuid: String,
    pub is_on_gpu: bool,
    pub manifest: Manifest,
    pub layout: Layout,
    pub region_bytes: Vec<u64>,
    pub report: LoadReport,
}

/// # Errors
/// [`Code::Exhausted`] for a model of more tensors than a message can say.
pub(crate) fn encode(model: &Model) -> Result<Vec<u8>> {
    let tensors = model.layout.tensors.iter().map(|TensorPlace { tensor, place, shape }| v1::RecordedTensor {
        tensor: *tensor as u32,
        region: place.region,
        offset_bytes: place.offset_bytes,
        length_bytes: place.length_bytes,
        shape: shape.as_ref().map(|shape| v1::RecordedShape { dims: shape.to_vec() }),
    });
    let files = model.layout.files.iter().map(|(file, place)| v1::RecordedFile {
        file: *file as u32,
        region: place.region,
        offset_bytes: place.offset_bytes,
        length_bytes: place.length_bytes,
    });
    let record = v1::HeldRecord {
        version: VERSION,
        model_id: model.id.as_str().to_owned(),
        url: model.key.url.clone(),
        revision: model.key.revision.clone(),
        include: model.key.selection.include.clone(),
        parallel: model.key.parallel.as_ref().map(v1::Parallel::from),
        device_uuid: model.device_uuid.clone(),
        is_on_gpu: model.regions.iter().any(|region| region.host_bytes().is_none()),
        manifest: Some(manifest_to_proto(&model.manifest)),
        region_bytes: model.regions.iter().map(|region| region.size_bytes()).collect(),
        tensors: tensors.collect(),
        files: files.collect(),
        warnings: model.layout.warnings.clone(),
        report: Some(convert::report(&model.report, convert::Detail::Listing)),
    };
    match record.encoded_len() <= MESSAGE_BYTES_MAX {
        true => Ok(record.encode_to_vec()),
        false => Err(Error::new(Code::Exhausted, "the model has more tensors than its holder can be told of")),
    }
}

/// # Errors
/// [`Code::Unsupported`] for a record of another version, [`Code::Corrupt`] for one that contradicts itself.
pub(crate) fn decode(bytes: &[u8]) -> Result<Record> {
    let record = v1::HeldRecord::decode(bytes).map_err(|error| corrupt(format!("is not readable: {error}")))?;
    if record.version != VERSION {
        let message = format!("it was loaded by a version with records {}, this one reads {VERSION}", record.version);
        return Err(Error::new(Code::Unsupported, message));
    }
    let manifest = record.manifest.ok_or_else(|| corrupt("has no manifest".to_owned()))?;
    let manifest = manifest_from_proto(manifest)?;
    if (manifest.url.as_str(), manifest.revision.as_str()) != (record.url.as_str(), record.revision.as_str()) {
        return Err(corrupt("and its manifest are of two models".to_owned()));
    }
    let place = Places { region_bytes: &record.region_bytes };
    let mut tensors = Vec::with_capacity(record.tensors.len());
    for v1::RecordedTensor { tensor, region, offset_bytes, length_bytes, shape } in record.tensors {
        if tensor as usize >= manifest.tensors.len() {
            return Err(corrupt(format!("names tensor {tensor}, of {}", manifest.tensors.len())));
        }
        let place = place.check(region, offset_bytes, length_bytes)?;
        let shape = shape.map(|shape| shape.dims.into_boxed_slice());
        tensors.push(TensorPlace { tensor: tensor as usize, place, shape });
    }
    let mut files = Vec::with_capacity(record.files.len());
    for v1::RecordedFile { file, region, offset_bytes, length_bytes } in record.files {
        if file as usize >= manifest.files.len() {
            return Err(corrupt(format!("names file {file}, of {}", manifest.files.len())));
        }
        files.push((file as usize, place.check(region, offset_bytes, length_bytes)?));
    }
    let layout = Layout {
        sizes_bytes: record.region_bytes.clone(),
        tensors,
        files,
        // They were carried out.
        copies: Vec::new(),
        warnings: record.warnings,
    };
    Ok(Record {
        id: ModelId::from_client(record.model_id),
        selection: Selection::new(record.include)?,
        parallel: record.parallel.map(Parallel::try_from).transpose()?,
        device_uuid: record.device_uuid,
        is_on_gpu: record.is_on_gpu,
        manifest,
        layout,
        region_bytes: record.region_bytes,
        report: convert::report_from_proto(record.report.unwrap_or_default()),
    })
}

struct Places<'a> {
    region_bytes: &'a [u64],
}

impl Places<'_> {
    fn check(&self, region: u32, offset_bytes: u64, length_bytes: u64) -> Result<Place> {
        let end = offset_bytes.checked_add(length_bytes);
        let size = self.region_bytes.get(region as usize);
        match end.zip(size).is_some_and(|(end, size)| end <= *size) {
            true => Ok(Place { region, offset_bytes, length_bytes }),
            false => Err(corrupt(format!("has bytes {offset_bytes} and on outside of region {region}"))),
        }
    }
}

fn corrupt(what: String) -> Error {
    Error::new(Code::Corrupt, format!("the record of the model {what}"))
}

#[cfg(test)]
mod tests;
