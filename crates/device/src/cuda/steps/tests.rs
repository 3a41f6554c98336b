use proptest::prelude::*;

use super::*;

fn place(offset_bytes: u64, len_bytes: u64) -> Part {
    Part::Place { offset_bytes, len_bytes }
}

fn discard(len_bytes: u64) -> Part {
    Part::Discard { len_bytes }
}

fn plan(parts: &[Part]) -> (Vec<Step>, Vec<Range<u64>>) {
    steps(runs(parts, 0, u64::MAX).unwrap(), |_| true)
}

fn run(from: u64, len: u64, to: u64) -> Run {
    Run { from, row_bytes: len, pitch_bytes: len, rows: 1, to }
}

#[test]
fn neighbours_on_both_sides_are_one_copy() {
    let (steps, padding) = plan(&[discard(8), place(0, 100_000), place(100_000, 50), place(100_050, 70_000)]);
    assert_eq!((steps, padding), (vec![Step::Copy(run(8, 170_050, 0))], vec![]));
}

#[test]
fn small_tensors_are_gathered_with_their_padding_and_large_ones_are_not() {
    let (steps, padding) =
        plan(&[place(0, 4), place(256, 4), place(512, 1 << 20), place(2 << 20, 4), place(3 << 20, 4)]);
    let expected = [
        Step::Pack(vec![run(0, 4, 0), run(4, 4, 256)]),
        Step::Copy(run(8, 1 << 20, 512)),
        Step::Copy(run((1 << 20) + 8, 4, 2 << 20)),
        Step::Copy(run((1 << 20) + 12, 4, 3 << 20)),
    ];
    assert_eq!(steps, expected);
    assert!(padding.len() == 1 && padding[0] == (4..256));
}

#[test]
fn only_padding_is_filled_with_zeros() {
    // No multiple of the alignment, backwards, and where something else went.
    for parts in [[place(0, 4), place(255, 4)], [place(256, 4), place(0, 4)]] {
        assert_eq!(plan(&parts).1, []);
    }
    let taken = runs(&[place(0, 4), place(256, 4)], 0, 1000).unwrap();
    let (steps, padding) = steps(taken, |gap| *gap != (4..256));
    assert_eq!((steps.len(), padding.len()), (2, 0));
}

#[test]
fn wide_rows_go_as_they_are_and_thin_ones_are_gathered() {
    let rows = |row_bytes, rows| Part::Rows { offset_bytes: 0, row_bytes, skip_bytes: 7, rows };
    let (steps, _) = plan(&[rows(4096, 100)]);
    let wide = Run { from: 0, row_bytes: 4096, pitch_bytes: 4103, rows: 100, to: 0 };
    assert_eq!(steps, [Step::Copy(wide)]);
    let (steps, _) = plan(&[rows(3, 1_000_000)]);
    assert_eq!(steps.len(), 3);
    assert!(steps.iter().all(|step| matches!(step, Step::Pack(runs) if runs.len() == 1)));
    // Without a distance they are one run.
    let parts = [Part::Rows { offset_bytes: 5, row_bytes: 3, skip_bytes: 0, rows: 10 }];
    assert_eq!(plan(&parts).0, [Step::Copy(run(0, 30, 5))]);
}

#[test]
fn parts_stay_within_the_region() {
    for part in [place(0, 101), place(101, 0), place(u64::MAX, 1), place(5, u64::MAX)] {
        assert_eq!(runs(&[place(0, 1), part], 0, 100).unwrap_err().code(), Code::InvalidArgument, "{part:?}");
    }
    let rows = Part::Rows { offset_bytes: 0, row_bytes: 10, skip_bytes: 1, rows: 11 };
    assert_eq!(runs(&[rows], 0, 100).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(runs(&[place(100, 0), discard(5)], 0, 100).unwrap(), []);
}

fn any_part() -> impl Strategy<Value = (Part, u64)> {
    // The second number is the distance to the part before it in the region.
    let gap = prop_oneof![Just(0u64), 1u64..600];
    let part = prop_oneof![
        (0u64..3000).prop_map(|len| place(0, len)),
        (40_000u64..50_000).prop_map(|len| place(0, len)),
        (1u64..400, 0u64..50, 1u64..60).prop_map(|(row_bytes, skip_bytes, rows)| Part::Rows {
            offset_bytes: 0,
            row_bytes,
            skip_bytes,
            rows
        }),
        (0u64..100).prop_map(discard),
    ];
    (part, gap)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]
    /// Whatever the steps are, carried out one after the other they bring every byte to where the parts say.
    #[test]
    fn steps_do_what_the_parts_say(choices in proptest::collection::vec(any_part(), 1..40)) {
        let mut parts = Vec::new();
        let mut to = 0;
        for (part, gap) in choices {
            let mut part = part;
            let start = if gap % 2 == 0 { (to + gap).next_multiple_of(256) } else { to + gap };
            match &mut part {
                Part::Place { offset_bytes, .. } | Part::Rows { offset_bytes, .. } => *offset_bytes = start,
                Part::Discard { .. } => {}
            }
            if let Some((offset, len)) = part.destination().unwrap() {
                to = offset + len;
            }
            parts.push(part);
        }
        let source: Vec<u8> = (0..parts.iter().map(Part::len_bytes).sum::<u64>()).map(|at| (at % 251 + 1) as u8).collect();
        let mut expected = vec![0; to as usize];
        let mut at = 0;
        for part in &parts {
            if let Part::Rows { offset_bytes, row_bytes, skip_bytes, rows } = *part {
                for row in 0..rows {
                    let (to, from) = ((offset_bytes + row * row_bytes) as usize, (at + row * (row_bytes + skip_bytes)) as usize);
                    expected[to..to + row_bytes as usize].copy_from_slice(&source[from..from + row_bytes as usize]);
                }
            } else if let Some((offset, len)) = part.destination().unwrap() {
                expected[offset as usize..(offset + len) as usize].copy_from_slice(&source[at as usize..(at + len) as usize]);
            }
            at += part.len_bytes();
        }
        let (steps, padding) = steps(runs(&parts, 0, to).unwrap(), |_| true);
        let mut region = vec![0xff; to as usize];
        for step in &steps {
            if let Step::Pack(runs) = step {
                let (start, end) = (runs[0].to, runs.last().unwrap().end());
                prop_assert!(end - start <= PACK_BYTES_MAX);
                region[start as usize..end as usize].fill(0);
            }
            for run in step.runs() {
                prop_assert!(run.source_end().unwrap() <= source.len() as u64);
                for row in 0..run.rows {
                    let (to, from) = ((run.to + row * run.row_bytes) as usize, (run.from + row * run.pitch_bytes) as usize);
                    let len = run.row_bytes as usize;
                    region[to..to + len].copy_from_slice(&source[from..from + len]);
                }
            }
        }
        for at in 0..to as usize {
            // What nothing was sent to is left alone, or is padding and zero.
            let untouched = region[at] == 0xff && expected[at] == 0;
            let padded = padding.iter().any(|gap| gap.contains(&(at as u64)));
            prop_assert!(untouched || region[at] == expected[at] && (expected[at] != 0 || padded), "byte {at}");
        }
    }
}
