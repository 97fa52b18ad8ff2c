//! This program's own terminal, in raw mode for as long as a session lasts, and given back as it was.

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io;

/// The terminal's settings before this program changed them.
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Puts stdin's terminal into raw mode; `None` if stdin is no terminal.
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
        // At once: a terminal that is stopped would never have sent all that the process wrote. In the background, too, the
        // kernel would stop this program for that (tcsetattr(3), SIGTTOU). A terminal that is gone needs nothing.
        let _ = sys::signal::block(&[rustix::process::Signal::TTOU.as_raw()]);
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// The size of the terminal that this program has, in characters: of stdin, or else of stdout.
pub(crate) fn size() -> Option<(u32, u32)> {
    let size = tcgetwinsize(std::io::stdin()).or_else(|_| tcgetwinsize(std::io::stdout())).ok()?;
    (size.ws_col != 0 && size.ws_row != 0).then(|| (size.ws_col.into(), size.ws_row.into()))
}
