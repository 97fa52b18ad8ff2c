//! Timestamps of the journal where the clock was wrong.
//!
//! Timestamps strictly increase in the order of the journal, so that a client can go on from the last one that it has
//! seen. A clock that was once in 2048 must not keep all later events there. So timestamps that are implausibly far in the
//! future are moved, in their order, to right after the last plausible one. The journal keeps the old timestamps, because a
//! client may still name one of them as its place.

use std::collections::BTreeMap;

use crate::events::event::{Event, Timestamp};

const DAY: i64 = 24 * 3600 * 1_000_000_000;

/// How far timestamps may be ahead of the clock. A clock that shows the time of another time zone is off by less.
const AHEAD: i64 = DAY;

/// 2025-01-01. This program is younger: a clock that shows an earlier time is wrong, and says nothing about other timestamps.
const EARLIEST: Timestamp = Timestamp(1_735_689_600_000_000_000);

/// 2200-01-01. Timestamps end in 2262.
const LATEST: Timestamp = Timestamp(7_258_118_400_000_000_000);

/// How many moved timestamps are remembered.
const MOVED_MOST: usize = 4096;

/// The latest timestamp that is plausible while the clock shows `now`.
pub(super) fn latest_plausible(now: Timestamp) -> Timestamp {
    if now < EARLIEST { LATEST } else { now.plus(AHEAD).min(LATEST) }
}

/// The next timestamp of a journal whose last one is `last`.
pub(super) fn next(last: Timestamp, now: Timestamp) -> Timestamp {
    if now > LATEST { last.next() } else { now.max(last.next()) }
}

/// Where moved timestamps are now.
#[derive(Debug, Default)]
pub(super) struct Moved(BTreeMap<Timestamp, Timestamp>);

impl Moved {
    /// Where a place in the journal is now that was at `place`. `last` is the journal's last timestamp.
    pub(super) fn find(&self, place: Timestamp, last: Timestamp) -> Timestamp {
        if place <= last {
            return place;
        }
        self.0.range(..=place).next_back().map_or(place, |(_, is)| *is)
    }

    fn note(&mut self, was: Timestamp, is: Timestamp) {
        self.0.insert(was, is);
        while self.0.len() > MOVED_MOST {
            self.0.pop_first();
        }
    }
}

/// Makes the timestamps of events strictly increase in the order that the events have, and moves those that are
/// implausible. All of them become later than `after`, if that is given.
pub(super) fn settle(events: &mut [Event], after: Option<Timestamp>, now: Timestamp, moved: &mut Moved) {
    let latest = latest_plausible(now);
    // Before the first plausible timestamp there must be room for the events that precede it.
    let before = events.iter().take_while(|event| event.timestamp > latest).count();
    let first = events.get(before).map_or(now.min(latest), |event| event.timestamp);
    let mut last = after.unwrap_or_else(|| first.plus(-1 - i64::try_from(before).unwrap_or(i64::MAX - 1)));
    for event in events {
        let was = event.timestamp;
        event.timestamp = if was > latest { last.next() } else { was.max(last.next()) };
        if was > latest {
            event.was = event.was.or(Some(was));
        }
        if let Some(was) = event.was {
            moved.note(was, event.timestamp);
        }
        last = event.timestamp;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::event::EventKind;
    use proptest::prelude::*;

    fn at(timestamp: i64) -> Event {
        Event {
            id: "c".into(),
            kind: EventKind::Oom,
            timestamp: Timestamp(timestamp),
            pid: String::new(),
            status: 0,
            instance: String::new(),
            oom_kills: 0,
            process: String::new(),
            was: None,
        }
    }

    /// 2026-09-01, when the clock is right.
    const NOW: Timestamp = Timestamp(1_788_220_800_000_000_000);
    const YEAR: i64 = 365 * DAY;

    #[test]
    fn timestamps_of_a_wrong_clock_move_behind_the_last_plausible_one() {
        let wrong = NOW.0 + 22 * YEAR;
        let mut events = [at(NOW.0 - 10), at(wrong), at(wrong + 1), at(NOW.0 - 5)];
        let mut moved = Moved::default();
        settle(&mut events, None, NOW, &mut moved);
        let stamps: Vec<i64> = events.iter().map(|event| event.timestamp.0 - NOW.0).collect();
        assert_eq!(stamps, [-10, -9, -8, -5]);
        let last = events[3].timestamp;
        assert_eq!(moved.find(Timestamp(wrong), last), events[1].timestamp, "a client goes on after what it has seen");
        assert_eq!(moved.find(Timestamp(wrong + 100), last), events[2].timestamp);
        assert_eq!(moved.find(NOW.plus(-7), last), NOW.plus(-7));
    }

    #[test]
    fn clock_that_went_back_by_an_hour_moves_nothing() {
        let mut events = [at(NOW.0 + 3600 * 1_000_000_000), at(NOW.0)];
        settle(&mut events, None, NOW, &mut Moved::default());
        assert_eq!(events[0].timestamp.0, NOW.0 + 3600 * 1_000_000_000);
        assert_eq!(events[1].timestamp, events[0].timestamp.next());
    }

    #[test]
    fn clock_of_1970_is_no_measure() {
        let mut events = [at(NOW.0)];
        settle(&mut events, None, Timestamp(5), &mut Moved::default());
        assert_eq!(events[0].timestamp, NOW);
    }

    #[test]
    fn clock_beyond_the_end_of_timestamps_still_tells_events_apart() {
        let last = next(NOW, Timestamp(i64::MAX));
        assert_eq!(last, NOW.next());
        assert_eq!(next(last, Timestamp(i64::MAX)), NOW.plus(2));
    }

    proptest! {
        #[test]
        fn settled_timestamps_are_plausible_and_strictly_increase(
            stamps in prop::collection::vec(any::<i64>().prop_map(|stamp| stamp / 2), 0..50)
        ) {
            let mut events: Vec<Event> = stamps.into_iter().map(at).collect();
            settle(&mut events, None, NOW, &mut Moved::default());
            for pair in events.windows(2) {
                prop_assert!(pair[0].timestamp < pair[1].timestamp);
            }
            prop_assert!(events.iter().all(|event| event.timestamp <= latest_plausible(NOW).plus(50)));
        }
    }
}
