//! What goes wrong with GPUs, on the fake driver. One test at a time: they share its counters and its faults.

mod bench;
mod driver;
mod ends;
mod errors;
mod every_call;
