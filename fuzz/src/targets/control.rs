//! The commands on a shim's `control` FIFO, into which any root process can write.
//!
//! The first byte of an input says how much the shim reads at once.

use contract::{Command, Decoder};

pub(crate) fn run(input: &[u8]) {
    let Some((cut, bytes)) = input.split_first() else { return };
    let mut whole = Decoder::default();
    let expected = whole.decode(bytes);
    // The decoder drops an endless line. Where it does so depends on how the bytes arrive.
    if bytes.split(|byte| *byte == b'\n').all(|line| line.len() < 128) {
        let mut pieces = Decoder::default();
        let decoded: Vec<_> = bytes.chunks(usize::from(*cut).max(1)).flat_map(|piece| pieces.decode(piece)).collect();
        assert_eq!(decoded, expected, "the result depends on how the bytes arrive");
    }
    let commands: Vec<Command> = expected.into_iter().flatten().collect();
    let lines: String = commands.iter().map(|command| command.to_line()).collect();
    let again: Vec<Command> = Decoder::default().decode(lines.as_bytes()).into_iter().flatten().collect();
    assert_eq!(again, commands, "a command is read back from its line");
}
