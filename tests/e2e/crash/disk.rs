//! The node's disk is full.

use longshore_proto::v1;
use longshore_tests::Saving;
use longshore_types::Code;

use super::site::{MIB, RUN, SOON, model, options};
use crate::small_disk::on_small_disk;

#[test]
fn crash_of_a_disk_that_others_fill_waits_for_room_and_goes_on() {
    let test = "crash::disk::crash_of_a_disk_that_others_fill_waits_for_room_and_goes_on";
    on_small_disk(test, 60 * MIB, |path| {
        let origin = longshore_testkit::FakeOrigin::start();
        origin.create_bucket("bucket");
        let folder = path.join("checkpoints").display().to_string();
        let mut spec = super::site::spec(&origin).loader_args(&["--checkpoint-dir", &folder]);
        // Two would have the same folder.
        spec.loaders = 1;
        let cluster = longshore_testkit::Cluster::start(spec);
        let sockets = cluster.loader_socket(0).parent().unwrap().to_owned();
        let mut client = longshore_tests::SaveClient::connect(&sockets).unwrap();
        let new = model(2);
        let ballast = path.join("ballast");
        std::fs::write(&ballast, vec![1; 45 << 20]).unwrap();

        // Who does not want to wait is told at once.
        let refuse = v1::SaveOptions { refuse_when_full: true, ..options() };
        let saving = Saving::plan(&mut client, (RUN, 1), (&new, 1), refuse).unwrap();
        let error = client.start(&saving.plan, 0, saving.inline(0)).unwrap_err();
        assert_eq!(error.code(), Code::Exhausted, "{error}");

        // Others wait, and go on when there is room.
        let saving = Saving::plan(&mut client, (RUN, 2), (&new, 1), options()).unwrap();
        let staged = std::thread::spawn({
            let (saving, sockets) = (saving.clone(), sockets.clone());
            move || saving.stage(&mut longshore_tests::SaveClient::connect(&sockets).unwrap(), 0)
        });
        crate::common::wait_until("the save says that it waits for room", || {
            let saves = client.saves().unwrap();
            saves.iter().any(|save| save.attempt == saving.attempt() && save.waiting_for.contains("room"))
        });
        assert!(!staged.is_finished());
        std::fs::remove_file(&ballast).unwrap();
        let _slabs = staged.join().unwrap().unwrap();
        let status = client.wait(saving.attempt(), v1::SaveState::Committed, SOON).unwrap();
        assert_eq!(status.state(), v1::SaveState::Committed, "{status:?}");
        crate::common::load_and_check(&cluster, 0, &format!("{RUN}/step-2"), &new);
    });
}

#[test]
fn crash_of_a_disk_that_fills_up_amid_the_copy() {
    let test = "crash::disk::crash_of_a_disk_that_fills_up_amid_the_copy";
    on_small_disk(test, 60 * MIB, |path| {
        let origin = longshore_testkit::FakeOrigin::start();
        origin.create_bucket("bucket");
        let folder = path.join("checkpoints").display().to_string();
        let mut spec = super::site::spec(&origin).loader_args(&["--checkpoint-dir", &folder]);
        spec.loaders = 1;
        let mut cluster = longshore_testkit::Cluster::start(spec);
        let sockets = cluster.loader_socket(0).parent().unwrap().to_owned();
        let mut client = longshore_tests::SaveClient::connect(&sockets).unwrap();
        let new = model(2);
        let saving = Saving::plan(&mut client, (RUN, 2), (&new, 1), options()).unwrap();
        client.start(&saving.plan, 0, saving.inline(0)).unwrap();
        // Room was set aside, and another program takes it.
        let ballast = path.join("ballast");
        let mut file = std::fs::File::create(&ballast).unwrap();
        let mut filled = 0;
        while std::io::Write::write_all(&mut file, &vec![7; 64 << 10]).is_ok() {
            filled += 64 << 10;
        }
        let mut slabs = client.slabs().unwrap();
        saving.fill(&mut slabs, 0).unwrap();
        let waits = |status: &v1::SaveStatus| status.waiting_for.contains("room") || status.state >= 3;
        let status = client.follow(saving.attempt(), SOON, waits).unwrap();
        // Where the file system keeps what was set aside the save is simply done.
        println!("{filled} bytes were taken; {status:?}");
        assert!(status.state() != v1::SaveState::Failed, "{status:?}");
        // A kill amid that changes nothing.
        cluster.loader(0).kill();
        drop(file);
        std::fs::remove_file(&ballast).unwrap();
        cluster.loader(0).start_again();
        let mut client = longshore_tests::SaveClient::connect(&sockets).unwrap();
        let status = client.wait(saving.attempt(), v1::SaveState::Committed, SOON).unwrap();
        assert_eq!(status.state(), v1::SaveState::Committed, "{status:?}");
        crate::common::load_and_check(&cluster, 0, &format!("{RUN}/step-2"), &new);
    });
}
