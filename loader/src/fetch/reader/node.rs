//! Objects of checkpoints that lie on this node's disk, because it saved them: nearer than any other source.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longshore_memory::Landing;
use longshore_types::{Artifact, Code, Result};

use super::{Arrived, ChunkReader, Wanted};
use crate::report::{FallbackKind, SourceTier};

/// Where they lie. A path may be gone any time: then the next source is asked.
#[derive(Debug, Default)]
pub(crate) struct NodeCopies {
    paths: HashMap<Arc<Artifact>, PathBuf>,
}

impl NodeCopies {
    pub(crate) fn new(paths: impl IntoIterator<Item = (Arc<Artifact>, PathBuf)>) -> NodeCopies {
        NodeCopies { paths: paths.into_iter().collect() }
    }

    pub(crate) fn path(&self, artifact: &Artifact) -> Option<&Path> {
        self.paths.get(artifact).map(PathBuf::as_path)
    }
}

impl ChunkReader {
    /// This node's own copy; `None` when there is none that is good.
    pub(super) fn read_node_copy(&self, wanted: &Wanted<'_>, landing: &mut Landing) -> Result<Option<Arrived>> {
        // Without checksums nothing would say that it is still what was saved.
        let path = self.node.as_ref().and_then(|node| node.path(wanted.key.artifact()));
        let Some(path) = path.filter(|_| wanted.expected.is_some()) else { return Ok(None) };
        match self.read_file(path, wanted, landing) {
            Ok(()) => Ok(Some(Arrived { tier: SourceTier::Disk, source: "this node's copy".to_owned() })),
            Err(error) if error.code() == Code::Cancelled => Err(error),
            Err(error) => {
                self.check_cancelled()?;
                self.recorder().add_retry();
                self.recorder().add_fallback(FallbackKind::NodeCopy, error.to_string());
                Ok(None)
            }
        }
    }
}
