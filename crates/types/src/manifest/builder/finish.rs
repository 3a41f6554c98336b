//! The end: files and tensors in their order, names that are unique, indexes that tell the truth.

use std::collections::{BTreeSet, HashMap};

use super::{ManifestBuilder, WARNINGS_MAX};
use crate::error::{Code, Error, Result};
use crate::header::TensorHeader;
use crate::manifest::{Extent, Manifest, ModelFile, Tensor};
use crate::names::{base_of, folder_of, join};

impl ManifestBuilder {
    pub(super) fn finish(&mut self) -> Result<Manifest> {
        let mut files = Vec::with_capacity(self.chosen.len());
        let count = self.committed.len() + self.headers.values().map(|header| header.tensors.len()).sum::<usize>();
        let mut tensors: Vec<Tensor> = Vec::with_capacity(count);
        let mut warnings = Warnings::default();
        let mut committed = std::mem::take(&mut self.committed).into_iter().peekable();
        for (position, &file) in self.chosen.iter().enumerate() {
            let entry = &self.files[file];
            let header = self.headers.remove(&file);
            files.push(ModelFile { is_tensors: entry.is_tensors || header.is_some(), ..entry.clone() });
            // Those of files that were not chosen are left out.
            while committed.next_if(|tensor| tensor.extent.file < file).is_some() {}
            let told = std::iter::from_fn(|| committed.next_if(|tensor| tensor.extent.file == file));
            let read = header.into_iter().flat_map(|header| header.tensors).map(|raw| from_header(&entry.name, raw));
            for mut tensor in told.chain(read) {
                if tensor.dtype.is_none() {
                    warnings.push(format!(
                        "tensor {:?} in {} has the unknown dtype {:?}: delivered as bytes",
                        tensor.name, entry.name, tensor.dtype_name
                    ));
                }
                tensor.extent.file = position;
                tensors.push(tensor);
            }
        }
        let holders = holders(&tensors, &files)?;
        self.check_indexes(&holders)?;
        drop(holders);
        Ok(Manifest {
            url: self.resolved.url.clone(),
            revision: self.revision.clone(),
            files,
            tensors,
            skipped: std::mem::take(&mut self.skipped),
            warnings: warnings.finish(),
        })
    }

    /// Every tensor that an index names must be in the shard that it names, when that shard is loaded.
    fn check_indexes(&self, holders: &HashMap<&str, &str>) -> Result<()> {
        let chosen: BTreeSet<&str> = self.chosen.iter().map(|&f| self.files[f].name.as_str()).collect();
        for (&index, map) in &self.indexes {
            let index_name = &self.resolved.files[index].name;
            for (tensor, shard) in map {
                let holder = match folder_of(index_name) {
                    "" => holders.get(tensor.as_str()),
                    folder => holders.get(join(folder, tensor).as_str()),
                };
                if chosen.contains(shard.as_str()) && holder != Some(&shard.as_str()) {
                    return Err(Error::new(
                        Code::Corrupt,
                        format!("{index_name} says that {} holds tensor {tensor:?}, but it does not", base_of(shard)),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The file of each tensor, by name. They borrow: a copy of a hundred thousand names takes longer than the plan of them.
fn holders<'a>(tensors: &'a [Tensor], files: &'a [ModelFile]) -> Result<HashMap<&'a str, &'a str>> {
    let mut holders = HashMap::with_capacity(tensors.len());
    for tensor in tensors {
        let (name, file) = (tensor.name.as_str(), files[tensor.extent.file].name.as_str());
        if let Some(other) = holders.insert(name, file) {
            let why = format!("tensor {name:?} is in both {other} and {file}; choose one with --include");
            return Err(Error::new(Code::Corrupt, why));
        }
    }
    Ok(holders)
}

/// A tensor as a header has it; the file of its extent is still to be set.
fn from_header(file_name: &str, raw: TensorHeader) -> Tensor {
    let length_bytes = raw.range.end - raw.range.start;
    Tensor {
        name: match folder_of(file_name) {
            "" => raw.name,
            folder => join(folder, &raw.name),
        },
        dtype_name: raw.dtype_name,
        dtype: raw.dtype,
        shape: raw.shape,
        extent: Extent { file: 0, offset_bytes: raw.range.start, length_bytes },
        piece: None,
    }
}

#[derive(Default)]
struct Warnings {
    kept: Vec<String>,
    dropped: usize,
}

impl Warnings {
    fn push(&mut self, warning: String) {
        if self.kept.len() < WARNINGS_MAX {
            self.kept.push(warning);
        } else {
            self.dropped += 1;
        }
    }

    fn finish(mut self) -> Vec<String> {
        if self.dropped > 0 {
            self.kept.push(format!("and {} more warnings", self.dropped));
        }
        self.kept
    }
}
