//! The training process is killed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use longshore_proto::v1;
use longshore_testkit::modelgen::ModelSpec;

use super::site::{MIB, RUN, SOON, Site};

const BYTES: u64 = 24 * MIB;

/// A trainer that stands still at some point.
struct Trainer {
    child: Child,
    attempt: String,
}

impl Trainer {
    fn standing_at(site: &Site, stop: &str, bytes: u64) -> Trainer {
        let args =
            [site.sockets().display().to_string(), RUN.into(), "2".into(), "2".into(), bytes.to_string(), stop.into()];
        let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
        let mut child = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let attempt = lines.next().expect("the attempt").unwrap();
        assert_eq!(lines.next().expect("a trainer that stands").unwrap(), stop);
        Trainer { child, attempt }
    }

    fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.attempt.clone()
    }
}

impl Drop for Trainer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn crash_of_the_trainer_in_the_middle_of_the_copy() {
    let site = Site::new();
    // Two slabs: one is sealed, one is half copied.
    let attempt = Trainer::standing_at(&site, "mid-copy", 80 * MIB).kill();
    let status = site.fails(&attempt);
    assert!(status.error_message.contains("rank 0"), "{status:?}");
    assert!(status.ranks.iter().all(|rank| !rank.staged && !rank.local_durable), "{status:?}");
    assert_eq!(site.steps(), [1]);
    let slabs = site.cluster.slab_folder(0);
    crate::common::wait_until("the shared memory of the dead process is freed", || pieces(&slabs) == 0);
}

/// Files of shared memory below a folder.
fn pieces(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let count = |entry: std::fs::DirEntry| match entry.path().is_dir() {
        true => pieces(&entry.path()),
        false => usize::from(entry.file_name().to_string_lossy().starts_with("piece")),
    };
    entries.map(count).sum()
}

#[test]
fn crash_of_the_trainer_after_staged() {
    let site = Site::new();
    let attempt = Trainer::standing_at(&site, "staged", BYTES).kill();
    let new = ModelSpec::sized(2, BYTES, 12).build();
    let status = site.commits(&attempt, &new);
    assert!(status.ranks.iter().all(|rank| rank.local_durable), "{status:?}");
}

#[test]
fn crash_of_trainer_and_loader_after_staged() {
    let mut site = Site::dying_at("before_flushed_record");
    let mut client = site.client();
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.args([&site.sockets().display().to_string(), RUN, "2", "2", &BYTES.to_string(), "staged"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let attempt = BufReader::new(child.stdout.take().unwrap()).lines().next().unwrap().unwrap();
    site.cluster.loader(0).wait_killed(SOON);
    let _ = client.status(&attempt);
    child.kill().unwrap();
    child.wait().unwrap();
    site.revive();
    let status = site.commits(&attempt, &ModelSpec::sized(2, BYTES, 12).build());
    assert_eq!(status.state(), v1::SaveState::Committed);
}
