//! Which live node really is the closest to a key.

use macula_proto::Key;

/// All keys of one realm that are taken by live nodes.
#[derive(Debug)]
pub(crate) struct Truth {
    /// By first byte, each sorted.
    buckets: Vec<Vec<(Key, u32)>>,
    len: usize,
}

impl Truth {
    pub(crate) fn new() -> Self {
        Self { buckets: vec![Vec::new(); 256], len: 0 }
    }

    pub(crate) fn insert(&mut self, key: Key, node: u32) {
        let bucket = &mut self.buckets[usize::from(key.as_bytes()[0])];
        if let Err(place) = bucket.binary_search_by(|(other, _)| other.cmp(&key)) {
            bucket.insert(place, (key, node));
            self.len += 1;
        }
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        let bucket = &mut self.buckets[usize::from(key.as_bytes()[0])];
        if let Ok(place) = bucket.binary_search_by(|(other, _)| other.cmp(key)) {
            bucket.remove(place);
            self.len -= 1;
        }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// The node closest to `target`.
    pub(crate) fn closest(&self, target: &Key) -> Option<u32> {
        let first = usize::from(target.as_bytes()[0]);
        // of buckets, the one whose byte is closest holds the closest key
        let bucket =
            (0..256).map(|far| first ^ far).find(|byte| !self.buckets[*byte].is_empty())?;
        let mut range = &self.buckets[bucket][..];
        let mut bit = 8;
        while range.len() > 8 && bit < 160 {
            let split = range.partition_point(|(key, _)| !has_bit(key, bit));
            let (zeros, ones) = range.split_at(split);
            let (wanted, other) = if has_bit(target, bit) { (ones, zeros) } else { (zeros, ones) };
            range = if wanted.is_empty() { other } else { wanted };
            bit += 1;
        }
        range.iter().min_by_key(|(key, _)| key.distance(target)).map(|(_, node)| *node)
    }
}

fn has_bit(key: &Key, index: usize) -> bool {
    key.as_bytes()[index / 8] & (0x80 >> (index % 8)) != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;

    #[test]
    fn the_closest_is_the_one_that_a_plain_search_finds() {
        let mut dice = Dice::new(1, 1);
        for size in [0usize, 1, 2, 20, 3000] {
            let mut truth = Truth::new();
            let mut keys: Vec<Key> = (0..size).map(|_| Key::from_bytes(dice.bytes())).collect();
            keys.iter().enumerate().for_each(|(node, key)| truth.insert(*key, node as u32));
            for _ in 0..size / 3 {
                truth.remove(&keys.pop().expect("there are more"));
            }
            for _ in 0..300 {
                let target = Key::from_bytes(dice.bytes());
                let plain = (0..keys.len()).min_by_key(|node| keys[*node].distance(&target));
                assert_eq!(truth.closest(&target), plain.map(|node| node as u32));
            }
            assert_eq!(truth.len(), keys.len());
        }
    }
}
