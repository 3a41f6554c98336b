//! How much of the save's bytes is in the origin: what the status tells, never more than there is to upload.
//!
//! A part that is sent again counts once, and the zeros that fill up the chunks of a delta's pack count as nothing. Live only:
//! after a restart the write-back tells again of the parts that the journal has.

use std::collections::{HashMap, HashSet};

use longshore_types::CHUNK_BYTES;

use super::Attempt;

/// What is in the origin of an object.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arrived {
    /// A part of it.
    Part {
        /// Where it begins.
        at: u64,
        /// Its length.
        bytes: u64,
    },
    /// All of it, verified.
    Whole,
}

/// What was told of each object.
#[derive(Debug, Default)]
pub(super) struct Uploaded {
    objects: HashMap<u32, Sent>,
    total_bytes: u64,
}

#[derive(Debug)]
struct Sent {
    /// Where pieces begin that are in the origin.
    pieces: HashSet<u64>,
    bytes: u64,
    /// Of the object's bytes, those that are of the save.
    payload_bytes: u64,
}

impl Sent {
    fn counted(&self) -> u64 {
        self.bytes.min(self.payload_bytes)
    }
}

impl Uploaded {
    /// `payload_bytes` is of the object, and always the same.
    fn add(&mut self, object: u32, arrived: Arrived, payload_bytes: u64) {
        let fresh = || Sent { pieces: HashSet::new(), bytes: 0, payload_bytes };
        let sent = self.objects.entry(object).or_insert_with(fresh);
        let before = sent.counted();
        match arrived {
            Arrived::Whole => sent.bytes = sent.payload_bytes,
            Arrived::Part { at, bytes } if sent.pieces.insert(at) => sent.bytes = sent.bytes.saturating_add(bytes),
            Arrived::Part { .. } => {}
        }
        self.total_bytes = self.total_bytes - before + sent.counted();
    }

    fn remove(&mut self, object: u32) {
        if let Some(sent) = self.objects.remove(&object) {
            self.total_bytes -= sent.counted();
        }
    }
}

impl Attempt {
    /// Something of an object is in the origin. Safe to tell more than once.
    pub(crate) fn add_uploaded(&self, object: u32, arrived: Arrived) {
        let known = self.uploaded.lock().objects.get(&object).map(|sent| sent.payload_bytes);
        // Asked without the lock: records are shown under the state's.
        let payload_bytes = known.unwrap_or_else(|| self.payload_bytes(object));
        self.show_uploaded(|uploaded| uploaded.add(object, arrived, payload_bytes));
    }

    /// The origin lost what it had of an object: it is sent again.
    pub(super) fn drop_uploaded(&self, object: u32) {
        self.show_uploaded(|uploaded| uploaded.remove(object));
    }

    fn show_uploaded(&self, change: impl FnOnce(&mut Uploaded)) {
        // Kept until the status is changed, so that an older total never comes after a newer one.
        let mut uploaded = self.uploaded.lock();
        change(&mut uploaded);
        self.update(|status| status.bytes_uploaded = uploaded.total_bytes);
    }

    /// Bytes of the save that an object holds; a pack is complete when this is asked.
    fn payload_bytes(&self, object: u32) -> u64 {
        let files = &self.plan().files;
        if let Some(file) = files.get(object as usize) {
            return file.size_bytes;
        }
        let state = self.state();
        let Some(pack) = state.packs.get(&self.rank_of_object(object)) else { return 0 };
        let chunks = pack.values().map(|packed| {
            let size_bytes = files.get(packed.file as usize).map_or(0, |file| file.size_bytes);
            size_bytes.saturating_sub(u64::from(packed.chunk) * CHUNK_BYTES).min(CHUNK_BYTES)
        });
        chunks.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_twice_or_is_padding_does_not_count() {
        let mut uploaded = Uploaded::default();
        for at in [0, 100, 0] {
            uploaded.add(1, Arrived::Part { at, bytes: 100 }, 150);
        }
        assert_eq!(uploaded.total_bytes, 150);
        uploaded.add(1, Arrived::Whole, 150);
        uploaded.add(2, Arrived::Whole, 7);
        assert_eq!(uploaded.total_bytes, 157);
        uploaded.remove(1);
        uploaded.remove(1);
        assert_eq!(uploaded.total_bytes, 7);
        uploaded.add(1, Arrived::Part { at: 100, bytes: 100 }, 150);
        assert_eq!(uploaded.total_bytes, 107);
    }
}
