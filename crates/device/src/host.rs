//! Host memory as a device: bytes land where they stay, in a region.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use longshore_memory::{
    Arena, Landing, LandingBuilder, OwnedSegment, Region, RegionWriter, Reservation, mapped_charge_bytes, shared_memory,
};
use longshore_types::{Code, Error, Result, format_bytes};

use crate::device::{Device, DeviceInfo, DeviceRegion, Intake, Land, Part, RegionBuilder, Segment};
use crate::id::DeviceId;

/// Tensors start on this boundary, as they do on GPUs, so that a plan fits every device.
const ALIGNMENT_BYTES: u64 = 256;

/// The host's memory, as far as an arena allows.
#[derive(Debug)]
pub struct HostDevice {
    arena: Arena,
    uuid: String,
}

impl HostDevice {
    /// Regions are paid for from `arena`.
    pub fn new(arena: Arena) -> HostDevice {
        // Stable while the machine is up, and the same for all its processes. Containers share it.
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        HostDevice { arena, uuid: format!("HOST-{}", boot_id.trim()) }
    }

    /// `reserve` is asked for as many bytes as memory of this size is charged with.
    fn pay_for(
        &self,
        label: &str,
        size_bytes: u64,
        reserve: impl FnOnce(&Arena, u64) -> Option<Reservation>,
    ) -> Result<Reservation> {
        let charge = mapped_charge_bytes(size_bytes);
        reserve(&self.arena, charge).ok_or_else(|| {
            let stats = self.arena.stats();
            let message = format!(
                "{label} needs {} of host memory, {} of {} are in use; unload something or raise the memory budget",
                format_bytes(charge),
                format_bytes(stats.leased_bytes),
                format_bytes(stats.capacity_bytes),
            );
            Error::new(Code::Exhausted, message)
        })
    }
}

impl Device for HostDevice {
    fn id(&self) -> DeviceId {
        DeviceId::HOST
    }

    fn uuid(&self) -> &str {
        &self.uuid
    }

    fn info(&self) -> DeviceInfo {
        let stats = self.arena.stats();
        DeviceInfo {
            id: DeviceId::HOST,
            uuid: self.uuid.clone(),
            name: format!("host memory, {}", shared_memory().describe()),
            capacity_bytes: stats.capacity_bytes,
            used_bytes: stats.leased_bytes,
            free_bytes: stats.capacity_bytes - stats.leased_bytes,
        }
    }

    fn alignment_bytes(&self) -> u64 {
        ALIGNMENT_BYTES
    }

    fn reserve(&self, label: &str, size_bytes: u64) -> Result<Box<dyn RegionBuilder>> {
        let reservation = self.pay_for(label, size_bytes, Arena::try_reserve_region)?;
        let writer = RegionWriter::create(label, size_bytes, reservation)?;
        let id = NEXT_BUILDER.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(HostBuilder { writer, id }))
    }

    fn adopt(&self, label: &str, segments: Vec<OwnedSegment>, size_bytes: u64) -> Result<Arc<dyn DeviceRegion>> {
        let mut segments = segments.into_iter();
        let (Some(segment), None) = (segments.next(), segments.next()) else {
            return Err(Error::new(Code::Corrupt, format!("{label}: a host region is one segment")));
        };
        let reservation = self.pay_for(label, size_bytes, Arena::try_reserve)?;
        Ok(Arc::new(HostRegion { region: Region::adopt(segment.fd, size_bytes, reservation)? }))
    }
}

/// Numbers the builders of this process, so that a landing of another one is noticed.
static NEXT_BUILDER: AtomicU64 = AtomicU64::new(1);

struct HostBuilder {
    writer: RegionWriter,
    id: u64,
}

impl RegionBuilder for HostBuilder {
    fn intake(&self) -> Intake<'_> {
        Intake::Land(self)
    }

    fn finish(self: Box<Self>) -> Result<Arc<dyn DeviceRegion>> {
        Ok(Arc::new(HostRegion { region: self.writer.finish()? }))
    }
}

impl Land for HostBuilder {
    fn landing(&self, parts: &[Part]) -> Result<Landing> {
        let mut builder = Landing::builder().tag(self.id);
        let mut rest = parts;
        while !rest.is_empty() {
            let (next, used) = self.land_run(builder, rest)?;
            builder = next;
            rest = &rest[used..];
        }
        builder.build()
    }

    fn submit(&self, landing: Landing) -> Result<()> {
        if landing.tag() != self.id {
            return Err(Error::new(Code::InvalidArgument, "a landing of another region was submitted"));
        }
        // The bytes are where they belong; dropping the landing ends its claims.
        drop(landing);
        Ok(())
    }
}

impl HostBuilder {
    /// Lands the longest front of `parts` whose destinations follow each other in the region, behind one claim: the
    /// slice of a tensor that one rank needs is thousands of short rows that are neighbours there. Returns how many
    /// parts that were, at least one.
    fn land_run(&self, mut builder: LandingBuilder, parts: &[Part]) -> Result<(LandingBuilder, usize)> {
        let (start, end, used) = contiguous_run(parts)?;
        if start < end {
            if end > self.writer.len() {
                let size = self.writer.len();
                let message = format!("bytes {start}..{end} are not within a region of {size} bytes");
                return Err(Error::new(Code::InvalidArgument, message));
            }
            builder = builder.open_window(self.writer.claim(start..end)?);
        }
        for part in &parts[..used] {
            builder = match *part {
                Part::Place { len_bytes, .. } => builder.take(addressable(len_bytes)?),
                Part::Discard { len_bytes } => builder.scratch(addressable(len_bytes)?),
                Part::Rows { row_bytes, skip_bytes, rows, .. } => {
                    let (row, skip) = (addressable(row_bytes)?, addressable(skip_bytes)?);
                    let front = (1..rows).fold(builder, |builder, _| builder.take(row).scratch(skip));
                    front.take(row)
                }
            };
        }
        Ok((builder, used))
    }
}

fn addressable(len_bytes: u64) -> Result<usize> {
    usize::try_from(len_bytes).map_err(|_| Error::new(Code::InvalidArgument, "a part longer than the address space"))
}

/// The destinations of the front of `parts` as one range of the region, and how many parts they are.
fn contiguous_run(parts: &[Part]) -> Result<(u64, u64, usize)> {
    let mut range: Option<(u64, u64)> = None;
    let mut used = 0;
    for part in parts {
        if let Some((offset_bytes, len_bytes)) = part.destination()? {
            let end = offset_bytes
                .checked_add(len_bytes)
                .ok_or_else(|| Error::new(Code::InvalidArgument, "a part that ends beyond the address space"))?;
            range = match range {
                None => Some((offset_bytes, end)),
                Some((start, last)) if last == offset_bytes => Some((start, end)),
                Some(_) => break,
            };
        }
        used += 1;
    }
    let (start, end) = range.unwrap_or((0, 0));
    Ok((start, end, used))
}

struct HostRegion {
    region: Region,
}

impl DeviceRegion for HostRegion {
    fn size_bytes(&self) -> u64 {
        self.region.len()
    }

    fn segments(&self) -> Vec<Segment<'_>> {
        vec![Segment { fd: self.region.fd(), len_bytes: self.region.len() }]
    }

    fn host_bytes(&self) -> Option<&[u8]> {
        Some(self.region.as_slice())
    }

    fn read(&self, offset_bytes: u64, out: &mut [u8]) -> Result<()> {
        let bytes = self.region.as_slice();
        let wanted =
            usize::try_from(offset_bytes).ok().and_then(|start| bytes.get(start..start.checked_add(out.len())?));
        let Some(wanted) = wanted else {
            let message =
                format!("{} bytes from {offset_bytes} on are not within a region of {}", out.len(), bytes.len());
            return Err(Error::new(Code::InvalidArgument, message));
        };
        out.copy_from_slice(wanted);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::conformance::{Bench, Make};

    const MAKE: Make = |bytes| Bench { device: Arc::new(HostDevice::new(Arena::new(bytes))), pinned: None };

    crate::conformance::conformance_suite!(MAKE);
    crate::conformance::landing_suite!(MAKE);

    #[test]
    fn neighbours_in_the_region_share_a_claim() {
        let parts = [
            Part::Discard { len_bytes: 5 },
            Part::Place { offset_bytes: 10, len_bytes: 3 },
            Part::Discard { len_bytes: 2 },
            Part::Place { offset_bytes: 13, len_bytes: 4 },
            Part::Place { offset_bytes: 18, len_bytes: 1 },
        ];
        assert_eq!(contiguous_run(&parts).unwrap(), (10, 17, 4));
        assert_eq!(contiguous_run(&parts[..1]).unwrap(), (0, 0, 1));
    }
}
