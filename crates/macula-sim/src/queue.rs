//! What will happen, by windows of virtual time.
//!
//! Nothing that a node does reaches another one within the same window (see [`WINDOW_MICROS`]), so a
//! window is handled node by node. A ring of buckets holds the near future, a map the rest.

use std::collections::BTreeMap;

/// Width of a window, microseconds; also the least latency between two nodes.
pub(crate) const WINDOW_MICROS: u64 = 1000;
/// Windows that the ring reaches ahead; a power of two.
const RING: u64 = 1 << 14;

/// Number of the window that a moment is in.
pub(crate) const fn window_of(micros: u64) -> u64 {
    micros / WINDOW_MICROS
}

/// Things by window. Windows are taken in order; nothing can be put into one that was taken.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    ring: Vec<Vec<T>>,
    /// One bit per bucket of the ring that holds something.
    busy: Vec<u64>,
    far: BTreeMap<u64, Vec<T>>,
    /// The first window that was not taken yet.
    next: u64,
    /// Empty buckets with room, to be used again.
    spare: Vec<Vec<T>>,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Self {
            ring: (0..RING).map(|_| Vec::new()).collect(),
            busy: vec![0; (RING / 64) as usize],
            far: BTreeMap::new(),
            next: 0,
            spare: Vec::new(),
        }
    }

    #[inline]
    pub(crate) fn push(&mut self, window: u64, thing: T) {
        let window = window.max(self.next);
        if window - self.next >= RING {
            self.far.entry(window).or_default().push(thing);
            return;
        }
        let place = (window % RING) as usize;
        let bucket = &mut self.ring[place];
        if bucket.is_empty() {
            self.busy[place / 64] |= 1 << (place % 64);
            if bucket.capacity() == 0
                && let Some(spare) = self.spare.pop()
            {
                *bucket = spare;
            }
        }
        bucket.push(thing);
    }

    /// The first window that holds anything.
    pub(crate) fn first(&self) -> Option<u64> {
        let far = self.far.first_key_value().map(|(window, _)| *window);
        let start = (self.next % RING) as usize;
        let words = self.busy.len();
        let near = (0..=words).find_map(|step| {
            let index = (start / 64 + step) % words;
            let mut word = self.busy[index];
            if step == 0 {
                word &= !0 << (start % 64);
            } else if step == words {
                word &= (1 << (start % 64)) - 1;
            }
            (word != 0).then(|| {
                let place = (index * 64) as u64 + u64::from(word.trailing_zeros());
                self.next + (place + RING - start as u64) % RING
            })
        });
        match (near, far) {
            (Some(near), Some(far)) => Some(near.min(far)),
            (near, far) => near.or(far),
        }
    }

    /// All of one window, which must not be after [`Queue::first`].
    pub(crate) fn take(&mut self, window: u64) -> Vec<T> {
        debug_assert!(self.first().is_none_or(|first| window <= first));
        self.next = window + 1;
        let place = (window % RING) as usize;
        let mut bucket = std::mem::take(&mut self.ring[place]);
        self.busy[place / 64] &= !(1 << (place % 64));
        if let Some(far) = self.far.remove(&window) {
            bucket.extend(far);
        }
        bucket
    }

    /// Gives the room of a bucket back.
    pub(crate) fn recycle(&mut self, mut bucket: Vec<T>) {
        bucket.clear();
        if self.spare.len() < 2048 && bucket.capacity() <= 4096 {
            self.spare.push(bucket);
        }
    }

    /// The first window that was not taken yet.
    pub(crate) const fn next_window(&self) -> u64 {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_come_in_order_near_and_far() {
        let mut queue = Queue::new();
        let mut state = 1u64;
        let mut expected = Vec::new();
        for number in 0..5000u64 {
            state = crate::dice::mix(state);
            let window = state % 100_000;
            queue.push(window, number);
            expected.push((window, number));
        }
        expected.sort_unstable();
        let mut got = Vec::new();
        while let Some(window) = queue.first() {
            let mut things = queue.take(window);
            things.sort_unstable();
            got.extend(things.drain(..).map(|thing| (window, thing)));
            queue.recycle(things);
            if got.len() < 2000 && window % 7 == 0 {
                queue.push(window + RING + 5, 9_999_999);
                expected.push((window + RING + 5, 9_999_999));
            }
        }
        expected.sort_unstable();
        assert_eq!(got, expected);
    }
}
