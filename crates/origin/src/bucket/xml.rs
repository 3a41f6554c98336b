//! Writing to S3 and Google Cloud Storage in the XML language that both speak, by requests of our own.
//!
//! `object_store` has calls for parts, but not for what keeps them whole: listing the uploads that are open, the
//! checksum that the store computed over the object, and checksums that are worked out off the async threads. Bytes are
//! not signed (that would be a pass of SHA-256 over each part); a CRC travels with them instead, and the store compares.

mod documents;
mod objects;
mod parts;
mod uploads;
mod wire;
mod writer;

pub(super) use wire::{Auth, Wire};
pub(super) use writer::{Place, XmlWriter};
