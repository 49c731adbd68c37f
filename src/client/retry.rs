//! Pauses between attempts: each is about twice the one before, none is longer than a few seconds, and no two clients keep
//! the same time.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

/// How long to pause between attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The first pause.
    pub first: Duration,
    /// The longest one.
    pub most: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { first: Duration::from_millis(100), most: Duration::from_secs(4) }
    }
}

impl Retry {
    /// The pauses of one outage.
    pub(super) fn backoff(self) -> Backoff {
        Backoff { retry: self, next: self.first }
    }
}

/// Where one outage stands.
#[derive(Debug)]
pub(super) struct Backoff {
    retry: Retry,
    next: Duration,
}

impl Backoff {
    /// Waits before the next attempt.
    pub(super) async fn pause(&mut self) {
        let pause = self.next;
        self.next = self.next.saturating_mul(2).min(self.retry.most);
        tokio::time::sleep(jittered(pause)).await;
    }

    /// The outage is over.
    pub(super) fn reset(&mut self) {
        self.next = self.retry.first;
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
}
