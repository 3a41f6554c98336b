//! Names of devices, as people write them.

use std::fmt;
use std::str::FromStr;

use longshore_types::{Code, Error};

/// The family of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeviceKind {
    /// Host memory, shared as memfd.
    Host,
    /// An NVIDIA GPU.
    Cuda,
}

/// One device of this node: `host`, or `cuda:N`.
///
/// The ordinal is this process's view; match devices of two processes by their UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    kind: DeviceKind,
    ordinal: u32,
}

impl DeviceId {
    /// The host's memory.
    pub const HOST: DeviceId = DeviceId { kind: DeviceKind::Host, ordinal: 0 };

    /// The GPU with this ordinal.
    pub fn cuda(ordinal: u32) -> DeviceId {
        DeviceId { kind: DeviceKind::Cuda, ordinal }
    }

    /// The family.
    pub fn kind(self) -> DeviceKind {
        self.kind
    }

    /// The number within the family; 0 for the host.
    pub fn ordinal(self) -> u32 {
        self.ordinal
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            DeviceKind::Host => f.write_str("host"),
            DeviceKind::Cuda => write!(f, "cuda:{}", self.ordinal),
        }
    }
}

impl FromStr for DeviceId {
    type Err = Error;

    fn from_str(text: &str) -> Result<DeviceId, Error> {
        let ordinal = match text {
            "host" => return Ok(DeviceId::HOST),
            "cuda" => Some(0),
            // Digits only: `parse` alone would take a sign.
            _ => text
                .strip_prefix("cuda:")
                .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok()),
        };
        ordinal.map(DeviceId::cuda).ok_or_else(|| {
            let message = format!(
                "'{text}' names no device: use host, cuda:N (for instance cuda:0), the UUID of a GPU, or auto where a choice is allowed"
            );
            Error::new(Code::InvalidArgument, message)
        })
    }
}

/// What a caller asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum DeviceRequest {
    /// The best device there is.
    #[default]
    Auto,
    /// This device and no other.
    Id(DeviceId),
    /// The GPU, or part of one, with this UUID: the same one in every process, whatever ordinals it sees.
    Uuid(String),
}

impl fmt::Display for DeviceRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceRequest::Auto => f.write_str("auto"),
            DeviceRequest::Id(id) => id.fmt(f),
            DeviceRequest::Uuid(uuid) => f.write_str(uuid),
        }
    }
}

impl FromStr for DeviceRequest {
    type Err = Error;

    fn from_str(text: &str) -> Result<DeviceRequest, Error> {
        match text {
            "auto" => Ok(DeviceRequest::Auto),
            _ if is_uuid(text) => Ok(DeviceRequest::Uuid(text.to_owned())),
            _ => text.parse().map(DeviceRequest::Id),
        }
    }
}

/// `GPU-` or `MIG-`, then what a driver writes there.
fn is_uuid(text: &str) -> bool {
    let rest = text.strip_prefix("GPU-").or_else(|| text.strip_prefix("MIG-"));
    let is_plain = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'/'));
    rest.is_some_and(|rest| (1..=80).contains(&rest.len()) && is_plain(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_nonsense_is_refused() {
        for name in ["auto", "host", "cuda:0", "cuda:17", "GPU-8f3c1a2b-0000-4e4e-9abc-0123456789ab"] {
            assert_eq!(name.parse::<DeviceRequest>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse::<DeviceId>().unwrap(), DeviceId::cuda(0));
        for name in
            ["", "Host", "cuda:", "cuda:+1", "cuda:-1", "cuda:x", "cuda:4294967296", "host:0", "gpu", "GPU-", "GPU-a b"]
        {
            let error = name.parse::<DeviceRequest>().unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{name}");
        }
        assert!("auto".parse::<DeviceId>().is_err());
    }
}
