//! End-to-end tests of Longshore: real processes, real sockets, a fake origin.
//!
//! The tests are in `e2e/`, a file a topic. Here is the client they use: it speaks to a loader as any other client
//! would, from the `.proto` files alone, and reads the memory it is handed with `pread`.

mod attach;
mod client;

pub use attach::Attached;
pub use client::{Client, Loaded};
