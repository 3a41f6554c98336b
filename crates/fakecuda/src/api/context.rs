//! Primary contexts, and which one is current.

use std::ffi::{c_int, c_uint};
use std::sync::atomic::Ordering::SeqCst;

use super::entry_points;
use super::types::Out;
use crate::codes;
use crate::driver::{current_context, pop_context, push_context, set_current_context};

entry_points! {
    Init fn cuDevicePrimaryCtxRetain(call, context: Out<usize>, device: c_int) {
        let device = call.driver.device(device)?;
        let handle = call.driver.retain(device);
        context.set(handle)
    }

    Init fn cuDevicePrimaryCtxRelease_v2(call, device: c_int) {
        call.driver.release(call.driver.device(device)?)
    }

    Init fn cuDevicePrimaryCtxGetState(call, device: c_int, flags: Out<c_uint>, active: Out<c_int>) {
        let device = call.driver.device(device)?;
        flags.set(call.driver.context_flags(device).load(SeqCst))?;
        active.set(c_int::from(call.driver.is_active(device)))
    }

    Init fn cuDevicePrimaryCtxSetFlags_v2(call, device: c_int, flags: c_uint) {
        let device = call.driver.device(device)?;
        call.driver.context_flags(device).store(flags, SeqCst);
        Ok(())
    }

    Init fn cuCtxGetCurrent(call, context: Out<usize>) {
        let _ = call;
        context.set(current_context().unwrap_or(0))
    }

    Init fn cuCtxSetCurrent(call, context: usize) {
        if context != 0 {
            call.driver.device_of_context(context)?;
        }
        set_current_context(context);
        Ok(())
    }

    Init fn cuCtxPushCurrent_v2(call, context: usize) {
        call.driver.device_of_context(context)?;
        push_context(context);
        Ok(())
    }

    Init fn cuCtxPopCurrent_v2(call, context: Out<usize>) {
        let _ = call;
        let popped = pop_context().ok_or(codes::INVALID_CONTEXT)?;
        context.set_if_wanted(popped);
        Ok(())
    }

    Context fn cuCtxGetDevice(call, device: Out<c_int>) {
        device.set(call.device()? as c_int)
    }

    Context fn cuCtxSynchronize(call) {
        call.driver.streams.drain(call.device()?, false);
        call.sane()
    }

    Context fn cuCtxGetStreamPriorityRange(call, least: Out<c_int>, greatest: Out<c_int>) {
        let _ = call;
        least.set_if_wanted(0);
        greatest.set_if_wanted(-5);
        Ok(())
    }
}
