//! Connections kept between requests: bounded per endpoint, closed when idle for long.

use std::collections::HashMap;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use longshore_types::{Code, Error, Result};
use parking_lot::{Condvar, Mutex};

use crate::client::connection::Connection;
use crate::client::patience::{LOOK_AFTER, Patience};
use crate::client::{ClientOptions, Endpoint};
use crate::stream::Stream;

/// What connections are kept under.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Tcp(String),
    Unix(PathBuf),
}

#[derive(Default)]
struct Slot {
    /// In use and idle together.
    open: usize,
    idle: Vec<(Connection, Instant)>,
}

pub(crate) struct Pool {
    options: ClientOptions,
    slots: Mutex<HashMap<Key, Slot>>,
    freed: Condvar,
}

/// The right to one connection. What is not given back is closed.
pub(crate) struct Lease<'a> {
    pool: &'a Pool,
    key: Key,
    connection: Option<Connection>,
    pub(crate) reused: bool,
}

impl Pool {
    pub(crate) fn new(options: ClientOptions) -> Self {
        Pool { options, slots: Mutex::default(), freed: Condvar::new() }
    }

    /// An idle connection, or a new one; waits while there are too many.
    pub(crate) fn lease(&self, endpoint: &Endpoint, patience: &Patience) -> Result<Lease<'_>> {
        let key = Key::of(endpoint)?;
        let idle = self.reserve(&key, patience)?;
        let mut lease = Lease { pool: self, key, connection: None, reused: idle.is_some() };
        lease.connection = Some(match idle {
            Some(connection) => connection.with(patience.clone()),
            None => self.connect(endpoint, patience)?,
        });
        Ok(lease)
    }

    /// Closes the idle connections to an endpoint: one was dead, so the others are, or will be.
    pub(crate) fn forget_idle(&self, endpoint: &Endpoint) {
        let Ok(key) = Key::of(endpoint) else { return };
        if let Some(slot) = self.slots.lock().get_mut(&key) {
            slot.open -= slot.idle.len();
            slot.idle.clear();
        }
        self.freed.notify_all();
    }

    /// Counts one more connection in use, and gives an idle one if there is any.
    fn reserve(&self, key: &Key, patience: &Patience) -> Result<Option<Connection>> {
        let deadline = Instant::now() + self.options.stall_timeout;
        let mut slots = self.slots.lock();
        loop {
            expire(&mut slots, &self.options);
            let slot = slots.entry(key.clone()).or_default();
            if let Some((connection, _)) = slot.idle.pop() {
                return Ok(Some(connection));
            }
            if slot.open < self.options.connections_per_endpoint_max.max(1) {
                slot.open += 1;
                return Ok(None);
            }
            patience.check()?;
            let timed_out = self.freed.wait_until(&mut slots, deadline.min(Instant::now() + LOOK_AFTER)).timed_out();
            if timed_out && Instant::now() >= deadline {
                let (count, wait) = (self.options.connections_per_endpoint_max, self.options.stall_timeout);
                return Err(Error::new(Code::Timeout, format!("all {count} connections were in use for {wait:?}")));
            }
        }
    }

    fn connect(&self, endpoint: &Endpoint, patience: &Patience) -> Result<Connection> {
        patience.check()?;
        let stream = match endpoint {
            Endpoint::Tcp(address) => Stream::Tcp(self.connect_tcp(address)?),
            Endpoint::Unix(path) => Stream::Unix(connect_unix(path)?),
            Endpoint::InProcess(_) => return Err(not_a_socket()),
        };
        Connection::new(stream, patience.clone())
            .map_err(|e| Error::new(Code::Internal, format!("cannot set up the connection: {e}")).with_source(e))
    }

    fn connect_tcp(&self, address: &str) -> Result<TcpStream> {
        let deadline = Instant::now() + self.options.connect_timeout;
        let unavailable = |e: std::io::Error, what: &str| {
            let code = if crate::stream::timed_out(&e) { Code::Timeout } else { Code::Unavailable };
            Error::new(code, format!("{what}: {e}")).with_source(e)
        };
        let addresses = address.to_socket_addrs().map_err(|e| unavailable(e, "cannot look up the address"))?;
        let mut last = Error::new(Code::Unavailable, "the name has no address");
        for address in addresses {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match TcpStream::connect_timeout(&address, left) {
                Ok(stream) => {
                    // No receive buffer is set: a fixed one ends the kernel's own tuning, which goes further.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(e) => last = unavailable(e, &format!("cannot connect to {address}")),
            }
        }
        Err(last)
    }
}

impl Key {
    fn of(endpoint: &Endpoint) -> Result<Key> {
        match endpoint {
            Endpoint::Tcp(address) => Ok(Key::Tcp(address.clone())),
            Endpoint::Unix(path) => Ok(Key::Unix(path.clone())),
            Endpoint::InProcess(_) => Err(not_a_socket()),
        }
    }
}

impl Lease<'_> {
    pub(crate) fn connection(&mut self) -> Result<&mut Connection> {
        self.connection.as_mut().ok_or_else(|| Error::new(Code::Internal, "the connection was given back before"))
    }

    /// Puts the connection back for the next request.
    pub(crate) fn give_back(mut self) {
        let Some(connection) = self.connection.take_if(|connection| connection.is_clean()) else { return };
        if let Some(slot) = self.pool.slots.lock().get_mut(&self.key) {
            // Counted again by the drop of this lease, which takes one off.
            slot.open += 1;
            slot.idle.push((connection, Instant::now()));
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut slots = self.pool.slots.lock();
        if let Some(slot) = slots.get_mut(&self.key) {
            slot.open -= 1;
            if slot.open == 0 {
                slots.remove(&self.key);
            }
        }
        drop(slots);
        self.pool.freed.notify_one();
    }
}

/// Closes what was idle for too long, at every endpoint.
fn expire(slots: &mut HashMap<Key, Slot>, options: &ClientOptions) {
    slots.retain(|_, slot| {
        let before = slot.idle.len();
        slot.idle.retain(|(_, since)| since.elapsed() < options.idle_timeout);
        slot.open -= before - slot.idle.len();
        slot.open > 0
    });
}

fn connect_unix(path: &Path) -> Result<UnixStream> {
    UnixStream::connect(path)
        .map_err(|e| Error::new(Code::Unavailable, format!("cannot connect to {}: {e}", path.display())).with_source(e))
}

fn not_a_socket() -> Error {
    Error::new(Code::Internal, "an endpoint in this process has no socket")
}
