//! The lines of `events.log`: their form, and reading them from a file that may be damaged.
//!
//! A line is a JSON object with a checksum ([`oci::checksum`]), so that a changed byte is noticed wherever it is.
//! Older daemons write lines without a checksum: such a line is accepted if it can be parsed.

use oci::checksum;

use crate::events::event::Event;

/// The line of an event, with its line feed.
pub(super) fn encode(event: &Event) -> serde_json::Result<Vec<u8>> {
    let mut line = checksum::seal(serde_json::to_vec(event)?);
    line.push(b'\n');
    Ok(line)
}

/// The event of a line without its line feed; `None` if the line is damaged.
pub(super) fn decode(line: &[u8]) -> Option<Event> {
    if checksum::is_intact(line) { serde_json::from_slice(line).ok() } else { None }
}

/// The events in the text of a file, in its order, and the lines that are damaged.
pub(super) fn parse(text: &[u8]) -> (Vec<Event>, Vec<&[u8]>) {
    let (mut events, mut damaged) = (Vec::new(), Vec::new());
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match decode(line) {
            Some(event) => events.push(event),
            None => damaged.push(line),
        }
    }
    (events, damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::event::{EventKind, Timestamp};
    use proptest::prelude::*;

    fn event() -> Event {
        Event {
            id: "c1".into(),
            kind: EventKind::Exit,
            timestamp: Timestamp(1_790_000_000_000_000_001),
            pid: "init".into(),
            status: 137,
            instance: "key".into(),
            oom_kills: 0,
            process: String::new(),
            was: None,
        }
    }

    #[test]
    fn line_of_an_older_daemon_is_taken() {
        let line = serde_json::to_vec(&event()).expect("plain data");
        assert_eq!(decode(&line), Some(event()));
    }

    #[test]
    fn older_daemon_reads_a_line_with_a_checksum() {
        let line = encode(&event()).expect("plain data");
        let value: serde_json::Value = serde_json::from_slice(&line).expect("is JSON");
        assert_eq!(value["type"], "exit");
        assert_eq!(serde_json::from_slice::<Event>(&line).expect("further members are passed over"), event());
    }

    #[test]
    fn every_flipped_bit_is_noticed_or_leaves_the_event_as_it_was() {
        let line = encode(&event()).expect("plain data");
        let line = line.strip_suffix(b"\n").expect("ends with a line feed");
        for bit in 0..line.len() * 8 {
            let mut flipped = line.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let decoded = decode(&flipped);
            assert!(decoded.is_none() || decoded == Some(event()), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_and_no_line_is_dropped_silently(text in prop::collection::vec(any::<u8>(), 0..400)) {
            let (events, damaged) = parse(&text);
            let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
            prop_assert_eq!(events.len() + damaged.len(), lines);
        }

        #[test]
        fn cut_line_is_damaged(length in 1usize..100) {
            let line = encode(&event()).expect("plain data");
            prop_assert!(decode(&line[..length.min(line.len() - 2)]).is_none());
        }
    }
}
