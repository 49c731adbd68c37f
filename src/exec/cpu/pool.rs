//! Recycled buffers: fresh memory costs a page fault per 4 KiB, more than the arithmetic of an elementwise operator.
//!
//! Guarantee: used and idle buffers together never exceed the peak of used ones.

use std::{
    mem,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

/// The pool of idle buffers; a [`Buffer`] returns to it when dropped.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Idle buffers, the longest idle first.
    free: Vec<Vec<f32>>,
    /// Floats in `free`.
    kept: usize,
    /// Floats handed out.
    live: usize,
    /// Largest `live` so far.
    peak: usize,
}

impl Pool {
    /// A buffer of `len` floats with arbitrary contents: the caller must write all of it.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Buffer {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *guard;
        let fits = |data: &Vec<f32>| (len..=len + len / 4).contains(&data.len());
        let best = (state.free.iter().enumerate().filter(|(_, data)| fits(data)))
            .min_by_key(|(_, data)| data.len())
            .map(|(i, _)| i);
        let found = best.map(|i| state.free.remove(i));
        let held = found.as_ref().map_or(len, Vec::len);
        state.kept -= found.as_ref().map_or(0, Vec::len);
        state.live += held;
        state.peak = state.peak.max(state.live);
        let mut excess = Vec::new();
        while state.live + state.kept > state.peak {
            let oldest = state.free.remove(0);
            state.kept -= oldest.len();
            excess.push(oldest);
        }
        drop(guard);
        drop(excess);
        let data = found.unwrap_or_else(|| vec![0.0; len]);
        Buffer { data, len, pool: Arc::clone(self) }
    }
}

/// A buffer of floats from a [`Pool`].
#[derive(Debug)]
pub(super) struct Buffer {
    data: Vec<f32>,
    len: usize,
    pool: Arc<Pool>,
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let data = mem::take(&mut self.data);
        let mut state = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.live -= data.len();
        state.kept += data.len();
        state.free.push(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_reuses_dropped_buffers() {
        let pool = Arc::new(Pool::default());
        let first = pool.take(1000);
        let address = first.as_ptr();
        drop(first);
        assert_eq!(pool.take(900).as_ptr(), address);
    }

    #[test]
    fn pool_never_exceeds_the_peak_of_live_buffers() {
        let pool = Arc::new(Pool::default());
        for round in 0..50 {
            let held: Vec<_> =
                (0..3).map(|i| pool.take(100 + 37 * ((round * 7 + i) % 11))).collect();
            let state = pool.0.lock().unwrap();
            assert!(state.live + state.kept <= state.peak);
            assert_eq!(state.kept, state.free.iter().map(Vec::len).sum::<usize>());
            drop(state);
            drop(held);
        }
        assert_eq!(pool.0.lock().unwrap().live, 0);
    }
}
