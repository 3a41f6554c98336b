//! Memory of a card, and host memory that the card can read, each released by its drop.

use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use cudarc::driver::sys::{
    CUmemAccess_flags, CUmemAccessDesc, CUmemAllocationHandleType, CUmemAllocationProp,
    CUmemAllocationProp_st__bindgen_ty_1, CUmemAllocationType, CUmemLocation, CUmemLocationType,
};

use super::context::Context;
use super::driver::Driver;
use super::error::CudaError;

/// A POSIX file descriptor.
const HANDLE_TYPE_FD: c_uint = 1;
/// What costs least per byte, not the smallest unit there is.
const GRANULARITY_RECOMMENDED: c_uint = 1;
/// Page-locked for every context of the process.
const HOST_REGISTER_PORTABLE: c_uint = 1;

fn location(device: c_int) -> CUmemLocation {
    CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device }
}

/// Memory of `device` that can be given to other processes as a descriptor.
fn properties(device: c_int) -> CUmemAllocationProp {
    CUmemAllocationProp {
        type_: CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
        location: location(device),
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: CUmemAllocationProp_st__bindgen_ty_1 {
            compressionType: 0,
            gpuDirectRDMACapable: 0,
            usage: 0,
            reserved: [0; 4],
        },
    }
}

/// Sizes of memory are multiples of this many bytes.
pub(super) fn granularity_bytes(driver: &Driver, device: c_int) -> Result<u64, CudaError> {
    let mut bytes = 0;
    // SAFETY: the pointers are to a local and a temporary that lives for the call.
    unsafe { driver.cuMemGetAllocationGranularity(&mut bytes, &properties(device), GRANULARITY_RECOMMENDED) }?;
    Ok(bytes as u64)
}

/// Memory of a card that has no address anywhere. It needs no context.
pub(super) struct PhysicalMemory {
    driver: &'static Driver,
    handle: u64,
}

impl PhysicalMemory {
    /// `len_bytes` must be a multiple of the granularity.
    pub(super) fn create(driver: &'static Driver, device: c_int, len_bytes: u64) -> Result<PhysicalMemory, CudaError> {
        let mut handle = 0;
        // SAFETY: the pointers are to a local and a temporary that lives for the call.
        unsafe { driver.cuMemCreate(&mut handle, len_bytes as usize, &properties(device), 0) }?;
        Ok(PhysicalMemory { driver, handle })
    }

    /// What another process exported.
    pub(super) fn import(driver: &'static Driver, fd: BorrowedFd<'_>) -> Result<PhysicalMemory, CudaError> {
        let mut handle = 0;
        // The descriptor itself takes the place of a pointer.
        let os_handle = fd.as_raw_fd() as usize as *mut c_void;
        // SAFETY: the pointer is to a local; the driver does not keep the descriptor, and refuses what is not its own.
        unsafe { driver.cuMemImportFromShareableHandle(&mut handle, os_handle, HANDLE_TYPE_FD) }?;
        Ok(PhysicalMemory { driver, handle })
    }

    /// As a descriptor, closed on exec.
    pub(super) fn export(&self) -> Result<OwnedFd, CudaError> {
        let mut fd: c_int = -1;
        let out = (&raw mut fd).cast();
        // SAFETY: the pointer is to a local of the type that this kind of handle has.
        unsafe { self.driver.cuMemExportToShareableHandle(out, self.handle, HANDLE_TYPE_FD, 0) }?;
        // The driver's own library checks what it makes; one that answers nonsense must not end in a panic here.
        if fd < 0 {
            return Err(CudaError { call: "cuMemExportToShareableHandle", code: 400 });
        }
        // SAFETY: a new descriptor of ours, made by the call.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // Whether drivers set it is not written down.
        let _ = rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC);
        Ok(fd)
    }
}

impl Drop for PhysicalMemory {
    fn drop(&mut self) {
        // SAFETY: made once, released once; mappings of it keep the memory by themselves.
        let _ = unsafe { self.driver.cuMemRelease(self.handle) };
    }
}

/// Addresses of a context for some physical memory, back to back, for reading and writing.
pub(super) struct Mapping {
    context: Arc<Context>,
    start: u64,
    len_bytes: u64,
    /// Lengths that are mapped, from the start on.
    mapped: Vec<u64>,
    /// The length of the address range, until that is given back.
    reserved: Option<u64>,
}

impl Mapping {
    pub(super) fn create(context: &Arc<Context>, parts: &[(PhysicalMemory, u64)]) -> Result<Mapping, CudaError> {
        let driver = context.driver();
        let len_bytes = parts.iter().map(|(_, len)| len).sum::<u64>();
        let mut start = 0;
        // SAFETY: the pointer is to a local.
        unsafe { driver.cuMemAddressReserve(&mut start, len_bytes as usize, 0, 0, 0) }?;
        // From here on a failure gives back what was made.
        let (context, reserved) = (Arc::clone(context), Some(len_bytes));
        let mut mapping = Mapping { context, start, len_bytes, mapped: Vec::with_capacity(parts.len()), reserved };
        let mut at = start;
        for (memory, len) in parts {
            // SAFETY: the addresses are ours, within the reservation, and not mapped yet.
            unsafe { driver.cuMemMap(at, *len as usize, 0, memory.handle, 0) }?;
            mapping.mapped.push(*len);
            at += len;
        }
        let access = CUmemAccessDesc {
            location: location(mapping.context.device()),
            flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: all of the reservation is mapped; the description is read during the call only.
        unsafe { driver.cuMemSetAccess(start, len_bytes as usize, &access, 1) }?;
        Ok(mapping)
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Start in the mapping and length of each physical memory.
    pub(super) fn parts(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut at = 0;
        self.mapped.iter().map(move |len| {
            at += len;
            (at - len, *len)
        })
    }

    /// Unmaps it, and says whether that worked.
    pub(super) fn release(mut self) -> Result<(), CudaError> {
        self.unmap()
    }

    /// Goes on after a failure, and returns the first one. The second time there is nothing left to do.
    fn unmap(&mut self) -> Result<(), CudaError> {
        let driver = self.context.driver();
        let mut result = Ok(());
        let mut at = self.start;
        for len in std::mem::take(&mut self.mapped) {
            // SAFETY: mapped by `create` with this address and length; who holds a mapping waits for its copies first.
            let unmapped = unsafe { driver.cuMemUnmap(at, len as usize) };
            result = result.and(unmapped);
            at += len;
        }
        if let Some(len_bytes) = self.reserved.take() {
            // SAFETY: reserved by `create` with this address and length, and unmapped.
            let freed = unsafe { driver.cuMemAddressFree(self.start, len_bytes as usize) };
            result = result.and(freed);
        }
        result
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // All of it, whatever fails.
        let _ = self.unmap();
    }
}

/// Host memory that is page-locked and that the card reads and writes directly.
pub(super) struct Registration {
    context: Arc<Context>,
    memory: memmap2::MmapRaw,
}

impl Registration {
    /// Locks all of a mapping.
    pub(super) fn create(context: &Arc<Context>, memory: memmap2::MmapRaw) -> Result<Registration, CudaError> {
        let start = memory.as_mut_ptr().cast();
        // SAFETY: the mapping is as long as it says, and stays until it is unregistered.
        unsafe { context.driver().cuMemHostRegister_v2(start, memory.len(), HOST_REGISTER_PORTABLE) }?;
        Ok(Registration { context: Arc::clone(context), memory })
    }

    pub(super) fn start(&self) -> *mut u8 {
        self.memory.as_mut_ptr()
    }

    pub(super) fn len_bytes(&self) -> u64 {
        self.memory.len() as u64
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: registered once by `create`, unregistered once; the memory is unmapped after this.
        let _ = unsafe { self.context.driver().cuMemHostUnregister(self.start().cast()) };
    }
}

/// Plain memory of a card, as measurements use it.
pub(super) struct PlainMemory {
    context: Arc<Context>,
    start: u64,
}

impl PlainMemory {
    /// The context must be current.
    pub(super) fn create(context: &Arc<Context>, len_bytes: u64) -> Result<PlainMemory, CudaError> {
        let mut start = 0;
        // SAFETY: the pointer is to a local.
        unsafe { context.driver().cuMemAlloc_v2(&mut start, len_bytes as usize) }?;
        Ok(PlainMemory { context: Arc::clone(context), start })
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }
}

impl Drop for PlainMemory {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once; its streams are gone or waited for.
        let _ = unsafe { self.context.driver().cuMemFree_v2(self.start) };
    }
}
