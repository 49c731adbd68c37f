//! Retry policy: exponential backoff with jitter and a total time limit.

use std::time::{Duration, Instant};

/// Exponential backoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// First pause.
    pub first: Duration,
    /// Longest pause.
    pub most: Duration,
    /// Longest time without a connection and without progress. Connected time does not count: a job may be queued for long.
    pub give_up: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(100),
            most: Duration::from_secs(4),
            give_up: Duration::from_secs(600),
        }
    }
}

impl Retry {
    /// The state before the first failure.
    pub(super) fn backoff(self) -> Backoff {
        Backoff { retry: self, next: self.first, away: None, lost: Duration::ZERO }
    }
}

/// State of an outage.
#[derive(Debug)]
pub(super) struct Backoff {
    retry: Retry,
    next: Duration,
    /// Start of the current disconnection.
    away: Option<Instant>,
    /// Disconnected time before that, since the last progress.
    lost: Duration,
}

impl Backoff {
    /// Pauses before the next attempt. Returns false if the time limit is reached.
    pub(super) async fn pause(&mut self) -> bool {
        let away = *self.away.get_or_insert_with(Instant::now);
        let lost = self.lost + away.elapsed();
        let Some(left) = self.retry.give_up.checked_sub(lost).filter(|left| !left.is_zero()) else {
            return false;
        };
        let pause = jittered(self.next).min(left);
        self.next = self.next.saturating_mul(2).min(self.retry.most);
        tokio::time::sleep(pause).await;
        true
    }

    /// Records a successful connection, which is no progress yet.
    pub(super) fn answered(&mut self) {
        self.lost += self.away.take().map_or(Duration::ZERO, |away| away.elapsed());
    }

    /// Records progress, which ends the outage.
    pub(super) fn reset(&mut self) {
        *self = self.retry.backoff();
    }
}

/// A random time from half of `pause` to `pause`: clients that were disconnected together reconnect at different times.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + 0.5 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_pauses_have_jitter() {
        let second = Duration::from_secs(1);
        let pauses: Vec<_> = (0..100).map(|_| jittered(second)).collect();
        assert!(pauses.iter().all(|&pause| pause >= second / 2 && pause <= second));
        assert!(pauses.iter().any(|&pause| pause != pauses[0]));
    }

    #[tokio::test]
    async fn backoff_counts_disconnected_time_only() {
        let ms = Duration::from_millis;
        let mut backoff = Retry { first: ms(1), most: ms(1), give_up: ms(20) }.backoff();
        // A connection that lasts longer than the limit, again and again.
        for _ in 0..3 {
            assert!(backoff.pause().await);
            backoff.answered();
            tokio::time::sleep(ms(25)).await;
        }
        while backoff.pause().await {}
        assert!(!backoff.pause().await, "it stays given up");
        backoff.reset();
        assert!(backoff.pause().await, "until there is progress");
    }
}
