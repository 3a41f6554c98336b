//! Streams and events.

use std::ffi::{c_int, c_uint};

use super::entry_points;
use super::types::Out;
use crate::codes::{self, Code};
use crate::driver::Call;
use crate::streams::Job;

/// `CU_STREAM_NON_BLOCKING`
const NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_BLOCKING_SYNC | DISABLE_TIMING | INTERPROCESS`, and the second of them
const EVENT_FLAGS: c_uint = 7;
const DISABLE_TIMING: c_uint = 2;

entry_points! {
    Context fn cuStreamCreate(call, stream: Out<u64>, flags: c_uint) {
        create(call, stream, flags)
    }

    Context fn cuStreamCreateWithPriority(call, stream: Out<u64>, flags: c_uint, priority: c_int) {
        let _ = priority;
        create(call, stream, flags)
    }

    Context fn cuStreamDestroy_v2(call, stream: u64) {
        call.driver.streams.destroy(stream, &call.driver.usage)
    }

    Context fn cuStreamSynchronize(call, stream: u64) {
        call.driver.streams.get(stream, call.device()?)?.drain();
        call.sane()
    }

    Context fn cuStreamQuery(call, stream: u64) {
        let stream = call.driver.streams.get(stream, call.device()?)?;
        if stream.is_idle() { call.sane() } else { Err(codes::NOT_READY) }
    }

    Context fn cuStreamWaitEvent(call, stream: u64, event: u64, flags: c_uint) {
        let _ = flags;
        let event = call.driver.events.get(event)?;
        let stream = call.driver.streams.get(stream, call.device()?)?;
        let record = event.recorded();
        call.driver.streams.submit(&stream, Job::Wait(event, record));
        Ok(())
    }

    Context fn cuEventCreate(call, event: Out<u64>, flags: c_uint) {
        if flags & !EVENT_FLAGS != 0 {
            return Err(codes::INVALID_VALUE);
        }
        let timed = flags & DISABLE_TIMING == 0;
        event.set(call.driver.events.create(call.device()?, timed, &call.driver.usage))
    }

    Context fn cuEventDestroy_v2(call, event: u64) {
        call.driver.events.destroy(event, &call.driver.usage)
    }

    Context fn cuEventRecord(call, event: u64, stream: u64) {
        let event = call.driver.events.get(event)?;
        let stream = call.driver.streams.get(stream, call.device()?)?;
        if event.device != stream.device {
            return Err(codes::INVALID_HANDLE);
        }
        if let Some(code) = call.take_sticky() {
            call.driver.streams.submit(&stream, Job::Fail(code));
        }
        let record = event.record();
        call.driver.streams.submit(&stream, Job::Record(event, record));
        Ok(())
    }

    Context fn cuEventQuery(call, event: u64) {
        let event = call.driver.events.get(event)?;
        if event.is_passed() { call.sane() } else { Err(codes::NOT_READY) }
    }

    Context fn cuEventSynchronize(call, event: u64) {
        let event = call.driver.events.get(event)?;
        event.wait(event.recorded());
        call.sane()
    }

    Context fn cuEventElapsedTime(call, milliseconds: Out<f32>, start: u64, end: u64) {
        elapsed(call, milliseconds, start, end)
    }

    Context fn cuEventElapsedTime_v2(call, milliseconds: Out<f32>, start: u64, end: u64) {
        elapsed(call, milliseconds, start, end)
    }
}

fn create(call: &Call, stream: Out<u64>, flags: c_uint) -> Result<(), Code> {
    if flags & !NON_BLOCKING != 0 {
        return Err(codes::INVALID_VALUE);
    }
    stream.set(call.driver.streams.create(call.device()?, flags != NON_BLOCKING, &call.driver.usage)?)
}

fn elapsed(call: &Call, milliseconds: Out<f32>, start: u64, end: u64) -> Result<(), Code> {
    let (start, end) = (call.driver.events.get(start)?.passed_at()?, call.driver.events.get(end)?.passed_at()?);
    let took = end.saturating_duration_since(start);
    milliseconds.set(took.as_secs_f32() * 1e3)
}
