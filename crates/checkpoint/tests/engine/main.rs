//! The engine with a local folder as its origin: staged, durable, committed; restarts, limits, files.

#![allow(clippy::unwrap_used, missing_docs)]

mod copies;
mod deltas;
mod limits;
mod recover;
mod save;
mod support;
