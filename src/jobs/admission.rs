//! Admission: which queued jobs begin, given the running ones. A function of its arguments, without clock and devices.
//!
//! # Order and bound
//!
//! The smallest queued job begins first (fewest FLOPs; of equal ones the oldest), but a job that came later may overtake an
//! older one only within the older one's *allowance*: before a job begins, the jobs that came later and took a slot have
//! together at most as many FLOPs and at most as many time slices as the job itself. Then it is *due*, and the next slot is
//! for the oldest due job. So its wait is bounded by the work that was there when it came and its own size, whatever comes
//! later. FLOPs alone would not bound the time: a slice costs some of its own, which is most of the time of tiny jobs.
//!
//! # Previews
//!
//! If no slot is free, or the next job does not fit into memory beside the running ones, a job still begins at once if it has
//! at most half the FLOPs of every running job. There are at most `log2(largest / smallest)` of these at a time, so they
//! leave the others most of the device. They do not count as overtaking, but hold a slot that falls free until they end.
//! Memory that a due job needs is reserved: a preview is admitted only if the due job fits beside it and the other jobs that
//! came later.

/// Work of a job on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Quoted FLOPs.
    pub(super) flops: u64,
    /// Time slices: the encoding, denoising steps, the global stage and tiles.
    pub(super) slices: u64,
}

impl Cost {
    /// Sum of two costs.
    pub(super) fn plus(self, more: Self) -> Self {
        Self {
            flops: self.flops.saturating_add(more.flops),
            slices: self.slices.saturating_add(more.slices),
        }
    }

    /// True if no part is larger than that of `most`.
    pub(super) fn is_within(self, most: Self) -> bool {
        self.flops <= most.flops && self.slices <= most.slices
    }
}

/// What admission knows of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// Place in the order of arrival.
    pub(super) arrival: u128,
    /// Its work.
    pub(super) cost: Cost,
    /// Quoted memory in bytes.
    pub(super) memory: u64,
}

/// Limits of a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Jobs that it time-slices, without previews.
    pub(super) slots: usize,
    /// Upper bound of the memory of its running jobs, in bytes. A single job is admitted in any case.
    pub(super) memory: u64,
}

/// Queued jobs, the oldest first.
#[derive(Debug)]
pub(super) struct Queue<T>(Vec<Queued<T>>);

#[derive(Debug)]
struct Queued<T> {
    item: T,
    size: Size,
    /// Work of the later jobs that took a slot since this job was queued.
    overtaken: Cost,
}

/// An admitted job.
#[derive(Debug)]
pub(super) struct Admitted<T> {
    pub(super) item: T,
    /// True if it took a slot, false for a preview beyond them.
    pub(super) in_slot: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Queue<T> {
    /// Adds a job.
    pub(super) fn push(&mut self, item: T, size: Size) {
        let place = self.0.partition_point(|queued| queued.size.arrival <= size.arrival);
        self.0.insert(place, Queued { item, size, overtaken: Cost::default() });
    }

    /// Removes the first job that `is_it` accepts.
    pub(super) fn remove(&mut self, is_it: impl Fn(&T) -> bool) -> Option<T> {
        let place = self.0.iter().position(|queued| is_it(&queued.item))?;
        Some(self.0.remove(place).item)
    }

    /// Number of jobs.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The jobs, the oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|queued| &queued.item)
    }

    /// Removes the jobs that may begin beside the `running` ones.
    pub(super) fn admit(&mut self, running: &[Size], limits: Limits) -> Vec<Admitted<T>> {
        let (mut running, mut admitted) = (running.to_vec(), Vec::new());
        while let Some((next, due)) = self.next() {
            let size = self.0[next].size;
            let fits = running.is_empty() || memory(&running, size) <= limits.memory;
            let in_slot = running.len() < limits.slots && fits;
            let index = if in_slot {
                self.count_overtaken(size);
                next
            } else {
                match self.preview(&running, due.then_some(size), limits) {
                    Some(index) => index,
                    None => break,
                }
            };
            let Queued { item, size, .. } = self.0.remove(index);
            running.push(size);
            admitted.push(Admitted { item, in_slot });
        }
        admitted
    }

    /// Index of the job for the next slot, and true if it is due.
    fn next(&self) -> Option<(usize, bool)> {
        let smallest = (0..self.0.len()).min_by_key(|&i| self.0[i].size.cost.flops)?;
        let mut next = smallest;
        // Each turn goes to an older job.
        while let Some(older) = self.0[..next].iter().position(|older| {
            !older.overtaken.plus(self.0[next].size.cost).is_within(older.size.cost)
                && older.size.arrival < self.0[next].size.arrival
        }) {
            next = older;
        }
        Some((next, next != smallest))
    }

    /// Index of the smallest job that may begin beyond the slots; `reserved` is the due job.
    fn preview(&self, running: &[Size], reserved: Option<Size>, limits: Limits) -> Option<usize> {
        let least = running.iter().map(|size| size.cost.flops).min()?;
        let may_begin = |&index: &usize| {
            let size = self.0[index].size;
            let leaves_room = reserved.is_none_or(|due| {
                let later = running.iter().filter(|size| size.arrival > due.arrival);
                memory(later, size).saturating_add(due.memory) <= limits.memory
            });
            size.cost.flops <= least / 2 && leaves_room && memory(running, size) <= limits.memory
        };
        (0..self.0.len()).filter(may_begin).min_by_key(|&index| self.0[index].size.cost.flops)
    }

    /// Counts a job that takes a slot against the allowances of the older ones.
    fn count_overtaken(&mut self, taken: Size) {
        for older in self.0.iter_mut().filter(|older| older.size.arrival < taken.arrival) {
            older.overtaken = older.overtaken.plus(taken.cost);
        }
    }
}

/// Memory of the `running` jobs and one more.
fn memory<'a>(running: impl IntoIterator<Item = &'a Size>, more: Size) -> u64 {
    running.into_iter().fold(more.memory, |sum, size| sum.saturating_add(size.memory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::Random;

    const MEMORY: u64 = 1000;
    /// FLOPs of the largest job.
    const LARGEST: u64 = 450;

    /// A schedule of a device that shares its time evenly among the running jobs, as the engine thread does.
    struct Device {
        limits: Limits,
        queue: Queue<Size>,
        /// Time of a slice beyond that of its FLOPs, in times of a FLOP.
        overhead: u64,
        /// Running jobs, the time that they still need, and true if they took a slot.
        running: Vec<(Size, u64, bool)>,
        /// For each job, in the order of arrival: time of its arrival and of its admission, time of the jobs before it at its
        /// arrival, and work of later jobs that took a slot before it.
        jobs: Vec<Record>,
        /// Indices of the jobs that are queued, ascending.
        waiting: Vec<usize>,
        done: u64,
        most_previews: u64,
        longest_preview: u64,
    }

    struct Record {
        size: Size,
        arrived: u64,
        admitted: Option<u64>,
        before: u64,
        overtaken: Cost,
    }

    impl Device {
        fn new(slots: usize, overhead: u64) -> Self {
            let limits = Limits { slots, memory: MEMORY };
            let (queue, running, jobs) = (Queue::default(), Vec::new(), Vec::new());
            Self {
                limits,
                queue,
                overhead,
                running,
                jobs,
                waiting: Vec::new(),
                done: 0,
                most_previews: 0,
                longest_preview: 0,
            }
        }

        fn time(&self, size: &Size) -> u64 {
            size.cost.flops + self.overhead * size.cost.slices
        }

        fn arrive(&mut self, flops: u64, slices: u64, memory: u64) {
            let cost = Cost { flops, slices };
            let size = Size { arrival: self.jobs.len() as u128, cost, memory };
            let queued: u64 = self.queue.iter().map(|size| self.time(size)).sum();
            let running: u64 = self.running.iter().map(|job| job.1).sum();
            let before = queued + running;
            let arrived = self.done;
            let overtaken = Cost::default();
            self.waiting.push(self.jobs.len());
            self.jobs.push(Record { size, arrived, admitted: None, before, overtaken });
            self.queue.push(size, size);
        }

        fn admit(&mut self) {
            let running: Vec<_> = self.running.iter().map(|job| job.0).collect();
            for Admitted { item: size, in_slot } in self.queue.admit(&running, self.limits) {
                if !in_slot {
                    self.longest_preview = self.longest_preview.max(self.time(&size));
                }
                let place = size.arrival as usize;
                self.jobs[place].admitted = Some(self.done);
                self.waiting.retain(|&other| other != place);
                let counted = if in_slot { size.cost } else { Cost::default() };
                for &older in self.waiting.iter().take_while(|&&other| other < place) {
                    let overtaken = &mut self.jobs[older].overtaken;
                    *overtaken = overtaken.plus(counted);
                }
                self.running.push((size, self.time(&size), in_slot));
            }
            let previews = self.running.iter().filter(|job| !job.2).count();
            self.most_previews = self.most_previews.max(previews as u64);
            self.check();
        }

        /// A preview that there is room for never waits.
        fn check(&self) {
            let used: u64 = self.running.iter().map(|job| job.0.memory).sum();
            assert!(self.running.len() == 1 || used <= MEMORY);
            let least = self.running.iter().map(|job| job.0.cost.flops).min();
            let least = least.unwrap_or(u64::MAX);
            let due = self.queue.next().filter(|next| next.1).map(|next| self.queue.0[next.0].size);
            for size in self.queue.iter() {
                let reserved = due.filter(|due| due != size).map_or(0, |due| {
                    let later = self.running.iter().filter(|job| job.0.arrival > due.arrival);
                    due.memory + later.map(|job| job.0.memory).sum::<u64>()
                });
                let fits = used + size.memory <= MEMORY && reserved + size.memory <= MEMORY;
                assert!(size.cost.flops > least / 2 || !fits, "{size:?} waits");
            }
        }

        /// One unit of time for each running job, or less if one ends before.
        fn work(&mut self, unit: u64) {
            let unit =
                self.running.iter().map(|job| job.1).min().map_or(0, |least| least.min(unit));
            for job in &mut self.running {
                job.1 -= unit;
                self.done += unit;
            }
            self.running.retain(|job| job.1 > 0);
        }
    }

    /// Over many schedules with bursts of small jobs, whose slices cost up to many times their FLOPs: no job is overtaken by
    /// more work in slots than its own, each begins after a bounded time, and all end.
    #[test]
    fn every_job_begins_within_its_bound_and_previews_at_once() {
        for seed in 0..100_000 {
            let mut random = Random::new(seed);
            let mut below = |limit: u64| random.bits() % limit;
            let mut device = Device::new(1 + below(4) as usize, below(3) * below(60));
            let large_memory = 1 + below(MEMORY);
            let unit = 1 + below(8 + device.overhead);
            for _ in 0..30 {
                match below(10) {
                    0 | 1 => device.arrive(50 + below(LARGEST - 50), 1 + below(40), large_memory),
                    2 | 9 => device.arrive(1 + below(3), 1 + below(4), 1 + below(50)),
                    _ => {
                        (0..below(5)).for_each(|_| device.arrive(10 + below(20), 1 + below(9), 100))
                    }
                }
                device.admit();
                device.work(unit);
            }
            // The small ones keep coming until all others have begun.
            let last = device.jobs.len();
            let mut turns = 0;
            while device.waiting.first().is_some_and(|&oldest| oldest < last) {
                if device.queue.len() < 40 {
                    device.arrive(10, 4, 100);
                    device.arrive(1, 3, 10);
                }
                device.admit();
                device.work(unit);
                turns += 1;
                assert!(turns < 100_000, "seed {seed}: a job starves");
            }
            for job in device.jobs.iter().filter(|job| job.admitted.is_some()) {
                let Record { size, arrived, admitted, before, overtaken } = job;
                let within = overtaken.is_within(size.cost);
                assert!(within, "seed {seed}: {size:?} overtaken by {overtaken:?}");
                let waited = admitted.unwrap() - arrived;
                let bound = (before + device.time(size)) * (1 + device.most_previews);
                // When a slot falls free, previews may hold it, each with at most half the FLOPs of the one before.
                let held = u64::from(LARGEST.ilog2() + 1) * device.longest_preview;
                let rounding = unit * (device.limits.slots as u64 + device.most_previews + 1);
                let bound = bound + held + rounding;
                assert!(waited <= bound, "seed {seed}: {size:?}: {waited} of {bound}");
            }
        }
    }

    #[test]
    fn slots_go_to_the_smallest_job_within_the_allowance_of_older_ones() {
        // FLOPs and slices: of either, two small jobs have at most as many as the large one.
        for (large, small) in [((25, 99), (10, 3)), ((1000, 7), (1, 3))] {
            let mut queue = Queue::default();
            let limits = Limits { slots: 1, memory: MEMORY };
            let size = |arrival, (flops, slices)| Size {
                arrival,
                cost: Cost { flops, slices },
                memory: 1,
            };
            queue.push("large", size(0, large));
            (1..=4).for_each(|i| queue.push("small", size(i, small)));
            let mut order = Vec::new();
            while queue.len() > 0 {
                let admitted = queue.admit(&[], limits);
                assert!(admitted[0].in_slot);
                order.extend(admitted.into_iter().map(|admitted| admitted.item));
            }
            assert_eq!(order, ["small", "small", "large", "small", "small"]);
        }
    }

    #[test]
    fn memory_is_reserved_for_a_due_job() {
        let mut queue = Queue::default();
        let limits = Limits { slots: 2, memory: 100 };
        let size =
            |arrival, flops, memory| Size { arrival, cost: Cost { flops, slices: flops }, memory };
        let running = [size(0, 1000, 60)];
        queue.push("large", size(1, 100, 90));
        (2..=12).for_each(|i| queue.push("small", size(i, 20, 30)));
        let mut taken = 0;
        // The small ones end at once; five have as many FLOPs as the large one.
        loop {
            let admitted = queue.admit(&running, limits);
            if admitted.is_empty() {
                break;
            }
            taken += admitted.iter().filter(|admitted| admitted.in_slot).count();
            assert!(admitted.iter().all(|admitted| admitted.item == "small"));
        }
        assert_eq!(taken, 5);
        assert_eq!(queue.admit(&[], limits)[0].item, "large");
    }
}
