//! Which addresses a server takes, and which it leaves alone.

use std::os::unix::net::UnixListener;

use longshore_types::Code;
use longshore_wire::{DataServer, ServerOptions};

use crate::support::*;

fn bind(unix: &std::path::Path) -> longshore_types::Result<DataServer> {
    let options = ServerOptions { unix: Some(unix.to_owned()), ..ServerOptions::default() };
    DataServer::bind(options, Service::with(|_| Err(not_found())))
}

fn error(unix: &std::path::Path) -> longshore_types::Error {
    bind(unix).err().unwrap()
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let foreign = UnixListener::bind(&path).unwrap();
    let refused = error(&path);
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("another daemon listens"), "{refused}");
    // Its owner is gone, its file is not.
    drop(foreign);
    assert!(path.exists());
    let server = bind(&path).unwrap();
    assert_eq!(error(&path).code(), Code::FailedPrecondition);
    drop(server);
    assert!(!path.exists());
    drop(bind(&path).unwrap());
}

#[test]
fn a_socket_that_somebody_put_in_our_place_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let server = bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _foreign = UnixListener::bind(&path).unwrap();
    drop(server);
    assert!(path.exists());
}

#[test]
fn what_is_no_socket_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    std::fs::write(&path, "a letter").unwrap();
    let refused = error(&path);
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "a letter");
    assert_eq!(error(&folder.path().join("no").join("folder")).code(), Code::InvalidArgument);
    assert_eq!(error(&folder.path().join("x".repeat(120))).code(), Code::InvalidArgument);
}

#[test]
fn a_port_in_use_says_so() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let options = ServerOptions { tcp: taken.local_addr().ok(), ..ServerOptions::default() };
    let refused = DataServer::bind(options, Service::with(|_| Err(not_found()))).err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("another process"), "{refused}");
    let none = DataServer::bind(ServerOptions::default(), Service::with(|_| Err(not_found()))).err().unwrap();
    assert_eq!(none.code(), Code::InvalidArgument);
}
