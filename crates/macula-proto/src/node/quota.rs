//! What one peer, one realm and all of them together may take, and what happens beyond it.
//!
//! Rates are kept by not reading: whoever sends faster waits, by QUIC's flow control, and loses
//! nothing. Amounts are kept by refusing with a reason. When memory runs short all the same, the
//! link that holds the most of it is closed and new work is refused until there is room.

use std::time::Duration;

use super::bucket::Rate;
use super::link::PauseReason;
use super::realm::Source;
use super::timers::Timer;
use super::{Action, Node, Role};
use crate::id::{LinkId, RealmTag};
use crate::limits;
use crate::time::Time;
use crate::wire::Channel;
use crate::wire::message::{CloseCode, RefusalCode};

/// How old the last count of what is held may be.
const COUNT_AGE_MAX: Duration = Duration::from_millis(20);
/// A link is worth closing for its memory when it holds this share of the budget.
const SHED_SHARE: usize = 16;
/// So many messages that are looked at or found for a subscription count as much as a change of it.
const LOOKED_AT_PER_CHANGE: usize = 64;
const FOUND_PER_CHANGE: usize = 16;
/// Why something is refused while memory is short.
pub(super) const SHORT: &str = "this gateway is short of memory; try again later";

/// What a node holds for its peers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    pub(super) bytes: usize,
    counted: Option<Time>,
}

impl Node {
    /// A frame of so many bytes came: whoever sends faster than it may is read no more for a
    /// while.
    pub(super) fn charge(&mut self, now: Time, link_id: LinkId, channel: Channel, bytes: usize) {
        let per_peer = self.config.bytes_per_second_per_peer;
        if self.config.role != Role::Router || per_peer == 0 || channel == Channel::Control {
            return;
        }
        let rate = rate_of(per_peer);
        let Some(link) = self.links.get_mut(&link_id) else { return };
        let bytes = bytes as u64;
        if link.received.spend(now, bytes, rate) || std::mem::replace(&mut link.is_slowed, true) {
            return;
        }
        self.stats.slowed += 1;
        let wait = link.received.wait(now, 1, rate);
        let streams = link.stream_relays.keys().map(|stream| Channel::Stream(*stream));
        for channel in streams.chain([Channel::Bulk]) {
            self.actions.push_back(Action::Pause { link: link_id, channel });
        }
        for lane in 0..limits::LANE_COUNT {
            self.hold(Source::Lane(link_id, lane), PauseReason::Rate(link_id));
        }
        self.timers.set(Timer::Rate(link_id), now + wait);
    }

    /// The peer has waited long enough.
    pub(super) fn on_rate_due(&mut self, now: Time, link_id: LinkId) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        link.is_slowed = false;
        // nothing else keeps it from being read
        self.actions.push_back(Action::Resume { link: link_id, channel: Channel::Bulk });
        let relays: Vec<_> =
            link.stream_relays.iter().map(|(stream, relay)| (*stream, *relay)).collect();
        for (stream, relay) in relays {
            if !self.is_held(relay, link_id, stream) {
                let channel = Channel::Stream(stream);
                self.actions.push_back(Action::Resume { link: link_id, channel });
            }
        }
        self.release(now, PauseReason::Rate(link_id));
    }

    /// So many bytes were published in a realm: its publishers wait when it is too fast.
    pub(super) fn charge_realm(&mut self, now: Time, source: Source, tag: RealmTag, bytes: usize) {
        let per_realm = self.config.bytes_per_second_per_realm;
        if per_realm == 0 {
            return;
        }
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        let rate = rate_of(per_realm);
        if realm.received.spend(now, bytes as u64, rate) {
            return;
        }
        let wait = realm.received.wait(now, 1, rate);
        self.stats.slowed += 1;
        self.hold(source, PauseReason::RealmRate(tag));
        self.timers.set_if_unset(Timer::RealmRate(tag), now + wait);
    }

    /// Whether a peer changes its subscriptions and registrations as fast as it may.
    ///
    /// # Errors
    /// What it is told.
    pub(super) fn charge_change(
        &mut self,
        now: Time,
        link_id: LinkId,
    ) -> Result<(), (RefusalCode, String)> {
        self.charge_changes(now, link_id, 1)
    }

    /// The same for several changes, and for realms that it asks for.
    pub(super) fn charge_changes(
        &mut self,
        now: Time,
        link_id: LinkId,
        changes: usize,
    ) -> Result<(), (RefusalCode, String)> {
        let rate = self.change_rate();
        let Some(link) = self.links.get_mut(&link_id) else { return Ok(()) };
        if link.changes.take(now, changes as u64, rate) {
            return Ok(());
        }
        self.stats.over_limit += 1;
        let text = format!(
            "a link may change {} subscriptions, registrations and realms a second",
            rate.per_second
        );
        Err((RefusalCode::Limit, text))
    }

    fn change_rate(&self) -> Rate {
        let config = &self.config;
        let at_once =
            config.subscriptions_per_link_max.saturating_add(config.registrations_per_link_max);
        let per_second = config.changes_per_second;
        let burst = per_second.saturating_add((at_once as u64).saturating_mul(2));
        Rate { per_second, burst }
    }

    /// A subscription made us look at so many messages and find so many.
    pub(super) fn charge_search(
        &mut self,
        now: Time,
        link_id: LinkId,
        looked_at: usize,
        found: usize,
    ) {
        let cost = looked_at / LOOKED_AT_PER_CHANGE + found / FOUND_PER_CHANGE;
        let rate = self.change_rate();
        if let Some(link) = self.links.get_mut(&link_id) {
            link.searches.spend(now, cost as u64, rate);
        }
    }

    /// Whether a peer's subscriptions may make us search again.
    ///
    /// # Errors
    /// What it is told.
    pub(super) fn may_search(
        &mut self,
        now: Time,
        link_id: LinkId,
    ) -> Result<(), (RefusalCode, String)> {
        let rate = self.change_rate();
        let Some(link) = self.links.get_mut(&link_id) else { return Ok(()) };
        let wait = link.searches.wait(now, 1, rate);
        if wait.is_zero() {
            return Ok(());
        }
        self.stats.over_limit += 1;
        let text = format!(
            "this link's subscriptions made the gateway look through too many messages; \
             try again in {} s",
            wait.as_secs() + 1
        );
        Err((RefusalCode::Limit, text))
    }

    /// Whether more is held than the budget allows. Counts at most every 20 ms, and closes the link
    /// that holds the most when it is.
    pub(super) fn is_short(&mut self, now: Time) -> bool {
        if self.config.role != Role::Router {
            return false;
        }
        let max = self.config.memory_bytes_max;
        if self.held.counted.is_none_or(|counted| now - counted >= COUNT_AGE_MAX) {
            self.held = Held { bytes: self.count_held(), counted: Some(now) };
            if self.held.bytes > max {
                self.forget_left_behind();
            }
            if self.held.bytes > max {
                self.shed(now);
            }
        }
        self.held.bytes > max
    }

    /// What is held for peers, bytes.
    pub(super) fn count_held(&self) -> usize {
        let of_links: usize = self.links.values().map(|link| link.held_bytes_all()).sum();
        let of_realms: usize =
            self.realms.values().map(|realm| realm.ring.bytes() + realm.retained.bytes()).sum();
        of_links + of_realms
    }

    /// Makes room with what was retained in realms that nobody is in and nobody here asked for.
    fn forget_left_behind(&mut self) {
        let mut idle = Vec::new();
        for (tag, realm) in &mut self.realms {
            if self.held.bytes <= self.config.memory_bytes_max {
                break;
            }
            if realm.joined || !realm.members.is_empty() {
                continue;
            }
            let before = realm.ring.bytes() + realm.retained.bytes();
            realm.retained = Default::default();
            realm.ring.evict(0);
            self.held.bytes = self.held.bytes.saturating_sub(before - realm.ring.bytes());
            if realm.is_idle() {
                idle.push(*tag);
            }
        }
        for tag in idle {
            self.forget_realm(tag);
        }
    }

    /// Closes the link that holds the most, if that is much. What links hold that are being closed
    /// will be free in a moment.
    fn shed(&mut self, now: Time) {
        let leaving = self.links.values().filter(|link| !link.is_ready());
        let leaving: usize = leaving.map(|link| link.held_bytes_all()).sum();
        if self.held.bytes.saturating_sub(leaving) <= self.config.memory_bytes_max {
            return;
        }
        let largest = self
            .links
            .iter()
            .filter(|(_, link)| link.is_ready())
            .map(|(id, link)| (link.held_bytes_all(), *id))
            .max();
        let Some((bytes, link)) = largest else { return };
        if bytes < self.config.memory_bytes_max / SHED_SHARE {
            return;
        }
        self.stats.shed += 1;
        let reason = "holds most of this gateway's memory while it is short of it";
        let session = self.links.get(&link).and_then(|link| link.session);
        self.detach_link(now, link);
        if let Some(session) = session {
            self.end_session(now, session);
        }
        self.remove_providers(link);
        self.close_link(now, link, CloseCode::SlowConsumer, reason);
        self.held.counted = None;
    }

    /// Detached sessions wait in memory for their peers; of too many the oldest ends.
    pub(super) fn bound_detached(&mut self, now: Time) {
        while self.timers.count_sessions() > self.config.sessions_detached_max {
            let Some(session) = self.timers.first_session() else { return };
            self.stats.over_limit += 1;
            self.end_session(now, session);
        }
    }
}

/// A second's worth may come at once.
const fn rate_of(per_second: u64) -> Rate {
    Rate { per_second, burst: per_second }
}
