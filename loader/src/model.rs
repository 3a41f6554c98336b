//! A model in memory: what it is, where its bytes lie, and how it came here.

use std::fmt;
use std::sync::Arc;

use longshore_device::{DeviceId, DeviceRegion};
use longshore_types::{Manifest, Selection};
use uuid::Uuid;

use crate::plan::Layout;
use crate::report::LoadReport;

/// Names a loaded model on this loader.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId(String);

impl ModelId {
    /// A new random id.
    pub fn random() -> Self {
        ModelId(Uuid::new_v4().simple().to_string())
    }

    /// The id that a client sent; whether there is such a model is another question.
    pub fn from_client(text: impl Into<String>) -> Self {
        ModelId(text.into())
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What makes two requests mean the same memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelKey {
    /// Canonical URL.
    pub url: String,
    /// Revision.
    pub revision: String,
    /// The files that were asked for.
    pub selection: Selection,
    /// Where it is.
    pub device: DeviceId,
}

/// A model in memory. Immutable; the memory lives as long as this value.
pub struct Model {
    /// Its name on this loader.
    pub id: ModelId,
    /// What it is.
    pub key: ModelKey,
    /// UUID of the device.
    pub device_uuid: String,
    /// Its files and tensors.
    pub manifest: Manifest,
    /// Where they lie in the region.
    pub layout: Layout,
    /// The memory, by [`Place::region`](crate::plan::Place::region).
    pub regions: Vec<Arc<dyn DeviceRegion>>,
    /// How it came here.
    pub report: LoadReport,
}

impl Model {
    /// Bytes of memory that it holds.
    pub fn size_bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.size_bytes()).sum()
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("id", &self.id).field("key", &self.key).finish_non_exhaustive()
    }
}
