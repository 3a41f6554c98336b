//! Versions that are not the origin's own.

use longshore_types::Version;

/// Whether this is the name of an attempt to save a checkpoint. Its objects have names of their own or are created once,
/// and what is read is compared with the checksums of the commit: reads are not conditional on what the store says.
pub(crate) fn is_attempt(version: &Version) -> bool {
    version.as_str().starts_with("attempt:")
}
