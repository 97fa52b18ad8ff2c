//! The values of flags: sizes, durations and signals.

use std::time::Duration;

/// Parses a number that may end with K, M or G, for powers of 1024. -1 becomes its two's complement, which the API takes for no
/// limit.
pub(super) fn size(text: &str) -> Result<u64, String> {
    if text == "-1" {
        return Ok(u64::MAX);
    }
    let wrong = || format!("{text:?} is not a size: write a number, which may end with K, M or G, or -1 for no limit");
    let (number, shift) = match text.char_indices().next_back() {
        Some((end, 'k' | 'K')) => (&text[..end], 10),
        Some((end, 'm' | 'M')) => (&text[..end], 20),
        Some((end, 'g' | 'G')) => (&text[..end], 30),
        _ => (text, 0),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes <= i64::MAX as u64).ok_or_else(wrong)
}

/// Parses a duration. Zero may have no unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text).map_err(|e| format!("{e}; write a duration as 300ms, 15s or 1m30s"))
}

/// Parses the number or the name of a signal.
pub(super) fn signal(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().or_else(|| sys::signal::by_name(text));
    number.ok_or_else(|| format!("there is no signal {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let all = [("0", 0), ("4096", 4096), ("1k", 1024), ("50M", 50 << 20), ("2G", 2 << 30), ("-1", u64::MAX)];
        for (text, number) in all {
            assert_eq!(size(text), Ok(number));
        }
        for text in ["", "x", "-2", "1T", "k", "99999999999G", "1.5M", "ä"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn signals_have_numbers_and_names() {
        assert_eq!(signal("9"), Ok(9));
        assert_eq!(signal("SIGUSR1"), Ok(10));
        assert!(signal("NOPE").is_err());
    }
}
