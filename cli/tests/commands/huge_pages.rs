//! Which pages the memory of models has: the best this user can have, and the status says which.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Output;

use longshore_memory::region_page_advice;
use serde_json::Value;

use crate::support::{Bench, json_of};

/// The usual `nobody`.
const NOBODY: u32 = 65_534;
/// Run by a process that has a private loader.
const LOOK: &str = r#""$0" status --json; "$0" status"#;

/// What `longshore status` says of host memory, as JSON and as text.
fn host_memory(output: &Output) -> (String, String) {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let (json, text) = text.split_once('\n').unwrap_or_else(|| panic!("{output:?}"));
    let status: Value = json_of(&Output { stdout: json.into(), ..output.clone() });
    let host = &status["loader"]["devices"][0];
    assert_eq!(host["device"], "host", "{status}");
    let line = text.lines().find_map(|line| line.strip_prefix("  host    ")).unwrap_or_else(|| panic!("{text}"));
    (host["name"].as_str().unwrap().to_owned(), line.to_owned())
}

fn expected_at_best() -> &'static str {
    match region_page_advice() {
        None => "host memory, huge pages by the system's setting",
        Some(_) => "host memory, huge pages of a private mount",
    }
}

#[test]
fn the_status_says_which_pages_host_memory_has() {
    let bench = Bench::new();
    let output = bench.run(&["exec", "--model", "model", "--", "sh", "-c", LOOK, env!("CARGO_BIN_EXE_longshore")]);
    let (name, line) = host_memory(&output);
    assert_eq!(name, line);
    if rustix::process::geteuid().is_root() {
        assert_eq!(name, expected_at_best());
    }
}

#[test]
fn a_user_who_may_not_mount_has_huge_pages_with_a_user_namespace_or_is_told_why_not() {
    let bench = Bench::new();
    // Wherever the build is, others may run a copy of it.
    let binary = bench.path("longshore");
    fs::copy(env!("CARGO_BIN_EXE_longshore"), &binary).unwrap();
    for path in [bench.path("."), binary.clone()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let program = binary.to_str().unwrap();
    let mut command = bench.command_of(&binary, &["exec", "--model", "model", "--", "sh", "-c", LOOK, program]);
    command.env("HOME", bench.path("tmp"));
    if rustix::process::geteuid().is_root() {
        for folder in ["cache", "run", "tmp"] {
            chown(bench.path(folder), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        command.uid(NOBODY).gid(NOBODY);
    }
    let (name, _) = host_memory(&command.output().unwrap());
    if may_have_namespaces() {
        assert_eq!(name, expected_at_best());
    } else if name != expected_at_best() {
        assert!(name.starts_with("host memory, 4 KiB pages: "), "{name}");
        assert!(name.contains("fsopen: ") && name.contains("with a user namespace of its own: "), "{name}");
    }
}

/// Whether the kernel's settings let everybody have user namespaces with rights in them.
fn may_have_namespaces() -> bool {
    let is = |name: &str, value: &str| {
        fs::read_to_string(format!("/proc/sys/{name}")).is_ok_and(|text| text.trim() == value)
    };
    let status = fs::read_to_string("/proc/self/status").unwrap();
    // A container's filter forbids them in ways that nobody can ask for.
    let is_filtered = !status.lines().any(|line| line == "Seccomp:\t0");
    !(is("user/max_user_namespaces", "0")
        || is("kernel/unprivileged_userns_clone", "0")
        || is("kernel/apparmor_restrict_unprivileged_userns", "1")
        || is_filtered)
}
