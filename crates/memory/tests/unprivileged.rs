//! Shared memory of a process without the right to mount: a helper in a user namespace mounts for it, or it is told why
//! not.
//!
//! The process is this test binary started again as another user, and so is the helper, which may have one thread only;
//! hence no harness but what `cargo test` and `cargo nextest` ask of one.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use longshore_memory::{Arena, MountHelper, RegionWriter, SharedMemory, SharedPages, region_page_advice};

/// What a process is that was started again.
const ROLE: &str = "LONGSHORE_MEMORY_TEST_ROLE";
/// The usual `nobody`.
const NOBODY: u32 = 65_534;
const LEN: u64 = (8 << 20) + 5;

const NAME: &str = "a_process_that_may_not_mount_gets_huge_pages_with_help_or_the_reason_why_not";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    match std::env::var(ROLE).as_deref() {
        Ok("helper") => helper(),
        Ok(_) => unprivileged_process(),
        Err(_) if has("--list") && has("--ignored") => {}
        Err(_) if has("--list") => println!("{NAME}: test"),
        Err(_) if arguments.iter().any(|argument| !argument.starts_with('-') && !NAME.contains(argument.as_str())) => {}
        Err(_) => {
            a_process_that_may_not_mount_gets_huge_pages_with_help_or_the_reason_why_not();
            println!("test {NAME} ... ok");
        }
    }
}

fn a_process_that_may_not_mount_gets_huge_pages_with_help_or_the_reason_why_not() {
    // Wherever the build is, others may run a copy of it.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for path in [folder.path(), program.as_path()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(&program);
    command.env(ROLE, "process").current_dir("/");
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    assert!(command.status().unwrap().success());
}

fn unprivileged_process() {
    let program = std::env::current_exe().unwrap();
    let args = vec![format!("{ROLE}=helper").into(), program.into_os_string()];
    let helper = MountHelper { program: "/usr/bin/env".into(), args };
    let own = SharedMemory::private_mount(None).unwrap_err();
    assert!(own.to_string().starts_with("fsopen: "), "{own}");
    let chosen = SharedMemory::choose(Some(&helper));
    match SharedMemory::private_mount(Some(&helper)) {
        Ok(memory) => {
            works(&memory);
            let expected = match region_page_advice() {
                Some(_) => SharedPages::HugePrivateMount,
                None => SharedPages::HugeBySetting,
            };
            assert_eq!((chosen.pages(), chosen.advice()), (expected, None));
        }
        Err(error) => {
            assert!(!may_have_namespaces(), "{error}");
            assert!(error.to_string().contains("with a user namespace of its own: "), "{error}");
            assert_eq!(chosen.advice().is_some(), region_page_advice().is_some());
            assert!(chosen.advice().is_none_or(|advice| advice.contains(&error.to_string())));
        }
    }
}

/// Whether the kernel's settings let everybody have user namespaces with rights in them.
fn may_have_namespaces() -> bool {
    let setting = |name: &str| fs::read_to_string(Path::new("/proc/sys").join(name)).ok();
    let is = |name: &str, value: &str| setting(name).is_some_and(|text| text.trim() == value);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    // A container's filter forbids them in ways that nobody can ask for.
    let is_filtered = !status.lines().any(|line| line.starts_with("Seccomp:") && line.ends_with("\t0"));
    !(is("user/max_user_namespaces", "0")
        || is("kernel/unprivileged_userns_clone", "0")
        || is("kernel/apparmor_restrict_unprivileged_userns", "1")
        || is_filtered)
}

fn works(memory: &SharedMemory) {
    assert_eq!(memory.pages(), SharedPages::HugePrivateMount);
    let arena = Arena::new(64 << 20);
    let writer = RegionWriter::create_in(memory, "mine", LEN, arena.try_reserve(LEN).unwrap()).unwrap();
    writer.claim(0..LEN).unwrap().fill(3);
    let region = writer.finish().unwrap();
    assert!(region.as_slice().iter().all(|byte| *byte == 3));
    let file = fs::File::from(region.fd().try_clone_to_owned().unwrap());
    let facts = file.metadata().unwrap();
    assert_eq!((facts.uid(), facts.nlink(), facts.len()), (rustix::process::geteuid().as_raw(), 0, LEN));
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    assert!(fs::OpenOptions::new().write(true).open(link).is_err());
}

/// Its standard input is its socket.
fn helper() {
    longshore_memory::mount_helper_main(std::io::stdin().as_fd().try_clone_to_owned().unwrap()).unwrap();
}
