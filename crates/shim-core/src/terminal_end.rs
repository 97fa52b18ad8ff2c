//! The end of a terminal's input, as the program on the terminal sees it.
//!
//! A terminal has no end of file of its own. In canonical mode a VEOF character makes one read(2) return what has been typed of
//! the line. At the start of a line that is nothing, so an unfinished line needs two VEOF characters. In other modes VEOF is a
//! byte like any other. When a program changes the mode, the kernel turns a VEOF that has not been read into a zero byte, or
//! drops it (Linux, drivers/tty/n_tty.c: `n_tty_set_termios`, `TCSAFLUSH`). So no character that is sent once can be the end.
//!
//! Here the end is a state that lasts until the process is over. Whenever the program could read and there is nothing to read,
//! the shim puts the terminal into canonical mode and sends one VEOF. A read that waits, and each later one, then returns 0, as at
//! the end of a file. The program receives no byte that the client has not sent. The kernel wakes the shim when the program reads
//! (`n_tty_check_unthrottle` wakes the master) and when the program changes the mode (which wakes the slave).
//!
//! A read that began in another mode goes on in that mode (`n_tty_read` looks at `VMIN` once): it takes the VEOF and waits on. It
//! has to begin again, as a read does that a signal without a handler interrupts. So the shim sends SIGSTOP to the terminal's
//! foreground process group and SIGCONT at once, which in most cases cancels the stop before it takes effect.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::{self, Errno, ioctl_fionread};
use rustix::process::{Signal, kill_process_group};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{
    LocalModes, OptionalActions, QueueSelector, SpecialCodeIndex, tcflush, tcgetattr, tcgetpgrp, tcsetattr,
};

use crate::stdio::set_nonblocking;

/// Ctrl-D.
const VEOF: u8 = 4;

/// How many mode changes of the program one call follows. The kernel wakes the shim for later ones.
const LOOKS: usize = 8;

/// After so many VEOF characters were taken in one mode, the shim assumes a read that does not return.
const MANY: u32 = 64;

/// The end of the input of one terminal.
#[derive(Debug)]
pub(crate) struct TerminalEnd {
    /// The terminal's slave, because the master does not show the queue of input. Opened only for the end: while it is open,
    /// the master does not tell that no process has the terminal open.
    slave: OwnedFd,
    /// A VEOF was sent, and the shim has not seen that it was read.
    sent: bool,
    /// The number of VEOF characters that were read since the mode was changed.
    taken: u32,
}

impl TerminalEnd {
    /// Opens the slave of `master`. Fails if the kernel cannot do that (before Linux 4.13).
    pub(crate) fn new(master: &OwnedFd) -> io::Result<TerminalEnd> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(master, flags)?;
        set_nonblocking(&slave)?;
        Ok(TerminalEnd { slave, sent: false, taken: 0 })
    }

    /// The descriptor that becomes ready when the program changes the mode.
    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.slave
    }

    /// Makes the program find the end once it has read everything else. To be called whenever the program may have read or
    /// changed the mode.
    pub(crate) fn keep(&mut self, master: &OwnedFd) -> io::Result<()> {
        for _ in 0..LOOKS {
            let mut termios = tcgetattr(&self.slave)?;
            let is_canonical = termios.local_modes.contains(LocalModes::ICANON);
            if self.sent && !is_canonical {
                // If there is one byte, the mode change has made it from the VEOF.
                if ioctl_fionread(&self.slave)? == 1 {
                    tcflush(&self.slave, QueueSelector::IFlush)?;
                }
                self.sent = false;
            }
            if self.can_read()? {
                return Ok(());
            }
            if core::mem::take(&mut self.sent) {
                self.taken += 1;
                if self.taken % MANY == 0 {
                    restart_reads(master);
                }
            }
            let veof = &mut termios.special_codes[SpecialCodeIndex::VEOF];
            if is_canonical && *veof != 0 {
                match rustix::io::write(master, &[*veof]) {
                    // The kernel wakes the shim when the master takes more.
                    Err(Errno::AGAIN) => return Ok(()),
                    Err(e) => return Err(e),
                    Ok(_) => self.sent = true,
                }
                // If the program still cannot read, a character before it (VLNEXT) has made the VEOF an ordinary one.
                continue;
            }
            // This also releases a read that has fewer bytes than it waits for (`VMIN`).
            *veof = VEOF;
            termios.local_modes |= LocalModes::ICANON;
            tcsetattr(&self.slave, OptionalActions::Now, &termios)?;
            self.taken = 0;
            if !is_canonical && self.is_being_read() {
                restart_reads(master);
            }
        }
        Ok(())
    }

    /// Whether a read waits. The kernel serves one read at a time. A second one that must not wait fails with `EAGAIN`, even if
    /// it asks for 0 bytes.
    fn is_being_read(&self) -> bool {
        matches!(rustix::io::read(&self.slave, &mut [0; 0][..]), Err(Errno::AGAIN))
    }

    /// Whether a read of the program would return at once.
    fn can_read(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(&self.slave, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        Ok(polled[0].revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR))
    }
}

/// Makes the reads of a terminal begin again.
fn restart_reads(master: &OwnedFd) {
    // Without a foreground group there is no reader. There is no pidfd for a group, so its number is looked up right before.
    let Ok(group) = tcgetpgrp(master) else { return };
    let _ = kill_process_group(group, Signal::STOP);
    let _ = kill_process_group(group, Signal::CONT);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{grantpt, openpt, unlockpt};
    use rustix::termios::{OutputModes, Termios};

    struct Terminal {
        master: OwnedFd,
        end: TerminalEnd,
        /// The program's descriptor.
        slave: OwnedFd,
    }

    impl Terminal {
        fn new() -> Terminal {
            let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("opens");
            grantpt(&master).and_then(|()| unlockpt(&master)).expect("is ours");
            set_nonblocking(&master).expect("flags");
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
            let slave = ioctl_tiocgptpeer(&master, flags).expect("opens");
            set_nonblocking(&slave).expect("flags");
            let end = TerminalEnd::new(&master).expect("opens");
            Terminal { master, end, slave }
        }

        fn type_in(&self, text: &str) {
            assert_eq!(rustix::io::write(&self.master, text.as_bytes()).expect("fits"), text.len());
        }

        fn keep(&mut self) {
            self.end.keep(&self.master).expect("keeps");
        }

        /// Returns what the program reads without waiting.
        fn read(&self) -> String {
            let mut buffer = [0; 100];
            let length = rustix::io::read(&self.slave, &mut buffer).expect("does not wait");
            String::from_utf8(buffer[..length].to_vec()).expect("text")
        }

        fn change(&self, when: OptionalActions, change: impl FnOnce(&mut Termios)) {
            let mut termios = tcgetattr(&self.slave).expect("a terminal");
            change(&mut termios);
            tcsetattr(&self.slave, when, &termios).expect("a terminal");
        }

        fn is_at_end(&mut self) {
            for _ in 0..3 {
                self.keep();
                assert_eq!(self.read(), "");
            }
        }
    }

    fn editor(termios: &mut Termios) {
        termios.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
    }

    fn canonical(termios: &mut Termios) {
        termios.local_modes |= LocalModes::ICANON;
    }

    #[test]
    fn typed_lines_are_read_before_the_end() {
        for (typed, lines) in [("", &[][..]), ("a\n", &["a\n"]), ("abc", &["abc"]), ("a\nbc", &["a\n", "bc"])] {
            let mut terminal = Terminal::new();
            terminal.type_in(typed);
            for line in lines {
                terminal.keep();
                assert_eq!(terminal.read(), *line);
            }
            terminal.is_at_end();
        }
    }

    #[test]
    fn raw_reader_gets_typed_bytes_and_then_the_end() {
        for change in [editor, Termios::make_raw] {
            let mut terminal = Terminal::new();
            terminal.change(OptionalActions::Now, change);
            terminal.type_in("a\u{4}b");
            terminal.keep();
            assert_eq!(terminal.read(), "a\u{4}b");
            terminal.is_at_end();
        }
    }

    #[test]
    fn end_survives_mode_changes_and_leaves_no_byte() {
        for when in [OptionalActions::Now, OptionalActions::Drain, OptionalActions::Flush] {
            let mut terminal = Terminal::new();
            for _ in 0..3 {
                terminal.keep();
                terminal.change(when, editor);
                terminal.is_at_end();
                terminal.keep();
                terminal.change(when, Termios::make_raw);
                terminal.is_at_end();
                terminal.change(when, canonical);
                terminal.is_at_end();
            }
        }
    }

    #[test]
    fn end_in_a_raw_terminal_changes_only_how_input_is_read() {
        let mut terminal = Terminal::new();
        terminal.change(OptionalActions::Now, Termios::make_raw);
        terminal.is_at_end();
        let termios = tcgetattr(&terminal.slave).expect("a terminal");
        assert!(!termios.output_modes.contains(OutputModes::OPOST));
        assert!(!termios.local_modes.intersects(LocalModes::ECHO | LocalModes::ISIG));
    }

    #[test]
    fn unfinished_line_typed_before_raw_mode_is_read() {
        let mut terminal = Terminal::new();
        terminal.type_in("abc");
        terminal.change(OptionalActions::Now, editor);
        terminal.keep();
        assert_eq!(terminal.read(), "abc");
        terminal.is_at_end();
    }

    #[test]
    fn reader_that_waits_for_more_bytes_gets_those_that_came() {
        let mut terminal = Terminal::new();
        terminal.change(OptionalActions::Now, |termios| {
            editor(termios);
            termios.special_codes[SpecialCodeIndex::VMIN] = 5;
        });
        terminal.type_in("ab");
        terminal.keep();
        assert_eq!(terminal.read(), "ab");
        terminal.is_at_end();
    }

    #[test]
    fn literal_next_or_disabled_veof_does_not_hide_the_end() {
        let mut terminal = Terminal::new();
        // Ctrl-V makes the next character an ordinary one.
        terminal.type_in("\u{16}");
        terminal.keep();
        assert_eq!(terminal.read(), "\u{4}");
        terminal.is_at_end();
        let mut terminal = Terminal::new();
        terminal.change(OptionalActions::Now, |termios| termios.special_codes[SpecialCodeIndex::VEOF] = 0);
        terminal.is_at_end();
    }
}
