//! The signals that control the daemon.

use anyhow::{Context as _, Result};
use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Streams of the signals that have arrived.
pub(super) struct Signals {
    /// SIGTERM and SIGINT stop the daemon.
    pub(super) stop: Stop,
    /// SIGHUP replaces the daemon by the program that is installed now.
    pub(super) replace: Signal,
    /// SIGUSR1 logs what the daemon is doing.
    pub(super) dump: Signal,
}

impl Signals {
    /// Begins to catch the signals.
    pub(super) fn catch() -> Result<Signals> {
        let catch = |kind| signal(kind).context("catch signals");
        Ok(Signals {
            stop: Stop { terminate: catch(SignalKind::terminate())?, interrupt: catch(SignalKind::interrupt())? },
            replace: catch(SignalKind::hangup())?,
            dump: catch(SignalKind::user_defined1())?,
        })
    }
}

/// The signals that stop the daemon.
pub(super) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// Waits for one of the signals and returns its name.
    pub(super) async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// From now on, the signals kill this process.
    pub(super) fn restore_default() -> io::Result<()> {
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            sys::signal::restore_default(kind.as_raw_value())?;
        }
        Ok(())
    }
}
