//! What goes wrong with GPUs, on the fake driver. One test at a time: they share its counters and its faults.

// The helpers of tests fail by panicking, as the tests do.
#![allow(clippy::unwrap_used)]

mod bench;
mod driver;
mod ends;
mod errors;
mod every_call;
mod storage;
