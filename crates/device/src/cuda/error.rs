//! What the driver's error codes mean for us.

use std::fmt;

use longshore_types::{Code, Error};

use super::driver;

/// A call to the driver that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaError {
    /// The entry point.
    pub call: &'static str,
    /// What it returned, also when nobody knows that number.
    pub code: u32,
}

/// What to do about a [`CudaError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// The card's memory is full.
    OutOfMemory,
    /// Not done yet; no failure.
    NotReady,
    /// There is no such card, or none that this process may use.
    NoDevice,
    /// The card or the driver cannot do this at all.
    Unsupported,
    /// The context is lost, and with it everything this process has on the card: end the process, start another.
    ContextLost,
    /// A call that was wrong, or the machine failed in a way that concerns this call alone.
    Failed,
}

impl CudaError {
    /// Codes that no list has count as a lost context: nobody knows what still works then.
    pub fn class(&self) -> ErrorClass {
        match self.code {
            2 => ErrorClass::OutOfMemory,
            600 => ErrorClass::NotReady,
            100 | 101 => ErrorClass::NoDevice,
            // A library for linking only (34), too old, not supported; parts that do not match (803), or not this card (804).
            34 | 36 | 801 | 803 | 804 => ErrorClass::Unsupported,
            // Wrong arguments, handles and states, host memory that is (not) registered, calls of the system.
            1
            | 3
            | 201
            | 205..=208
            | 211
            | 213
            | 216
            | 217
            | 219
            | 301
            | 304
            | 400
            | 401
            | 500
            | 704
            | 705
            | 708
            | 711..=713 => ErrorClass::Failed,
            // Shutting down; card taken away; ECC, NVLink, contained; illegal address, time-out, assert, hardware
            // stack, instruction, misaligned, launch; system services not there yet, MPS gone; unknown (999).
            _ => ErrorClass::ContextLost,
        }
    }

    /// As an error of the project, about `subject` ("cuda:0").
    pub(super) fn about(self, subject: impl fmt::Display) -> Error {
        let (code, advice) = match self.class() {
            ErrorClass::OutOfMemory if self.call == "cuMemHostRegister_v2" => {
                (Code::Exhausted, "; give less page-locked memory, or raise the limit of it (ulimit -l)")
            }
            ErrorClass::OutOfMemory => (Code::Exhausted, "; unload something, or give less GPU memory to be used"),
            ErrorClass::NoDevice => (Code::Unsupported, "; see which GPUs nvidia-smi shows here"),
            ErrorClass::Unsupported => (Code::Unsupported, ""),
            ErrorClass::ContextLost => (Code::Unavailable, "; see dmesg for what the GPU reported (Xid)"),
            ErrorClass::NotReady | ErrorClass::Failed => (Code::Internal, ""),
        };
        Error::new(code, format!("{subject}: {self}{advice}")).with_source(self)
    }
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, text) = driver::describe(self.code);
        write!(f, "{} failed with {name} ({}): {text}", self.call, self.code)
    }
}

impl std::error::Error for CudaError {}

/// Why there is no GPU to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unavailable {
    /// The driver's library is not installed, or not visible here.
    NoLibrary,
    /// The driver's library lacks this entry point.
    MissingSymbol(&'static str),
    /// The driver is older than what is served; versions as `cuDriverGetVersion` counts (12040 is 12.4).
    DriverTooOld {
        /// What it is.
        have: i32,
        /// What it must be at least.
        need: i32,
    },
    /// The driver works, but shows no GPU.
    NoDevice,
    /// The driver does not start.
    Failed(CudaError),
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = |number: &i32| format!("{}.{}", number / 1000, number % 1000 / 10);
        match self {
            Unavailable::NoLibrary => f.write_str(
                "no CUDA driver: libcuda.so.1 was not found; install the NVIDIA driver, or let the container use the GPUs",
            ),
            Unavailable::MissingSymbol(name) => {
                write!(f, "the CUDA driver has no {name}: it is too old or not NVIDIA's; install a current driver")
            }
            Unavailable::DriverTooOld { have, need } => {
                let (have, need) = (version(have), version(need));
                write!(f, "the driver is made for CUDA {have}, at least {need} is needed; install a current driver")
            }
            Unavailable::NoDevice => f.write_str(
                "the CUDA driver shows no GPU; see nvidia-smi, CUDA_VISIBLE_DEVICES and the container's devices",
            ),
            Unavailable::Failed(error) => write!(f, "the CUDA driver does not start: {error}"),
        }
    }
}

impl std::error::Error for Unavailable {}

impl From<CudaError> for Unavailable {
    fn from(error: CudaError) -> Unavailable {
        match error.class() {
            ErrorClass::NoDevice => Unavailable::NoDevice,
            _ => Unavailable::Failed(error),
        }
    }
}

impl From<Unavailable> for Error {
    fn from(reason: Unavailable) -> Error {
        let code = match reason {
            Unavailable::Failed(error) if error.class() == ErrorClass::ContextLost => Code::Unavailable,
            Unavailable::Failed(error) if error.class() == ErrorClass::OutOfMemory => Code::Exhausted,
            _ => Code::Unsupported,
        };
        Error::new(code, reason.to_string()).with_source(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: u32) -> CudaError {
        CudaError { call: "cuMemCreate", code }
    }

    #[test]
    fn codes_have_classes() {
        let lost = [4, 46, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 802, 805, 807, 999];
        for code in lost.into_iter().chain([123_456, u32::MAX]) {
            assert_eq!(error(code).class(), ErrorClass::ContextLost, "{code}");
            assert_eq!(error(code).about("cuda:0").code(), Code::Unavailable);
        }
        let others = [
            (2, Code::Exhausted),
            (100, Code::Unsupported),
            (34, Code::Unsupported),
            (801, Code::Unsupported),
            (1, Code::Internal),
        ];
        for (number, code) in others {
            assert_eq!(error(number).about("cuda:0").code(), code, "{number}");
        }
    }

    #[test]
    fn reasons_say_what_to_do() {
        let old = Unavailable::DriverTooOld { have: 11_080, need: 12_000 };
        assert!(old.to_string().contains("CUDA 11.8, at least 12.0"), "{old}");
        assert_eq!(Error::from(old).code(), Code::Unsupported);
        assert_eq!(Unavailable::from(error(100)), Unavailable::NoDevice);
        assert_eq!(Error::from(Unavailable::from(error(803))).code(), Code::Unsupported);
        assert_eq!(Error::from(Unavailable::from(error(999))).code(), Code::Unavailable);
        let text = Error::from(Unavailable::from(error(77_777))).to_string();
        assert!(text.contains("cuMemCreate") && text.contains("77777"), "{text}");
    }
}
