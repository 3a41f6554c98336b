//! File systems that are small, for what happens when they are full.

use std::path::Path;
use std::process::Command;

/// Mounts a tmpfs of so many bytes; it is taken away with the guard.
pub struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    pub fn mount(folder: &Path, size_bytes: u64, options: &str) -> Option<SmallDisk> {
        std::fs::create_dir_all(folder).unwrap();
        let options = format!("size={size_bytes}{options}");
        let mut mount = Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder).status();
        status.is_ok_and(|status| status.success()).then(|| SmallDisk(folder.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l"]).arg(&self.0).status();
    }
}

/// Runs `check` with a folder that is a file system of so many bytes. Who may not mount one does so in a user namespace
/// of its own, in which `test`, the name of the calling test, runs again.
pub fn on_small_disk(test: &str, size_bytes: u64, check: impl FnOnce(&Path)) {
    const INSIDE: &str = "SMALL_DISK_IN_NAMESPACE";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    if let Some(_disk) = SmallDisk::mount(&path, size_bytes, "") {
        return check(&path);
    }
    assert!(std::env::var_os(INSIDE).is_none(), "{test} cannot mount a disk in its own namespace");
    let namespace = |program: &Path| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount"]).arg(program);
        command
    };
    if !namespace(Path::new("true")).status().is_ok_and(|status| status.success()) {
        eprintln!("NOT RUN: {test}: needs root, or user namespaces, to mount a small disk");
        return;
    }
    let again =
        namespace(&std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]).env(INSIDE, "1").status();
    assert!(again.unwrap().success(), "{test} failed in a namespace of its own; see above");
}
