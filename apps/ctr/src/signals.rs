//! Signals that end this program while it waits for the daemon: it says what goes on without it, and ends at once.

use std::io;
use std::os::fd::OwnedFd;
use sys::signal::SignalFd;
use tokio::io::unix::AsyncFd;

use crate::failure::Failure;
use crate::out;

pub(crate) const SIGWINCH: i32 = rustix::process::Signal::WINCH.as_raw();
const SIGHUP: i32 = rustix::process::Signal::HUP.as_raw();

/// The signals that would end this program, and that of a resized terminal. They are blocked while this lives.
pub(crate) struct Signals(AsyncFd<OwnedFd>);

impl Signals {
    /// Must be called within a tokio runtime, before there is any other thread.
    pub(crate) fn take() -> io::Result<Signals> {
        let mut signals = sys::signal::deadly();
        signals.push(SIGWINCH);
        if sys::signal::is_ignored(SIGHUP) {
            // nohup(1): a signal that is blocked would come although it is ignored.
            signals.retain(|signal| *signal != SIGHUP);
        }
        sys::signal::block(&signals)?;
        Ok(Signals(sys::watched::readable(SignalFd::new(&signals)?.into())?))
    }

    /// The next signal.
    pub(crate) async fn next(&self) -> io::Result<i32> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Some(signal) = sys::signal::take_from(&self.0)? {
                return Ok(signal as i32);
            }
            ready.clear_ready();
        }
    }

    /// The next signal that ends this program.
    pub(crate) async fn deadly(&self) -> io::Result<i32> {
        loop {
            match self.next().await? {
                SIGWINCH => {}
                signal => return Ok(signal),
            }
        }
    }

    /// Does `work`, which is dropped when a signal comes. Then this program says `goes_on` and ends by the signal.
    pub(crate) async fn end<T>(
        &self,
        goes_on: impl FnOnce() -> String,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            signal = self.deadly() => {
                let signal = signal?;
                out::say(goes_on());
                sys::signal::die_by(signal)
            }
            result = work => result,
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // What came meanwhile takes effect now. Only an invalid argument could be refused.
        let _ = sys::signal::unblock_all();
    }
}
