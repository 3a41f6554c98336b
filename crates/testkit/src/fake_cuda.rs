//! The fake CUDA driver: what it is installed with, and what tests learn from it.
//!
//! ```no_run
//! use longshore_testkit::fake_cuda::{FakeCuda, FakeCudaOptions};
//! let cuda = FakeCuda::install(FakeCudaOptions { devices: 2, ..FakeCudaOptions::default() });
//! let mut command = std::process::Command::new("longshore");
//! command.envs(cuda.env());
//! // ...
//! assert_eq!(cuda.used_bytes(0), 0);
//! ```
//!
//! Other processes get it by [`FakeCuda::env`]; this one by [`FakeCuda::preload`]. What the driver enforces and counts
//! is in `crates/fakecuda`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use longshore_fakecuda::config::Config;
use longshore_fakecuda::control::Control;
use longshore_fakecuda::folder::Folder;
use tempfile::TempDir;

pub use longshore_fakecuda::config::uuid_text;
pub use longshore_fakecuda::faults::{Fault, Role};
pub use longshore_fakecuda::folder::{Allocation, Kind};
pub use longshore_fakecuda::usage::Usage;

/// The file that cargo builds of `crates/fakecuda`.
const LIBRARY: &str = "liblongshore_fakecuda.so";
/// Where device memory lies when there is room: it is written at the rate of memory, and no disk is.
const SHARED_MEMORY: &str = "/dev/shm";
/// Names of folders go on with the process that made them.
const PREFIX: &str = "longshore-fake-cuda-";
/// How often what other processes hold is asked for.
const ASK_EVERY: Duration = Duration::from_millis(5);

/// The devices.
#[derive(Debug, Clone)]
pub struct FakeCudaOptions {
    /// Number of devices.
    pub devices: u32,
    /// Memory of each, in MiB.
    pub memory_mib: u64,
    /// Rate of copies from host memory to each device, in GB/s; 0: as fast as it goes.
    pub h2d_gbps: f64,
    /// What is to go wrong: `[role/]name@n=code`, `name~n=code` (sticky), `*@n=code`; separated by commas.
    pub faults: String,
    /// Whether the kernel has `nvidia-fs`, so that cards read files by themselves.
    pub nvfs: bool,
}

impl Default for FakeCudaOptions {
    fn default() -> FakeCudaOptions {
        FakeCudaOptions { devices: 2, memory_mib: 1024, h2d_gbps: 0.0, faults: String::new(), nvfs: false }
    }
}

/// An installed fake driver. Its folders go with it; processes that use it should be gone by then.
pub struct FakeCuda {
    options: FakeCudaOptions,
    library_folder: PathBuf,
    folder: Folder,
    control: Control,
    _temporary: Option<TempDir>,
}

impl FakeCuda {
    /// Makes a folder with `libcuda.so` and `libcuda.so.1`, and a state folder, for other processes.
    ///
    /// # Panics
    /// When the library was not built, or the folder cannot be made.
    pub fn install(options: FakeCudaOptions) -> FakeCuda {
        let needed_bytes = u64::from(options.devices) * (options.memory_mib << 20);
        let parent = match free_bytes(Path::new(SHARED_MEMORY)) > needed_bytes {
            true => PathBuf::from(SHARED_MEMORY),
            false => std::env::temp_dir(),
        };
        remove_abandoned(&parent);
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let temporary = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent).expect("a temporary folder");
        let mut cuda = FakeCuda::install_at(options, temporary.path());
        cuda._temporary = Some(temporary);
        cuda
    }

    /// As [`FakeCuda::install`], in a folder that stays.
    ///
    /// # Panics
    /// As [`FakeCuda::install`], and when one is installed there.
    pub fn install_at(options: FakeCudaOptions, path: &Path) -> FakeCuda {
        let library_folder = path.join("lib");
        std::fs::create_dir_all(&library_folder).expect("a folder for the driver");
        // A copy, so that a build meanwhile changes nothing; one file with two names, so that it is loaded once.
        std::fs::copy(library(), library_folder.join("libcuda.so")).expect("a copy of the driver");
        let second = library_folder.join("libcuda.so.1");
        std::os::unix::fs::symlink("libcuda.so", second).expect("its second name");
        let storage = library_folder.join("libcufile.so.0");
        std::os::unix::fs::symlink("libcuda.so", storage).expect("its name for storage");
        FakeCuda::open_at(options, path)
    }

    /// The driver that was installed in this folder.
    ///
    /// # Panics
    /// When it has no state folder that can be used.
    pub fn open_at(options: FakeCudaOptions, path: &Path) -> FakeCuda {
        let state = path.join("state");
        std::fs::create_dir_all(&state).expect("a state folder");
        let folder = Folder::open(&state).expect("the state folder");
        let control = Control::open(&folder).expect("the counters");
        let cuda = FakeCuda { options, library_folder: path.join("lib"), folder, control, _temporary: None };
        cuda.arm(&cuda.options.faults);
        cuda
    }

    /// Loads the fake driver into this process, with the default devices; once, however often it is called.
    ///
    /// # Panics
    /// As [`FakeCuda::install`], and when it cannot be loaded.
    pub fn preload() -> &'static FakeCuda {
        FakeCuda::preload_with(FakeCudaOptions::default())
    }

    /// As [`FakeCuda::preload`]; the options of the first call in a process hold.
    ///
    /// # Panics
    /// As [`FakeCuda::preload`].
    pub fn preload_with(options: FakeCudaOptions) -> &'static FakeCuda {
        static LOADED: OnceLock<FakeCuda> = OnceLock::new();
        LOADED.get_or_init(|| {
            let cuda = FakeCuda::install(options);
            let config = Config {
                folder: cuda.folder.path().to_owned(),
                devices: cuda.options.devices,
                memory_bytes: cuda.options.memory_mib << 20,
                h2d_gbps: cuda.options.h2d_gbps,
                faults: Vec::new(),
                visible: Vec::new(),
            };
            let loaded = longshore_fakecuda::preload::preload(&cuda.library_folder.join("libcuda.so"), &config);
            loaded.unwrap_or_else(|why| panic!("the fake driver: {why}"));
            cuda
        })
    }

    /// Variables that make another process find it.
    pub fn env(&self) -> Vec<(String, String)> {
        let before = std::env::var("LD_LIBRARY_PATH").ok().filter(|path| !path.is_empty());
        let paths = [Some(self.library_folder.display().to_string()), before];
        let paths: Vec<String> = paths.into_iter().flatten().collect();
        [
            ("LD_LIBRARY_PATH", paths.join(":")),
            ("FAKE_CUDA_DIR", self.folder.path().display().to_string()),
            ("FAKE_CUDA_DEVICES", self.options.devices.to_string()),
            ("FAKE_CUDA_MEM_MIB", self.options.memory_mib.to_string()),
            ("FAKE_CUDA_H2D_GBPS", self.options.h2d_gbps.to_string()),
            ("FAKE_CUDA_NVFS", u8::from(self.options.nvfs).to_string()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    /// UUID of a device, as everybody writes it.
    pub fn uuid(&self, device: u32) -> String {
        uuid_text(device)
    }

    /// Device memory that any process holds: by a handle, a mapping or a descriptor.
    pub fn live_allocations(&self) -> Vec<Allocation> {
        self.folder.live().expect("the state folder")
    }

    /// Bytes of a device that are taken.
    pub fn used_bytes(&self, device: u32) -> u64 {
        self.folder.used_bytes(device).expect("the state folder")
    }

    /// Waits until so much of a device is taken: processes that end give back what they have a little later.
    ///
    /// # Panics
    /// When it is something else for too long.
    pub fn wait_used_bytes(&self, device: u32, wanted_bytes: u64) {
        let patience = Instant::now() + Duration::from_secs(10);
        while self.used_bytes(device) != wanted_bytes {
            let live = self.live_allocations();
            assert!(Instant::now() < patience, "device {device} has not {wanted_bytes} bytes in use: {live:?}");
            std::thread::sleep(ASK_EVERY);
        }
    }

    /// Copies from host memory that was not page-locked: of ours there must be none.
    pub fn pageable_copies(&self) -> u64 {
        self.control.pageable_copies()
    }

    /// How often each call was made by processes of this role.
    pub fn calls(&self, role: Role) -> BTreeMap<&'static str, u64> {
        self.control.calls(role)
    }

    /// How many calls were made by processes of this role: what `*` in a fault counts.
    pub fn calls_of_any(&self, role: Role) -> u64 {
        self.control.calls_of_any(role)
    }

    /// Starts counting calls from zero again.
    pub fn reset_calls(&self) {
        self.control.reset_calls();
    }

    /// Makes calls fail, also in processes that run.
    ///
    /// # Panics
    /// When the text is no list of faults.
    pub fn arm(&self, faults: &str) {
        let faults = Fault::parse_list(faults).unwrap_or_else(|why| panic!("{why}"));
        self.control.arm(&faults).expect("the state folder");
    }

    /// Forgets all faults, those that happened as well.
    pub fn disarm(&self) {
        self.control.disarm().expect("the state folder");
    }

    /// Faults that happened.
    pub fn fired(&self) -> Vec<String> {
        self.control.fired().iter().map(ToString::to_string).collect()
    }

    /// What each process has of the driver, or had when it ended.
    pub fn processes(&self) -> Vec<Usage> {
        longshore_fakecuda::usage::processes(&self.folder).expect("the state folder")
    }
}

/// What cargo built beside this program: `target/PROFILE/deps`. It is never stale: this crate depends on it.
fn library() -> PathBuf {
    let exe = std::env::current_exe().expect("the path of this program");
    // target/debug/deps/test-0123 or target/debug/program
    let folders = exe.ancestors().skip(1).take(2).flat_map(|folder| [folder.to_owned(), folder.join("deps")]);
    let mut found = folders.filter(|folder| folder.ends_with("deps")).map(|folder| folder.join(LIBRARY));
    found.find(|path| path.is_file()).unwrap_or_else(|| panic!("no {LIBRARY} in the deps beside {}", exe.display()))
}

/// Removes folders of processes that are gone: those that were killed, and those that loaded the driver themselves, which
/// have it until their end.
fn remove_abandoned(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another test may be doing the same.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn free_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_beside_the_test_installed_and_loaded() {
        let loaded = FakeCuda::preload();
        assert!(std::ptr::eq(loaded, FakeCuda::preload()), "once");
        let options = FakeCudaOptions { faults: "holder/cuMemCreate@1=2".to_owned(), ..FakeCudaOptions::default() };
        let cuda = FakeCuda::install(options);
        let env: BTreeMap<String, String> = cuda.env().into_iter().collect();
        let folder = env["LD_LIBRARY_PATH"].split(':').next().unwrap();
        assert!(["libcuda.so", "libcuda.so.1"].iter().all(|name| Path::new(folder).join(name).is_file()));
        assert!(Path::new(&env["FAKE_CUDA_DIR"]).is_dir());
        assert_eq!((cuda.used_bytes(0), cuda.live_allocations().len(), cuda.calls_of_any(Role::All)), (0, 0, 0));
        assert!(cuda.fired().is_empty() && cuda.processes().is_empty());
        cuda.wait_used_bytes(1, 0);
    }

    #[test]
    fn folders_of_processes_that_are_gone_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let names = [format!("{PREFIX}{}-a", child.id()), format!("{PREFIX}{}-b", std::process::id()), "x".to_owned()];
        names.iter().for_each(|name| std::fs::create_dir(folder.path().join(name)).unwrap());
        remove_abandoned(folder.path());
        assert_eq!(names.map(|name| folder.path().join(name).exists()), [false, true, true]);
    }

    #[test]
    #[should_panic(expected = "there is no such entry point")]
    fn what_is_no_fault_is_told() {
        FakeCuda::install(FakeCudaOptions::default()).arm("cuNothing@1=2");
    }
}
