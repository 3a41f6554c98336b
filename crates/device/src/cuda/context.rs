//! The objects of a CUDA context, each released by its drop. What fails there is left to the end of the process: a drop
//! has nobody to tell, and a lost context fails everything.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{CUDA_MEMCPY2D, CUcontext, CUevent, CUmemorytype, CUstream};

use super::driver::Driver;
use super::error::CudaError;

/// Does not wait for the default stream.
const CU_STREAM_NON_BLOCKING: c_uint = 1;
/// Waiting sleeps instead of spinning; no time is taken.
const EVENT_FLAGS: c_uint = 1 | 2;

/// The primary context of a card, shared with whatever else uses CUDA in this process.
pub(super) struct Context {
    driver: &'static Driver,
    device: c_int,
    raw: CUcontext,
}

// SAFETY: a context may be used by any thread that makes it current, and by several at once.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub(super) fn retain(driver: &'static Driver, device: c_int) -> Result<Arc<Context>, CudaError> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is to a local.
        unsafe { driver.cuDevicePrimaryCtxRetain(&mut raw, device) }?;
        Ok(Arc::new(Context { driver, device, raw }))
    }

    pub(super) fn driver(&self) -> &'static Driver {
        self.driver
    }

    pub(super) fn device(&self) -> c_int {
        self.device
    }

    /// Makes it this thread's context until the guard is gone.
    pub(super) fn enter(&self) -> Result<Entered<'_>, CudaError> {
        // SAFETY: the context is retained as long as `self`.
        unsafe { self.driver.cuCtxPushCurrent_v2(self.raw) }?;
        Ok(Entered { context: self, _thread: std::marker::PhantomData })
    }

    /// Free and total bytes of the card. The context must be current.
    pub(super) fn memory_info(&self) -> Result<(u64, u64), CudaError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are to locals.
        unsafe { self.driver.cuMemGetInfo_v2(&mut free, &mut total) }?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once by `retain`, released once here; streams and mappings hold the context.
        let _ = unsafe { self.driver.cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A thread's use of a context; must end on the same thread.
pub(super) struct Entered<'a> {
    context: &'a Context,
    _thread: std::marker::PhantomData<*const ()>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: the pointer is to a local; this thread pushed it.
        let _ = unsafe { self.context.driver.cuCtxPopCurrent_v2(&mut popped) };
    }
}

/// A queue of work on the card. Its context must be current for every call.
pub(super) struct Stream {
    context: Arc<Context>,
    raw: CUstream,
}

// SAFETY: streams may be used by any thread.
unsafe impl Send for Stream {}
// SAFETY: the driver locks a stream itself.
unsafe impl Sync for Stream {}

/// Rows of host memory that go to one place after the other on the card.
pub(super) struct Rows {
    pub(super) to: u64,
    pub(super) from: *const c_void,
    pub(super) row_bytes: usize,
    pub(super) pitch_bytes: usize,
    pub(super) rows: usize,
}

impl Stream {
    pub(super) fn create(context: &Arc<Context>) -> Result<Stream, CudaError> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is to a local.
        unsafe { context.driver.cuStreamCreate(&mut raw, CU_STREAM_NON_BLOCKING) }?;
        Ok(Stream { context: Arc::clone(context), raw })
    }

    /// Copies rows to the card, asynchronously; one row is a plain copy.
    ///
    /// # Safety
    /// Both sides must be valid for all of it until the copy is done, and the host's must not be written meanwhile.
    pub(super) unsafe fn copy_to_device(&self, rows: &Rows) -> Result<(), CudaError> {
        let driver = self.context.driver;
        if rows.rows == 1 || rows.row_bytes == rows.pitch_bytes {
            // SAFETY: the caller's promise.
            return unsafe { driver.cuMemcpyHtoDAsync_v2(rows.to, rows.from, rows.row_bytes * rows.rows, self.raw) };
        }
        let copy = CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: CUmemorytype::CU_MEMORYTYPE_HOST,
            srcHost: rows.from,
            srcDevice: 0,
            srcArray: std::ptr::null_mut(),
            srcPitch: rows.pitch_bytes,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: std::ptr::null_mut(),
            dstDevice: rows.to,
            dstArray: std::ptr::null_mut(),
            dstPitch: rows.row_bytes,
            WidthInBytes: rows.row_bytes,
            Height: rows.rows,
        };
        // SAFETY: the caller's promise; the description is read during the call only.
        unsafe { driver.cuMemcpy2DAsync_v2(&copy, self.raw) }
    }

    /// Copies to the host, asynchronously.
    ///
    /// # Safety
    /// Both sides must be valid for `len` bytes until the copy is done, and nobody may use the host's meanwhile.
    pub(super) unsafe fn copy_to_host(&self, to: *mut c_void, from: u64, len: usize) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { self.context.driver.cuMemcpyDtoHAsync_v2(to, from, len, self.raw) }
    }

    /// Copies within the card, asynchronously.
    ///
    /// # Safety
    /// Both sides must be valid for `len` bytes until the copy is done.
    pub(super) unsafe fn copy_on_device(&self, to: u64, from: u64, len: usize) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { self.context.driver.cuMemcpyDtoDAsync_v2(to, from, len, self.raw) }
    }

    /// Zeroes memory of the card, asynchronously.
    ///
    /// # Safety
    /// The memory must be valid for `len` bytes until it is done.
    pub(super) unsafe fn zero(&self, to: u64, len: usize) -> Result<(), CudaError> {
        // SAFETY: the caller's promise.
        unsafe { self.context.driver.cuMemsetD8Async(to, 0, len, self.raw) }
    }

    /// Waits for everything in it.
    pub(super) fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the stream lives as long as `self`.
        unsafe { self.context.driver.cuStreamSynchronize(self.raw) }
    }

    /// An event that has happened once everything now in the stream is done.
    pub(super) fn record(&self) -> Result<Event, CudaError> {
        let driver = self.context.driver;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is to a local.
        unsafe { driver.cuEventCreate(&mut raw, EVENT_FLAGS) }?;
        let event = Event { context: Arc::clone(&self.context), raw };
        // SAFETY: both live.
        unsafe { driver.cuEventRecord(event.raw, self.raw) }?;
        Ok(event)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Nothing that a stream still does may outlive the memory it does it to, which is released after it.
        let _ = self.synchronize();
        // SAFETY: created once, destroyed once.
        let _ = unsafe { self.context.driver.cuStreamDestroy_v2(self.raw) };
    }
}

/// A point in a stream.
pub(super) struct Event {
    context: Arc<Context>,
    raw: CUevent,
}

// SAFETY: events may be used by any thread.
unsafe impl Send for Event {}

impl Event {
    /// Waits until it has happened, asleep. The context must be current.
    pub(super) fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the event lives as long as `self`.
        unsafe { self.context.driver.cuEventSynchronize(self.raw) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once; the driver waits for its use by itself.
        let _ = unsafe { self.context.driver.cuEventDestroy_v2(self.raw) };
    }
}
