//! End-to-end tests, a module a topic. They need the binary: `cargo build -p longshore-cli` first.

#![allow(clippy::unwrap_used)]

mod abuse;
mod bad_input;
mod checkpoints;
mod commands;
mod common;
mod crash;
mod disk;
mod edges;
mod equality;
mod failure;
mod gpu;
mod gpu_faults;
mod gpu_load;
mod gpu_storage;
mod gpu_survival;
mod layout;
mod memory;
mod once;
mod origins;
mod parallel;
mod recover;
mod secrets;
mod small_disk;
