//! Idle connections, by the place they lead to.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reqwest::Url;

use super::wire::Wire;

/// Servers close idle connections after a minute or so: one that is older would only be found closed.
const IDLE_MAX: Duration = Duration::from_secs(50);
/// Most places that are remembered; beyond it the pool starts afresh.
const PLACES_MAX: usize = 64;

/// Where a connection leads to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(super) is_tls: bool,
    /// Without the brackets of IPv6.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Place {
    /// The place that a URL names; `None` when it is none of HTTP.
    pub(super) fn of(uri: &impl ToString) -> Option<Place> {
        let url = Url::parse(&uri.to_string()).ok()?;
        let is_tls = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = url.host_str()?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).to_owned();
        Some(Place { is_tls, host, port: url.port_or_known_default()? })
    }
}

/// The idle connections of one client.
pub(crate) struct Pool {
    idle_max: usize,
    idle: Mutex<HashMap<Place, Vec<(Instant, Wire)>>>,
}

impl Pool {
    /// At most `idle_max` connections to each place.
    pub(super) fn new(idle_max: usize) -> Pool {
        Pool { idle_max, idle: Mutex::default() }
    }

    /// The connection that was used last, if it is still good.
    pub(super) fn take(&self, place: &Place) -> Option<Wire> {
        loop {
            // Looked at outside the lock: that asks the system.
            let (since, wire) = self.idle.lock().get_mut(place)?.pop()?;
            if since.elapsed() < IDLE_MAX && wire.is_quiet() {
                return Some(wire);
            }
        }
    }

    /// Keeps a connection on which nothing is under way.
    pub(super) fn put(&self, place: Place, wire: Wire) {
        let mut idle = self.idle.lock();
        if idle.len() >= PLACES_MAX && !idle.contains_key(&place) {
            idle.clear();
        }
        let wires = idle.entry(place).or_default();
        if wires.len() >= self.idle_max {
            wires.remove(0);
        }
        wires.push((Instant::now(), wire));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let place = |url: &str| Place::of(&url).map(|place| (place.is_tls, place.host, place.port));
        assert_eq!(place("https://h/x?y"), Some((true, "h".to_owned(), 443)));
        assert_eq!(place("http://[::1]:9/x"), Some((false, "::1".to_owned(), 9)));
        assert_eq!(place("http://h"), Some((false, "h".to_owned(), 80)));
        assert_eq!(place("ftp://h/x"), None);
        assert_eq!(place("/x"), None);
    }
}
