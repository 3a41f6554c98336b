//! Domain types to messages and back. What comes from a message is checked as if a stranger had written it.

use std::sync::Arc;

use longshore_types::header::parse_dtype;
use longshore_types::{Artifact, Code, Error, Extent, Manifest, ModelFile, Result, Tensor, Version, names};

use crate::v1;

/// An artifact as a message.
pub fn artifact_to_proto(artifact: &Artifact) -> v1::Artifact {
    v1::Artifact {
        url: artifact.url().to_owned(),
        version: artifact.version().as_str().to_owned(),
        size_bytes: artifact.size_bytes(),
    }
}

/// # Errors
/// [`Code::InvalidArgument`] when the message is missing or its parts are not valid.
pub fn artifact_from_proto(message: Option<v1::Artifact>) -> Result<Artifact> {
    let message = message.ok_or_else(|| Error::new(Code::InvalidArgument, "message holds no artifact"))?;
    Artifact::new(message.url, Version::new(message.version)?, message.size_bytes)
}

/// A manifest as a message.
pub fn manifest_to_proto(manifest: &Manifest) -> v1::Manifest {
    v1::Manifest {
        url: manifest.url.clone(),
        revision: manifest.revision.clone(),
        files: manifest
            .files
            .iter()
            .map(|file| v1::ModelFile {
                name: file.name.clone(),
                artifact: Some(artifact_to_proto(&file.artifact)),
                is_tensors: file.is_tensors,
            })
            .collect(),
        tensors: manifest
            .tensors
            .iter()
            .map(|tensor| v1::Tensor {
                name: tensor.name.clone(),
                dtype: tensor.dtype_name.clone(),
                shape: tensor.shape.clone(),
                file: tensor.extent.file as u32,
                offset_bytes: tensor.extent.offset_bytes,
                length_bytes: tensor.extent.length_bytes,
            })
            .collect(),
        skipped: skipped_to_proto(&manifest.skipped),
        warnings: manifest.warnings.clone(),
    }
}

/// Skipped files as messages.
pub fn skipped_to_proto(skipped: &[(String, String)]) -> Vec<v1::SkippedFile> {
    skipped.iter().map(|(name, reason)| v1::SkippedFile { name: name.clone(), reason: reason.clone() }).collect()
}

/// # Errors
/// [`Code::InvalidArgument`] when a name is a trick or an extent lies outside of its file.
pub fn manifest_from_proto(message: v1::Manifest) -> Result<Manifest> {
    let url = message.url;
    let files = message
        .files
        .into_iter()
        .map(|file| {
            names::check_relative(&file.name, &url)?;
            let artifact = Arc::new(artifact_from_proto(file.artifact)?);
            Ok(ModelFile { name: file.name, artifact, is_tensors: file.is_tensors })
        })
        .collect::<Result<Vec<_>>>()?;
    let tensors =
        message.tensors.into_iter().map(|tensor| tensor_from_proto(tensor, &files)).collect::<Result<Vec<_>>>()?;
    Ok(Manifest {
        url,
        revision: message.revision,
        files,
        tensors,
        skipped: message.skipped.into_iter().map(|file| (file.name, file.reason)).collect(),
        warnings: message.warnings,
    })
}

fn tensor_from_proto(message: v1::Tensor, files: &[ModelFile]) -> Result<Tensor> {
    let file = message.file as usize;
    let end = message.offset_bytes.checked_add(message.length_bytes);
    let fits = files.get(file).zip(end).is_some_and(|(file, end)| end <= file.artifact.size_bytes());
    if !fits {
        return Err(Error::new(
            Code::InvalidArgument,
            format!("tensor {:?} of the manifest lies outside of its file", message.name),
        ));
    }
    Ok(Tensor {
        dtype: parse_dtype(&message.dtype),
        dtype_name: message.dtype,
        name: message.name,
        shape: message.shape,
        extent: Extent { file, offset_bytes: message.offset_bytes, length_bytes: message.length_bytes },
    })
}
