//! A TCP proxy between a client and a server, that delays, cuts, corrupts or swallows.
//!
//! It works on bytes and knows no protocol. What is set applies to connections made before as well, from their next
//! read on; offsets count the bytes of each connection in the direction from the server to the client.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Most bytes that are moved at once.
const PIECE_BYTES: usize = 256 << 10;

/// What the proxy does to the answers of the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyFaults {
    /// Every piece of up to 256 KiB goes on that much later.
    pub delay: Duration,
    /// Each connection is cut after so many bytes.
    pub cut_after: Option<u64>,
    /// One bit of the byte at this position of each connection is flipped.
    pub flip_at: Option<u64>,
    /// Nothing goes on in either direction; connections stay open, new ones are accepted.
    pub swallows: bool,
    /// New connections are closed at once.
    pub refuses: bool,
}

struct Shared {
    target: Mutex<String>,
    faults: watch::Sender<ProxyFaults>,
    /// A new value cuts all connections.
    cut: watch::Sender<u64>,
    connections: AtomicU64,
    bytes: AtomicU64,
    flips: AtomicU64,
}

/// A running proxy; it ends when it is dropped.
pub struct FaultProxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl FaultProxy {
    /// A proxy on a free port of the loopback, to `target` (`host:port`).
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn start(target: &str) -> io::Result<FaultProxy> {
        FaultProxy::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), target)
    }

    /// A proxy at an address, to `target` (`host:port`).
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start_at(listen: SocketAddr, target: &str) -> io::Result<FaultProxy> {
        let listener = std::net::TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("fault-proxy")
            .enable_all()
            .build()?;
        let shared = Arc::new(Shared {
            target: Mutex::new(target.to_owned()),
            faults: watch::Sender::new(ProxyFaults::default()),
            cut: watch::Sender::new(0),
            connections: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            flips: AtomicU64::new(0),
        });
        {
            // Entered and not blocked on: a caller may be on a runtime of its own.
            let _entered = runtime.enter();
            tokio::spawn(accept(TcpListener::from_std(listener)?, shared.clone()));
        }
        Ok(FaultProxy { shared, address, runtime: Some(runtime) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends new connections elsewhere, for instance to a server that came back on another port.
    pub fn set_target(&self, target: &str) {
        *self.shared.target.lock() = target.to_owned();
    }

    /// Misbehaves from now on like this, and no more as before.
    pub fn set(&self, faults: ProxyFaults) {
        self.shared.faults.send_replace(faults);
    }

    /// Cuts every connection there is.
    pub fn cut_all(&self) {
        self.shared.cut.send_modify(|count| *count += 1);
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Bytes that went from server to client so far.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Bits flipped so far.
    pub fn flips(&self) -> u64 {
        self.shared.flips.load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        shared.connections.fetch_add(1, Ordering::Relaxed);
        if !shared.faults.borrow().refuses {
            tokio::spawn(join(client, shared.clone()));
        }
    }
}

async fn join(client: TcpStream, shared: Arc<Shared>) {
    let target = shared.target.lock().clone();
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut cut = shared.cut.subscribe();
    let up = async {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(len) = from_client.read(&mut buffer).await {
            wait_while_swallowing(&shared).await;
            if len == 0 || to_server.write_all(&buffer[..len]).await.is_err() {
                break;
            }
        }
        let _ = to_server.shutdown().await;
    };
    let down = async {
        let mut buffer = vec![0; PIECE_BYTES];
        let mut at = 0u64;
        while let Ok(len) = from_server.read(&mut buffer).await {
            wait_while_swallowing(&shared).await;
            let Some(piece) = shared.spoil(&mut buffer[..len], at).await else { break };
            if piece == 0 || to_client.write_all(&buffer[..piece]).await.is_err() {
                break;
            }
            at += piece as u64;
            shared.bytes.fetch_add(piece as u64, Ordering::Relaxed);
        }
        let _ = to_client.shutdown().await;
    };
    tokio::select! {
        // A client that has said all it has to say still waits for the answer, so only `down` ends the pair.
        () = async { tokio::join!(up, std::future::pending::<()>()); } => {}
        () = down => {}
        _ = cut.changed() => {}
    }
}

async fn wait_while_swallowing(shared: &Shared) {
    let mut faults = shared.faults.subscribe();
    // Ends with an error only when the proxy itself ends.
    let _ = faults.wait_for(|faults| !faults.swallows).await;
}

impl Shared {
    /// Does to a piece what is to be done; the number of bytes that go on, `None` to cut.
    async fn spoil(&self, piece: &mut [u8], at: u64) -> Option<usize> {
        let faults = self.faults.borrow().clone();
        tokio::time::sleep(faults.delay).await;
        if let Some(byte) = faults.flip_at.and_then(|flip| piece.get_mut(usize::try_from(flip.checked_sub(at)?).ok()?))
        {
            *byte ^= 0x10;
            self.flips.fetch_add(1, Ordering::Relaxed);
        }
        match faults.cut_after {
            Some(limit) if at >= limit => None,
            Some(limit) => Some(piece.len().min((limit - at) as usize)),
            None => Some(piece.len()),
        }
    }
}
