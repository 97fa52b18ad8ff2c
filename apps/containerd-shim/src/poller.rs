//! The epoll instance. Everything that moves bytes is registered edge-triggered: an edge only says "try all
//! again", and each mover tries until it would block.

use core::mem::MaybeUninit;
use core::time::Duration;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{self, Errno};

/// Which of the things that are waited for has something to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Token {
    Children = 0,
    Control = 1,
    Console = 2,
    ContainerInit = 3,
    Reader = 4,
    Stdio = 5,
    Memory = 6,
}

impl Token {
    const ALL: [Token; 7] = [
        Token::Children,
        Token::Control,
        Token::Console,
        Token::ContainerInit,
        Token::Reader,
        Token::Stdio,
        Token::Memory,
    ];
}

/// The set of tokens that one wait returned.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Ready(u64);

impl Ready {
    pub(crate) fn has(self, token: Token) -> bool {
        self.0 & (1 << token as u64) != 0
    }
}

/// An epoll instance.
#[derive(Debug)]
pub(crate) struct Poller(OwnedFd);

impl Poller {
    pub(crate) fn new() -> io::Result<Poller> {
        Ok(Poller(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Waits for `fd` being readable, as long as it is.
    pub(crate) fn watch(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        epoll::add(&self.0, fd, EventData::new_u64(token as u64), EventFlags::IN)
    }

    /// Waits for each change of `fd`, a file of the kernel's. Once its group is removed it has no more changes, and is ready for
    /// ever, hence the edge.
    pub(crate) fn watch_priority(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        epoll::add(&self.0, fd, EventData::new_u64(token as u64), EventFlags::PRI | EventFlags::ET)
    }

    /// No longer waits for `fd`.
    pub(crate) fn forget(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.0, fd);
    }

    /// Waits for changes of `fd`, a stdio descriptor. A regular file or a device that is always ready cannot be
    /// waited for (`EPERM`), and need not be.
    pub(crate) fn watch_edges(&self, fd: impl AsFd) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        match epoll::add(&self.0, fd, EventData::new_u64(Token::Stdio as u64), flags) {
            Ok(()) | Err(Errno::PERM) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Waits until something is ready, or `timeout` has passed.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<Ready> {
        let timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let mut events = [MaybeUninit::uninit(); 16];
        match epoll::wait(&self.0, &mut events, timeout.as_ref()) {
            Ok((events, _)) => {
                let mut ready = Ready::default();
                for event in events {
                    let token = event.data.u64();
                    debug_assert!(Token::ALL.iter().any(|known| *known as u64 == token));
                    ready.0 |= 1 << token;
                }
                Ok(ready)
            }
            Err(Errno::INTR) => Ok(Ready::default()),
            Err(e) => Err(e),
        }
    }
}
