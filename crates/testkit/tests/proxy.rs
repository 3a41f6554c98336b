//! The proxy, with an origin behind it.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use longshore_testkit::proxy::ProxyFaults;
use longshore_testkit::{FakeOrigin, FaultProxy};

fn get(address: SocketAddr, timeout: Duration) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET /bucket/k HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    // The one part of an answer that changes by itself.
    if let Some(date) = bytes.windows(6).position(|w| w == b"date: ") {
        bytes[date + 6..date + 35].fill(b'-');
    }
    Ok(bytes)
}

#[test]
fn passes_on_and_misbehaves_as_told() {
    let origin = FakeOrigin::start();
    origin.generate("bucket/k", 1, 1 << 20);
    let proxy = FaultProxy::start(&origin.address().to_string()).unwrap();
    let long = Duration::from_secs(20);
    let whole = get(proxy.address(), long).unwrap();
    assert!(whole.len() > 1 << 20);

    proxy.set(ProxyFaults { cut_after: Some(5000), ..ProxyFaults::default() });
    assert_eq!(get(proxy.address(), long).unwrap(), whole[..5000]);
    proxy.set(ProxyFaults { flip_at: Some(70_000), ..ProxyFaults::default() });
    let wrong = get(proxy.address(), long).unwrap();
    assert_eq!((0..whole.len()).filter(|i| whole[*i] != wrong[*i]).collect::<Vec<_>>(), [70_000]);
    assert_eq!(proxy.flips(), 1);
    proxy.set(ProxyFaults { swallows: true, ..ProxyFaults::default() });
    assert!(get(proxy.address(), Duration::from_millis(200)).is_err());
    proxy.set(ProxyFaults { refuses: true, ..ProxyFaults::default() });
    assert!(get(proxy.address(), long).map_or(true, |bytes| bytes.is_empty()));
    proxy.set(ProxyFaults::default());
    assert_eq!(get(proxy.address(), long).unwrap(), whole);

    let other = FakeOrigin::start();
    other.put("bucket/k", b"other".to_vec());
    proxy.set_target(&other.address().to_string());
    assert!(get(proxy.address(), long).unwrap().ends_with(b"other"));
    assert_eq!(proxy.connections(), 7);
}
