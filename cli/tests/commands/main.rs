//! The real binary, run as users run it.

#![allow(clippy::unwrap_used)]

mod checkpoints;
mod daemons;
mod embedded;
mod environment;
mod holder;
mod huge_pages;
mod origin;
mod private;
mod support;
