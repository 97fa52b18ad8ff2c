//! Commands that the daemon sends to a shim through the FIFO `control`: one line of three decimal numbers each.
//!
//! A line is shorter than `PIPE_BUF`, so the kernel writes it whole or not at all (pipe(7)). A reader may still receive part of
//! a line, because it chooses how much it reads at once; [`Decoder`] keeps the rest.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// A command to a shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Close the process's stdin after the bytes that the client has written so far.
    CloseStdin,
    /// Resize the process's terminal.
    Resize {
        /// The new width in characters.
        columns: u16,
        /// The new height in characters.
        rows: u16,
    },
}

impl Command {
    /// The line that the daemon writes.
    pub fn to_line(self) -> String {
        match self {
            Command::CloseStdin => "0 0 0\n".into(),
            Command::Resize { columns, rows } => format!("1 {columns} {rows}\n"),
        }
    }

    /// Reads a line, with or without its end.
    fn parse(line: &str) -> Option<Command> {
        let numbers: Vec<u16> = line.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect();
        match numbers[..] {
            [0, _, _] => Some(Command::CloseStdin),
            [1, columns, rows] => Some(Command::Resize { columns, rows }),
            _ => None,
        }
    }
}

/// A line on `control` that is no known command, without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownCommand(pub String);

/// The longest incomplete line that is kept. Every command is shorter, so longer text does not come from a daemon.
const LONGEST: usize = 128;

/// Finds the commands in the bytes that were read from `control`.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The beginning of a line whose end has not been read.
    rest: Vec<u8>,
}

impl Decoder {
    /// Takes the next bytes and returns the lines that they complete.
    pub fn decode(&mut self, bytes: &[u8]) -> Vec<Result<Command, UnknownCommand>> {
        self.rest.extend_from_slice(bytes);
        let mut commands = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            commands.push(Command::parse(&line).ok_or_else(|| UnknownCommand(line.trim_end().to_string())));
        }
        if self.rest.len() > LONGEST {
            self.rest.clear();
        }
        commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_are_decoded_once_their_line_is_complete() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.decode(b"0 0 0\n1 80 2"), [Ok(Command::CloseStdin)]);
        let resized = |columns, rows| Ok(Command::Resize { columns, rows });
        assert_eq!(decoder.decode(b"4\n1 1 1\n"), [resized(80, 24), resized(1, 1)]);
        assert!(decoder.rest.is_empty());
    }

    #[test]
    fn unknown_lines_are_reported_and_skipped() {
        let mut decoder = Decoder::default();
        let unknown = |line: &str| Err(UnknownCommand(line.into()));
        let decoded = decoder.decode(b"2 0 0\nhello\n1 70000 1\n\n0 0 0\n");
        assert_eq!(
            decoded,
            [unknown("2 0 0"), unknown("hello"), unknown("1 70000 1"), unknown(""), Ok(Command::CloseStdin)]
        );
    }

    #[test]
    fn endless_line_is_dropped() {
        let mut decoder = Decoder::default();
        assert!(decoder.decode(&[b'x'; LONGEST + 1]).is_empty());
        assert_eq!(decoder.decode(b"0 0 0\n"), [Ok(Command::CloseStdin)]);
    }

    fn commands() -> impl Strategy<Value = Vec<Command>> {
        let resize = any::<(u16, u16)>().prop_map(|(columns, rows)| Command::Resize { columns, rows });
        prop::collection::vec(prop_oneof![Just(Command::CloseStdin), resize], 0..20)
    }

    proptest! {
        #[test]
        fn encoded_commands_are_decoded_however_they_are_cut(commands in commands(), piece in 1usize..40) {
            let text: String = commands.iter().map(|command| command.to_line()).collect();
            let mut decoder = Decoder::default();
            let decoded: Vec<_> = text.as_bytes().chunks(piece).flat_map(|piece| decoder.decode(piece)).collect();
            prop_assert_eq!(decoded, commands.into_iter().map(Ok).collect::<Vec<_>>());
        }

        #[test]
        fn any_bytes_can_be_decoded(bytes in prop::collection::vec(any::<u8>(), 0..400), piece in 1usize..40) {
            let mut decoder = Decoder::default();
            for piece in bytes.chunks(piece) {
                decoder.decode(piece);
                prop_assert!(decoder.rest.len() <= LONGEST);
            }
        }
    }
}
