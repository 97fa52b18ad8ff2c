//! Connections of clients that are not trusted (yet), and which of them give way to new ones: TLS handshakes that are under way,
//! and connections for metrics.
//!
//! A client that stalls takes a place until its deadline. When there is no place left, the client gives way that has waited
//! longest among those of the address with the most places. So a new client is always let in, and clients of one address
//! drive out one another first.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// So many refused clients are logged in each [`WINDOW`].
const LOGGED: u32 = 5;
const WINDOW: Duration = Duration::from_secs(10);

/// A number of places. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    most: usize,
    most_of_one: usize,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The oldest first.
    taken: Vec<Taken>,
    next: u64,
    /// Clients that were refused since this moment, and how many of them were not logged.
    since: Option<Instant>,
    refused: u32,
}

#[derive(Debug)]
struct Taken {
    number: u64,
    address: IpAddr,
    /// Tells the client's task to give up by going.
    _stop: oneshot::Sender<()>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Places,
    number: u64,
    stopped: oneshot::Receiver<()>,
}

impl Places {
    /// So many in all, and half of them for one address.
    pub(crate) fn new(most: usize) -> Places {
        Places { most, most_of_one: most / 2, inner: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a client; another one may have to give way.
    pub(crate) fn begin(&self, peer: SocketAddr) -> Place {
        let address = network(peer.ip());
        let mut places = self.lock();
        if let Some(at) = places.to_give_way(address, self.most, self.most_of_one) {
            places.taken.remove(at);
        }
        let number = places.next;
        places.next += 1;
        let (stop, stopped) = oneshot::channel();
        places.taken.push(Taken { number, address, _stop: stop });
        Place { places: self.clone(), number, stopped }
    }

    /// Logs that a client was refused, but not each of many.
    pub(crate) fn refused(&self, peer: SocketAddr, reason: impl std::fmt::Display) {
        let now = Instant::now();
        let mut places = self.lock();
        let before = if places.since.is_none_or(|since| now.duration_since(since) >= WINDOW) {
            places.since = Some(now);
            std::mem::take(&mut places.refused)
        } else {
            0
        };
        places.refused += 1;
        let is_logged = places.refused <= LOGGED;
        drop(places);
        if before > LOGGED {
            tracing::warn!(clients = before - LOGGED, "refused clients that were not logged");
        }
        if is_logged {
            tracing::warn!(%peer, "refused a client: {reason}");
        }
    }
}

impl Inner {
    /// Which one gives way to one more of `address`, if one must.
    fn to_give_way(&self, address: IpAddr, most: usize, most_of_one: usize) -> Option<usize> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        self.taken.iter().for_each(|taken| *counts.entry(taken.address).or_default() += 1);
        let busiest = if counts.get(&address).is_some_and(|count| *count >= most_of_one) {
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
    /// Waits until this client must give way.
    pub(crate) async fn lost(&mut self) {
        // Nothing is ever sent: this is the sender's end.
        let _ = (&mut self.stopped).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().taken.retain(|taken| taken.number != self.number);
    }
}

/// The address, or of IPv6 the network: each of its hosts may use any address in it.
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
    const MOST_OF_ONE: usize = 64;

    fn peer(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().expect("an address"), 1)
    }

    fn is_lost(place: &mut Place) -> bool {
        !matches!(place.stopped.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }

    #[test]
    fn clients_of_one_address_drive_out_one_another() {
        let all = Places::new(MOST);
        let mut stalled: Vec<_> = (0..300).map(|_| all.begin(peer("10.0.0.1"))).collect();
        let left = stalled.iter_mut().map(|place| !is_lost(place)).collect::<Vec<_>>();
        assert!(
            left[..300 - MOST_OF_ONE].iter().all(|left| !left) && left[300 - MOST_OF_ONE..].iter().all(|left| *left)
        );
        let mut others: Vec<_> = (2..80).map(|n| all.begin(peer(&format!("10.0.0.{n}")))).collect();
        assert!(!others.iter_mut().any(is_lost), "the address with the most gives way");
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

    /// Random clients come and go: no more places than there are, and the newest is never one that gives way.
    #[test]
    fn newest_client_always_has_a_place() {
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
            let of_few = if seed % 3 == 0 { seed >> 32 & 0xff } else { 1 };
            let mut newest = all.begin(peer(&format!("10.0.{}.{}", of_few / 16, of_few % 16)));
            assert!(!is_lost(&mut newest));
            places.push(newest);
            let taken = &all.lock().taken;
            assert!(taken.len() <= MOST);
        }
    }
}
