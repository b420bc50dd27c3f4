//! Contacts: routers that this node has heard of, in 160 buckets by shared leading bits.

use std::collections::BTreeMap;
use std::time::Duration;

use super::message::Contact;
use crate::id::{Distance, EndpointId, Key};
use crate::time::Time;

/// What is remembered of a router. 64 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) contact: Contact,
    /// Requests to connect that it did not answer, or answered with *full*, in a row.
    failures: u8,
    /// There was a link to it.
    is_proven: bool,
    /// Not asked again before this second of the node's time.
    rest_until: u32,
}

const _: () = assert!(size_of::<Known>() <= 64);

/// Places by which a bucket grows.
const GROWTH: usize = 4;
/// Failures in a row after which a contact is forgotten.
const FAILURES_MAX: u8 = 4;
/// A contact rests for so many seconds after its first failure, and for four times as long after each
/// further one: after a rift the way to it is found within seconds, and one that is gone is forgotten
/// after three quarters of a minute.
const FAILURE_REST: u32 = 2;
/// The longest rest after a failure, seconds.
const FAILURE_REST_MAX: u32 = 30;

impl Known {
    /// When it may be asked for a link.
    pub(super) fn ready_at(&self) -> Time {
        Time::START + Duration::from_secs(self.rest_until.into())
    }

    /// Whether it did not answer the last time that it was asked.
    pub(super) fn is_doubtful(&self) -> bool {
        self.failures > 0
    }

    /// Whether it may be asked for a link now.
    pub(super) fn is_ready(&self, now: Time) -> bool {
        self.rest_until <= seconds(now)
    }
}

/// The contacts, at most `k` in each bucket. Who has been there longest stays (Kademlia §4.1): what
/// strangers tell fills empty places only.
#[derive(Debug, Default)]
pub(super) struct Table {
    buckets: BTreeMap<u8, Vec<Known>>,
}

impl Table {
    /// Takes a contact that somebody who was asked has told of. Returns whether it is kept.
    pub(super) fn learn(&mut self, me: &Key, contact: Contact, k: usize) -> bool {
        if contact.key == *me {
            return false;
        }
        let bucket = self.buckets.entry(me.distance(&contact.key).shared_bits()).or_default();
        if let Some(known) = bucket.iter_mut().find(|known| known.contact.id == contact.id) {
            if !contact.at.is_unknown() {
                known.contact.at = contact.at;
            }
            return true;
        }
        let new = Known { contact, failures: 0, is_proven: false, rest_until: 0 };
        if bucket.len() < k {
            if bucket.len() == bucket.capacity() {
                // many nodes may live in one process: no spare room
                bucket.reserve_exact(GROWTH);
            }
            bucket.push(new);
            return true;
        }
        match bucket.iter_mut().find(|known| known.failures > 0) {
            Some(place) => {
                *place = new;
                true
            }
            None => false,
        }
    }

    /// Takes a contact to which there is a link now. In a full bucket it replaces one that is only
    /// known by hearsay.
    pub(super) fn prove(&mut self, me: &Key, contact: Contact, k: usize) {
        self.learn(me, contact, k);
        let Some(bucket) = self.buckets.get_mut(&me.distance(&contact.key).shared_bits()) else {
            return;
        };
        let place = bucket
            .iter()
            .position(|known| known.contact.id == contact.id)
            .or_else(|| bucket.iter().position(|known| !known.is_proven));
        if let Some(known) = place.and_then(|place| bucket.get_mut(place)) {
            *known = Known { contact, failures: 0, is_proven: true, rest_until: 0 };
        }
    }

    /// It did not answer, or has no room: it rests, and is forgotten after some more.
    pub(super) fn fail(&mut self, me: &Key, id: &EndpointId, key: &Key, now: Time) {
        let index = me.distance(key).shared_bits();
        let Some(bucket) = self.buckets.get_mut(&index) else { return };
        let Some(place) = bucket.iter().position(|known| known.contact.id == *id) else { return };
        if let Some(known) = bucket.get_mut(place) {
            let rest = (FAILURE_REST << (2 * known.failures)).min(FAILURE_REST_MAX);
            known.failures += 1;
            known.rest_until = seconds(now) + 1 + rest;
            if known.failures < FAILURES_MAX {
                return;
            }
        }
        bucket.swap_remove(place);
        if bucket.is_empty() {
            self.buckets.remove(&index);
        }
    }

    /// It is busy: it rests, but is not held in doubt.
    pub(super) fn rest(&mut self, me: &Key, id: &EndpointId, key: &Key, until: Time) {
        let Some(bucket) = self.buckets.get_mut(&me.distance(key).shared_bits()) else { return };
        if let Some(known) = bucket.iter_mut().find(|known| known.contact.id == *id) {
            known.rest_until = seconds(until) + 1;
        }
    }

    /// It is gone.
    pub(super) fn forget(&mut self, me: &Key, id: &EndpointId, key: &Key) {
        let index = me.distance(key).shared_bits();
        let Some(bucket) = self.buckets.get_mut(&index) else { return };
        bucket.retain(|known| known.contact.id != *id);
        if bucket.is_empty() {
            self.buckets.remove(&index);
        }
    }

    /// The contacts of one bucket.
    pub(super) fn bucket(&self, index: u8) -> &[Known] {
        self.buckets.get(&index).map_or(&[], Vec::as_slice)
    }

    /// Whether bucket `index` knows anybody but `except` closer to `target` than `floor`.
    pub(super) fn has_closer(
        &self,
        index: u8,
        target: &Key,
        floor: Distance,
        except: Option<EndpointId>,
    ) -> bool {
        self.bucket(index).iter().any(|known| {
            known.failures == 0
                && known.contact.key.distance(target) < floor
                && Some(known.contact.id) != except
        })
    }

    /// All contacts, from the far buckets to the near ones.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (u8, &Known)> {
        self.buckets
            .iter()
            .flat_map(|(index, bucket)| bucket.iter().map(move |known| (*index, known)))
    }

    /// The contact of this key, if it is known.
    pub(super) fn find(&self, me: &Key, key: &Key) -> Option<&Known> {
        self.bucket(me.distance(key).shared_bits()).iter().find(|known| known.contact.key == *key)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.buckets.values().map(Vec::len).sum()
    }
}

fn seconds(at: Time) -> u32 {
    u32::try_from(at.as_micros() / 1_000_000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RealmId;
    use crate::overlay::Coordinate;

    #[test]
    fn who_does_not_answer_rests_longer_each_time_and_is_forgotten() {
        let me = Key::from_bytes([0; 20]);
        let id = EndpointId::from_bytes([7; 32]);
        let peer = Contact::new(&RealmId::from_bytes([1; 32]), id, Coordinate::default());
        let mut table = Table::default();
        assert!(table.learn(&me, peer, 20));
        let mut now = Time::START;
        let mut rests = Vec::new();
        while let Some(known) = table.find(&me, &peer.key) {
            assert!(known.is_ready(now));
            table.fail(&me, &id, &peer.key, now);
            let Some(known) = table.find(&me, &peer.key) else { break };
            assert!(!known.is_ready(now));
            rests.push((known.ready_at() - now).as_secs());
            now = known.ready_at();
        }
        // each and the second that may be a fraction
        assert_eq!((rests, table.len()), (vec![3, 9, 31], 0));
    }
}
