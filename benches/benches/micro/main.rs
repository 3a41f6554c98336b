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

/// What a group measures: a word that its benchmarks' names hold.
type Group = (&'static str, fn(&mut Criterion));

const GROUPS: [Group; 8] = [
    ("plan", plan::benches),
    ("manifest", plan::manifest_benches),
    ("header", header::benches),
    ("ring", ring::benches),
    ("checksum", checksum::benches),
    ("slot", slots::benches),
    ("index", index::benches),
    ("random", random::benches),
];

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
    let filters: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    // What a group needs (a ring of 1,000 members, 10 million entries, half a GB of files) is made for those who want it.
    let wanted = |word: &str| filters.is_empty() || filters.iter().any(|filter| filter.contains(word));
    if wanted("cold") {
        plan::cold();
    }
    for (_, benches) in GROUPS.iter().filter(|(word, _)| wanted(word)) {
        benches(&mut criterion);
    }
    criterion.final_summary();
}
