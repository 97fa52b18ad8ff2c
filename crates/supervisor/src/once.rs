//! Something that happens once, and that many may wait for: a fifth of the memory of a watch channel, of which each
//! container would have two.

use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;

/// Whether it has happened.
#[derive(Debug, Default)]
pub(crate) struct Once {
    happened: AtomicBool,
    waiting: Notify,
}

impl Once {
    /// It has happened: whoever waits goes on.
    pub(crate) fn set(&self) {
        self.happened.store(true, Ordering::SeqCst);
        self.waiting.notify_waiters();
    }

    /// Waits until it has happened.
    pub(crate) async fn wait(&self) {
        // Woken by what comes from here on, also before it is polled; so the look must come after it.
        let woken = self.waiting.notified();
        if !self.happened.load(Ordering::SeqCst) {
            woken.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[tokio::test]
    async fn all_who_wait_and_all_who_come_later_go_on() {
        let once = Arc::new(Once::default());
        let nothing = tokio::time::timeout(Duration::from_millis(1), once.wait()).await;
        assert!(nothing.is_err(), "it has not happened");
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let once = once.clone();
                tokio::spawn(async move { once.wait().await })
            })
            .collect();
        tokio::task::yield_now().await;
        once.set();
        for one in waiting {
            one.await.expect("goes on");
        }
        once.wait().await;
    }
}
