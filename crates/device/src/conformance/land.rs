//! What concerns devices that bytes land on.

use std::fs::File;
use std::os::unix::fs::FileExt;

use longshore_types::Code;

use super::*;

pub(crate) fn a_failed_fetch_can_be_repeated(make: Make) {
    let bench = make(CAPACITY);
    let builder = bench.reserve("retry", 1000);
    let parts = [place(100, 500)];
    let mut torn = land(&*builder).landing(&parts).unwrap();
    torn.copy_in(0, &[0xff; 300]);
    drop(torn);
    let run = bench.load(&*builder, &parts, 1);
    let mut expected = vec![0; 1000];
    apply(&mut expected, &parts, &run);
    assert_holds(&*builder.finish().unwrap(), &expected);
}

pub(crate) fn landings_of_one_place_exclude_each_other(make: Make) {
    let bench = make(CAPACITY);
    let builder = bench.reserve("overlap", 1000);
    let first = land(&*builder).landing(&[place(0, 500)]).unwrap();
    assert_eq!(code(land(&*builder).landing(&[place(499, 2)])), Code::Internal);
    let second = land(&*builder).landing(&[place(500, 500)]).unwrap();
    drop((first, second));
    assert!(land(&*builder).landing(&[place(499, 2)]).is_ok());
}

pub(crate) fn a_region_is_finished_once_all_landings_are_in(make: Make) {
    let bench = make(CAPACITY);
    let builder = bench.reserve("early", 1000);
    let landing = land(&*builder).landing(&[place(0, 10)]).unwrap();
    assert_eq!(code(builder.finish()), Code::Internal);
    drop(landing);
    assert_eq!(bench.device.info().used_bytes, 0);
}

pub(crate) fn a_landing_belongs_to_its_region(make: Make) {
    let bench = make(CAPACITY);
    let (one, other) = (bench.reserve("one", 100), bench.reserve("other", 100));
    let landing = land(&*one).landing(&[place(0, 100)]).unwrap();
    assert_eq!(code(land(&*other).submit(landing)), Code::InvalidArgument);
}

pub(crate) fn segments_cannot_be_written(make: Make) {
    const SIZE: u64 = 3_000_000;
    let bench = make(CAPACITY);
    let builder = bench.reserve("segments", SIZE);
    let run = bench.load(&*builder, &[place(0, SIZE)], 4);
    let region = builder.finish().unwrap();
    let segments = region.segments();
    assert_eq!(segments.iter().map(|segment| segment.len_bytes).sum::<u64>(), SIZE);
    for segment in segments {
        let file = File::from(segment.fd.try_clone_to_owned().unwrap());
        assert!(file.write_at(b"x", 0).is_err());
        assert!(file.set_len(1).is_err());
    }
    assert_holds(&*region, &run);
}
