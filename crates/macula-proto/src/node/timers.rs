//! The node's timers: at most one per purpose, the earliest known at once.

use std::collections::{BTreeMap, BTreeSet};

use super::api::TimerKind;
use super::session::SessionId;
use crate::id::{LinkId, RealmTag};
use crate::time::Time;

/// What a timer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Handshake(LinkId),
    Probe(LinkId),
    Watch(LinkId),
    Stall(LinkId),
    Deadline(u64),
    Session(SessionId),
    Ring(RealmTag),
    Grace(RealmTag),
    Rate(LinkId),
    RealmRate(RealmTag),
    /// The first permit ends.
    Permits,
    Retire(LinkId),
    /// A link to a peer that carries nothing ends.
    Idle(LinkId),
    /// What waits for its turn has waited long.
    Order,
}

impl Timer {
    const fn is_session(self) -> bool {
        matches!(self, Self::Session(_))
    }

    const fn kind(self) -> TimerKind {
        match self {
            Self::Handshake(_) | Self::Retire(_) | Self::Idle(_) => TimerKind::Handshake,
            Self::Probe(_) | Self::Watch(_) => TimerKind::Probe,
            Self::Stall(_) => TimerKind::Stall,
            Self::Deadline(_) => TimerKind::Deadline,
            Self::Rate(_) | Self::RealmRate(_) => TimerKind::Rate,
            Self::Permits => TimerKind::Permit,
            Self::Order | Self::Session(_) | Self::Ring(_) | Self::Grace(_) => TimerKind::Ring,
        }
    }
}

/// All timers that are set.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeSet<(Time, Timer)>,
    at: BTreeMap<Timer, Time>,
    /// How many are sessions.
    sessions: usize,
    /// Deadlines of calls by their numbers. Apart, as there are many and each call knows its own.
    deadlines: BTreeSet<(Time, u64)>,
}

impl Timers {
    /// Sets `timer` to `at`, whatever it was set to before.
    pub(super) fn set(&mut self, timer: Timer, at: Time) {
        if let Some(old) = self.at.insert(timer, at) {
            if old == at {
                return;
            }
            self.due.remove(&(old, timer));
        } else {
            self.sessions += usize::from(timer.is_session());
        }
        self.due.insert((at, timer));
    }

    /// Sets `timer` unless it is set already.
    pub(super) fn set_if_unset(&mut self, timer: Timer, at: Time) {
        if !self.at.contains_key(&timer) {
            self.set(timer, at);
        }
    }

    pub(super) fn clear(&mut self, timer: Timer) {
        if let Some(old) = self.at.remove(&timer) {
            self.due.remove(&(old, timer));
            self.sessions -= usize::from(timer.is_session());
        }
    }

    /// Sessions that wait for their peers to return.
    pub(super) const fn count_sessions(&self) -> usize {
        self.sessions
    }

    /// The session that has waited longest.
    pub(super) fn first_session(&self) -> Option<SessionId> {
        self.due.iter().find_map(|(_, timer)| match timer {
            Timer::Session(session) => Some(*session),
            _ => None,
        })
    }

    /// Sets the deadline of call `id`, which has none yet.
    pub(super) fn set_deadline(&mut self, id: u64, at: Time) {
        self.deadlines.insert((at, id));
    }

    /// Clears the deadline of call `id`, set to `at`.
    pub(super) fn clear_deadline(&mut self, id: u64, at: Time) {
        self.deadlines.remove(&(at, id));
    }

    /// Takes one timer that is due at `now`.
    pub(super) fn pop_due(&mut self, now: Time) -> Option<Timer> {
        let (at, timer) = self.first()?;
        if at > now {
            return None;
        }
        if let Timer::Deadline(id) = timer {
            self.deadlines.remove(&(at, id));
        } else {
            self.due.pop_first();
            self.at.remove(&timer);
            self.sessions -= usize::from(timer.is_session());
        }
        Some(timer)
    }

    /// The earliest timer.
    pub(super) fn next(&self) -> Option<(Time, TimerKind)> {
        self.first().map(|(at, timer)| (at, timer.kind()))
    }

    fn first(&self) -> Option<(Time, Timer)> {
        let deadline = self.deadlines.first().map(|(at, id)| (*at, Timer::Deadline(*id)));
        self.due.first().copied().into_iter().chain(deadline).min()
    }
}
