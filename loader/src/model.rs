//! A model in memory: what it is, where its bytes lie, and how it came here.

use std::fmt;
use std::sync::Arc;

use longshore_device::{DeviceId, DeviceRegion};
use longshore_types::{Manifest, Selection};
use uuid::Uuid;

use crate::parallel::Parallel;
use crate::plan::{Layout, PlacedTensor};
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

    /// What its memory is called, in the system's tools and between a loader and its holder.
    pub fn label(&self) -> String {
        format!("longshore-{}", self.0)
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
    /// The rank whose part it is; `None` for the whole.
    pub parallel: Option<Parallel>,
}

impl ModelKey {
    /// Whether both mean the same part of a model at the same place, perhaps at different times.
    pub fn differs_only_in_revision(&self, other: &ModelKey) -> bool {
        let ModelKey { url, revision: _, selection, device, parallel } = self;
        (url, selection, device, parallel) == (&other.url, &other.selection, &other.device, &other.parallel)
    }
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
    /// Its tensors, where they lie and with the shapes that they have here.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = PlacedTensor<'_>> {
        self.layout.tensors_of(&self.manifest)
    }

    /// What a user should know of it.
    pub fn warnings(&self) -> impl Iterator<Item = &String> {
        self.manifest.warnings.iter().chain(&self.layout.warnings)
    }

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
