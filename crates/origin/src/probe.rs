//! Whether a store honours the conditions of puts: some take the headers and overwrite all the same.

use bytes::Bytes;
use longshore_types::{Code, Error, Result, Version};

use crate::Origins;
use crate::address::{Address, Cloud};
use crate::write::{PutHow, PutOutcome};

/// Tries both conditions on an object of its own below `folder`, and deletes it.
pub(crate) async fn conditional_puts(origins: &Origins, folder: &Address) -> Result<()> {
    let name = format!(".longshore-probe-{:032x}", rand::random::<u128>());
    let url = folder.child(&name).to_string();
    let result = try_both(origins, folder, &url).await;
    let removed = origins.delete(std::slice::from_ref(&url)).await;
    result.and(removed.map(|_| ()))
}

async fn try_both(origins: &Origins, folder: &Address, url: &str) -> Result<()> {
    let first = put(origins, url, "1", PutHow::Create).await?;
    if put(origins, url, "2", PutHow::Create).await? != PutOutcome::Conflict {
        return Err(overwrites(folder, "created once more although it was there (If-None-Match)"));
    }
    // After a lost answer the first may be a conflict with itself, and its version is not known.
    let PutOutcome::Written(version) = first else { return Ok(()) };
    if put(origins, url, "3", PutHow::Replace(other_version(folder)?)).await? != PutOutcome::Conflict {
        return Err(overwrites(folder, "replaced although it had another version (If-Match)"));
    }
    if put(origins, url, "4", PutHow::Replace(version)).await? == PutOutcome::Conflict {
        tracing::warn!(
            folder = %folder,
            "this store refuses to replace an object even with its right version: a save that was begun by another \
             attempt cannot be taken over there, and the latest step is found by listing"
        );
    }
    Ok(())
}

async fn put(origins: &Origins, url: &str, text: &'static str, how: PutHow) -> Result<PutOutcome> {
    origins.put(url, Bytes::from_static(text.as_bytes()), how).await
}

/// A version that no object has which was just made.
fn other_version(folder: &Address) -> Result<Version> {
    match folder {
        Address::Bucket { cloud: Cloud::Gcs, .. } => Version::new("generation:1"),
        Address::Bucket { cloud: Cloud::Azure, .. } => Version::new("etag:\"0x8D0000000000001\""),
        Address::File(_) => Version::new("mtime:0-0-0"),
        _ => Version::new("etag:\"00000000000000000000000000000000\""),
    }
}

fn overwrites(folder: &Address, what: &str) -> Error {
    let text = format!(
        "the store behind {folder} does not honour conditional writes: a test object was {what}; checkpoints need them, \
         since two writers could otherwise both commit: use a store that has them"
    );
    Error::new(Code::Unsupported, text)
}
