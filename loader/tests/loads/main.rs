//! Whole loads: a fake origin, workers that misbehave on demand, real memory, and processes that attach to it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod attach;
mod checkpoints;
mod committed;
mod daemon;
mod equality;
mod faults;
mod fixture;
mod gpu;
mod memory;
mod remote;
mod sharing;
mod workers;
