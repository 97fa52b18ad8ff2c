//! This program's own terminal: in raw mode while a session lasts, and then restored.

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io;

/// Raw mode of stdin's terminal. Dropping this restores the terminal's settings.
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Puts stdin's terminal into raw mode. Returns `None` if stdin is not a terminal.
    pub(crate) fn enter() -> io::Result<Option<RawMode>> {
        let stdin = std::io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(RawMode { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // `Now` does not wait for pending output, which a terminal that is stopped by Ctrl-S would never send. The kernel
        // stops a program in the background that changes its terminal (tcsetattr(3), SIGTTOU), unless it blocks that
        // signal. A terminal that is gone needs no settings.
        let _ = sys::signal::block(&[rustix::process::Signal::TTOU.as_raw()]);
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// The size of this program's terminal, in characters: that of stdin, or else of stdout.
pub(crate) fn size() -> Option<(u32, u32)> {
    let size = tcgetwinsize(std::io::stdin()).or_else(|_| tcgetwinsize(std::io::stdout())).ok()?;
    (size.ws_col != 0 && size.ws_row != 0).then(|| (size.ws_col.into(), size.ws_row.into()))
}
