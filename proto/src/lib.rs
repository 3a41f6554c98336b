//! The gRPC interface: generated code and its conversions to and from domain types.
//!
//! Generated types stop at the `grpc` modules of the daemons and at the command line; nothing else sees them.

pub mod convert;
pub mod status;

/// The generated messages, clients and servers of `longshore.v1`.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::large_futures)]
pub mod v1 {
    tonic::include_proto!("longshore.v1");
}

/// The compiled descriptors of all `.proto` files, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/longshore.bin"));

/// Largest gRPC message that is sent or accepted, in bytes: a manifest of 100,000 tensors has about 10 MB.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
