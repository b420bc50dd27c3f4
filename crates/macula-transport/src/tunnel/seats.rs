//! Who may have a tunnel, decided without I/O.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use super::TunnelStats;
use crate::guard::Source;
use crate::sync::lock;

/// Of the streams of one source that may be open at once, so many may still be opening.
const OPENING_PER_SOURCE_MAX: usize = 32;
/// Streams that may be opening at once, all together.
const OPENING_MAX: usize = 512;

/// Counts the streams of all and of each source.
#[derive(Debug)]
pub(crate) struct Seats {
    all_max: usize,
    source_max: usize,
    state: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    sources: HashMap<Source, Count>,
    all: Count,
    stats: TunnelStats,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    opening: usize,
    open: usize,
}

impl Count {
    fn sum(self) -> usize {
        self.opening + self.open
    }
}

/// How a stream ended that had a seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// In order, or as streams end.
    Over,
    /// It showed a page to a browser.
    Page,
    /// TLS or the request failed.
    Failed,
    /// It was not opened in time.
    TimedOut,
    /// There was no connection in it in time.
    Unused,
    /// What came was no frame.
    Malformed,
}

impl Seats {
    pub(crate) fn new(all_max: usize, source_max: usize) -> Arc<Self> {
        Arc::new(Self { all_max, source_max, state: Mutex::default() })
    }

    /// A seat for a new stream; `None`, and it was counted, when there is none.
    pub(crate) fn take(self: &Arc<Self>, ip: IpAddr) -> Option<Seat> {
        let source = Source::of(ip);
        let mut state = lock(&self.state);
        let has = state.sources.get(&source).copied().unwrap_or_default();
        if has.sum() >= self.source_max || has.opening >= OPENING_PER_SOURCE_MAX {
            state.stats.refused_source += 1;
            return None;
        }
        if state.all.sum() >= self.all_max || state.all.opening >= OPENING_MAX {
            state.stats.refused_full += 1;
            return None;
        }
        state.sources.entry(source).or_default().opening += 1;
        state.all.opening += 1;
        Some(Seat { seats: Arc::clone(self), source, is_open: false, end: End::Failed })
    }

    pub(crate) fn stats(&self) -> TunnelStats {
        let state = lock(&self.state);
        let (opening, open) = (state.all.opening as u64, state.all.open as u64);
        TunnelStats { opening, open, ..state.stats }
    }
}

/// The place of one stream, free again when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    source: Source,
    is_open: bool,
    end: End,
}

impl Seat {
    /// The stream is a tunnel now.
    pub(crate) fn open(&mut self) {
        if std::mem::replace(&mut self.is_open, true) {
            return;
        }
        self.end = End::Over;
        let mut state = lock(&self.seats.state);
        state.stats.opened += 1;
        let Taken { sources, all, .. } = &mut *state;
        for count in sources.get_mut(&self.source).into_iter().chain([all]) {
            count.opening = count.opening.saturating_sub(1);
            count.open += 1;
        }
    }

    /// Says how it ended.
    pub(crate) fn ends(&mut self, end: End) {
        self.end = end;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = lock(&self.seats.state);
        match self.end {
            End::Over => {}
            End::Page => state.stats.pages += 1,
            End::Failed => state.stats.failed += 1,
            End::TimedOut => state.stats.timed_out += 1,
            End::Unused => state.stats.unused += 1,
            End::Malformed => state.stats.malformed += 1,
        }
        let Taken { sources, all, .. } = &mut *state;
        for count in sources.get_mut(&self.source).into_iter().chain([all]) {
            let taken = if self.is_open { &mut count.open } else { &mut count.opening };
            *taken = taken.saturating_sub(1);
        }
        if sources.get(&self.source).is_some_and(|count| count.sum() == 0) {
            sources.remove(&self.source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_source_cannot_take_all_seats_and_a_network_is_one_source() {
        let seats = Seats::new(4, 2);
        let mut one = seats.take(ip("2001:db8::1")).unwrap();
        one.open();
        let two = seats.take(ip("2001:db8::2")).unwrap();
        assert!(seats.take(ip("2001:db8::3")).is_none());
        let three = seats.take(ip("192.0.2.1")).unwrap();
        let four = seats.take(ip("::ffff:192.0.2.1")).unwrap();
        assert!(seats.take(ip("192.0.2.1")).is_none());
        assert!(seats.take(ip("192.0.2.2")).is_none());
        let stats = seats.stats();
        assert_eq!((stats.open, stats.opening), (1, 3));
        assert_eq!((stats.refused_source, stats.refused_full), (2, 1));
        drop((one, two, three, four));
        let stats = seats.stats();
        assert_eq!((stats.open, stats.opening, stats.failed), (0, 0, 3));
        assert!(lock(&seats.state).sources.is_empty());
    }

    #[test]
    fn half_open_streams_have_limits_of_their_own() {
        let seats = Seats::new(10_000, 10_000);
        let mut held: Vec<_> =
            (0..OPENING_PER_SOURCE_MAX).map(|_| seats.take(ip("192.0.2.1")).unwrap()).collect();
        assert!(seats.take(ip("192.0.2.1")).is_none());
        held[0].open();
        held.push(seats.take(ip("192.0.2.1")).unwrap());
        let others = (0..).map(|n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes()));
        held.extend(others.map_while(|ip| seats.take(ip)));
        assert_eq!(seats.stats().opening, OPENING_MAX as u64);
        assert_eq!(seats.stats().refused_full, 1);
    }
}
