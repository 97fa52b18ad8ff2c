//! Signals that end this program while it waits for the daemon. The program then says what goes on without it, and ends at
//! once, by the signal.

use std::io;
use std::os::fd::OwnedFd;
use sys::signal::SignalFd;
use tokio::io::unix::AsyncFd;

use crate::failure::Failure;
use crate::out;

pub(crate) const SIGWINCH: i32 = rustix::process::Signal::WINCH.as_raw();
const SIGHUP: i32 = rustix::process::Signal::HUP.as_raw();

/// The signals that would end this program, and SIGWINCH, which reports a resized terminal. They are blocked while this value
/// lives.
pub(crate) struct Signals(AsyncFd<OwnedFd>);

impl Signals {
    /// Blocks the signals. Call this within a tokio runtime, and before the program has another thread: each thread has a mask of
    /// its own, which it inherits.
    pub(crate) fn take() -> io::Result<Signals> {
        let mut signals = sys::signal::deadly();
        signals.push(SIGWINCH);
        if sys::signal::is_ignored(SIGHUP) {
            // nohup(1) has SIGHUP ignored. A signal that is blocked is queued although it is ignored.
            signals.retain(|signal| *signal != SIGHUP);
        }
        sys::signal::block(&signals)?;
        Ok(Signals(sys::watched::readable(SignalFd::new(&signals)?.into())?))
    }

    /// Waits for the next signal.
    pub(crate) async fn next(&self) -> io::Result<i32> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Some(signal) = sys::signal::take_from(&self.0)? {
                return Ok(signal as i32);
            }
            ready.clear_ready();
        }
    }

    /// Waits for the next signal that ends this program.
    pub(crate) async fn deadly(&self) -> io::Result<i32> {
        loop {
            match self.next().await? {
                SIGWINCH => {}
                signal => return Ok(signal),
            }
        }
    }

    /// Waits for `work`. A signal drops it: then this program prints `message` and ends by the signal.
    pub(crate) async fn end<T>(
        &self,
        message: impl FnOnce() -> String,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            signal = self.deadly() => {
                let signal = signal?;
                out::say(message());
                sys::signal::die_by(signal)
            }
            result = work => result,
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // Signals that came meanwhile take effect now. Only an invalid argument could make this fail.
        let _ = sys::signal::unblock_all();
    }
}
