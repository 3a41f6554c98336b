//! Reads over TLS, in both ways, of a server whose certificate is trusted by `SSL_CERT_FILE`. That variable belongs to a
//! whole process, so the client runs in one of its own: this program again, with one test named.

// A helper of a test may fail it as the test itself may.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use futures::TryStreamExt;
use longshore_origin::{OriginOptions, Origins};
use longshore_testkit::origin::FaultKind;
use longshore_testkit::{FakeOrigin, Fault, content};
use longshore_types::{Artifact, Code, Result};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

const KEY: &str = "bucket/model/a.bin";
const SIZE: u64 = (3 << 20) + 11;
const PORT_VARIABLE: &str = "TEST_TLS_PORT";

/// Makes an authority and a certificate for `localhost` in `folder`.
fn make_certificates(folder: &Path) {
    std::fs::write(folder.join("ext"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n").unwrap();
    let run = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output();
        let output = output.expect("this test needs the program openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    run(&format!("req -x509 {curve} -keyout ca.key -out ca.pem -subj /CN=authority -days 2"));
    run(&format!("req {curve} -keyout key.pem -out request.pem -subj /CN=localhost"));
    run("x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 -extfile ext");
}

/// A server in front of `target` that speaks TLS and, in it, one of `protocols`.
async fn terminate(folder: &Path, target: SocketAddr, protocols: &[&[u8]]) -> u16 {
    let certificate = CertificateDer::from_pem_file(folder.join("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let mut config = builder.with_single_cert(vec![certificate], key).unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut client) = acceptor.accept(stream).await else { return };
                let Ok(mut server) = tokio::net::TcpStream::connect(target).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}

async fn in_child(test: &str, port: u16, folder: &Path) {
    let mut command = tokio::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env(PORT_VARIABLE, port.to_string());
    let output = command.env("SSL_CERT_FILE", folder.join("ca.pem")).output().await.unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{text}");
}

fn origins() -> Origins {
    let port = std::env::var(PORT_VARIABLE).unwrap();
    let s3_endpoint = Some(format!("https://localhost:{port}"));
    let options = OriginOptions {
        attempts_max: 3,
        retry_pause_ms: 1,
        s3_endpoint,
        s3_skip_signature: true,
        ..Default::default()
    };
    Origins::new(options).unwrap()
}

async fn read_into(origins: &Origins, artifact: &Arc<Artifact>) -> Result<Vec<u8>> {
    let (origins, artifact, runtime) = (origins.clone(), artifact.clone(), tokio::runtime::Handle::current());
    let work = move || {
        let mut bytes = vec![0; SIZE as usize];
        let read = origins.read_into(&artifact, 0..SIZE, &mut &mut bytes[..], &runtime, &CancellationToken::new());
        read.map(|()| bytes)
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test]
#[ignore = "runs as a child process of another test"]
async fn child_reads() {
    let origins = origins();
    let artifact = Arc::new(origins.stat(&format!("s3://{KEY}")).await.unwrap());
    let mut wanted = vec![0; SIZE as usize];
    content::fill(1, 0, &mut wanted);
    for _ in 0..3 {
        assert!(read_into(&origins, &artifact).await.unwrap() == wanted);
    }
    // The second of the three was cut off.
    assert_eq!((origins.stats().straight_reads, origins.stats().streamed_reads), (4, 0));
    assert_eq!(origins.stats().retries, 1);
    let streamed: Vec<_> = origins.read(&artifact, 0..SIZE).try_collect().await.unwrap();
    assert!(streamed.concat() == wanted);
}

#[tokio::test]
#[ignore = "runs as a child process of another test"]
async fn child_is_refused() {
    let origins = origins();
    let version = longshore_types::Version::new("etag:\"e\"").unwrap();
    let artifact = Arc::new(Artifact::new(format!("s3://{KEY}"), version, SIZE).unwrap());
    let error = read_into(&origins, &artifact).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    assert!(error.message().contains("cannot connect to localhost"), "{error}");
}

#[tokio::test]
async fn bodies_come_straight_through_tls() {
    let folder = tempfile::tempdir().unwrap();
    make_certificates(folder.path());
    let fake = FakeOrigin::start();
    fake.generate(KEY, 1, SIZE);
    fake.fault(Fault::new(FaultKind::CutAfter(1_000_003)).skip(1).times(1));
    let port = terminate(folder.path(), fake.address(), &[b"h2", b"http/1.1"]).await;
    in_child("child_reads", port, folder.path()).await;
    let starts: Vec<u64> = fake.counters().ranges(KEY).iter().map(|range| range.start).collect();
    assert_eq!(starts.iter().filter(|start| **start > 0).count(), 1, "resumed where it was cut off: {starts:?}");
}

#[tokio::test]
async fn a_server_that_cannot_be_trusted_or_understood_is_named() {
    let folder = tempfile::tempdir().unwrap();
    make_certificates(folder.path());
    let fake = FakeOrigin::start();
    let port = terminate(folder.path(), fake.address(), &[b"h2"]).await;
    in_child("child_is_refused", port, folder.path()).await;
    // Another authority.
    let other = tempfile::tempdir().unwrap();
    make_certificates(other.path());
    let port = terminate(folder.path(), fake.address(), &[b"http/1.1"]).await;
    in_child("child_is_refused", port, other.path()).await;
    assert_eq!(fake.counters().total(), 0, "nothing was asked of it");
}
