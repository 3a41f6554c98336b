//! From a URL to the files at one revision.

use longshore_types::manifest::FILES_MAX;
use longshore_types::{Artifact, Code, Error, Resolved, ResolvedFile, Result, names};
use sha2::{Digest, Sha256};
use std::sync::Arc;

use crate::address::Address;
use crate::backend::Backend;

/// Endings that say a URL names a file, so that the file is looked for before the folder.
const FILE_ENDINGS: &[&str] = &[
    "safetensors",
    "gguf",
    "ggml",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "pkl",
    "pickle",
    "onnx",
    "pb",
    "tflite",
    "h5",
    "hdf5",
    "keras",
    "msgpack",
    "npy",
    "npz",
    "ot",
    "engine",
    "plan",
    "mlmodel",
    "nemo",
    "joblib",
    "parquet",
    "arrow",
    "json",
    "jsonl",
    "txt",
    "md",
    "yaml",
    "yml",
    "toml",
    "csv",
    "tsv",
    "py",
    "jinja",
    "model",
    "spm",
    "vocab",
    "tiktoken",
    "zip",
    "tar",
    "gz",
    "tgz",
    "zst",
    "xz",
    "bz2",
];

/// Resolves `address`: a single file when there is one of that name, else everything below it.
///
/// A name with a known file ending costs one request when it is a file; a folder costs one request per page of its
/// listing, and nothing more.
pub(crate) async fn resolve(backend: &dyn Backend, address: &Address) -> Result<Resolved> {
    // Few HTTP servers can list, so there a file is the likelier thing.
    let is_web = matches!(address, Address::Web { .. });
    if (is_web || looks_like_file(&address.base_name()))
        && let Some(artifact) = stat_if_there(backend, address).await?
    {
        return single(address, artifact);
    }
    let (files, revision) = list_all(backend, address).await?;
    if !files.is_empty() {
        return folder(address, files, revision);
    }
    let lane = backend.lane();
    match lane.run(|| backend.stat(address)).await {
        Ok(artifact) => single(address, artifact),
        Err(error) if error.code() == Code::NotFound => {
            Err(Error::new(Code::NotFound, format!("there is nothing at {address}, nor below it: {}", error.message())))
        }
        Err(error) => Err(error),
    }
}

fn looks_like_file(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, ending)| FILE_ENDINGS.contains(&ending.to_ascii_lowercase().as_str()))
}

/// The file of that name, if there is one. HTTP servers answer for a folder in many ways (a page of HTML without a
/// version, 403 after a redirect), none of which says that listing it is in vain.
async fn stat_if_there(backend: &dyn Backend, address: &Address) -> Result<Option<Artifact>> {
    let may_be_folder = matches!(address, Address::Web { .. }) && !looks_like_file(&address.base_name());
    let is_no_file = |code| matches!(code, Code::PermissionDenied | Code::Unsupported);
    let looked = backend.lane().run(|| async {
        match backend.stat(address).await {
            Ok(artifact) => Ok(Some(artifact)),
            Err(fault) if fault.code() == Code::NotFound || (may_be_folder && is_no_file(fault.code())) => Ok(None),
            Err(fault) => Err(fault),
        }
    });
    looked.await
}

async fn list_all(backend: &dyn Backend, address: &Address) -> Result<(Vec<(String, Artifact)>, Option<String>)> {
    let mut files = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let page = backend.lane().run(|| backend.list(address, token.as_deref())).await?;
        files.extend(page.files);
        if files.len() > FILES_MAX {
            let text = format!("there are more than {FILES_MAX} files below {address}: name a smaller folder");
            return Err(Error::new(Code::InvalidArgument, text));
        }
        match page.next {
            // A server that gives the same page again would keep us here for ever.
            Some(next) if token.as_deref() == Some(next.as_str()) => {
                return Err(Error::new(Code::Corrupt, format!("the listing of {address} does not come to an end")));
            }
            Some(next) => token = Some(next),
            None => return Ok((files, page.revision)),
        }
    }
}

fn single(address: &Address, artifact: Artifact) -> Result<Resolved> {
    let name = address.base_name();
    names::check_relative(&name, artifact.url())?;
    let files = vec![ResolvedFile { name, artifact: Arc::new(artifact) }];
    Ok(Resolved { url: address.to_string(), revision: digest(&files), files })
}

fn folder(address: &Address, listed: Vec<(String, Artifact)>, revision: Option<String>) -> Result<Resolved> {
    let mut files = Vec::with_capacity(listed.len());
    for (name, artifact) in listed {
        names::check_relative(&name, &format!("the listing of {address}"))?;
        files.push(ResolvedFile { name, artifact: Arc::new(artifact) });
    }
    files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    if let Some(twice) = files.windows(2).find(|pair| pair[0].name == pair[1].name) {
        let text = format!("the listing of {address} names {:?} twice", twice[0].name);
        return Err(Error::new(Code::Corrupt, text));
    }
    let revision = revision.unwrap_or_else(|| digest(&files));
    Ok(Resolved { url: address.to_string(), revision, files })
}

/// 128 bits of SHA-256 over names and versions, in hex: changes whenever any file does.
fn digest(files: &[ResolvedFile]) -> String {
    let mut hash = Sha256::new();
    for file in files {
        for text in [file.name.as_str(), file.artifact.version().as_str()] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        hash.update(file.artifact.size_bytes().to_le_bytes());
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings() {
        for name in ["model.safetensors", "MODEL.GGUF", "config.json", "x.tar.gz"] {
            assert!(looks_like_file(name), "{name}");
        }
        for name in ["model", "llama-3.1", "v1.0", "", "safetensors"] {
            assert!(!looks_like_file(name), "{name}");
        }
    }
}
