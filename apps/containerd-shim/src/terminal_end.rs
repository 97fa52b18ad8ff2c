//! The end of a terminal's input, as the program on it sees it.
//!
//! A terminal has no end of file of its own. In canonical mode a VEOF character makes one read(2) return what has been
//! typed of the line, which is nothing at the start of a line; so an unfinished line needs two. In other modes it is a
//! byte like any other. When a program changes the mode, a VEOF that has not been read becomes a zero byte, or is dropped
//! (Linux, drivers/tty/n_tty.c: `n_tty_set_termios`, `TCSAFLUSH`). So no character that is sent once can be the end.
//!
//! Here the end is a state that lasts until the process is over. Whenever the program could read and finds nothing, the
//! terminal is put into canonical mode and is sent one VEOF: a read that waits, and each later one, returns 0, as it does
//! at the end of a file. No byte arrives that the client has not sent. The kernel wakes the shim when the program reads
//! (`n_tty_check_unthrottle` wakes the master) and when it changes the mode (which wakes the slave).
//!
//! A read that began in another mode goes on as such (`n_tty_read` looks at `VMIN` once): it takes the VEOF and waits
//! further. It has to begin again, as a read does that a signal interrupts without a handler. The terminal's foreground
//! process group gets SIGSTOP and at once SIGCONT, which takes the former back, in most cases before it takes effect.

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

/// Mode changes of the program that one look follows; the kernel tells of later ones.
const LOOKS: usize = 8;

/// After so many ends that were taken in one mode, a reader is assumed that does not return.
const MANY: u32 = 64;

/// The end of the input of one terminal.
#[derive(Debug)]
pub(crate) struct TerminalEnd {
    /// The terminal itself, whose queue of input the master does not show. Not held open before there is an end, as the
    /// master tells by its being closed that no process has the terminal any more.
    slave: OwnedFd,
    /// A VEOF was sent, and nothing has been seen of its having been read.
    sent: bool,
    /// How many have been taken since the mode was changed.
    taken: u32,
}

impl TerminalEnd {
    /// `master` is that of the terminal. An error where the kernel cannot open its other side (before Linux 4.13).
    pub(crate) fn new(master: &OwnedFd) -> io::Result<TerminalEnd> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(master, flags)?;
        set_nonblocking(&slave)?;
        Ok(TerminalEnd { slave, sent: false, taken: 0 })
    }

    /// What tells of mode changes.
    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.slave
    }

    /// Has the program find the end once it has read everything else. To be called whenever it may have read something or
    /// changed the mode.
    pub(crate) fn keep(&mut self, master: &OwnedFd) -> io::Result<()> {
        for _ in 0..LOOKS {
            let mut termios = tcgetattr(&self.slave)?;
            let is_canonical = termios.local_modes.contains(LocalModes::ICANON);
            if self.sent && !is_canonical {
                // If there is one byte, it is what the change of the mode has made of the VEOF.
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
                    // The kernel tells when it takes more.
                    Err(Errno::AGAIN) => return Ok(()),
                    Err(e) => return Err(e),
                    Ok(_) => self.sent = true,
                }
                // If that is not the end of a line, a character before it has made it a usual one.
                continue;
            }
            // This also gives a reader what it waits to become more (`VMIN`).
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

    /// Whether a read waits. The kernel lets one read at a time, and one that must not wait for another fails with
    /// `EAGAIN`, even if it asks for nothing.
    fn is_being_read(&self) -> bool {
        matches!(rustix::io::read(&self.slave, &mut [0; 0][..]), Err(Errno::AGAIN))
    }

    /// Whether a read of the program would not wait.
    fn can_read(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(&self.slave, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        Ok(polled[0].revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR))
    }
}

/// Has the reads of a terminal begin again.
fn restart_reads(master: &OwnedFd) {
    // Without a foreground group there is no reader. It is looked up just now; no pidfd stands for a group.
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
        /// The program's.
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

        /// What the program reads at once.
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
    fn lines_and_an_unfinished_one_come_before_the_end() {
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
    fn a_raw_reader_gets_what_was_typed_and_then_the_end() {
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
    fn an_end_that_a_mode_change_spoils_is_made_again_and_leaves_no_byte() {
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
    fn only_the_reading_of_input_is_changed_in_a_raw_terminal() {
        let mut terminal = Terminal::new();
        terminal.change(OptionalActions::Now, Termios::make_raw);
        terminal.is_at_end();
        let termios = tcgetattr(&terminal.slave).expect("a terminal");
        assert!(!termios.output_modes.contains(OutputModes::OPOST));
        assert!(!termios.local_modes.intersects(LocalModes::ECHO | LocalModes::ISIG));
    }

    #[test]
    fn an_unfinished_line_typed_before_raw_mode_is_not_lost() {
        let mut terminal = Terminal::new();
        terminal.type_in("abc");
        terminal.change(OptionalActions::Now, editor);
        terminal.keep();
        assert_eq!(terminal.read(), "abc");
        terminal.is_at_end();
    }

    #[test]
    fn a_reader_that_waits_for_more_bytes_than_come_gets_those() {
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
    fn a_literal_next_or_a_disabled_character_does_not_hide_the_end() {
        let mut terminal = Terminal::new();
        // Ctrl-V takes the next character as it is.
        terminal.type_in("\u{16}");
        terminal.keep();
        assert_eq!(terminal.read(), "\u{4}");
        terminal.is_at_end();
        let mut terminal = Terminal::new();
        terminal.change(OptionalActions::Now, |termios| termios.special_codes[SpecialCodeIndex::VEOF] = 0);
        terminal.is_at_end();
    }
}
