//! Pauses between attempts: each is about twice the one before, none is longer than a few seconds, and no two clients keep
//! the same time. A server that stays away is given up in the end.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::{Duration, Instant},
};

/// How long to pause between attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The first pause.
    pub first: Duration,
    /// The longest one.
    pub most: Duration,
    /// How long the server may be away without any progress. Time in which a connection stands does not count: a job may
    /// wait for long.
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
    /// The pauses of one outage.
    pub(super) fn backoff(self) -> Backoff {
        Backoff { retry: self, next: self.first, away: None, lost: Duration::ZERO }
    }
}

/// Where one outage stands.
#[derive(Debug)]
pub(super) struct Backoff {
    retry: Retry,
    next: Duration,
    /// Since when the server is away.
    away: Option<Instant>,
    /// How long it was away before, since there was progress.
    lost: Duration,
}

impl Backoff {
    /// Waits before the next attempt, after one that failed. False: it is time to give up.
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

    /// The server answers again, which is no progress yet.
    pub(super) fn answered(&mut self) {
        self.lost += self.away.take().map_or(Duration::ZERO, |away| away.elapsed());
    }

    /// There is progress: the outage is over.
    pub(super) fn reset(&mut self) {
        *self = self.retry.backoff();
    }
}

/// From half of `pause` to all of it, by chance: clients that were cut off together don't come back together.
fn jittered(pause: Duration) -> Duration {
    // The keys of a RandomState are random; that is randomness enough.
    let random = RandomState::new().build_hasher().finish();
    let share = (random >> 11) as f64 / (1_u64 << 53) as f64;
    pause.mul_f64(0.5 + 0.5 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_differ() {
        let second = Duration::from_secs(1);
        let pauses: Vec<_> = (0..100).map(|_| jittered(second)).collect();
        assert!(pauses.iter().all(|&pause| pause >= second / 2 && pause <= second));
        assert!(pauses.iter().any(|&pause| pause != pauses[0]));
    }

    #[tokio::test]
    async fn only_the_time_without_a_server_counts() {
        let ms = Duration::from_millis;
        let mut backoff = Retry { first: ms(1), most: ms(1), give_up: ms(20) }.backoff();
        // A connection that stands for longer than the limit, again and again.
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
