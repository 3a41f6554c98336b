//! The record that makes held copies a save again: what the journal of the node that saved knows of a rank, as one journal frame.
//!
//! It is held last, so whoever finds it knows that every chunk of the rank was held. It has the plan, what the delta is made
//! from, and the checksums of every block; nothing of uploads, so it is the same bytes whenever it is made.

use longshore_types::checkpoint::{AttemptId, object_url};
use longshore_types::{BLOCK_BYTES, Code, Error, Result, format_bytes};

use crate::attempt::{Attempt, DeltaBase, FlushedSlab, Record, rank_files};
use crate::journal;
use crate::plan::SavePlan;

/// Most bytes of a record.
pub const HELD_BYTES_MAX: u64 = if cfg!(test) { 256 << 10 } else { 256 << 20 };

/// What a record says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HeldRank {
    pub(crate) rank: u32,
    pub(crate) plan: Box<SavePlan>,
    pub(crate) base: Option<DeltaBase>,
    /// All slabs of the rank.
    pub(crate) slabs: Vec<FlushedSlab>,
}

/// The record of a rank of this node that is durable. Blocks the thread for as long as it takes to write a plan.
///
/// # Errors
/// `Exhausted` when it is larger than peers hold.
pub(crate) fn encode(attempt: &Attempt, rank: u32) -> Result<Vec<u8>> {
    let (base, slabs) = {
        let state = attempt.state();
        let slabs = rank_files(attempt.plan(), rank).filter_map(|(file, _)| state.files.get(&file));
        (state.delta.clone(), slabs.flat_map(|file| file.slabs.values().cloned()).collect())
    };
    let plan = Box::new(attempt.plan().as_ref().clone());
    let bytes = journal::to_bytes(&HeldRank { rank, plan, base, slabs }.into_records())?;
    if bytes.len() as u64 > HELD_BYTES_MAX {
        return Err(Error::new(
            Code::Exhausted,
            format!(
                "its plan and checksums have {}, and peers hold at most {} of these: save fewer tensors, or in fewer ranks",
                format_bytes(bytes.len() as u64),
                format_bytes(HELD_BYTES_MAX)
            ),
        ));
    }
    Ok(bytes)
}

/// Reads a record that is held as that of `rank` of `attempt`. What it says of slabs is checked when its journal is opened.
///
/// # Errors
/// `Corrupt` naming `url` when it is anything else.
pub(crate) fn decode(bytes: &[u8], attempt: &AttemptId, rank: u32, url: &str) -> Result<HeldRank> {
    let corrupt = |reason: String| Error::new(Code::Corrupt, format!("the held record {url} cannot be used: {reason}"));
    let records = journal::from_bytes(bytes).ok_or_else(|| corrupt("it is no journal of this version".to_owned()))?;
    let known: [Record; 4] =
        records.try_into().map_err(|_| corrupt("it has other records than those of a rank".to_owned()))?;
    let [
        Record::Planned { plan },
        Record::Delta { base },
        Record::Started { rank: started, inline: slabs },
        Record::RankDurable { rank: durable },
    ] = known
    else {
        return Err(corrupt("it has other records than those of a rank".to_owned()));
    };
    plan.check().map_err(|error| corrupt(error.message().to_owned()))?;
    if (plan.attempt, started, durable) != (*attempt, rank, rank) {
        return Err(corrupt(format!("it is that of rank {started} of attempt {}", plan.attempt)));
    }
    if slabs.iter().any(|slab| plan.files.get(slab.file as usize).is_none_or(|file| file.rank != rank)) {
        return Err(corrupt("it speaks of files of other ranks".to_owned()));
    }
    Ok(HeldRank { rank, plan, base, slabs })
}

impl HeldRank {
    /// URL of the checkpoint that it is part of.
    pub(crate) fn url(&self) -> String {
        object_url(&self.plan.uri, &longshore_types::checkpoint::step_folder(self.plan.step))
    }

    fn into_records(self) -> Vec<Record> {
        let HeldRank { rank, plan, base, slabs } = self;
        vec![
            Record::Planned { plan },
            Record::Delta { base },
            Record::Started { rank, inline: slabs },
            Record::RankDurable { rank },
        ]
    }
}

/// Whether every slab of the rank is known, with as many checksums as it has blocks: then what is fetched can be compared.
///
/// # Errors
/// `Corrupt` naming what is missing.
pub(crate) fn check_whole(attempt: &Attempt, rank: u32) -> Result<()> {
    let lacks = |what: String| {
        Error::new(Code::Corrupt, format!("the held record of rank {rank} of {} lacks {what}", attempt.url()))
    };
    for (file, size_bytes) in rank_files(attempt.plan(), rank) {
        let name = || attempt.planned(file).map_or_else(|_| file.to_string(), |planned| planned.name.clone());
        let totals = attempt.file_totals(file).map_err(|error| lacks(format!("slabs of {}: {error}", name())))?;
        if totals.blocks.len() as u64 != size_bytes.div_ceil(BLOCK_BYTES) {
            return Err(lacks(format!("checksums of {}", name())));
        }
    }
    for object in attempt.objects_of(rank) {
        let blocks = attempt.object_blocks(object).map_err(|error| lacks(format!("chunks of a pack: {error}")))?;
        let bytes = attempt.object_bytes(object).unwrap_or(0);
        if blocks.len() as u64 != bytes.div_ceil(BLOCK_BYTES) {
            return Err(lacks(format!("checksums of object {object}")));
        }
    }
    Ok(())
}
