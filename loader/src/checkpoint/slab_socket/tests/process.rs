//! Clients that are processes, and die. They are this test binary, started again with a variable set.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::*;

const SOCKET: &str = "LONGSHORE_SLAB_TEST_SOCKET";

fn start(fixture: &Fixture) -> Child {
    let name = "checkpoint::slab_socket::tests::process::the_client";
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(SOCKET, fixture.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Not a test of its own: without the variable it has nothing to do.
#[tokio::test]
async fn the_client() {
    let Some(path) = std::env::var_os(SOCKET) else { return };
    let mut client = Client::begin(Path::new(&path), "").await.unwrap();
    for index in 0.. {
        // Two at a time, so that there is always something that is not sealed.
        let (first, second) = (client.acquire(2 * index).await.unwrap(), client.acquire(2 * index + 1).await.unwrap());
        client.fill(&first, 2 * index);
        client.seal(first.slab).await.unwrap();
        println!("sealed {}", 2 * index);
        client.fill(&second, 2 * index + 1);
        client.seal(second.slab).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_sealed_is_whole_and_the_rest_is_free_at_once() {
    let mut fixture = Fixture::new(16).await;
    for round in 0..8_usize {
        let mut child = start(&fixture);
        let output = BufReader::new(child.stdout.take().unwrap());
        let killer = tokio::task::spawn_blocking(move || {
            let sealed = output.lines().map(|line| line.unwrap()).filter(|line| line.contains("sealed"));
            let seen = sealed.take(1 + round).count();
            child.kill().unwrap();
            child.wait().unwrap();
            seen
        });
        let mut sealed = 0;
        loop {
            match tokio::time::timeout(SOON, fixture.events.recv()).await.unwrap().unwrap() {
                SlabEvent::Sealed(slab) => {
                    assert!(is_whole(&slab), "{slab:?}");
                    sealed += 1;
                }
                SlabEvent::SessionClosed { lost, .. } => {
                    assert!(lost.len() <= 2, "{lost:?}");
                    break;
                }
            }
        }
        let seen = killer.await.unwrap();
        assert_eq!(seen, 1 + round);
        assert!(sealed >= seen, "{sealed}");
        // Sooner than the memory of a living client.
        eventually(|| fixture.arena.leased_bytes() == 0).await;
        eventually(|| fixture.descriptors() == 0).await;
        let stats = fixture.slabs.stats();
        assert_eq!((stats.sessions, stats.held_slabs), (0, 0));
    }
}
