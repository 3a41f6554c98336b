//! Streams and events: what happens later, and in which order.

use std::time::Instant;

use super::*;

/// Slow enough that what a stream does can be seen: 8 MiB take 80 ms.
const SLOW: (&str, &str) = ("FAKE_CUDA_H2D_GBPS", "0.1");

#[test]
fn page_locked_memory_is_read_when_the_stream_comes_to_it() {
    alone("order::page_locked_memory_is_read_when_the_stream_comes_to_it", &[SLOW], || {
        start(0);
        let (to, _) = mapped(8 * MIB, 3);
        let stream = answer(|stream| cuStreamCreate(stream, 1));
        let from = page_locked(8 * MIB, 1);
        let began = Instant::now();
        ok(cuMemcpyHtoDAsync_v2(to, from.as_ptr() as u64, 8 * MIB, stream));
        assert_eq!(cuStreamQuery(stream), NOT_READY);
        from[8 * MIB - 1] = 2;
        ok(cuStreamSynchronize(stream));
        assert!(began.elapsed().as_millis() >= 80, "{:?}", began.elapsed());
        assert_eq!(read(to + 8 * MIB as u64 - 2, 2), [1, 2], "whoever writes too early is found out");
    });
}

#[test]
fn other_memory_is_read_at_once_and_counted() {
    alone("order::other_memory_is_read_at_once_and_counted", &[SLOW], || {
        start(0);
        let (to, _) = mapped(GRANULE, 3);
        let mut from = vec![1_u8; MIB];
        ok(cuMemcpyHtoDAsync_v2(to, from.as_ptr() as u64, MIB, 0));
        from.fill(2);
        ok(cuCtxSynchronize());
        assert!(read(to, MIB).iter().all(|&byte| byte == 1));
        assert_eq!(crate::driver::Driver::get().unwrap().control.pageable_copies(), 1);
    });
}

#[test]
fn events_tell_when_a_stream_has_come_to_them() {
    alone("order::events_tell_when_a_stream_has_come_to_them", &[SLOW], || {
        start(0);
        let (to, _) = mapped(8 * MIB, 3);
        let [first, second] = [1, 1].map(|flags| answer(|stream| cuStreamCreate(stream, flags)));
        let [before, after] = [0, 0].map(|flags| answer(|event| cuEventCreate(event, flags)));
        ok(cuEventQuery(after));
        let from = page_locked(8 * MIB, 1);
        ok(cuEventRecord(before, first));
        ok(cuMemcpyHtoDAsync_v2(to, from.as_ptr() as u64, 8 * MIB, first));
        ok(cuEventRecord(after, first));
        assert_eq!(cuEventQuery(after), NOT_READY);
        ok(cuStreamWaitEvent(second, after, 0));
        assert_eq!(cuStreamQuery(second), NOT_READY, "it waits for the other stream");
        ok(cuEventSynchronize(after));
        ok(cuStreamSynchronize(second));
        let took: f32 = answer(|milliseconds| cuEventElapsedTime(milliseconds, before, after));
        assert!((79.0..10_000.0).contains(&took), "{took}");
        ok(cuEventDestroy_v2(before));
        assert_eq!(cuEventDestroy_v2(before), INVALID_HANDLE);
        ok(cuStreamDestroy_v2(second));
        assert_eq!(cuStreamQuery(second), INVALID_HANDLE);
    });
}

#[test]
fn the_default_stream_keeps_order_with_streams_that_block() {
    alone("order::the_default_stream_keeps_order_with_streams_that_block", &[SLOW], || {
        start(0);
        let (to, _) = mapped(4 * MIB, 3);
        let [blocking, other] = [0, 1].map(|flags| answer(|stream| cuStreamCreate(stream, flags)));
        let from = page_locked(4 * MIB, 1);
        ok(cuMemcpyHtoDAsync_v2(to, from.as_ptr() as u64, 4 * MIB, blocking));
        ok(cuMemsetD8Async(to, 9, 4 * MIB, 0));
        ok(cuMemcpyHtoDAsync_v2(to, from.as_ptr() as u64, 1, blocking));
        ok(cuStreamSynchronize(other));
        ok(cuStreamSynchronize(blocking));
        assert_eq!(read(to, 3), [1, 9, 9]);
        assert_eq!(read(to + 4 * MIB as u64 - 1, 1), [9]);
    });
}

#[test]
fn what_a_context_had_goes_with_it() {
    alone("order::what_a_context_had_goes_with_it", &[], || {
        start(0);
        let _plain = answer(|address| cuMemAlloc_v2(address, MIB));
        let stream = answer(|stream| cuStreamCreate(stream, 1));
        let event = answer(|event| cuEventCreate(event, 2));
        let _locked = page_locked(MIB, 0);
        ok(cuDevicePrimaryCtxRelease_v2(0));
        let driver = crate::driver::Driver::get().unwrap();
        let usage = crate::usage::processes(&driver.folder).unwrap();
        let [usage] = &usage[..] else { panic!("{usage:?}") };
        assert_eq!((usage.contexts, usage.mappings, usage.streams, usage.events), (0, 0, 0, 0));
        assert_eq!((usage.registrations, usage.registered_bytes), (0, 0));
        assert_eq!(live(), []);
        start(0);
        assert_eq!(cuStreamQuery(stream), INVALID_HANDLE);
        assert_eq!(cuEventQuery(event), INVALID_HANDLE);
    });
}
