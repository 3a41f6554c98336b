//! A GPU whose copier is a process, and a load onto it.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use longshore_device::cuda::{CopierStart, CudaDevice, CudaOptions, OwnMemory, copier_main, probe};
use longshore_device::{Device, Intake, Part, RegionBuilder, Upload};
use longshore_memory::{Arena, Claim, PinnedArena, PinnedChunk};
use longshore_testkit::FakeCuda;
use longshore_testkit::fake_cuda::Role;
use longshore_types::Result;

/// What a load brings in.
pub const SIZE: u64 = 3 << 20;
const PINNED_BYTES: u64 = 32 << 20;
const IS_COPIER: &str = "LONGSHORE_TEST_COPIER";

/// The driver, for one test alone; no faults, no counts.
pub struct Driver {
    pub cuda: &'static FakeCuda,
    _alone: MutexGuard<'static, ()>,
}

impl Driver {
    pub fn alone() -> Driver {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let cuda = FakeCuda::preload();
        cuda.disarm();
        cuda.reset_calls();
        Driver { cuda, _alone: alone }
    }

    /// Nothing is left of anything, in any process.
    pub fn assert_clean(&self) {
        self.cuda.wait_used_bytes(0, 0);
        assert_eq!(self.cuda.pageable_copies(), 0);
        for process in self.cuda.processes().iter().filter(|process| process.role != Role::Copier) {
            assert_eq!((process.contexts, process.handles, process.mappings), (0, 0, 0), "{process:?}");
        }
    }
}

/// A GPU with its page-locked memory.
pub struct Bench {
    pub device: Arc<CudaDevice>,
    pub pinned: PinnedArena,
}

impl Bench {
    pub fn open() -> Result<Bench> {
        Bench::open_as(copier())
    }

    pub fn open_as(start: CopierStart) -> Result<Bench> {
        let pinned = PinnedArena::create(PINNED_BYTES, Arena::new(PINNED_BYTES).try_reserve(PINNED_BYTES).unwrap())?;
        let gpu = probe()?.swap_remove(0);
        let options = CudaOptions { gpu, budget_bytes: 64 << 20, start };
        let device = CudaDevice::open(options, Arc::new(OwnMemory::new()), pinned.clone())?;
        device.start()?;
        Ok(Bench { device, pinned })
    }

    /// A whole chunk of one byte's value.
    pub fn chunk(&self, value: u8) -> PinnedChunk {
        let chunk = self.pinned.try_chunk(SIZE, None).expect("a free slot");
        while let Claim::Fill(mut window) = chunk.claim(0..u32::MAX) {
            window.fill(value);
            window.commit();
        }
        chunk
    }

    /// One load with copies of every kind, checked.
    pub fn load(&self, value: u8) -> Result<()> {
        let builder = self.device.reserve("model", SIZE)?;
        let parts = [
            Part::Place { offset_bytes: 0, len_bytes: 1 << 20 },
            Part::Place { offset_bytes: 1 << 20, len_bytes: 10 },
            Part::Place { offset_bytes: (1 << 20) + 256, len_bytes: 10 },
            Part::Rows { offset_bytes: 2 << 20, row_bytes: 4096, skip_bytes: 4096, rows: 100 },
        ];
        upload(&*builder).upload(&self.chunk(value), 0, &parts)?;
        let region = builder.finish()?;
        let mut read = vec![0; SIZE as usize];
        region.read(0, &mut read)?;
        let sent: usize = read.iter().filter(|byte| **byte == value).count();
        let zeros = read.iter().filter(|byte| **byte == 0).count();
        assert_eq!((sent, zeros), ((1 << 20) + 20 + 409_600, read.len() - sent), "wrong bytes on the GPU");
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        self.device.copier_pid().expect("a copier")
    }
}

pub fn upload(builder: &dyn RegionBuilder) -> &dyn Upload {
    match builder.intake() {
        Intake::Upload(upload) => upload,
        Intake::Land(_) => panic!("not a device that bytes are copied to"),
    }
}

/// This program again, with variables and the name of one test.
pub fn this_program(env: &[(String, String)], test: &str) -> (OsString, Vec<OsString>) {
    let mut args: Vec<OsString> = env.iter().map(|(name, value)| format!("{name}={value}").into()).collect();
    args.push(std::env::current_exe().unwrap().into());
    args.extend(["--exact", test, "--nocapture"].map(OsString::from));
    ("/usr/bin/env".into(), args)
}

/// This program as a copier on the same fake driver.
pub fn copier() -> CopierStart {
    let mut env = FakeCuda::preload().env();
    env.extend([(IS_COPIER, "1"), ("FAKE_CUDA_ROLE", "copier")].map(|(name, value)| (name.into(), value.into())));
    let (program, args) = this_program(&env, "bench::copier_process");
    CopierStart::Process { program: program.into(), args }
}

/// No test of its own: what [`copier`] runs.
#[test]
fn copier_process() {
    if std::env::var_os(IS_COPIER).is_none() {
        return;
    }
    if let Err(error) = copier_main(std::io::stdin().as_fd().try_clone_to_owned().unwrap()) {
        eprintln!("copier: {error}");
        std::process::exit(1);
    }
}
