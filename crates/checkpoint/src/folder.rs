//! Files and folders of this node as a checkpoint: what is found, and the plan that saves it.
//!
//! Links to files are followed, as copying would (a Hugging Face snapshot is a folder of links); what is neither a file nor a
//! folder is refused by name. Safetensors files are planned as such, so that the checkpoint knows its tensors; every other
//! file is saved byte for byte.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use longshore_types::checkpoint::{AttemptId, FILES_MAX};
use longshore_types::header::{HEADER_BYTES_MAX, PREFIX_BYTES, header_span};
use longshore_types::names::{folder_of, join};
use longshore_types::{Code, Error, Result, SafetensorsHeader};

use crate::attempt::now_ms;
use crate::plan::{INDEX_NAME, PlannedFile, PlannedTensor, SaveOptions, SavePlan, SaveTensor};
use crate::spool::disk_error;

/// Folders within folders, at most.
const DEPTH_MAX: usize = 64;

/// A file to save, as it was when it was found.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    /// Relative to the folder.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) seen: Seen,
}

/// What tells whether a file was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) size_bytes: u64,
    mtime: (i64, i64),
    ino: u64,
}

impl Seen {
    pub(crate) fn of(metadata: &Metadata) -> Seen {
        let mtime = (metadata.mtime(), metadata.mtime_nsec());
        Seen { size_bytes: metadata.len(), mtime, ino: metadata.ino() }
    }
}

impl SourceFile {
    /// Opens it; refuses a file that was changed since it was found.
    pub(crate) fn open(&self) -> Result<File> {
        let file = File::open(&self.path).map_err(|error| disk_error("open", &self.path, &error))?;
        self.check(&file)?;
        Ok(file)
    }

    /// Refuses a file that was changed since it was found.
    pub(crate) fn check(&self, file: &File) -> Result<()> {
        let now = file.metadata().map_err(|error| disk_error("look at", &self.path, &error))?;
        if Seen::of(&now) == self.seen {
            return Ok(());
        }
        Err(Error::new(
            Code::FailedPrecondition,
            format!("{} was changed while it was saved: save it when nobody writes it", self.path.display()),
        ))
    }
}

/// Everything under a folder, or the one file, sorted by name. Blocks the thread.
///
/// # Errors
/// `InvalidArgument` naming what cannot be saved, `NotFound`, and what the disk reports.
pub(crate) fn scan(path: &Path) -> Result<Vec<SourceFile>> {
    if !path.is_absolute() {
        return Err(refused(path, "is not an absolute path"));
    }
    let metadata = std::fs::metadata(path).map_err(|error| disk_error("look at", path, &error))?;
    let mut files = Vec::new();
    if metadata.is_dir() {
        walk(path, "", &mut vec![(metadata.dev(), metadata.ino())], &mut files)?;
    } else {
        let name = path.file_name().unwrap_or_default();
        let name = name.to_str().ok_or_else(|| refused(path, "has a name that is not UTF-8"))?;
        add(path, name.to_owned(), &metadata, &mut files)?;
    }
    if files.is_empty() {
        return Err(refused(path, "has no files: there is nothing to save"));
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// `above` are the folders on the way here: a link back to one of them would never end.
fn walk(folder: &Path, prefix: &str, above: &mut Vec<(u64, u64)>, files: &mut Vec<SourceFile>) -> Result<()> {
    if above.len() > DEPTH_MAX {
        return Err(refused(folder, "lies too deep"));
    }
    let failed = |error: io::Error| disk_error("list", folder, &error);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_str();
        let name = join(prefix, name.ok_or_else(|| refused(&path, "has a name that is not UTF-8"))?);
        // Of what a link leads to.
        let metadata = std::fs::metadata(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if path.is_symlink() => refused(&path, "is a link to nothing"),
            _ => disk_error("look at", &path, &error),
        })?;
        if !metadata.is_dir() {
            add(&path, name, &metadata, files)?;
            continue;
        }
        let id = (metadata.dev(), metadata.ino());
        if above.contains(&id) {
            return Err(refused(&path, "is a link back to a folder above it"));
        }
        above.push(id);
        walk(&path, &name, above, files)?;
        above.pop();
    }
    Ok(())
}

fn add(path: &Path, name: String, metadata: &Metadata, files: &mut Vec<SourceFile>) -> Result<()> {
    if !metadata.is_file() {
        return Err(refused(path, "is neither a file nor a folder (a device, pipe or socket)"));
    }
    if files.len() >= FILES_MAX {
        return Err(Error::new(Code::InvalidArgument, format!("there are more than {FILES_MAX} files to save")));
    }
    files.push(SourceFile { name, path: path.to_owned(), seen: Seen::of(metadata) });
    Ok(())
}

fn refused(path: &Path, why: &str) -> Error {
    Error::new(Code::InvalidArgument, format!("{} cannot be saved: it {why}", path.display()))
}

/// The plan that saves these files, with the sources in the order of its files, and what is not as one might expect.
pub(crate) fn plan(
    uri: &str,
    step: u64,
    mut options: SaveOptions,
    mut sources: Vec<SourceFile>,
) -> Result<(SavePlan, Vec<SourceFile>, Vec<String>)> {
    let mut notes = Vec::new();
    let mut headers = Vec::with_capacity(sources.len());
    for source in &sources {
        headers.push(read_header(source, &mut notes)?);
    }
    let attempt = AttemptId::from_bytes(uuid::Uuid::new_v4().into_bytes());
    let make = |sources: &[SourceFile], headers: &[Option<Vec<u8>>], options: &SaveOptions| -> SavePlan {
        let files = sources.iter().zip(headers).map(|(source, header)| planned(source, header.as_deref()));
        SavePlan {
            uri: uri.trim_end_matches('/').to_owned(),
            step,
            attempt,
            world_size: 1,
            options: options.clone(),
            files: files.collect(),
            aliases: Vec::new(),
            created_ms: now_ms(),
        }
    };
    // The index of a model in the bucket names objects, which have other names than the files: it is made anew.
    let index = sources.iter().position(|source| source.name == INDEX_NAME);
    let has_model =
        sources.iter().zip(&headers).any(|(source, header)| header.is_some() && folder_of(&source.name).is_empty());
    if let Some(index) = index.filter(|_| has_model) {
        options.hf_index = true;
        let (source, header) = (sources.remove(index), headers.remove(index));
        let plan = make(&sources, &headers, &options);
        if plan.check().is_ok() {
            notes.push(format!("{INDEX_NAME} is made anew: the objects in the origin have names of their own"));
            return Ok((plan, sources, notes));
        }
        options.hf_index = false;
        sources.insert(index, source);
        headers.insert(index, header);
    }
    let plan = make(&sources, &headers, &options);
    let Err(error) = plan.check() else { return Ok((plan, sources, notes)) };
    headers.fill(None);
    let plan = make(&sources, &headers, &options);
    plan.check()?;
    notes.push(format!("safetensors files are saved byte for byte, without their tensors: {}", error.message()));
    Ok((plan, sources, notes))
}

/// The header of a safetensors file; `None` for any other file. A file that only has the name of one is saved as it is.
fn read_header(source: &SourceFile, notes: &mut Vec<String>) -> Result<Option<Vec<u8>>> {
    let size = source.seen.size_bytes;
    if !source.name.ends_with(".safetensors") || size < PREFIX_BYTES {
        return Ok(None);
    }
    let mut file = source.open()?;
    let mut read = |length: u64, into: &mut Vec<u8>| {
        let read = file.by_ref().take(length).read_to_end(into);
        read.map_err(|error| disk_error("read", &source.path, &error))
    };
    let mut header = Vec::new();
    read(PREFIX_BYTES, &mut header)?;
    let parsed = match header_span(&header, size, &source.name) {
        Ok(span) if span <= HEADER_BYTES_MAX => {
            read(span.saturating_sub(PREFIX_BYTES), &mut header)?;
            SafetensorsHeader::parse(&header, size, &source.name).map(|_| ())
        }
        Ok(_) => Err(Error::new(Code::Corrupt, "its header is too long")),
        Err(error) => Err(error),
    };
    match parsed {
        Ok(()) => Ok(Some(header)),
        Err(error) => {
            notes.push(format!("{} is saved byte for byte: {}", source.name, error.message()));
            Ok(None)
        }
    }
}

fn planned(source: &SourceFile, header: Option<&[u8]>) -> PlannedFile {
    let parsed = header.and_then(|header| SafetensorsHeader::parse(header, source.seen.size_bytes, &source.name).ok());
    let group = folder_of(&source.name).to_owned();
    let tensors = parsed.iter().flat_map(|parsed| &parsed.tensors).map(|tensor| PlannedTensor {
        offset_bytes: tensor.range.start,
        length_bytes: tensor.range.end - tensor.range.start,
        tensor: SaveTensor {
            group: group.clone(),
            name: tensor.name.clone(),
            dtype: tensor.dtype_name.clone(),
            shape: tensor.shape.clone(),
            start: Vec::new(),
            piece_shape: Vec::new(),
        },
    });
    PlannedFile {
        name: source.name.clone(),
        rank: 0,
        size_bytes: source.seen.size_bytes,
        tensors: tensors.collect(),
        header: parsed.is_some().then_some(header).flatten().unwrap_or_default().to_vec(),
    }
}

#[cfg(test)]
mod tests;
