//! End-to-end tests of Longshore: real processes, real sockets, a fake origin.
//!
//! The tests are in `e2e/`, a file a topic. Here are the clients they use: they speak to a loader as any other client
//! would, from the `.proto` files alone, and read and write the memory they are handed with `pread` and `pwrite`.

mod attach;
mod client;
pub mod save_client;

pub use attach::Attached;
pub use client::{Client, Loaded};
pub use save_client::{Acks, SaveClient, Saving, SlabClient};
