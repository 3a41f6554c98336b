//! Drivers that are missing, strange, or do not start: each in a process of its own.

use std::path::Path;
use std::process::Command;

use longshore_device::cuda::{DeviceMemory, Unavailable, probe};
use longshore_testkit::{FakeCuda, FakeCudaOptions};
use longshore_types::Code;

use crate::bench::this_program;

const IS_PROBE: &str = "LONGSHORE_TEST_PROBE";

/// No test of its own: what [`probed`] runs.
#[test]
fn probe_process() {
    if std::env::var_os(IS_PROBE).is_some() {
        let answer = match probe() {
            Ok(gpus) => format!("{} gpus", gpus.len()),
            Err(reason) => format!("{reason:?}: {reason}"),
        };
        println!("ANSWER {answer}");
    }
}

/// What probing finds with these variables.
fn probed(env: &[(String, String)]) -> String {
    let mut env = env.to_vec();
    env.push((IS_PROBE.into(), "1".into()));
    let (program, args) = this_program(&env, "driver::probe_process");
    let output = Command::new(program).args(args).env_remove("LD_LIBRARY_PATH").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    text.lines().find_map(|line| line.split_once("ANSWER ")).map(|(_, answer)| answer.to_owned()).unwrap()
}

fn library_folder(path: &Path) -> [(String, String); 1] {
    [("LD_LIBRARY_PATH".into(), path.display().to_string())]
}

#[test]
fn a_machine_without_a_driver() {
    let folder = tempfile::tempdir().unwrap();
    let answer = probed(&library_folder(folder.path()));
    // A machine with a GPU has a driver all the same.
    assert!(answer.starts_with("NoLibrary: no CUDA driver") || answer.contains("gpus"), "{answer}");
}

#[test]
fn a_library_that_is_not_the_driver() {
    let folder = tempfile::tempdir().unwrap();
    let other = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6", "/lib64/libm.so.6"];
    let Some(other) = other.iter().find(|path| Path::new(path).exists()) else { return };
    std::os::unix::fs::symlink(other, folder.path().join("libcuda.so")).unwrap();
    let answer = probed(&library_folder(folder.path()));
    assert!(answer.starts_with("MissingSymbol(\"cuInit\")"), "{answer}");
}

#[test]
fn drivers_that_do_not_start() {
    let cases = [
        ("cuInit@1=100", 1, "NoDevice"),
        ("cuInit@1=803", 1, "803"),
        ("cuInit@1=999", 1, "999"),
        ("cuInit@1=54321", 1, "cuInit failed with an error the driver has no name for (54321)"),
        ("cuDriverGetVersion@1=3", 1, "cuDriverGetVersion"),
        ("cuDeviceGetName@1=101", 1, "NoDevice"),
        ("", 0, "NoDevice"),
        ("", 3, "3 gpus"),
    ];
    for (faults, devices, expected) in cases {
        let options = FakeCudaOptions { devices, faults: faults.into(), ..FakeCudaOptions::default() };
        let cuda = FakeCuda::install(options);
        let answer = probed(&cuda.env());
        assert!(answer.contains(expected), "{faults}: {answer}");
    }
    let hidden = FakeCuda::install(FakeCudaOptions::default());
    let mut env = hidden.env();
    env.push(("CUDA_VISIBLE_DEVICES".into(), String::new()));
    assert!(probed(&env).starts_with("NoDevice"));
}

#[test]
fn a_gpu_that_is_not_there() {
    FakeCuda::preload();
    let uuid = "GPU-00000000-0000-0000-0000-000000000000";
    let error = DeviceMemory::create(uuid, 1).err().unwrap();
    assert_eq!(error.code(), Code::Unsupported);
    assert!(error.message().contains(uuid), "{error}");
    assert_ne!(Unavailable::NoDevice.to_string(), Unavailable::NoLibrary.to_string());
}
