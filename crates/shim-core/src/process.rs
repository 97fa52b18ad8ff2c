//! When a process is over: it has ended, and its output has been delivered or given up.
//!
//! The process's output has been delivered once the pipes are at their end, or once no process of the container can write any
//! more and the pipes are empty. A descendant that left the container may hold a pipe open for ever and must not delay the end.

use core::time::Duration;
use sys::child::ExitStatus;
use sys::clock::Instant;

use crate::Warn;
use crate::output::{Ended, READER_WAIT};
use crate::poller::Poller;
use crate::streams::Streams;

/// How often to look for readers whose coming the kernel does not report.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What a process is in its container. It decides when no process can write to the process's pipes any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The container's init.
    Init {
        /// Whether it is the first process of its PID namespace. Then the kernel kills all others of the namespace before the
        /// end of this one can be seen (pid_namespaces(7)).
        ends_namespace: bool,
    },
    /// A process that was added to a running container.
    Added,
}

/// A process with its stdio, from the start of the runtime that makes it until it is over.
#[derive(Debug)]
pub struct Process {
    streams: Streams,
    role: Role,
    /// When the init of an added process's container was seen to have ended.
    init_ended: Option<Instant>,
    ended: Option<(ExitStatus, Instant)>,
    /// Whether a runtime is killing what is left in the container.
    is_killing: bool,
    /// Whether the shim has no child left that could belong to the container.
    is_childless: bool,
}

impl Process {
    /// A process that the runtime is still to make.
    pub fn new(streams: Streams) -> Process {
        let role = Role::Init { ends_namespace: true };
        Process { streams, role, init_ended: None, ended: None, is_killing: false, is_childless: false }
    }

    /// Its stdio.
    pub fn streams(&mut self) -> &mut Streams {
        &mut self.streams
    }

    /// Says what the process is. To be called once the runtime has made it.
    pub fn set_role(&mut self, role: Role) {
        self.role = role;
    }

    /// Says that the container's init has ended, of which this process is not it.
    pub fn init_has_ended(&mut self) {
        self.init_ended.get_or_insert_with(Instant::now);
    }

    /// Says that the process has ended, and how. Returns whether what is left in the container has to be killed
    /// ([`Process::set_killing`]): true for an init whose end does not do that.
    pub fn has_ended(&mut self, status: ExitStatus) -> bool {
        self.ended = Some((status, Instant::now()));
        self.role == Role::Init { ends_namespace: false }
    }

    /// Says whether a runtime is killing what is left in the container.
    pub fn set_killing(&mut self, is_killing: bool) {
        self.is_killing = is_killing;
    }

    /// Says that the shim has no child left that could belong to the container. The shim is a subreaper, so all processes that
    /// the container's processes started are its descendants.
    pub fn set_childless(&mut self) {
        self.is_childless = true;
    }

    /// How the process ended.
    pub fn status(&self) -> Option<ExitStatus> {
        self.ended.map(|(status, _)| status)
    }

    /// Moves what can be moved of its stdio. True if there may be more to move at once.
    pub fn advance(&mut self, poller: &Poller, warn: Warn<'_>) -> bool {
        let ended = self.ended.map(|_| {
            let now = Instant::now();
            let is_last_attempt = self.init_ended.is_some_and(|since| now.since(since) >= READER_WAIT);
            Ended { nobody_writes: self.nobody_writes(), is_last_attempt, now }
        });
        self.streams.advance(ended, poller, warn)
    }

    /// Whether the process has ended and nothing delays its exit any more.
    pub fn is_over(&self) -> bool {
        self.ended.is_some() && (!self.is_killing || self.has_waited_enough()) && self.streams.are_done()
    }

    /// How long until [`Process::advance`] has to be called even if nothing becomes ready. `None` for ever.
    pub fn timeout(&self) -> Option<Duration> {
        let last = self.ended.and_then(|(_, ended)| match self.role {
            Role::Init { ends_namespace: false } if !self.has_waited_enough() => Some(ended + READER_WAIT),
            Role::Init { .. } => None,
            Role::Added => self.init_ended.map(|since| since + READER_WAIT),
        });
        let left = self.streams.deadline().into_iter().chain(last).min().map(|at| at.since(Instant::now()));
        if self.streams.must_look_for_readers() {
            return Some(left.map_or(LOOK_INTERVAL, |left| left.min(LOOK_INTERVAL)));
        }
        left
    }

    /// Whether no process of the container can write any more.
    fn nobody_writes(&self) -> bool {
        match self.role {
            Role::Init { ends_namespace } => ends_namespace || self.is_childless || self.has_waited_enough(),
            Role::Added => self.init_ended.is_some(),
        }
    }

    /// Whether the process ended so long ago that a hanging process or runtime delays its exit no longer.
    fn has_waited_enough(&self) -> bool {
        self.ended.is_some_and(|(_, at)| at.elapsed() >= READER_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::poller::Token;
    use crate::stdio::{Direction, Owner, ProcessStdio, open_client};
    use crate::streams::Client;

    const QUIET: Warn<'static> = &|_| {};

    /// A process whose stdout goes to a file.
    fn process(poller: &Poller, name: &str) -> (Process, ProcessStdio, std::path::PathBuf) {
        let path = std::env::temp_dir().join(std::format!("process-{name}-{}", std::process::id()));
        std::fs::write(&path, "").expect("writes");
        let stdout = open_client(path.to_str().expect("text"), Direction::ToClient).expect("opens");
        let client = Client { stdout, ..Client::default() };
        let (streams, stdio) = Streams::with_pipes(client, Owner::default(), poller, Token(0)).expect("opens");
        (Process::new(streams), stdio, path)
    }

    fn advance(process: &mut Process, poller: &Poller) {
        while process.advance(poller, QUIET) {}
    }

    #[test]
    fn two_processes_of_one_program_do_not_disturb_each_other() {
        let poller = Poller::new().expect("makes");
        let (mut a, stdio_a, path_a) = process(&poller, "a");
        let (mut b, stdio_b, path_b) = process(&poller, "b");
        rustix::io::write(stdio_a.stdout.as_ref().expect("a pipe"), b"of a").expect("fits");
        rustix::io::write(stdio_b.stdout.as_ref().expect("a pipe"), b"of b").expect("fits");
        assert!(!a.has_ended(7), "the kernel has killed the others");
        advance(&mut a, &poller);
        advance(&mut b, &poller);
        assert!(a.is_over() && a.status() == Some(7), "though its pipe is still open");
        assert!(!b.is_over() && b.status().is_none());
        drop(stdio_b);
        assert!(!b.has_ended(0));
        advance(&mut b, &poller);
        assert!(b.is_over());
        for (path, text) in [(path_a, "of a"), (path_b, "of b")] {
            assert_eq!(std::fs::read_to_string(&path).expect("reads"), text);
            std::fs::remove_file(path).expect("removes");
        }
    }

    #[test]
    fn init_without_a_namespace_is_over_once_the_others_are_killed() {
        let poller = Poller::new().expect("makes");
        let (mut init, stdio, path) = process(&poller, "init");
        init.set_role(Role::Init { ends_namespace: false });
        assert!(init.has_ended(0), "others may be left");
        init.set_killing(true);
        advance(&mut init, &poller);
        assert!(!init.is_over() && init.timeout().is_some_and(|left| left <= READER_WAIT));
        init.set_killing(false);
        advance(&mut init, &poller);
        assert!(!init.is_over(), "a child could still write");
        init.set_childless();
        advance(&mut init, &poller);
        assert!(init.is_over());
        drop(stdio);
        std::fs::remove_file(path).expect("removes");
    }

    #[test]
    fn added_process_is_over_when_its_pipe_closes_or_init_has_ended() {
        for init_ends in [false, true] {
            let poller = Poller::new().expect("makes");
            let (mut added, stdio, path) = process(&poller, if init_ends { "orphan" } else { "added" });
            added.set_role(Role::Added);
            assert!(!added.has_ended(0));
            advance(&mut added, &poller);
            assert!(!added.is_over() && added.timeout().is_none());
            if init_ends {
                added.init_has_ended();
            } else {
                drop(stdio);
            }
            advance(&mut added, &poller);
            assert!(added.is_over());
            std::fs::remove_file(path).expect("removes");
        }
    }
}
