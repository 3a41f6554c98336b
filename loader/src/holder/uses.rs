//! How what a holder keeps is used, at one moment.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// A look at everything a holder keeps.
#[derive(Debug, Clone)]
pub(crate) struct Uses {
    /// Grows with every change: of two looks, the one with the higher number is newer.
    pub version: u64,
    /// By id of the model.
    pub models: HashMap<String, ModelUse>,
    /// Bytes on each device, of what is being loaded, published and forgotten.
    pub devices: BTreeMap<String, u64>,
    /// Attach connections that are open.
    pub attached: usize,
}

/// The use of one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ModelUse {
    /// Clients that are attached.
    pub leases: u32,
    /// When the last client came or went, or the model was published.
    pub last_used: Instant,
    /// Not to be attached to any more; its memory is freed with the last lease.
    pub is_forgotten: bool,
}

impl Uses {
    pub(crate) fn none() -> Uses {
        Uses { version: 0, models: HashMap::new(), devices: BTreeMap::new(), attached: 0 }
    }

    pub(crate) fn leases(&self, id: &str) -> u32 {
        self.models.get(id).map_or(0, |of| of.leases)
    }
}

/// The moment that was so long ago, or as long ago as can be said.
pub(crate) fn ago(idle: Duration) -> Instant {
    let now = Instant::now();
    now.checked_sub(idle).unwrap_or(now)
}
