//! A limited number of places for clients that are not trusted: those in a TLS handshake, and those that ask for metrics or
//! debug information over HTTP.
//!
//! A client that stalls occupies a place until its deadline. When every place is taken, a new client drives out the oldest
//! client of the address that has the most places. A new client therefore always gets a place, and the clients of one address
//! drive out one another before they drive out others.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The most refused clients that are logged in each [`LOG_WINDOW`]. The rest are counted.
const LOGGED: u32 = 5;
const LOG_WINDOW: Duration = Duration::from_secs(10);

/// A set of places. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    most: usize,
    most_per_address: usize,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The oldest first.
    taken: Vec<Taken>,
    next_number: u64,
    /// The start of the present log window.
    window: Option<Instant>,
    /// How many clients have been refused in the window.
    refused: u32,
}

#[derive(Debug)]
struct Taken {
    number: u64,
    address: IpAddr,
    /// Dropping it makes the client's task give up.
    _stop: oneshot::Sender<()>,
}

/// A client's place. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Place {
    places: Places,
    number: u64,
    stopped: oneshot::Receiver<()>,
}

impl Places {
    /// Creates `most` places, of which one address can have half.
    pub(crate) fn new(most: usize) -> Places {
        Places { most, most_per_address: most / 2, inner: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a client. Another client may lose its place for it.
    pub(crate) fn take(&self, peer: SocketAddr) -> Place {
        let address = network(peer.ip());
        let mut places = self.lock();
        if let Some(index) = places.displaced_by(address, self.most, self.most_per_address) {
            places.taken.remove(index);
        }
        let number = places.next_number;
        places.next_number += 1;
        let (stop, stopped) = oneshot::channel();
        places.taken.push(Taken { number, address, _stop: stop });
        Place { places: self.clone(), number, stopped }
    }

    /// Logs that a client was refused, unless [`LOGGED`] others have been logged within the window.
    pub(crate) fn refused(&self, peer: SocketAddr, reason: impl std::fmt::Display) {
        let now = Instant::now();
        let mut places = self.lock();
        let in_last_window = if places.window.is_none_or(|begun| now.duration_since(begun) >= LOG_WINDOW) {
            places.window = Some(now);
            std::mem::take(&mut places.refused)
        } else {
            0
        };
        places.refused += 1;
        let is_logged = places.refused <= LOGGED;
        drop(places);
        if in_last_window > LOGGED {
            tracing::warn!(clients = in_last_window - LOGGED, "refused more clients, which were not logged one by one");
        }
        if is_logged {
            tracing::warn!(%peer, "refused a client: {reason}");
        }
    }
}

impl Inner {
    /// The index of the client that loses its place to a new client of `address`. `None` if a place is free for that client.
    fn displaced_by(&self, address: IpAddr, most: usize, most_per_address: usize) -> Option<usize> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        self.taken.iter().for_each(|taken| *counts.entry(taken.address).or_default() += 1);
        let busiest = if counts.get(&address).is_some_and(|count| *count >= most_per_address) {
            address
        } else if self.taken.len() >= most {
            let (busiest, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
            busiest
        } else {
            return None;
        };
        self.taken.iter().position(|taken| taken.address == busiest)
    }
}

impl Place {
    /// Waits until this client loses its place.
    pub(crate) async fn lost(&mut self) {
        // The sender never sends. This returns once it is dropped.
        let _ = (&mut self.stopped).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().taken.retain(|taken| taken.number != self.number);
    }
}

/// The part of an address by which clients are counted: all of an IPv4 address, and the /64 network of an IPv6 address, since
/// an IPv6 host can use any address of its network.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 128;
    const MOST_PER_ADDRESS: usize = 64;

    fn peer(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().expect("an address"), 1)
    }

    fn is_lost(place: &mut Place) -> bool {
        !matches!(place.stopped.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }

    #[test]
    fn clients_of_one_address_drive_out_one_another() {
        let all = Places::new(MOST);
        let mut stalled: Vec<_> = (0..300).map(|_| all.take(peer("10.0.0.1"))).collect();
        let (old, new) = stalled.split_at_mut(300 - MOST_PER_ADDRESS);
        assert!(old.iter_mut().all(is_lost) && !new.iter_mut().any(is_lost));
        let mut others: Vec<_> = (2..80).map(|n| all.take(peer(&format!("10.0.0.{n}")))).collect();
        assert!(!others.iter_mut().any(is_lost), "the address with the most places loses them");
        assert!(all.lock().taken.len() <= MOST);
        drop((stalled, others));
        assert!(all.lock().taken.is_empty());
    }

    #[test]
    fn ipv6_addresses_of_one_network_count_together() {
        assert_eq!(network(peer("2001:db8::1").ip()), network(peer("2001:db8::ffff:1").ip()));
        assert_ne!(network(peer("2001:db8:0:1::1").ip()), network(peer("2001:db8::1").ip()));
        assert_eq!(network(peer("::ffff:10.0.0.1").ip()), peer("10.0.0.1").ip());
    }

    #[test]
    fn newest_client_always_has_a_place_while_random_ones_come_and_go() {
        let all = Places::new(MOST);
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut places = Vec::new();
        for _ in 0..20_000 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            if seed % 5 == 0 && !places.is_empty() {
                places.swap_remove(seed as usize % places.len());
            }
            let host = if seed % 3 == 0 { seed >> 32 & 0xff } else { 1 };
            let mut newest = all.take(peer(&format!("10.0.{}.{}", host / 16, host % 16)));
            assert!(!is_lost(&mut newest));
            places.push(newest);
            let taken = &all.lock().taken;
            assert!(taken.len() <= MOST);
        }
    }
}
