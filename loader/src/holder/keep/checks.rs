//! What is checked before anything is kept, under the holder's lock.

use std::collections::hash_map::Entry as Slot;

use longshore_types::{Code, Error, Result};

use super::{Entry, Inner, MODELS_MAX, Part, SEGMENTS_MAX, TEXT_BYTES_MAX};

impl Inner {
    pub(super) fn is_session(&self, number: u64) -> bool {
        self.session.as_ref().is_some_and(|session| session.number == number)
    }

    fn check_session(&self, number: u64) -> Result<()> {
        match self.is_session(number) {
            true => Ok(()),
            false => Err(Error::new(Code::Cancelled, "the loader's session with its holder is over")),
        }
    }

    pub(super) fn check_room_for(&self, session: u64, label: &str) -> Result<()> {
        self.check_session(session)?;
        if self.loading.contains_key(label) {
            return Err(Error::new(Code::Internal, format!("there is memory for {label} already")));
        }
        self.check_count(self.loading.len())
    }

    fn check_count(&self, count: usize) -> Result<()> {
        match count < MODELS_MAX {
            true => Ok(()),
            false => Err(Error::new(Code::Exhausted, format!("a holder keeps at most {MODELS_MAX} models"))),
        }
    }

    pub(super) fn check_publication(&self, session: u64, id: &str, text_bytes: u64, regions: &[Part]) -> Result<()> {
        self.check_session(session)?;
        self.check_count(self.models.len())?;
        if self.models.contains_key(id) {
            return Err(Error::new(Code::Internal, format!("model {id:?} is published already")));
        }
        if self.text_bytes.saturating_add(text_bytes) > TEXT_BYTES_MAX {
            return Err(Error::new(Code::Exhausted, "the holder has no room for another model's description"));
        }
        let mut segments = 0;
        for (index, part) in regions.iter().enumerate() {
            segments += match part {
                Part::Host(segments) => segments.len(),
                Part::Made(label) => {
                    let is_twice =
                        regions[..index].iter().any(|other| matches!(other, Part::Made(made) if made == label));
                    let made = self.loading.get(label).filter(|_| !is_twice).ok_or_else(|| no_memory(label))?;
                    made.segments().len()
                }
            };
        }
        match segments <= SEGMENTS_MAX {
            true => Ok(()),
            false => Err(Error::new(Code::Exhausted, format!("{id}: {segments} descriptors, at most {SEGMENTS_MAX}"))),
        }
    }

    pub(super) fn take(&mut self, id: &str) -> Option<Entry> {
        let Slot::Occupied(slot) = self.models.entry(id.to_owned()) else { return None };
        let entry = slot.remove();
        let text_bytes = (entry.published.description.len() + entry.published.record.len()) as u64;
        self.text_bytes = self.text_bytes.saturating_sub(text_bytes);
        Some(entry)
    }
}

pub(super) fn not_here(id: &str) -> Error {
    Error::new(Code::NotFound, format!("no model {id:?} is in memory; it was unloaded or evicted: load it again"))
}

pub(super) fn no_memory(label: &str) -> Error {
    Error::new(Code::NotFound, format!("the holder has no memory that was made for {label}"))
}
