//! The harness of daemons, with scripts in the place of the product.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use longshore_testkit::cluster::Daemon;

const SOON: Duration = Duration::from_secs(20);

/// The script: written before any process is started, as a child that holds it open for writing keeps it from running.
fn script() -> &'static Path {
    static SCRIPT: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = SCRIPT.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("product");
        let text = "#!/bin/sh\n\
                    echo \"$* kill=$LONGSHORE_KILL_AT extra=$EXTRA\"\n\
                    case $LONGSHORE_KILL_AT in '') exec sleep 600;; fails) exit 3;; *) kill -9 $$;; esac\n";
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        (folder, path)
    });
    path
}

/// A daemon that writes down how it was started, and dies or lives as the variable says.
fn daemon(folder: &Path) -> Daemon {
    Daemon::new("loader", "loader-0", folder).program(script())
}

/// Says that the daemon is ready, in its place.
fn be_ready(daemon: &Daemon) {
    let listener = TcpListener::bind(daemon.ops_address()).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n");
        }
    });
}

#[test]
fn a_daemon_dies_where_it_is_told_and_starts_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = daemon(folder.path());
    daemon.set_env("EXTRA", "one");
    daemon.kill_at(Some("after_intent"));
    daemon.spawn();
    daemon.wait_killed(SOON);
    assert!(daemon.was_killed() && !daemon.is_running());

    daemon.kill_at(Some("part_done@3"));
    daemon.unset_env("EXTRA");
    daemon.add_args(&["--more", "x"]);
    daemon.spawn();
    daemon.wait_killed(SOON);
    assert_eq!(daemon.log(), "loader kill=after_intent extra=one\nloader --more x kill=part_done@3 extra=\n");

    assert!(!daemon.start_again_to_die("before_index"), "it died before it was ready");
    be_ready(&daemon);
    daemon.start_again_to_live();
    daemon.wait_log("kill= extra=", SOON);
    assert!(daemon.is_running());
    daemon.kill();
    assert!(daemon.was_killed());
}

#[test]
#[should_panic(expected = "and not by SIGKILL")]
fn another_end_is_not_taken_for_the_kill() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = daemon(folder.path());
    daemon.kill_at(Some("fails"));
    daemon.spawn();
    daemon.wait_killed(SOON);
}
