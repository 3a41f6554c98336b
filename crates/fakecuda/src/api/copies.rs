//! Copies and fills.

use std::ffi::c_uint;

use super::entry_points;
use super::types::{Copy2D, In, Side2D};
use crate::codes::{self, Code};
use crate::copy::{End, Fill, Rows, Transfer, stage};
use crate::driver::Call;
use crate::streams::Job;

/// `CU_MEMORYTYPE_HOST`, `CU_MEMORYTYPE_DEVICE`, `CU_MEMORYTYPE_UNIFIED`
const HOST: c_uint = 1;
const DEVICE: c_uint = 2;
const UNIFIED: c_uint = 4;
/// `CU_DEVICE_ATTRIBUTE_MAX_PITCH`
const PITCH_MAX: usize = i32::MAX as usize;

entry_points! {
    Context fn cuMemcpyHtoD_v2(call, to: u64, from: u64, bytes: usize) {
        now(call, (HOST, from), (DEVICE, to), Rows::plain(bytes))
    }

    Context fn cuMemcpyDtoH_v2(call, to: u64, from: u64, bytes: usize) {
        now(call, (DEVICE, from), (HOST, to), Rows::plain(bytes))
    }

    Context fn cuMemcpyDtoD_v2(call, to: u64, from: u64, bytes: usize) {
        now(call, (DEVICE, from), (DEVICE, to), Rows::plain(bytes))
    }

    Context fn cuMemcpyHtoDAsync_v2(call, to: u64, from: u64, bytes: usize, stream: u64) {
        later(call, (HOST, from), (DEVICE, to), Rows::plain(bytes), stream)
    }

    Context fn cuMemcpyDtoHAsync_v2(call, to: u64, from: u64, bytes: usize, stream: u64) {
        later(call, (DEVICE, from), (HOST, to), Rows::plain(bytes), stream)
    }

    Context fn cuMemcpyDtoDAsync_v2(call, to: u64, from: u64, bytes: usize, stream: u64) {
        later(call, (DEVICE, from), (DEVICE, to), Rows::plain(bytes), stream)
    }

    Context fn cuMemcpy2D_v2(call, copy: In<Copy2D>) {
        let (from, to, rows) = two_dimensions(copy.get()?)?;
        now(call, from, to, rows)
    }

    Context fn cuMemcpy2DUnaligned_v2(call, copy: In<Copy2D>) {
        let (from, to, rows) = two_dimensions(copy.get()?)?;
        now(call, from, to, rows)
    }

    Context fn cuMemcpy2DAsync_v2(call, copy: In<Copy2D>, stream: u64) {
        let (from, to, rows) = two_dimensions(copy.get()?)?;
        later(call, from, to, rows, stream)
    }

    Context fn cuMemsetD8_v2(call, address: u64, value: u8, bytes: usize) {
        let stream = call.driver.streams.get(0, call.device()?)?;
        fill(call, Fill { device: stream.device, address, bytes, value }, 0)?;
        stream.drain();
        call.sane()
    }

    Context fn cuMemsetD8Async(call, address: u64, value: u8, bytes: usize, stream: u64) {
        fill(call, Fill { device: call.device()?, address, bytes, value }, stream)
    }
}

/// Kind and address of an end of a copy, as the caller says it.
type Said = (c_uint, u64);

/// A copy that is done when the call returns.
fn now(call: &Call, from: Said, to: Said, rows: Rows) -> Result<(), Code> {
    let device = call.device()?;
    let Some(transfer) = accept(call, from, to, rows, false)? else { return Ok(()) };
    call.driver.streams.drain(device, true);
    call.sane()?;
    transfer.execute(call.driver).inspect_err(|&code| call.driver.poison(Some(device), code))
}

/// A copy that a stream does later. Memory that is not page-locked is read before the call returns, and is written before it.
fn later(call: &Call, from: Said, to: Said, rows: Rows, stream: u64) -> Result<(), Code> {
    let stream = call.driver.streams.get(stream, call.device()?)?;
    let Some(transfer) = accept(call, from, to, rows, true)? else { return Ok(()) };
    let waits = match transfer.to {
        End::Host(address) => !is_page_locked(call, address, extent(&rows, rows.to_pitch)?)?,
        _ => false,
    };
    let job = call.take_sticky().map_or(Job::Transfer(transfer), Job::Fail);
    call.driver.streams.submit(&stream, job);
    if waits {
        stream.drain();
        call.sane()?;
    }
    Ok(())
}

/// What the driver looks at before it accepts a copy. Nothing is to be done for a copy of nothing.
fn accept(call: &Call, from: Said, to: Said, rows: Rows, later: bool) -> Result<Option<Transfer>, Code> {
    if rows.is_empty() {
        return Ok(None);
    }
    let from_extent = extent(&rows, rows.from_pitch)?;
    let from = match end(call, from, from_extent)? {
        End::Host(address) if !is_page_locked(call, address, from_extent)? => {
            call.driver.control.count_pageable_copy();
            if later { End::Staged(stage(address, &rows, from_extent)) } else { End::Host(address) }
        }
        from => from,
    };
    let to = end(call, to, extent(&rows, rows.to_pitch)?)?;
    Ok(Some(Transfer { device: call.device()?, from, to, rows }))
}

fn extent(rows: &Rows, pitch: usize) -> Result<usize, Code> {
    rows.extent(pitch).ok_or(codes::INVALID_VALUE)
}

fn is_page_locked(call: &Call, address: u64, extent: usize) -> Result<bool, Code> {
    call.driver.space.read().page_locked.covers(address, extent)
}

fn end(call: &Call, (kind, address): Said, extent: usize) -> Result<End, Code> {
    let is_known = call.driver.space.read().knows(address, extent);
    match kind {
        HOST if address != 0 => Ok(End::Host(address)),
        DEVICE | UNIFIED if is_known => Ok(End::Device(address)),
        UNIFIED if address != 0 => Ok(End::Host(address)),
        _ => Err(codes::INVALID_VALUE),
    }
}

fn two_dimensions(copy: Copy2D) -> Result<(Said, Said, Rows), Code> {
    let rows = Rows {
        count: copy.height,
        bytes: copy.width_bytes,
        from_pitch: pitch(&copy.from, &copy)?,
        to_pitch: pitch(&copy.to, &copy)?,
    };
    Ok((start(&copy.from, rows.from_pitch)?, start(&copy.to, rows.to_pitch)?, rows))
}

/// 0 stands for rows without gaps.
fn pitch(side: &Side2D, copy: &Copy2D) -> Result<usize, Code> {
    let width = side.x_bytes.checked_add(copy.width_bytes).ok_or(codes::INVALID_VALUE)?;
    match side.pitch {
        0 => Ok(width),
        pitch if width <= pitch && pitch <= PITCH_MAX => Ok(pitch),
        _ => Err(codes::INVALID_VALUE),
    }
}

fn start(side: &Side2D, pitch: usize) -> Result<Said, Code> {
    let address = if side.kind == HOST { side.host } else { side.device };
    let offset = side.y.checked_mul(pitch).and_then(|rows| rows.checked_add(side.x_bytes));
    let start = offset.and_then(|offset| address.checked_add(offset as u64)).ok_or(codes::INVALID_VALUE)?;
    Ok((side.kind, start))
}

fn fill(call: &Call, fill: Fill, stream: u64) -> Result<(), Code> {
    let stream = call.driver.streams.get(stream, fill.device)?;
    if fill.bytes == 0 {
        return Ok(());
    }
    if !call.driver.space.read().knows(fill.address, fill.bytes) {
        return Err(codes::INVALID_VALUE);
    }
    let job = call.take_sticky().map_or(Job::Fill(fill), Job::Fail);
    call.driver.streams.submit(&stream, job);
    Ok(())
}
