//! `fake-cuda-install FOLDER [--devices N] [--memory-mib N] [--h2d-gbps X] [--faults LIST]`: installs the fake CUDA
//! driver into a folder and prints the environment that makes programs use it, as one JSON object.
//!
//! `fake-cuda-install FOLDER --state [--faults LIST]` prints instead what the processes that use it hold, and may arm
//! further faults.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Parser;
use longshore_testkit::fake_cuda::{FakeCuda, FakeCudaOptions, Role, uuid_text};

/// Installs the fake CUDA driver into a folder.
#[derive(Debug, Parser)]
struct Args {
    /// The folder; made when it is not there.
    folder: PathBuf,
    /// Number of devices.
    #[arg(long, default_value_t = 2)]
    devices: u32,
    /// Memory of each, in MiB.
    #[arg(long, default_value_t = 1024)]
    memory_mib: u64,
    /// Rate of copies to each device, in GB/s; 0: as fast as it goes.
    #[arg(long, default_value_t = 0.0)]
    h2d_gbps: f64,
    /// What is to go wrong: `[role/]name@n=code`, separated by commas; also armed while processes run.
    #[arg(long, default_value = "")]
    faults: String,
    /// Whether there is `nvidia-fs`, so that cards read files by themselves.
    #[arg(long)]
    nvfs: bool,
    /// Prints what is held, and how often each call was made.
    #[arg(long)]
    state: bool,
}

fn main() {
    let args = Args::parse();
    let options = FakeCudaOptions {
        devices: args.devices,
        memory_mib: args.memory_mib,
        h2d_gbps: args.h2d_gbps,
        faults: args.faults,
        nvfs: args.nvfs,
    };
    let printed = match args.state {
        true => state(&FakeCuda::open_at(options, &args.folder), args.devices),
        false => {
            serde_json::json!(FakeCuda::install_at(options, &args.folder).env().into_iter().collect::<BTreeMap<_, _>>())
        }
    };
    println!("{printed}");
}

fn state(cuda: &FakeCuda, devices: u32) -> serde_json::Value {
    let devices = (0..devices)
        .map(|device| serde_json::json!({ "uuid": uuid_text(device), "used_bytes": cuda.used_bytes(device) }));
    let calls = Role::ALL.map(|role| (role.name().to_owned(), serde_json::json!(cuda.calls(role))));
    let processes = cuda.processes().into_iter().map(|usage| {
        serde_json::json!({
            "pid": usage.pid, "role": usage.role.name(), "contexts": usage.contexts, "handles": usage.handles,
            "mappings": usage.mappings, "mapped_bytes": usage.mapped_bytes, "reservations": usage.reservations,
            "registrations": usage.registrations, "registered_bytes": usage.registered_bytes,
            "streams": usage.streams, "events": usage.events,
        })
    });
    serde_json::json!({
        "processes": processes.collect::<Vec<_>>(),
        "devices": devices.collect::<Vec<_>>(),
        "allocations": cuda.live_allocations().len(),
        "pageable_copies": cuda.pageable_copies(),
        "calls": calls.into_iter().collect::<serde_json::Map<_, _>>(),
        "faults_fired": cuda.fired(),
    })
}
