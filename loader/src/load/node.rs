//! A checkpoint that this node saved: its manifest and its bytes, without a question to anybody else.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use longshore_checkpoint::{Engine, LocalCheckpoint};
use longshore_types::manifest::committed_objects;
use longshore_types::{Code, Manifest, ManifestBuilder, Progress, ReadNeeded, Result, Selection, redact_url};

use super::blocking;
use crate::fetch::NodeCopies;

/// See the module.
pub(crate) struct NodeCheckpoint {
    pub manifest: Manifest,
    pub copies: Arc<NodeCopies>,
    /// Its origin knows nothing of it yet.
    pub is_uncommitted: bool,
}

/// What this node has of the checkpoint at a canonical URL. One that is not committed counts only when asked for, once all
/// of it is durable here: that is waited for.
///
/// # Errors
/// [`Code::NotFound`] when nothing of it is selected.
pub(crate) async fn find(
    engine: &Arc<Engine>,
    url: &str,
    selection: &Selection,
    uncommitted: bool,
) -> Result<Option<NodeCheckpoint>> {
    if let Some(local) = committed(engine, url).await? {
        return describe(local, url, selection, false).await;
    }
    if !uncommitted {
        return Ok(None);
    }
    let Some(local) = engine.local_when_durable(url).await else { return Ok(None) };
    // The commit may have come meanwhile.
    let is_committed = committed(engine, url).await?.is_some();
    describe(local, url, selection, !is_committed).await
}

async fn committed(engine: &Arc<Engine>, url: &str) -> Result<Option<LocalCheckpoint>> {
    let (engine, url) = (engine.clone(), url.to_owned());
    blocking(move || Ok(engine.local(&url, false))).await
}

async fn describe(
    local: LocalCheckpoint,
    url: &str,
    selection: &Selection,
    is_uncommitted: bool,
) -> Result<Option<NodeCheckpoint>> {
    let (url, selection) = (url.to_owned(), selection.clone());
    blocking(move || {
        let artifacts = committed_objects(&local.commit, &url)?;
        let here = artifacts.into_iter().zip(local.objects).filter_map(|(artifact, path)| Some((artifact, path?)));
        let copies = NodeCopies::new(here);
        let Some(mut manifest) = build(&local.commit, &url, &selection, &copies)? else { return Ok(None) };
        if is_uncommitted {
            let shown = redact_url(&url);
            manifest.warnings.push(format!("{shown} was loaded from this node before it was committed to its origin"));
        }
        Ok(Some(NodeCheckpoint { manifest, copies: Arc::new(copies), is_uncommitted }))
    })
    .await
}

/// Headers that the commit says nothing of are read from the copies; `None` when one cannot be.
fn build(
    commit: &longshore_types::checkpoint::Commit,
    url: &str,
    selection: &Selection,
    copies: &NodeCopies,
) -> Result<Option<Manifest>> {
    let mut builder = ManifestBuilder::of_commit(commit, url, selection)?;
    loop {
        match builder.advance()? {
            Progress::Done(manifest) => return Ok(Some(manifest)),
            Progress::Need(reads) => {
                for needed in reads {
                    let Some(bytes) = read(copies, &needed) else { return Ok(None) };
                    match builder.supply(&needed, &bytes) {
                        // This copy is bad; the origin's may not be.
                        Err(error) if error.code() == Code::Corrupt => {
                            tracing::warn!(%error, "this node's copy of a checkpoint is not used");
                            return Ok(None);
                        }
                        supplied => supplied?,
                    }
                }
            }
        }
    }
}

fn read(copies: &NodeCopies, needed: &ReadNeeded) -> Option<Vec<u8>> {
    let path = copies.path(&needed.artifact)?;
    // The builder bounds the range.
    let mut bytes = vec![0; (needed.object_range.end - needed.object_range.start) as usize];
    let read = std::fs::File::open(path).and_then(|file| file.read_exact_at(&mut bytes, needed.object_range.start));
    if let Err(error) = read {
        tracing::warn!(path = %path.display(), %error, "this node's copy of a checkpoint cannot be read");
        return None;
    }
    Some(bytes)
}
