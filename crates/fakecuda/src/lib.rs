//! A CUDA driver for machines without a GPU: the part of the driver API that Longshore uses, on ordinary memory.
//! Development only, never shipped.
//!
//! It is built as a C library that takes the place of `libcuda.so`, so that the same binaries run the same code as with
//! a card: several processes share "device memory" by descriptors, streams really are asynchronous, read-only mappings
//! are enforced, and what the real driver refuses is refused. It shows that our code is right, never what a card does.
//!
//! * Device memory is files in a **state folder** that all processes of a test share ([`folder`]). An allocation lives as
//!   long as any process has a handle, a mapping or an exported descriptor of it, as with the real driver, also when
//!   processes are killed.
//! * Every call is counted, and any call can be made to fail: [`control`], which tests read and write meanwhile.
//! * What each process has at the moment (mappings, registrations, streams, ...) is in [`usage`].
//!
//! Variables: `FAKE_CUDA_DIR` (the state folder), `FAKE_CUDA_DEVICES`, `FAKE_CUDA_MEM_MIB`, `FAKE_CUDA_H2D_GBPS`,
//! `FAKE_CUDA_FAULTS`, `FAKE_CUDA_ROLE`, and `CUDA_VISIBLE_DEVICES` as the real driver has it. Start reading in
//! `driver.rs`, then `api.rs`.
//!
//! Where it differs on purpose: `cuPointerGetAttribute` says that device memory is host memory, because it is, and
//! readers (PyTorch by DLPack) may look at it as such. Contexts take no device memory. Peers always reach each other.

mod api;
pub mod calls;
pub mod codes;
pub mod config;
pub mod control;
mod copy;
mod driver;
mod events;
pub mod faults;
pub mod folder;
mod host;
mod memory;
mod pages;
pub mod preload;
mod shared;
mod streams;
#[cfg(test)]
mod tests;
pub mod usage;
