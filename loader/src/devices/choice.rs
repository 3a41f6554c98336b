//! Which GPUs are used: what the driver shows, and what the options say.

use longshore_device::cuda::{GpuInfo, Unavailable, probe};
use longshore_types::{Code, Error, Result};

use crate::options::Gpus;

/// The GPUs, and what a user should know about them.
pub(super) struct Choice {
    pub gpus: Vec<GpuInfo>,
    /// Why there are none.
    pub reason: Option<String>,
    pub warnings: Vec<String>,
}

impl Choice {
    fn none(reason: impl ToString) -> Choice {
        Choice { gpus: Vec::new(), reason: Some(reason.to_string()), warnings: Vec::new() }
    }

    fn of(gpus: Vec<GpuInfo>) -> Choice {
        Choice { gpus, reason: None, warnings: Vec::new() }
    }
}

/// Looks for the GPUs of the options. Without a driver, or without a GPU, "all" of them are none.
///
/// # Errors
/// [`Code::Unsupported`] when one is listed and not there.
pub(super) fn choose(wanted: &Gpus) -> Result<Choice> {
    Ok(match wanted {
        Gpus::None => Choice::none("GPUs are switched off (--gpus none)"),
        Gpus::All => all(probe()),
        Gpus::Listed(names) => Choice::of(listed(names, &probe()?)?),
    })
}

fn all(found: std::result::Result<Vec<GpuInfo>, Unavailable>) -> Choice {
    match found {
        Ok(gpus) => Choice::of(gpus),
        // A machine without GPUs is nothing to warn of.
        Err(reason @ (Unavailable::NoLibrary | Unavailable::NoDevice)) => {
            tracing::info!(%reason, "no GPU is used");
            Choice::none(reason)
        }
        Err(reason) => {
            tracing::warn!(%reason, "no GPU is used");
            Choice { warnings: vec![format!("no GPU is used: {reason}")], ..Choice::none(reason) }
        }
    }
}

/// In the order of the list; one that is named twice is taken once.
fn listed(names: &[String], found: &[GpuInfo]) -> Result<Vec<GpuInfo>> {
    let mut gpus: Vec<GpuInfo> = Vec::new();
    for name in names {
        let is_named = |gpu: &&GpuInfo| gpu.uuid.eq_ignore_ascii_case(name) || name.parse() == Ok(gpu.ordinal);
        let gpu = found.iter().find(is_named).ok_or_else(|| {
            let known: Vec<String> = found.iter().map(|gpu| format!("{} ({})", gpu.ordinal, gpu.uuid)).collect();
            Error::new(Code::Unsupported, format!("there is no GPU {name} here; there is {}", known.join(", ")))
        })?;
        if !gpus.contains(gpu) {
            gpus.push(gpu.clone());
        }
    }
    Ok(gpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(ordinal: u32) -> GpuInfo {
        let uuid = format!("GPU-0000000{ordinal}");
        GpuInfo { ordinal, uuid, name: "card".into(), total_bytes: 1 << 30, node: None }
    }

    #[test]
    fn gpus_are_named_by_ordinal_or_uuid() {
        let found = [gpu(0), gpu(1), gpu(2)];
        let names = ["2", "gpu-00000000", "GPU-00000002"].map(str::to_owned);
        assert_eq!(listed(&names, &found).unwrap(), [gpu(2), gpu(0)]);
        let error = listed(&["3".to_owned()], &found).unwrap_err();
        assert_eq!(error.code(), Code::Unsupported);
        assert!(error.message().contains("GPU 3") && error.message().contains("2 (GPU-00000002)"), "{error}");
    }

    #[test]
    fn only_a_driver_that_does_not_work_is_worth_a_warning() {
        for reason in [Unavailable::NoLibrary, Unavailable::NoDevice] {
            let choice = all(Err(reason));
            assert!(choice.warnings.is_empty() && choice.reason == Some(reason.to_string()));
        }
        let Choice { gpus, warnings, .. } = all(Err(Unavailable::DriverTooOld { have: 11_000, need: 12_000 }));
        assert!(gpus.is_empty() && warnings[0].contains("CUDA 11.0"), "{warnings:?}");
    }
}
