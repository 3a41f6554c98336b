//! The end: files and tensors in their order, names that are unique, indexes that tell the truth.

use std::collections::{BTreeSet, HashMap};

use super::{ManifestBuilder, WARNINGS_MAX};
use crate::error::{Code, Error, Result};
use crate::manifest::{Manifest, ModelFile, Tensor};
use crate::names::{base_of, folder_of, join};

impl ManifestBuilder {
    pub(super) fn finish(&mut self) -> Result<Manifest> {
        let mut files = Vec::with_capacity(self.chosen.len());
        let mut tensors: Vec<Tensor> = Vec::new();
        let mut warnings = Warnings::default();
        let is_committed = !self.committed.is_empty();
        let mut committed = std::mem::take(&mut self.committed).into_iter().peekable();
        for (position, &file) in self.chosen.iter().enumerate() {
            let entry = &self.files[file];
            let header = self.headers.remove(&file);
            files.push(ModelFile { is_tensors: entry.is_tensors || header.is_some(), ..entry.clone() });
            let first = tensors.len();
            // Those of files that were not chosen are left out.
            while committed.next_if(|tensor| tensor.extent.file < file).is_some() {}
            tensors.extend(std::iter::from_fn(|| committed.next_if(|tensor| tensor.extent.file == file)));
            let mut read = header.unwrap_or_default();
            let folder = folder_of(&entry.name);
            if !folder.is_empty() {
                read.iter_mut().for_each(|tensor| tensor.name = join(folder, &tensor.name));
            }
            match tensors.is_empty() {
                // A list of a hundred thousand stays where it is.
                true => tensors = read,
                false => tensors.append(&mut read),
            }
            for tensor in &mut tensors[first..] {
                if tensor.dtype.is_none() {
                    warnings.push(format!(
                        "tensor {:?} in {} has the unknown dtype {:?}: delivered as bytes",
                        tensor.name, entry.name, tensor.dtype_name
                    ));
                }
                tensor.extent.file = position;
            }
        }
        // Of one header it is known that its names are unique.
        let of_headers = files.iter().filter(|file| file.is_tensors).count();
        if is_committed || of_headers > 1 || !self.indexes.is_empty() {
            self.check_indexes(&holders(&tensors, &files)?)?;
        }
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
