//! What concerns devices that bytes are copied to.

use longshore_memory::Claim;
use longshore_types::Code;

use super::*;

pub(crate) fn only_filled_blocks_are_uploaded(make: Make) {
    let bench = make(CAPACITY);
    let builder = bench.reserve("blocks", 3 << 20);
    let chunk = bench.empty_chunk(3 << 20);
    let upload_block = |start_bytes: u64| upload(&*builder).upload(&chunk, start_bytes, &[place(start_bytes, 1 << 20)]);
    assert_eq!(code(upload_block(0)), Code::FailedPrecondition);
    for block in [2, 0, 1] {
        let Claim::Fill(mut window) = chunk.claim(block..block + 1) else { panic!("missing") };
        assert_eq!(code(upload_block(u64::from(block) << 20)), Code::FailedPrecondition);
        window.fill(block as u8 + 1);
        window.commit();
        upload_block(u64::from(block) << 20).unwrap();
    }
    for (start, len) in [((3 << 20) - 1, 2), (u64::MAX, 1), (0, u64::MAX), (3 << 20, 1)] {
        let parts = [discard(len)];
        assert_eq!(code(upload(&*builder).upload(&chunk, start, &parts)), Code::InvalidArgument, "{start} {len}");
    }
    let expected: Vec<u8> = (1..4).flat_map(|block| vec![block; 1 << 20]).collect();
    assert_holds(&*builder.finish().unwrap(), &expected);
}

pub(crate) fn nothing_is_sent_twice(make: Make) {
    let bench = make(CAPACITY);
    let builder = bench.reserve("twice", 2000);
    let run = bench.load(&*builder, &[place(0, 1000)], 1);
    assert_eq!(code(bench.try_load(&*builder, &[place(1500, 10), place(999, 2)], 2)), Code::Internal);
    let parts = [place(1000, 1000)];
    let second = bench.load(&*builder, &parts, 3);
    let mut expected = [run, vec![0; 1000]].concat();
    apply(&mut expected, &parts, &second);
    assert_holds(&*builder.finish().unwrap(), &expected);
}

pub(crate) fn a_chunk_is_held_until_it_is_copied(make: Make) {
    const SIZE: u64 = 8 << 20;
    let bench = make(CAPACITY);
    let builder = bench.reserve("held", SIZE * 4);
    let mut expected = vec![0; SIZE as usize * 4];
    // More than there are slots: each one is free again as soon as its copy is done, with other bytes in it then.
    for part in 0..4 {
        let parts = [place(part * SIZE, SIZE)];
        let run = bench.load(&*builder, &parts, part);
        apply(&mut expected, &parts, &run);
    }
    let region = builder.finish().unwrap();
    assert_eq!(bench.pinned.as_ref().unwrap().stats().used_bytes, 0);
    assert_holds(&*region, &expected);
    // Dropping waits for copies as well, and frees everything.
    let builder = bench.reserve("dropped", SIZE);
    bench.load(&*builder, &[place(0, SIZE)], 1);
    drop((builder, region));
    assert_eq!((bench.pinned.as_ref().unwrap().stats().used_bytes, bench.device.info().used_bytes), (0, 0));
}

pub(crate) fn bytes_may_follow_where_padding_was(make: Make) {
    let bench = make(CAPACITY);
    let builder = bench.reserve("padding", 4096);
    let mut expected = vec![0; 4096];
    let runs: [&[Part]; 3] = [&[place(0, 10), place(256, 10), place(512, 10)], &[place(10, 246)], &[place(300, 5)]];
    for (seed, parts) in runs.into_iter().enumerate() {
        let run = bench.load(&*builder, parts, seed as u64);
        apply(&mut expected, parts, &run);
    }
    assert_holds(&*builder.finish().unwrap(), &expected);
}
