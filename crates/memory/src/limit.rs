//! How much memory this process may use: the machine's, or less when a cgroup says so.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// The least of the machine's memory and the limits of the cgroups (v1 and v2) this process is in, in bytes.
///
/// A default for budgets, not a guarantee: other processes share it. Files that cannot be read set no limit.
pub fn memory_limit_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    // The field's width differs between platforms.
    #[allow(clippy::unnecessary_cast)]
    let physical = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit.max(1)));
    cgroup_limit(Path::new("/")).map_or(physical, |limit| limit.min(physical))
}

/// A way to find limits: which mount, which line of `/proc/self/cgroup`, which files.
struct Hierarchy {
    filesystem: &'static str,
    controller: &'static str,
    files: &'static [&'static str],
}

const HIERARCHIES: [Hierarchy; 2] = [
    // Above `memory.high` the kernel slows a process down until it is of no use, so it is a limit as well.
    Hierarchy { filesystem: "cgroup2", controller: "", files: &["memory.max", "memory.high"] },
    Hierarchy { filesystem: "cgroup", controller: "memory", files: &["memory.limit_in_bytes"] },
];

/// The least limit of any cgroup above this process. `root` stands for `/`.
fn cgroup_limit(root: &Path) -> Option<u64> {
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let limits = HIERARCHIES.iter().filter_map(|hierarchy| {
        let (mount_root, mount_point) = find_mount(&mounts, hierarchy)?;
        let group = find_group(&groups, hierarchy)?;
        let top = root.join(mount_point.trim_start_matches('/'));
        least_limit(&top, &below(group, mount_root), hierarchy.files)
    });
    limits.min()
}

/// Root and mount point of the hierarchy, from `/proc/self/mountinfo`.
fn find_mount<'a>(mounts: &'a str, hierarchy: &Hierarchy) -> Option<(&'a str, &'a str)> {
    mounts.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let mut source = source.split(' ');
        let filesystem = source.next()?;
        let has_controller =
            hierarchy.controller.is_empty() || source.nth(1)?.split(',').any(|option| option == hierarchy.controller);
        (filesystem == hierarchy.filesystem && has_controller).then_some((mount.next()?, mount.next()?))
    })
}

/// The group this process is in, from `/proc/self/cgroup`.
fn find_group<'a>(groups: &'a str, hierarchy: &Hierarchy) -> Option<&'a str> {
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let mut controllers = fields.next()?.split(',');
        controllers.any(|controller| controller == hierarchy.controller).then_some(fields.next()?)
    })
}

/// The group's path below the mount. In a container the mount may be the group itself, whatever its path outside.
fn below(group: &str, mount_root: &str) -> PathBuf {
    let path = Path::new(group).strip_prefix(mount_root).unwrap_or(Path::new(""));
    let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    if is_plain { path.to_path_buf() } else { PathBuf::new() }
}

/// The least limit in the group's folder and those above it, up to the mount.
fn least_limit(top: &Path, group: &Path, files: &[&str]) -> Option<u64> {
    let limits = group.ancestors().flat_map(|group| {
        let folder = top.join(group);
        files.iter().filter_map(move |file| fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok())
    });
    limits.min()
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::*;

    const V2: &str = "25 1 0:22 / /proc rw - proc proc rw\n\
                      30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      32 23 0:28 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n";

    /// A machine's files under a temporary folder: (path, contents).
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, contents) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        root
    }

    #[test]
    fn version_2_takes_the_least_on_the_way_up() {
        let root = machine(&[
            ("proc/self/mountinfo", V2),
            ("proc/self/cgroup", "0::/system.slice/longshore.service\n"),
            ("sys/fs/cgroup/system.slice/longshore.service/memory.max", "max\n"),
            ("sys/fs/cgroup/system.slice/longshore.service/memory.high", "7000\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "5000\n"),
            ("sys/fs/cgroup/other.slice/memory.max", "1\n"),
        ]);
        assert_eq!(cgroup_limit(root.path()), Some(5000));
    }

    #[test]
    fn version_1_reads_the_memory_controller() {
        let root = machine(&[
            ("proc/self/mountinfo", V1),
            ("proc/self/cgroup", "4:cpu,cpuacct:/a\n3:memory:/docker/1f\n"),
            ("sys/fs/cgroup/memory/docker/1f/memory.limit_in_bytes", "4096\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(cgroup_limit(root.path()), Some(4096));
    }

    #[test]
    fn a_container_that_sees_only_its_own_group_still_finds_the_limit() {
        let inside = V2.replace("0:26 / ", "0:26 /kubepods/pod1 ");
        for group in ["0::/\n", "0::/kubepods/pod1\n", "0::/../../elsewhere\n", "0::/unrelated\n"] {
            let root = machine(&[
                ("proc/self/mountinfo", inside.as_str()),
                ("proc/self/cgroup", group),
                ("sys/fs/cgroup/memory.max", "123456\n"),
            ]);
            assert_eq!(cgroup_limit(root.path()), Some(123_456), "{group}");
        }
    }

    #[test]
    fn no_cgroup_no_limit_and_nonsense_is_ignored() {
        assert_eq!(cgroup_limit(machine(&[]).path()), None);
        let root =
            machine(&[("proc/self/mountinfo", "garbage\n - cgroup2\n30 23 0:26\n"), ("proc/self/cgroup", "::::\n0\n")]);
        assert_eq!(cgroup_limit(root.path()), None);
    }

    #[test]
    fn this_machine_has_some_memory() {
        assert!(memory_limit_bytes() > 1 << 20);
    }
}
