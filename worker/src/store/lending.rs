//! Which memory the chunks of a worker lie in: its own, or such as loaders of this host read where it is.
//!
//! Sharing costs a descriptor for each chunk, and pays where the pages are huge: fresh pages of 4 KiB cost more than a chunk
//! saves on its way.

use longshore_memory::{Arena, SharedPages, shared_memory};
use rustix::process::{Resource, getrlimit, setrlimit};

/// The part of this process's descriptors that chunks in memory may have: the rest is for files and sockets.
const FILES_SHARE: u64 = 2;

/// The budget for chunks. Where there is a `socket`, loaders of this host are handed those in memory, if they can be; it is
/// logged when they cannot.
pub fn chunk_arena(budget_bytes: u64, has_socket: bool) -> Arena {
    if !has_socket {
        return Arena::new(budget_bytes);
    }
    let memory = shared_memory();
    if memory.pages() == SharedPages::Small {
        tracing::warn!(
            pages = %memory.describe(),
            "chunks in memory are copied through the unix socket, they cannot be handed over"
        );
        return Arena::new(budget_bytes);
    }
    let files_max = raise_descriptor_limit() / FILES_SHARE;
    tracing::info!(pages = %memory.pages(), files_max, "chunks in memory are handed over to loaders of this host");
    Arena::with_shared_buffers(budget_bytes, memory, usize::try_from(files_max).unwrap_or(usize::MAX))
}

/// Gives this process all the descriptors that it may have, and says how many.
fn raise_descriptor_limit() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let before = limit.current;
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "cannot raise the limit of open files");
            limit.current = before;
        }
    }
    // No limit at all is told as none.
    limit.current.unwrap_or(u64::MAX)
}
