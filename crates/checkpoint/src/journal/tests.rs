//! Every truncation, every flipped bit: what comes back is a prefix of what was written, or an error that names the file.

use std::sync::atomic::{AtomicUsize, Ordering};

use longshore_types::BlockChecksum;
use longshore_types::checkpoint::AttemptId;
use proptest::prelude::*;

use super::*;
use crate::attempt::{FlushedSlab, StoredHow};
use crate::plan::{PlannedFile, SaveOptions, SavePlan};

fn plan() -> SavePlan {
    SavePlan {
        uri: "file:///run".to_owned(),
        step: 7,
        attempt: AttemptId::from_bytes([7; 16]),
        world_size: 2,
        options: SaveOptions::default(),
        files: vec![PlannedFile { name: "a".into(), rank: 0, size_bytes: 5, header: vec![], tensors: vec![] }],
        aliases: vec![],
        created_ms: 1,
    }
}

fn slab(number: u32) -> FlushedSlab {
    let blocks = (0..u64::from(number % 5)).map(BlockChecksum).collect();
    FlushedSlab { file: 0, slab_index: number, blocks, fragments: vec![], chunks: Some(vec![None, Some(number)]) }
}

fn records() -> Vec<Record> {
    vec![
        Record::Planned { plan: Box::new(plan()) },
        Record::Delta { base: None },
        Record::Started { rank: 0, inline: vec![slab(1), slab(2)] },
        Record::Flushed(slab(3)),
        Record::RankDurable { rank: 0 },
        Record::IntentWritten { epoch: 3 },
        Record::Verified { object: 0, version: "etag:\"x\"".into(), how: StoredHow::ReadBack },
        Record::CommitSent,
        Record::Committed,
    ]
}

/// A journal with each record in a frame of its own, and where the frames end.
fn written(folder: &Path, records: &[Record]) -> Vec<usize> {
    let journal = Journal::create(folder).unwrap();
    let mut ends = Vec::new();
    for record in records {
        journal.append(vec![record.clone()], &|_| {}, &|| false).unwrap();
        ends.push(std::fs::metadata(journal.path()).unwrap().len() as usize);
    }
    ends
}

#[test]
fn every_truncation_gives_the_whole_records_in_front_of_it_and_can_be_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let all = records();
    let ends = written(folder.path(), &all);
    let path = folder.path().join(JOURNAL_NAME);
    let bytes = std::fs::read(&path).unwrap();
    for length in 0..=bytes.len() {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let (journal, replay) = Journal::open(folder.path()).unwrap();
        let whole = ends.iter().filter(|end| **end <= length).count();
        assert_eq!(replay.records, all[..whole], "cut at {length}");
        assert_eq!(replay.good_bytes + replay.cut_bytes, length as u64);
        journal.append(vec![Record::Cancelled], &|_| {}, &|| false).unwrap();
        let again = read(&path).unwrap();
        assert_eq!((again.records.len(), again.records.last()), (whole + 1, Some(&Record::Cancelled)));
    }
}

#[test]
fn a_flipped_bit_is_an_error_or_costs_the_last_record_at_most() {
    let folder = tempfile::tempdir().unwrap();
    let all = records();
    let ends = written(folder.path(), &all);
    let path = folder.path().join(JOURNAL_NAME);
    let bytes = std::fs::read(&path).unwrap();
    let mut cuts = 0;
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            std::fs::write(&path, &damaged).unwrap();
            match read(&path) {
                Err(error) => {
                    assert_eq!(error.code(), Code::Corrupt);
                    assert!(error.message().contains(path.to_str().unwrap()), "{error}");
                }
                Ok(replay) => {
                    assert!(at >= ends[ends.len() - 2], "damage at {at}, bit {bit}, was taken for a torn tail");
                    assert_eq!(replay.records, all[..all.len() - 1]);
                    cuts += 1;
                }
            }
        }
    }
    assert!(cuts > 0);
}

#[test]
fn what_only_looks_like_a_tail_is_told_from_one() {
    let folder = tempfile::tempdir().unwrap();
    let all = records();
    let ends = written(folder.path(), &all);
    let path = folder.path().join(JOURNAL_NAME);
    let bytes = std::fs::read(&path).unwrap();
    // Room that the file system gave to a frame that never came.
    let mut padded = bytes.clone();
    padded.extend([0; 5000]);
    std::fs::write(&path, &padded).unwrap();
    let replay = read(&path).unwrap();
    assert_eq!((replay.records.len(), replay.cut_bytes), (all.len(), 5000));
    // A frame in the middle that is gone.
    let mut holed = bytes.clone();
    holed[ends[2]..ends[3]].fill(0);
    std::fs::write(&path, &holed).unwrap();
    assert_eq!(read(&path).unwrap_err().code(), Code::Corrupt);
    // Records of a later version.
    let mut later = frame::encode(&all[..1]).unwrap();
    later[frame::HEAD_BYTES] = 2;
    let sum = BlockChecksum::of(&later[frame::HEAD_BYTES..]).0.to_le_bytes();
    later[4..frame::HEAD_BYTES].copy_from_slice(&sum);
    std::fs::write(&path, &later).unwrap();
    assert!(read(&path).unwrap_err().message().contains("version"));
    std::fs::write(&path, b"").unwrap();
    assert!(read(&path).unwrap().records.is_empty());
}

#[test]
fn threads_share_syncs_and_every_record_is_applied_in_the_order_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::create(folder.path()).unwrap();
    let (applied, syncs) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (journal, applied, syncs) = (&journal, &applied, &syncs);
            scope.spawn(move || {
                for number in 0..25 {
                    let mine = Record::Flushed(slab(thread * 100 + number));
                    let take = |records: &[Record]| {
                        syncs.fetch_add(1, Ordering::Relaxed);
                        applied.lock().extend_from_slice(records);
                    };
                    journal.append(vec![mine.clone()], &take, &|| false).unwrap();
                    assert!(applied.lock().contains(&mine), "told before it was applied");
                }
            });
        }
    });
    let replay = read(journal.path()).unwrap();
    assert_eq!(replay.records.len(), 200);
    assert_eq!(replay.records, *applied.lock());
    assert!(syncs.into_inner() <= 200);
}

#[test]
fn a_journal_that_cannot_be_written_takes_nothing_any_more() {
    // Every write to it finds the disk full.
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::create(folder.path()).unwrap();
    journal.file = full;
    let asked = AtomicUsize::new(0);
    let wait = || asked.fetch_add(1, Ordering::Relaxed) < 3;
    let error = journal.append(vec![Record::CommitSent], &|_| panic!("nothing is on the disk"), &wait).unwrap_err();
    assert_eq!((error.code(), asked.into_inner()), (Code::Exhausted, 4));
    assert!(error.message().contains("journal"), "{error}");
    let again = journal.append(vec![Record::Committed], &|_| {}, &|| true).unwrap_err();
    assert_eq!(again.message(), error.message());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any records in any frames come back; any bytes instead of a journal are an error or a prefix, never a panic.
    #[test]
    fn records_come_back_and_noise_does_no_harm(
        sizes in proptest::collection::vec(1usize..4, 1..8),
        noise in proptest::collection::vec(any::<u8>(), 0..400),
        at in any::<proptest::sample::Index>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::create(folder.path()).unwrap();
        let mut all = Vec::new();
        for size in sizes {
            let frame: Vec<Record> = (0..size as u32).map(|number| Record::Flushed(slab(number))).collect();
            journal.append(frame.clone(), &|_| {}, &|| false).unwrap();
            all.extend(frame);
        }
        let path = journal.path().to_owned();
        prop_assert_eq!(&read(&path).unwrap().records, &all);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        for (target, noise) in bytes[at..].iter_mut().zip(&noise) {
            *target = *noise;
        }
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(replay) = read(&path) {
            prop_assert!(replay.records.len() <= all.len());
            prop_assert_eq!(&replay.records[..], &all[..replay.records.len()]);
        }
    }
}
