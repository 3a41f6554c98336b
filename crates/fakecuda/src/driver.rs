//! The state of the driver in this process, and what happens around every call: it is counted, may meet a fault, and is
//! refused where the real driver refuses it.

use std::cell::RefCell;
use std::ffi::{CStr, c_char};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::codes::{self, Code};
use crate::config::Config;
use crate::control::Control;
use crate::events::Events;
use crate::faults::{Fault, Role};
use crate::folder::Folder;
use crate::memory::Space;
use crate::streams::Streams;
use crate::usage::UsageFile;

/// Context handles are these numbers: the first, plus the device's.
const CONTEXTS_FROM: usize = 0xc0de_0000;

/// The driver in this process.
pub(crate) struct Driver {
    pub(crate) config: Config,
    pub(crate) folder: Folder,
    pub(crate) control: Control,
    pub(crate) usage: UsageFile,
    role: Role,
    initialised: AtomicBool,
    /// What calls answer after a sticky error on a thread without a context.
    poison: AtomicU32,
    /// The primary context of each visible device.
    contexts: Vec<Context>,
    pub(crate) space: RwLock<Space>,
    pub(crate) streams: Streams,
    pub(crate) events: Events,
}

struct Context {
    retained: Mutex<u32>,
    flags: AtomicU32,
    poison: AtomicU32,
    /// When the link to the device is free again.
    link_free: Mutex<Instant>,
}

static TOLD: OnceLock<Config> = OnceLock::new();
static DRIVER: OnceLock<Option<Driver>> = OnceLock::new();

thread_local! {
    /// The stack of contexts of this thread.
    static CURRENT: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// See [`crate::preload::Configure`].
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_configure(
    folder: *const c_char,
    devices: u32,
    memory_bytes: u64,
    h2d_gbps: f64,
    faults: *const c_char,
) -> u32 {
    // SAFETY: `preload` passes a C string.
    let folder = unsafe { CStr::from_ptr(folder) }.to_string_lossy().into_owned().into();
    // SAFETY: as above.
    let faults = unsafe { CStr::from_ptr(faults) }.to_string_lossy().into_owned();
    let Ok(faults) = Fault::parse_list(&faults) else { return 1 };
    let config = Config { folder, devices, memory_bytes, h2d_gbps, faults, visible: (0..devices).collect() };
    u32::from(TOLD.set(config).is_err())
}

impl Driver {
    /// The driver; nothing when it was set up wrongly, which it says on the error output.
    pub(crate) fn get() -> Option<&'static Driver> {
        let open = || {
            let config = TOLD.get().cloned().map_or_else(Config::from_env, Ok);
            let driver = config.and_then(|config| Driver::open(config).map_err(|error| error.to_string()));
            driver.inspect_err(|why| eprintln!("fake CUDA driver: {why}")).ok()
        };
        DRIVER.get_or_init(open).as_ref()
    }

    fn open(config: Config) -> std::io::Result<Driver> {
        let folder = Folder::open(&config.folder)?;
        let control = Control::open(&folder)?;
        control.arm(&config.faults)?;
        let role = Role::of_this_process();
        let context = |_: &u32| Context {
            retained: Mutex::new(0),
            flags: AtomicU32::new(0),
            poison: AtomicU32::new(0),
            link_free: Mutex::new(Instant::now()),
        };
        Ok(Driver {
            usage: UsageFile::create(&folder, role)?,
            contexts: config.visible.iter().map(context).collect(),
            role,
            control,
            folder,
            config,
            initialised: AtomicBool::new(false),
            poison: AtomicU32::new(0),
            space: RwLock::new(Space::default()),
            streams: Streams::default(),
            events: Events::default(),
        })
    }

    pub(crate) fn initialise(&self) -> Result<(), Code> {
        if self.contexts.is_empty() {
            return Err(codes::NO_DEVICE);
        }
        self.initialised.store(true, SeqCst);
        Ok(())
    }

    /// The device of this number in this process.
    pub(crate) fn device(&self, ordinal: i32) -> Result<usize, Code> {
        let device = usize::try_from(ordinal).ok().filter(|device| *device < self.contexts.len());
        device.ok_or(codes::INVALID_DEVICE)
    }

    /// The device as all processes number it.
    pub(crate) fn physical(&self, device: usize) -> u32 {
        self.config.visible[device]
    }

    /// Retains the primary context of a device; its handle.
    pub(crate) fn retain(&self, device: usize) -> usize {
        *self.contexts[device].retained.lock() += 1;
        self.note_contexts();
        CONTEXTS_FROM + device
    }

    /// Releases the primary context of a device; with the last release all that it had goes.
    pub(crate) fn release(&self, device: usize) -> Result<(), Code> {
        let mut retained = self.contexts[device].retained.lock();
        *retained = retained.checked_sub(1).ok_or(codes::INVALID_CONTEXT)?;
        if *retained == 0 {
            self.streams.close_all(device, &self.usage);
            self.events.close_all(device, &self.usage);
            self.space.write().close_context(device, &self.usage);
        }
        drop(retained);
        self.note_contexts();
        Ok(())
    }

    fn note_contexts(&self) {
        let active = (0..self.contexts.len()).filter(|&device| self.is_active(device));
        self.usage.contexts(active.count() as u64);
    }

    /// Whether the primary context of a device is there.
    pub(crate) fn is_active(&self, device: usize) -> bool {
        *self.contexts[device].retained.lock() > 0
    }

    /// The flags of a primary context.
    pub(crate) fn context_flags(&self, device: usize) -> &AtomicU32 {
        &self.contexts[device].flags
    }

    /// The device of a context handle.
    pub(crate) fn device_of_context(&self, context: usize) -> Result<usize, Code> {
        let device = context.checked_sub(CONTEXTS_FROM).filter(|device| *device < self.contexts.len());
        device.ok_or(codes::INVALID_CONTEXT)
    }

    /// A context is of no use from now on; the first reason stays.
    pub(crate) fn poison(&self, device: Option<usize>, code: Code) {
        let poison = device.map_or(&self.poison, |device| &self.contexts[device].poison);
        // Another reason is there already: it stays.
        let _ = poison.compare_exchange(0, code, SeqCst, SeqCst);
    }

    /// Why a context (or, without one, this process) is of no use, if so.
    pub(crate) fn poisoned(&self, device: Option<usize>) -> Result<(), Code> {
        let of_context = device.map_or(0, |device| self.contexts[device].poison.load(SeqCst));
        let code = if of_context != 0 { of_context } else { self.poison.load(SeqCst) };
        if code == codes::SUCCESS { Ok(()) } else { Err(code) }
    }

    /// Waits until the link to a device has passed so many bytes.
    pub(crate) fn pass_link(&self, device: usize, bytes: usize) {
        if self.config.h2d_gbps <= 0.0 {
            return;
        }
        let takes = Duration::from_secs_f64(bytes as f64 / (self.config.h2d_gbps * 1e9));
        let mut free = self.contexts[device].link_free.lock();
        *free = (*free).max(Instant::now()) + takes;
        let until = *free;
        drop(free);
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

/// What a call needs before it does anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing, and it does nothing: it is not counted among any calls.
    Nothing,
    /// Nothing: `cuInit`.
    Start,
    /// `cuInit`.
    Init,
    /// `cuInit`, and that the current context, if there is one, is of use.
    Sane,
    /// A current context that is of use.
    Context,
}

/// A call under way.
pub(crate) struct Call {
    pub(crate) driver: &'static Driver,
    device: Option<usize>,
    sticky: std::cell::Cell<Option<Code>>,
}

impl Call {
    /// The device of the current context, for calls that need one.
    pub(crate) fn device(&self) -> Result<usize, Code> {
        self.device.ok_or(codes::INVALID_CONTEXT)
    }

    /// Why the context is of no use, after what this call waited for.
    pub(crate) fn sane(&self) -> Result<(), Code> {
        self.driver.poisoned(self.device)
    }

    /// The error that what this call sets off is to meet.
    pub(crate) fn take_sticky(&self) -> Option<Code> {
        self.sticky.take()
    }
}

/// What every entry point does.
pub(crate) fn enter(entry: usize, needs: Needs, body: impl FnOnce(&Call) -> Result<(), Code>) -> Code {
    let Some(driver) = Driver::get() else { return codes::OPERATING_SYSTEM };
    let fault = driver.control.count(driver.role, entry, needs != Needs::Nothing);
    let sticky = match fault {
        Some(Fault { code, sticky: false, .. }) => return code,
        Some(fault) => Some(fault.code),
        None => None,
    };
    let device = match admit(driver, needs) {
        Ok(device) => device,
        Err(code) => return code,
    };
    let call = Call { driver, device, sticky: sticky.into() };
    let outcome = body(&call);
    if let Some(code) = call.take_sticky() {
        driver.poison(device, code);
    }
    outcome.err().unwrap_or(codes::SUCCESS)
}

fn admit(driver: &Driver, needs: Needs) -> Result<Option<usize>, Code> {
    if matches!(needs, Needs::Nothing | Needs::Start) {
        return Ok(None);
    }
    if !driver.initialised.load(SeqCst) {
        return Err(codes::NOT_INITIALIZED);
    }
    let current = current_context().map(|context| driver.device_of_context(context)).transpose()?;
    if needs == Needs::Init {
        return Ok(current);
    }
    driver.poisoned(current)?;
    match current {
        None if needs == Needs::Context => Err(codes::INVALID_CONTEXT),
        Some(device) if needs == Needs::Context && !driver.is_active(device) => Err(codes::CONTEXT_IS_DESTROYED),
        current => Ok(current),
    }
}

/// The context of this thread.
pub(crate) fn current_context() -> Option<usize> {
    CURRENT.with_borrow(|stack| stack.last().copied())
}

/// Replaces the context of this thread; 0 for none.
pub(crate) fn set_current_context(context: usize) {
    CURRENT.with_borrow_mut(|stack| {
        stack.pop();
        if context != 0 {
            stack.push(context);
        }
    });
}

/// Puts a context on top of this thread's.
pub(crate) fn push_context(context: usize) {
    CURRENT.with_borrow_mut(|stack| stack.push(context));
}

/// Takes the context from the top of this thread's.
pub(crate) fn pop_context() -> Option<usize> {
    CURRENT.with_borrow_mut(Vec::pop)
}
