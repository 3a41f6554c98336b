//! Memory: sizes, access, who may free what.

use super::*;

#[test]
fn device_memory_is_counted_and_runs_out() {
    alone("memory::device_memory_is_counted_and_runs_out", &[], || {
        start(0);
        let of = properties(0);
        assert_eq!(answer(|bytes| cuMemGetAllocationGranularity(bytes, In(&of), 0)), GRANULE);
        assert_eq!(refused(|handle| cuMemCreate(handle, GRANULE + 1, In(&of), 0)), INVALID_VALUE);
        let handle = create(0, MEMORY - GRANULE);
        assert_eq!(free_bytes(), GRANULE);
        assert_eq!(refused(|handle| cuMemCreate(handle, 2 * GRANULE, In(&of), 0)), OUT_OF_MEMORY);
        let plain = answer(|address| cuMemAlloc_v2(address, 700));
        assert_eq!(free_bytes(), GRANULE - 1024);
        ok(cuMemRelease(handle));
        assert_eq!(cuMemRelease(handle), INVALID_VALUE);
        ok(cuMemFree_v2(plain));
        assert_eq!(cuMemFree_v2(plain), INVALID_VALUE);
        assert_eq!(free_bytes(), MEMORY);
    });
}

#[test]
fn what_is_mapped_stays_when_its_handle_goes_and_addresses_go_last() {
    alone("memory::what_is_mapped_stays_when_its_handle_goes_and_addresses_go_last", &[], || {
        start(0);
        let address = reserve(2 * GRANULE);
        let (first, second) = (create(0, GRANULE), create(0, GRANULE));
        assert_eq!(cuMemMap(address, GRANULE, 512, first, 0), INVALID_VALUE, "an offset");
        ok(cuMemMap(address, GRANULE, 0, first, 0));
        assert_eq!(cuMemMap(address, GRANULE, 0, second, 0), INVALID_VALUE, "something is there");
        assert_eq!(cuMemMap(address + 2 * GRANULE as u64, GRANULE, 0, second, 0), INVALID_VALUE, "not reserved");
        ok(cuMemMap(address + GRANULE as u64, GRANULE, 0, second, 0));
        ok(cuMemRelease(first));
        ok(cuMemRelease(second));
        assert_eq!(cuMemMap(address, GRANULE, 0, first, 0), INVALID_VALUE, "use after release");
        assert_eq!(set_access(address, GRANULE + 4096, 0, 3), INVALID_VALUE, "not whole mappings");
        ok(set_access(address, 2 * GRANULE, 0, 3));
        ok(cuMemsetD8_v2(address + 5, 7, 2 * GRANULE - 5));
        assert!(read(address + 5, 2 * GRANULE - 5).iter().all(|&byte| byte == 7), "over both");
        let again = answer(|handle| cuMemRetainAllocationHandle(handle, address));
        let mut of = properties(1);
        ok(cuMemGetAllocationPropertiesFromHandle(Out(&mut of), again));
        assert_eq!(of, properties(0));
        ok(cuMemRelease(again));
        assert_eq!(cuMemAddressFree(address, 2 * GRANULE), INVALID_VALUE, "still mapped");
        assert_eq!(cuMemUnmap(address, GRANULE - 4096), INVALID_VALUE, "half a mapping");
        ok(cuMemUnmap(address, 2 * GRANULE));
        assert_eq!(live(), []);
        assert_eq!(cuMemAddressFree(address, GRANULE), INVALID_VALUE, "half a reservation");
        ok(cuMemAddressFree(address, 2 * GRANULE));
    });
}

#[test]
fn writing_where_a_device_may_only_read_ends_its_context() {
    alone("memory::writing_where_a_device_may_only_read_ends_its_context", &[], || {
        start(0);
        let (address, _) = mapped(GRANULE, 1);
        let location = Location { kind: LOCATION_DEVICE, id: 0 };
        assert_eq!(answer(|flags| cuMemGetAccess(flags, In(&location), address)), 1);
        let from = page_locked(4096, 1);
        assert_eq!(read(address, 16), [0; 16]);
        let stream = answer(|stream| cuStreamCreate(stream, 1));
        ok(cuMemcpyHtoDAsync_v2(address, from.as_ptr() as u64, 4096, stream));
        assert_eq!(cuStreamSynchronize(stream), ILLEGAL_ADDRESS);
        assert_eq!(cuCtxSynchronize(), ILLEGAL_ADDRESS, "for good");
    });
}

#[test]
fn other_devices_may_do_nothing_until_they_are_let() {
    alone("memory::other_devices_may_do_nothing_until_they_are_let", &[], || {
        start(0);
        let (address, _) = mapped(GRANULE, 3);
        let other = answer(|context| cuDevicePrimaryCtxRetain(context, 1));
        ok(set_access(address, GRANULE, 1, 1));
        ok(cuCtxSetCurrent(other));
        assert_eq!(read(address, 16), [0; 16]);
        ok(set_access(address, GRANULE, 1, 0));
        let mut room = [0_u8; 16];
        assert_eq!(cuMemcpyDtoH_v2(room.as_mut_ptr() as u64, address, 16), ILLEGAL_ADDRESS);
    });
}

#[test]
fn reserved_addresses_without_memory_and_foreign_ones_are_no_place_to_copy_to() {
    alone("memory::reserved_addresses_without_memory_and_foreign_ones_are_no_place_to_copy_to", &[], || {
        start(0);
        let (address, from) = (reserve(GRANULE), page_locked(64, 1));
        let from = from.as_ptr() as u64;
        assert_eq!(cuMemcpyHtoDAsync_v2(0x1000, from, 64, 0), INVALID_VALUE);
        assert_eq!(cuMemcpyHtoDAsync_v2(address, 0, 64, 0), INVALID_VALUE);
        ok(cuMemcpyHtoDAsync_v2(address, from, 64, 0));
        assert_eq!(cuCtxSynchronize(), ILLEGAL_ADDRESS);
    });
}

#[test]
fn a_processor_that_writes_where_it_may_only_read_faults() {
    const TEST: &str = "memory::a_processor_that_writes_where_it_may_only_read_faults";
    alone(TEST, &[], || {
        if std::env::var_os("FAKE_CUDA_TEST_WRITES").is_some() {
            start(0);
            let (address, _) = mapped(GRANULE, 1);
            // SAFETY: it is meant to fault: nobody else has this memory.
            unsafe { (address as *mut u8).write_volatile(1) };
            return;
        }
        let ended = other(TEST).env("FAKE_CUDA_TEST_WRITES", "1").output().unwrap().status;
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(libc::SIGSEGV));
    });
}

#[test]
fn host_memory_is_registered_once_and_only_what_is_there() {
    alone("memory::host_memory_is_registered_once_and_only_what_is_there", &[], || {
        start(0);
        let memory = memmap2::MmapMut::map_anon(8 * MIB).unwrap();
        let address = memory.as_ptr() as u64;
        ok(cuMemHostRegister_v2(address, 4 * MIB, 0));
        assert_eq!(cuMemHostRegister_v2(address + MIB as u64, 4 * MIB, 0), HOST_MEMORY_ALREADY_REGISTERED);
        ok(cuMemHostRegister_v2(address + 4 * MIB as u64, 4 * MIB, 1));
        assert_eq!(cuMemHostUnregister(address + MIB as u64), HOST_MEMORY_NOT_REGISTERED);
        let (to, _) = mapped(4 * GRANULE, 3);
        assert_eq!(cuMemcpyHtoD_v2(to, address + 2 * MIB as u64, 4 * MIB), INVALID_VALUE, "over two registrations");
        ok(cuMemHostUnregister(address));
        assert_eq!(cuMemFreeHost(address), INVALID_VALUE);
        ok(cuMemHostUnregister(address + 4 * MIB as u64));
        assert_eq!(cuMemHostRegister_v2(reserve(GRANULE), MIB, 0), INVALID_VALUE, "nothing is mapped there");
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.as_file().set_len(MIB as u64).unwrap();
        let map = memmap2::MmapOptions::new().map_raw(file.as_file()).unwrap();
        assert_eq!(cuMemHostRegister_v2(map.as_ptr() as u64, MIB, 0), INVALID_VALUE, "a file on a disk");
    });
}

#[test]
fn rows_are_copied_with_gaps_on_either_side() {
    alone("memory::rows_are_copied_with_gaps_on_either_side", &[], || {
        start(0);
        let (to, _) = mapped(GRANULE, 3);
        let from = page_locked(10 * 100, 0);
        from.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 100 * 10 + at % 100) as u8);
        let host =
            |x_bytes, y| Side2D { x_bytes, y, kind: 1, host: from.as_ptr() as u64, device: 0, array: 0, pitch: 100 };
        let device = Side2D { x_bytes: 0, y: 0, kind: 2, host: 0, device: to, array: 0, pitch: 4 };
        let copy = Copy2D { from: host(2, 1), to: device, width_bytes: 3, height: 4 };
        ok(cuMemcpy2DAsync_v2(In(&copy), 0));
        ok(cuCtxSynchronize());
        assert_eq!(read(to, 16), [12, 13, 14, 0, 22, 23, 24, 0, 32, 33, 34, 0, 42, 43, 44, 0]);
        let wide = Copy2D { width_bytes: 5, ..copy };
        assert_eq!(cuMemcpy2D_v2(In(&wide)), INVALID_VALUE, "rows wider than their distance");
        let beyond = Copy2D { height: GRANULE, ..copy };
        assert_eq!(cuMemcpy2D_v2(In(&beyond)), INVALID_VALUE);
        assert_eq!(cuMemcpy2D_v2(In(&Copy2D { height: 0, ..copy })), SUCCESS);
    });
}

#[test]
fn addresses_say_what_they_are_and_that_processors_can_read_them() {
    alone("memory::addresses_say_what_they_are_and_that_processors_can_read_them", &[], || {
        start(1);
        let plain = answer(|address| cuMemAlloc_v2(address, 4096));
        let ask = |attribute, address| {
            let mut value = 0_u64;
            let room = OutAny(std::ptr::from_mut(&mut value).cast());
            (cuPointerGetAttribute(room, attribute, address), value)
        };
        // Memory type, device, start and size of the range.
        assert_eq!([2, 9, 11, 12].map(|kind| ask(kind, plain + 8).1), [1, 1, plain, 4096]);
        assert_eq!(ask(11, page_locked(64, 0).as_ptr() as u64 + 1).0, SUCCESS);
        assert_eq!(ask(2, 0x1000).0, INVALID_VALUE);
        let (mut kind, mut size) = (0_u32, 0_usize);
        let rooms = [std::ptr::from_mut(&mut kind).cast(), std::ptr::from_mut(&mut size).cast()];
        ok(cuPointerGetAttributes(2, In([2, 12].as_ptr()), In(rooms.as_ptr()), plain));
        assert_eq!((kind, size), (1, 4096));
        ok(cuPointerGetAttributes(2, In([2, 12].as_ptr()), In(rooms.as_ptr()), 0x1000));
    });
}
