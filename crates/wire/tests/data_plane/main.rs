//! The data plane end to end: real sockets, real files, and peers that misbehave.
#![allow(clippy::unwrap_used)]

mod abuse;
mod curl;
mod drain;
mod lending;
mod peers;
mod pooling;
mod puts;
mod round_trip;
mod sockets;
mod streaming;
mod support;
