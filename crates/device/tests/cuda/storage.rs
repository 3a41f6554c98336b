//! Files that the card reads by itself.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use longshore_device::cuda::CopierStart;
use longshore_device::{Device, FromStorage, Part, RegionBuilder};
use longshore_memory::direct::DirectFile;
use longshore_testkit::FakeCuda;
use longshore_testkit::fake_cuda::Role;
use longshore_types::Code;

use crate::bench::{Bench, Driver, SIZE, this_program, upload};

/// A copier on a machine with or without `nvidia-fs`.
fn copier(nvfs: bool) -> CopierStart {
    let mut env = FakeCuda::preload().env();
    env.retain(|(name, _)| name != "FAKE_CUDA_NVFS");
    let own = [
        ("LONGSHORE_TEST_COPIER", "1"),
        ("FAKE_CUDA_ROLE", "copier"),
        ("FAKE_CUDA_NVFS", if nvfs { "2" } else { "0" }),
    ];
    env.extend(own.map(|(name, value)| (name.into(), value.into())));
    let (program, args) = this_program(&env, "bench::copier_process");
    CopierStart::Process { program: program.into(), args }
}

/// A file of bytes that are all different from their neighbours, and its bytes.
struct Stored {
    file: DirectFile,
    bytes: Vec<u8>,
    _named: tempfile::NamedTempFile,
}

impl Stored {
    fn new(len: usize) -> Stored {
        let bytes: Vec<u8> = (0..len).map(|at| (at * 131 + at / 251 + 1) as u8 | 1).collect();
        let mut named = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        named.write_all(&bytes).unwrap();
        let file = DirectFile::open(named.path()).unwrap().expect("a file system with direct reads");
        Stored { file, bytes, _named: named }
    }

    fn open(&self) -> &File {
        self.file.file()
    }
}

fn storage(builder: &dyn RegionBuilder) -> &dyn FromStorage {
    upload(builder).storage().expect("a way from storage")
}

#[test]
fn the_card_reads_files_beside_what_is_uploaded() {
    let driver = Driver::alone();
    let bench = Bench::open_as(copier(true)).unwrap();
    bench.device.check_storage().unwrap();
    let files = [Stored::new((2 << 20) + 123), Stored::new(1 << 20)];
    let builder = bench.device.reserve("model", SIZE).unwrap();
    // Zeros between the two small parts are sent along; the card writes to some of them later.
    let parts = [
        Part::Place { offset_bytes: 0, len_bytes: 10 },
        Part::Place { offset_bytes: 256, len_bytes: 10 },
        Part::Place { offset_bytes: 512, len_bytes: 10 },
    ];
    upload(&*builder).upload(&bench.chunk(7), 0, &parts).unwrap();
    let from = storage(&*builder);
    let numbers = files.each_ref().map(|file| from.open(file.open().as_fd()).unwrap());
    assert_ne!(numbers[0], numbers[1]);
    let reads = [(0, 4096, (1 << 20) + 123, 4100), (1, 0, 1 << 20, 2 << 20), (0, 8192, 100, 300)];
    for (file, at, len, to) in reads {
        from.read(numbers[file], at, len, to).unwrap();
    }
    let region = builder.finish().unwrap();
    let mut expected = vec![0; SIZE as usize];
    for start in [0, 256, 512] {
        expected[start..start + 10].fill(7);
    }
    for (file, at, len, to) in reads {
        let (at, len, to) = (at as usize, len as usize, to as usize);
        expected[to..to + len].copy_from_slice(&files[file].bytes[at..at + len]);
    }
    let mut read = vec![0; SIZE as usize];
    region.read(0, &mut read).unwrap();
    assert!(read == expected);
    let calls = driver.cuda.calls(Role::Copier);
    let counted = ["cuFileDriverOpen", "cuFileHandleRegister", "cuFileHandleDeregister", "cuFileRead"];
    assert_eq!(counted.map(|call| calls[call]), [1, 2, 2, 3]);
    drop((region, bench));
    driver.assert_clean();
}

#[test]
fn machines_where_it_is_not_offered() {
    let driver = Driver::alone();
    let stored = Stored::new(1 << 20);
    for (nvfs, fault, reason) in [
        (false, "", "cuFileDriverOpen failed with 5033; is the kernel module nvidia-fs loaded?"),
        (true, "copier/cuFileDriverOpen@1=5011", "cuFileDriverOpen failed with 5011"),
        (true, "copier/cuFileDriverGetProperties@1=999", "failed with 5011 (error 999 of the driver)"),
    ] {
        driver.cuda.disarm();
        driver.cuda.reset_calls();
        driver.cuda.arm(fault);
        let bench = Bench::open_as(copier(nvfs)).unwrap();
        let error = bench.device.check_storage().unwrap_err();
        assert!(error.code() == Code::Unsupported && error.message().contains(reason), "{error}");
        let builder = bench.device.reserve("model", SIZE).unwrap();
        // Asked for once, however often it is tried.
        for _ in 0..2 {
            let error = storage(&*builder).open(stored.open().as_fd()).unwrap_err();
            assert_eq!(error.code(), Code::Unsupported);
            assert!(error.message().contains(reason), "{error}");
        }
        assert_eq!(driver.cuda.calls(Role::Copier)["cuFileDriverOpen"], 1);
        drop(builder);
        bench.load(3).unwrap();
        assert_eq!(bench.device.restarts(), 0);
    }
    driver.assert_clean();
}

#[test]
fn what_the_card_refuses_can_be_uploaded() {
    let driver = Driver::alone();
    let bench = Bench::open_as(copier(true)).unwrap();
    let stored = Stored::new(1 << 20);
    driver.cuda.arm("copier/cuFileHandleRegister@1=5008");
    let builder = bench.device.reserve("model", SIZE).unwrap();
    let from = storage(&*builder);
    let error = from.open(stored.open().as_fd()).unwrap_err();
    assert_eq!(error.code(), Code::Unsupported);
    assert!(error.message().contains("cuFileHandleRegister failed with 5008"), "{error}");
    let plain = File::open("/proc/self/exe").unwrap();
    let error = from.open(plain.as_fd()).unwrap_err();
    assert!(error.code() == Code::Unsupported && error.message().contains("5020"), "{error}");
    let file = from.open(stored.open().as_fd()).unwrap();
    for (fault, reason) in [("5008", "cuFileRead failed with 5008"), ("5", "cuFileRead: Input/output error")] {
        driver.cuda.disarm();
        driver.cuda.reset_calls();
        driver.cuda.arm(&format!("copier/cuFileRead@1={fault}"));
        let error = from.read(file, 0, 1 << 20, 0).unwrap_err();
        assert_eq!(error.code(), Code::Unsupported);
        assert!(error.message().contains(reason), "{error}");
    }
    // A file that is shorter than it was.
    let error = from.read(file, 4096, 1 << 20, 0).unwrap_err();
    assert!(error.code() == Code::Unsupported && error.message().contains("ends too early"), "{error}");
    // All of it in the usual way.
    let parts = [Part::Place { offset_bytes: 0, len_bytes: 1 << 20 }];
    upload(&*builder).upload(&bench.chunk(9), 0, &parts).unwrap();
    let region = builder.finish().unwrap();
    let mut read = vec![0; SIZE as usize];
    region.read(0, &mut read).unwrap();
    assert!(read[..1 << 20].iter().all(|byte| *byte == 9) && read[1 << 20..].iter().all(|byte| *byte == 0));
    drop((region, bench));
    driver.assert_clean();
}

#[test]
fn wrong_reads_and_lost_contexts() {
    let driver = Driver::alone();
    let bench = Bench::open_as(copier(true)).unwrap();
    let stored = Stored::new(1 << 20);
    let builder = bench.device.reserve("model", SIZE).unwrap();
    let from = storage(&*builder);
    let file = from.open(stored.open().as_fd()).unwrap();
    for (len, to) in [(0, 0), (1, SIZE), (SIZE, 1), (u64::MAX, 1)] {
        assert_eq!(from.read(file, 0, len, to).unwrap_err().code(), Code::InvalidArgument);
    }
    from.read(file, 0, 4096, 0).unwrap();
    let again = from.read(file, 0, 4096, 4095).unwrap_err();
    assert!(again.code() == Code::Internal && again.message().contains("overlap"), "{again}");
    // Poisoned by a read that itself went well.
    driver.cuda.reset_calls();
    driver.cuda.arm("copier/cuFileRead~1=700");
    from.read(file, 0, 4096, 8192).unwrap();
    let error = builder.finish().err().unwrap();
    assert!(error.code() == Code::Unavailable && error.message().contains("700"), "{error}");
    bench.load(4).unwrap();
    assert_eq!(bench.device.restarts(), 1);
    drop(bench);
    driver.assert_clean();
}
