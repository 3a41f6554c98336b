//! The fallbacks of a worker in words: what was not done in the first way, why, and what a user can do about it.

use std::path::Path;

use longshore_memory::{SharedMemory, SharedPages};

use crate::metrics::Metrics;

/// What the status says of ways that are only counted, each with how often.
const WORDS: [(&str, &str); 11] = [
    ("peer_suspect", "a chunk was not asked for of a worker that had not answered before; see the members"),
    ("peer_failed", "a worker failed to give a chunk, which came from the next source; see the members"),
    ("head_owner_suspect", "a header was not asked for of a worker that had not answered before; see the members"),
    ("head_owner_failed", "a worker failed to give a header, which came from the origin; see the members"),
    ("metadata_owner_suspect", "metadata was not asked for of a worker that had not answered before; see the members"),
    ("metadata_owner_failed", "a worker failed to give metadata, which came from the origin; see the members"),
    ("stale_listing", "the origin did not answer, and an older listing was used; is it within reach?"),
    (
        "listings_not_saved",
        "a listing could not be written to the cache folder, and is lost with a restart; is it full?",
    ),
    (
        "disk_read_queue_full",
        "a chunk file came from the disk in small pages, whose copies cost more CPU, because many others were on their way; \
         fewer loads at once, or a faster disk, avoid it",
    ),
    (
        "disk_read_small_pages",
        "a chunk file could not be brought from the disk in huge pages, and its copies cost more CPU; Linux from 5.14 on \
         can, else the log says why",
    ),
    ("put_replaced", "a chunk of a checkpoint replaced one of other content; do two processes save under one name?"),
];

/// What the notes are about.
pub(super) struct Facts<'a> {
    /// Memory for loaders of this host, where there is a socket to hand it over.
    pub lent: Option<&'a SharedMemory>,
    /// The folder of the disk tier.
    pub cache_folder: Option<&'a Path>,
    pub metrics: &'a Metrics,
}

impl Facts<'_> {
    /// One line each, nothing where all is as it should be.
    pub(super) fn notes(&self) -> Vec<String> {
        let counted = WORDS.iter().filter_map(|(kind, words)| {
            let times = match self.count(kind) {
                0 => return None,
                1 => "once".to_owned(),
                times => format!("{times} times"),
            };
            Some(format!("{times} since the start: {words}"))
        });
        self.memory().into_iter().chain(self.disk()).chain(counted).collect()
    }

    /// Known before the first chunk where no memory is shared at all.
    fn memory(&self) -> Option<String> {
        let memory = self.lent?;
        let copied = "copied through the unix socket instead of being shared with loaders of this host";
        if memory.pages() == SharedPages::Small {
            return Some(format!("chunks in memory are {copied}: memory has {}", memory.describe()));
        }
        let chunks = Some(self.count("memory_not_shared")).filter(|chunks| *chunks > 0)?;
        Some(format!(
            "chunks in memory ({chunks} since the start) were {copied}: no file was left for them; raise the limit of open \
             files"
        ))
    }

    fn disk(&self) -> Option<String> {
        let folder = self.cache_folder?.display();
        let files = Some(self.count("disk_write_cached")).filter(|files| *files > 0)?;
        Some(format!(
            "chunk files are written through the page cache ({files} since the start), which costs more CPU: the file \
             system of {folder} takes no direct writes; a --cache-dir on ext4 or xfs does"
        ))
    }

    fn count(&self, kind: &str) -> u64 {
        self.metrics.fallbacks.with_label_values(&[kind]).get()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use longshore_memory::{region_page_advice, shared_memory};
    use longshore_runtime::metrics::Metrics as Registry;

    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(&Registry::new()).unwrap()
    }

    #[test]
    fn where_all_is_well_nothing_is_said() {
        let metrics = metrics();
        let facts = Facts { lent: None, cache_folder: Some(Path::new("/cache")), metrics: &metrics };
        assert_eq!(facts.notes(), [""; 0]);
        // Small pages are no concern of a worker that hands nothing over.
        metrics.fallback("memory_not_shared");
        assert_eq!(facts.notes(), [""; 0]);
    }

    #[test]
    fn memory_that_cannot_be_shared_is_told_before_the_first_chunk() {
        let metrics = metrics();
        let Some(advice) = region_page_advice() else { return };
        let memory = SharedMemory::memfd();
        let facts = Facts { lent: Some(&memory), cache_folder: None, metrics: &metrics };
        let notes = facts.notes();
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].contains("copied through the unix socket") && notes[0].ends_with(&advice), "{notes:?}");
    }

    #[test]
    fn chunks_for_which_no_file_was_left_are_told_with_the_limit() {
        let metrics = metrics();
        let memory = shared_memory();
        if memory.pages() == SharedPages::Small {
            return;
        }
        let facts = Facts { lent: Some(memory), cache_folder: None, metrics: &metrics };
        assert_eq!(facts.notes(), [""; 0]);
        (0..3).for_each(|_| metrics.fallback("memory_not_shared"));
        let notes = facts.notes();
        assert!(notes[0].contains("(3 since the start) were copied") && notes[0].contains("open files"), "{notes:?}");
    }

    #[test]
    fn the_folder_that_takes_no_direct_writes_is_named() {
        let metrics = metrics();
        metrics.fallback("disk_write_cached");
        metrics.fallback("stale_listing");
        (0..2).for_each(|_| metrics.fallback("peer_failed"));
        let notes = Facts { lent: None, cache_folder: Some(Path::new("/cache")), metrics: &metrics }.notes();
        assert!(
            notes[0].contains("(1 since the start)") && notes[0].contains("/cache takes no direct writes"),
            "{notes:?}"
        );
        assert!(notes[1].starts_with("2 times since the start: a worker failed"), "{notes:?}");
        assert!(notes[2].starts_with("once since the start: the origin did not answer"), "{notes:?}");
        assert_eq!(notes.len(), 3);
    }
}
