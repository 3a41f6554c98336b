//! Micro benchmarks of what a load does besides moving bytes, all warm: `make bench-micro` runs them and writes their medians.
//!
//! What happens once in the life of a process (the first plan of a large model, the memory of an index) is measured before
//! the rest, once, and printed in lines that begin with `once:`; `benches/micro.py` takes them from there.

mod checksum;
mod header;
mod index;
mod models;
mod plan;
mod random;
mod ring;
mod slots;

use std::time::Duration;

use criterion::Criterion;

/// Prints a figure that is measured once.
fn once(case: &str, value: f64, unit: &str) {
    println!("once: {case} {value:.3} {unit}");
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    if !std::env::args().any(|argument| argument == "--list" || argument == "--no-once") {
        plan::cold();
    }
    for benches in [
        plan::benches,
        header::benches,
        ring::benches,
        checksum::benches,
        slots::benches,
        index::benches,
        random::benches,
    ] {
        benches(&mut criterion);
    }
    criterion.final_summary();
}
