//! End-to-end tests, a module a topic. They need the binary: `cargo build -p longshore-cli` first.

#![allow(clippy::unwrap_used)]

mod layout;
