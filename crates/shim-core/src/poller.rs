//! An epoll instance that reports which watched things need attention.
//!
//! Descriptors that move bytes are watched edge-triggered: an edge says no more than "try again", and the code that moves bytes
//! tries until the kernel would block. Descriptors that are read for a message are watched level-triggered.

use core::mem::MaybeUninit;
use core::time::Duration;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{self, Errno};

/// What a watched descriptor stands for. The program that owns the poller chooses the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token(pub u64);

/// The most events that one wait takes. The next wait takes the others.
const EVENTS: usize = 16;

/// An epoll instance.
#[derive(Debug)]
pub struct Poller(OwnedFd);

impl Poller {
    /// Makes an instance that watches nothing.
    pub fn new() -> io::Result<Poller> {
        Ok(Poller(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Reports `token` as long as `fd` is readable.
    pub fn watch(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        epoll::add(&self.0, fd, EventData::new_u64(token.0), EventFlags::IN)
    }

    /// Reports `token` after each change of `fd`, a cgroup's file. Edge-triggered, because the file of a removed cgroup is ready
    /// for ever.
    pub fn watch_changes(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        epoll::add(&self.0, fd, EventData::new_u64(token.0), EventFlags::PRI | EventFlags::ET)
    }

    /// Reports `token` when `fd` becomes readable or writable. Succeeds without watching if `fd` is a regular file or a device
    /// that is always ready, for which epoll_ctl(2) fails with `EPERM`.
    pub fn watch_edges(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        match epoll::add(&self.0, fd, EventData::new_u64(token.0), flags) {
            Ok(()) | Err(Errno::PERM) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Stops watching `fd`.
    pub fn forget(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.0, fd);
    }

    /// Waits until something is ready or `timeout` has passed, and calls `ready` with each token. A token may be reported more
    /// than once.
    pub fn wait(&self, timeout: Option<Duration>, mut ready: impl FnMut(Token)) -> io::Result<()> {
        let timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let mut events = [MaybeUninit::uninit(); EVENTS];
        match epoll::wait(&self.0, &mut events, timeout.as_ref()) {
            Ok((events, _)) => {
                events.iter().for_each(|event| ready(Token(event.data.u64())));
                Ok(())
            }
            Err(Errno::INTR) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    #[test]
    fn token_of_a_readable_descriptor_is_reported_until_it_is_forgotten() {
        let poller = Poller::new().expect("makes");
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).expect("pipe");
        poller.watch(&reader, Token(7)).expect("watches");
        let reported = |poller: &Poller| {
            let mut tokens = std::vec::Vec::new();
            poller.wait(Some(Duration::ZERO), |token| tokens.push(token)).expect("waits");
            tokens
        };
        assert_eq!(reported(&poller), []);
        rustix::io::write(&writer, b"x").expect("fits");
        assert_eq!(reported(&poller), [Token(7)]);
        assert_eq!(reported(&poller), [Token(7)], "level-triggered");
        poller.forget(&reader);
        assert_eq!(reported(&poller), []);
    }

    #[test]
    fn regular_file_is_accepted_though_it_cannot_be_watched() {
        let file = std::fs::File::open(std::env::current_exe().expect("a program")).expect("opens");
        Poller::new().expect("makes").watch_edges(&file, Token(0)).expect("accepts");
    }
}
