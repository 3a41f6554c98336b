//! The only place where a store is opened: listing, sizes and conditional range reads of origins.
//!
//! An origin is S3, Google Cloud Storage, Azure (through `object_store`), a plain HTTP server, a Hugging Face hub or a
//! local folder. They all answer the same three questions: what is there ([`Origins::resolve`]), what is this object
//! ([`Origins::stat`]) and give me these bytes of that version ([`Origins::read`]). S3, Google, Azure and folders can be
//! written to as well: whole objects on a condition ([`Origins::put`]), large ones in parts ([`Origins::upload_start`]),
//! each compared with what was sent ([`Origins::verify`]).
//!
//! Invariants: bytes of two versions never mix (every response is compared with the version that was resolved, also
//! when the server ignores `If-Match`); retries are ours alone, bounded per call and shared per origin, and resume at
//! the byte reached; nothing is allocated from a size that the network names; no message holds a secret.
//!
//! Bytes come as a stream, or straight from the connection into memory of the caller's ([`Origins::read_into`]).
//!
//! Start reading at [`Origins`], then `backend.rs` (what each kind of origin does), `read.rs` (how a read resumes) and
//! `write.rs` (what a lost answer of a write means).

mod address;
mod backend;
mod body;
mod bucket;
mod cover;
mod fault;
mod hub;
mod lane;
mod local;
mod options;
mod origins;
mod probe;
mod read;
mod resolve;
mod sink;
mod stats;
mod straight;
mod verify;
mod version;
mod write;

pub use body::Body;
pub use cover::covers;
pub use options::{OriginOptions, Secret, StoreOption};
pub use origins::Origins;
pub use sink::Sink;
pub use stats::OriginStats;
pub use write::{Listed, OpenUpload, PartId, PutHow, PutOutcome, UploadId, UploadLimits, Verified};
