//! The counters of a network namespace's interfaces: `/proc/<pid>/net/dev` of a process in it (proc_pid_net(5)).

use std::io;

/// One interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are the columns of the file")]
pub struct Interface {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// The interfaces that a process sees, if it is still the process that started at `starttime`; otherwise none.
pub(crate) fn interfaces(pid: u32, starttime: u64) -> io::Result<Vec<Interface>> {
    let Some(text) = sys::procfs::read(pid, "net/dev").or_else(of_the_dead)? else { return Ok(Vec::new()) };
    // Checked after the reading: if the process is the right one now, it was the right one then.
    match sys::procfs::stat(pid)? {
        Some(stat) if stat.starttime == starttime && !stat.is_dead() => Ok(parse(&text)),
        _ => Ok(Vec::new()),
    }
}

/// A process that has ended and not been reaped is in no namespace.
fn of_the_dead(error: sys::Errno) -> Result<Option<String>, sys::Errno> {
    if error == sys::Errno::INVAL { Ok(None) } else { Err(error) }
}

pub(crate) fn parse(text: &str) -> Vec<Interface> {
    text.lines()
        .filter_map(|line| {
            // A name may contain a colon, a number cannot.
            let (name, numbers) = line.rsplit_once(':')?;
            let mut numbers = numbers.split_ascii_whitespace().map(|number| number.parse::<u64>().ok());
            let mut next = |skip: usize| numbers.nth(skip).flatten();
            Some(Interface {
                name: name.trim().to_string(),
                rx_bytes: next(0)?,
                rx_packets: next(0)?,
                rx_errors: next(0)?,
                rx_dropped: next(0)?,
                // fifo, frame, compressed, multicast
                tx_bytes: next(4)?,
                tx_packets: next(0)?,
                tx_errors: next(0)?,
                tx_dropped: next(0)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_told_apart() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo\n    \
             lo:       0       0    0    0    0     0          0         0        0       0    0    0    0\n \
             eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n";
        let all = parse(text);
        assert_eq!(all.len(), 2, "{all:?}");
        assert_eq!(all[0].name, "lo");
        let expected = Interface {
            name: "eth0".into(),
            rx_bytes: 1,
            rx_packets: 2,
            rx_errors: 3,
            rx_dropped: 4,
            tx_bytes: 9,
            tx_packets: 10,
            tx_errors: 11,
            tx_dropped: 12,
        };
        assert_eq!(all[1], expected);
    }

    #[test]
    fn process_with_another_start_time_has_no_interfaces() {
        let me = std::process::id();
        let starttime = sys::procfs::stat(me).expect("proc").expect("alive").starttime;
        assert!(interfaces(me, starttime).expect("reads").iter().any(|interface| interface.name == "lo"));
        assert!(interfaces(me, starttime + 1).expect("reads").is_empty());
        assert!(interfaces(u32::MAX, 1).expect("no error").is_empty());
    }
}
