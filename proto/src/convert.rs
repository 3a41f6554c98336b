//! Domain types to messages and back. What comes from a message is checked as if a stranger had written it.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::sync::Arc;

use longshore_types::header::Dtypes;
use longshore_types::{
    Artifact, BLOCK_BYTES, BlockChecksum, ChunkMap, ChunkRun, Code, Error, Extent, Manifest, ModelFile, Piece, Result,
    Tensor, Version, names,
};

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
    let mut objects = Objects::default();
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
                checksums: checksums_to_bytes(file.checksums.as_deref().unwrap_or_default()),
                chunks: file.chunks.iter().flat_map(|map| map.runs()).map(|run| objects.run(run)).collect(),
            })
            .collect(),
        objects: objects.messages,
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
                piece: tensor.piece.as_deref().map(|piece| Box::new(piece_to_proto(piece))),
            })
            .collect(),
        skipped: skipped_to_proto(&manifest.skipped),
        warnings: manifest.warnings.clone(),
    }
}

/// The objects that chunk maps refer to, each once.
#[derive(Default)]
struct Objects {
    messages: Vec<v1::Artifact>,
    known: HashMap<Arc<Artifact>, u32>,
}

impl Objects {
    fn run(&mut self, run: &ChunkRun) -> v1::ChunkRun {
        let object = *self.known.entry(run.artifact.clone()).or_insert_with(|| {
            self.messages.push(artifact_to_proto(&run.artifact));
            self.messages.len() as u32 - 1
        });
        v1::ChunkRun { object, first_chunk: run.first_chunk, count: run.count }
    }
}

fn checksums_to_bytes(checksums: &[BlockChecksum]) -> Vec<u8> {
    checksums.iter().flat_map(|checksum| checksum.0.to_le_bytes()).collect()
}

/// A part of a tensor as a message. It may be in a box, as those of tensors are.
pub fn piece_to_proto(piece: &impl Borrow<Piece>) -> v1::Piece {
    let piece = piece.borrow();
    v1::Piece { start: piece.start.clone(), shape: piece.shape.clone(), of_shape: piece.of_shape.clone() }
}

/// Skipped files as messages.
pub fn skipped_to_proto(skipped: &[(String, String)]) -> Vec<v1::SkippedFile> {
    skipped.iter().map(|(name, reason)| v1::SkippedFile { name: name.clone(), reason: reason.clone() }).collect()
}

/// # Errors
/// [`Code::InvalidArgument`] when a name is a trick or an extent lies outside of its file.
pub fn manifest_from_proto(message: v1::Manifest) -> Result<Manifest> {
    let url = message.url;
    let objects = message
        .objects
        .into_iter()
        .map(|object| artifact_from_proto(Some(object)).map(Arc::new))
        .collect::<Result<Vec<_>>>()?;
    let files =
        message.files.into_iter().map(|file| file_from_proto(file, &objects, &url)).collect::<Result<Vec<_>>>()?;
    let mut tensors = Vec::with_capacity(message.tensors.len());
    let mut dtypes = Dtypes::default();
    for tensor in message.tensors {
        tensors.push(tensor_from_proto(tensor, &files, &mut dtypes)?);
    }
    Ok(Manifest {
        url,
        revision: message.revision,
        files,
        tensors,
        skipped: message.skipped.into_iter().map(|file| (file.name, file.reason)).collect(),
        warnings: message.warnings,
    })
}

fn file_from_proto(message: v1::ModelFile, objects: &[Arc<Artifact>], url: &str) -> Result<ModelFile> {
    names::check_relative(&message.name, url)?;
    let artifact = Arc::new(artifact_from_proto(message.artifact)?);
    let invalid = |why: String| Error::new(Code::InvalidArgument, format!("{} of the manifest {why}", message.name));
    let checksums = match message.checksums.len() {
        0 => None,
        bytes => {
            let blocks = artifact.size_bytes().div_ceil(BLOCK_BYTES);
            if blocks.checked_mul(8) != Some(bytes as u64) {
                return Err(invalid(format!("has {bytes} bytes of checksums for {blocks} blocks")));
            }
            let (each, _) = message.checksums.as_chunks();
            Some(each.iter().map(|bytes| BlockChecksum(u64::from_le_bytes(*bytes))).collect())
        }
    };
    let runs = message.chunks.into_iter().map(|run| {
        let artifact = objects.get(run.object as usize).cloned();
        let artifact =
            artifact.ok_or_else(|| invalid(format!("refers to object {}, which is not there", run.object)))?;
        Ok(ChunkRun { artifact, first_chunk: run.first_chunk, count: run.count })
    });
    let runs = runs.collect::<Result<Vec<_>>>()?;
    let chunks = match runs.is_empty() {
        true => None,
        false => Some(Arc::new(ChunkMap::new(runs, artifact.size_bytes(), &message.name)?)),
    };
    Ok(ModelFile { name: message.name, artifact, is_tensors: message.is_tensors, checksums, chunks })
}

fn piece_from_proto(message: v1::Piece, name: &str, shape: &[u64]) -> Result<Piece> {
    let v1::Piece { start, shape: piece_shape, of_shape } = message;
    let fits = |((start, extent), of): ((&u64, &u64), &u64)| start.checked_add(*extent).is_some_and(|end| end <= *of);
    let is_within = start.len() == of_shape.len()
        && piece_shape.len() == of_shape.len()
        && start.iter().zip(&piece_shape).zip(&of_shape).all(fits);
    if !is_within || piece_shape != shape {
        return Err(Error::new(
            Code::InvalidArgument,
            format!("tensor {name:?} of the manifest is no part of the tensor that it says it is of"),
        ));
    }
    Ok(Piece { start, shape: piece_shape, of_shape })
}

fn tensor_from_proto(message: v1::Tensor, files: &[ModelFile], dtypes: &mut Dtypes) -> Result<Tensor> {
    let file = message.file as usize;
    let end = message.offset_bytes.checked_add(message.length_bytes);
    let fits = files.get(file).zip(end).is_some_and(|(file, end)| end <= file.artifact.size_bytes());
    if !fits {
        return Err(Error::new(
            Code::InvalidArgument,
            format!("tensor {:?} of the manifest lies outside of its file", message.name),
        ));
    }
    let piece = message.piece.map(|piece| piece_from_proto(*piece, &message.name, &message.shape)).transpose()?;
    Ok(Tensor {
        piece: piece.map(Box::new),
        dtype: dtypes.parse(&message.dtype),
        dtype_name: message.dtype,
        name: message.name,
        shape: message.shape,
        extent: Extent { file, offset_bytes: message.offset_bytes, length_bytes: message.length_bytes },
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use longshore_types::{CHUNK_BYTES, header::parse_dtype, names::join};
    use prost::Message;

    use super::*;

    fn artifact(name: &str, size_bytes: u64) -> Arc<Artifact> {
        let version = Version::new("attempt:30313233-3435-3637-3839-616263646566").unwrap();
        Arc::new(Artifact::new(format!("s3://bucket/run/step-7/{name}"), version, size_bytes).unwrap())
    }

    fn checksums(size_bytes: u64) -> Option<Arc<[BlockChecksum]>> {
        let sum = |block: u64| BlockChecksum(block.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Some((0..size_bytes.div_ceil(BLOCK_BYTES)).map(sum).collect())
    }

    /// A checkpoint whose files lie in packs and earlier objects, chunk by chunk.
    fn manifest(files: u64, file_bytes: u64) -> Manifest {
        let chunks = file_bytes.div_ceil(CHUNK_BYTES) as u32;
        let model_file = |number: u64| {
            let name = join("weights", &format!("model-{number:05}-of-{files:05}.safetensors"));
            let old = artifact(&format!("model-old-{number}.safetensors"), u64::from(chunks) * CHUNK_BYTES);
            let pack = artifact(&format!("delta-{number}.pack"), u64::from(chunks) * CHUNK_BYTES);
            let place = |index: u32| (if index.is_multiple_of(2) { old.clone() } else { pack.clone() }, index);
            let run = |(artifact, first_chunk)| ChunkRun { artifact, first_chunk, count: 1 };
            let runs = (0..chunks).map(place).map(run).collect();
            ModelFile {
                checksums: checksums(file_bytes),
                chunks: Some(Arc::new(ChunkMap::new(runs, file_bytes, &name).unwrap())),
                ..ModelFile::plain(name.clone(), artifact(&name, file_bytes), true)
            }
        };
        let tensor = |number: u64| Tensor {
            name: format!("model.layers.{number}.mlp.gate_up_proj.weight#0"),
            dtype_name: "U8".into(),
            dtype: parse_dtype("U8"),
            shape: vec![2, 4],
            extent: Extent { file: number as usize, offset_bytes: 64, length_bytes: 8 },
            piece: Some(Box::new(Piece { start: vec![2, 0], shape: vec![2, 4], of_shape: vec![4, 4] })),
        };
        Manifest {
            url: "s3://bucket/run/step-7".into(),
            revision: "attempt:30313233-3435-3637-3839-616263646566".into(),
            files: (0..files).map(model_file).collect(),
            tensors: (0..files).map(tensor).collect(),
            skipped: vec![("x".into(), "why".into())],
            warnings: vec!["w".into()],
        }
    }

    #[test]
    fn a_checkpoint_survives_the_wire() {
        let manifest = manifest(3, 5 * CHUNK_BYTES + 77);
        let message = manifest_to_proto(&manifest);
        assert_eq!(message.objects.len(), 6, "each object once");
        assert_eq!(manifest_from_proto(message).unwrap(), manifest);
    }

    #[test]
    fn a_checkpoint_of_a_terabyte_fits_a_message() {
        let manifest = manifest(250, 4 << 30);
        assert_eq!(manifest.size_bytes(), 1_073_741_824_000);
        let bytes = manifest_to_proto(&manifest).encoded_len();
        assert!(bytes < 10 << 20, "{bytes} of {}", crate::MESSAGE_BYTES_MAX);
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let good = manifest_to_proto(&manifest(1, CHUNK_BYTES + 77));
        type Spoil = fn(&mut v1::Manifest);
        let spoils: [(Spoil, &str); 7] = [
            (|m| m.files[0].checksums.truncate(16), "16 bytes of checksums for 17 blocks"),
            (|m| m.files[0].checksums.push(0), "bytes of checksums"),
            (|m| m.files[0].chunks[0].object = 9, "object 9"),
            (|m| m.files[0].chunks.truncate(1), "chunk map"),
            (|m| m.files[0].chunks[1].first_chunk = 2, "chunk map"),
            (|m| m.tensors[0].piece.as_mut().unwrap().start[0] = 3, "no part of the tensor"),
            (|m| m.tensors[0].piece.as_mut().unwrap().shape.clear(), "no part of the tensor"),
        ];
        for (spoil, why) in spoils {
            let mut message = good.clone();
            spoil(&mut message);
            let error = manifest_from_proto(message).unwrap_err();
            assert!(error.message().contains(why), "{error}");
        }
    }
}
