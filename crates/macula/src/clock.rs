//! The one place that reads the clock for the core.

use std::time::SystemTime;

use macula_proto::Time;
use tokio::time::Instant;

/// Converts between the core's [`Time`] and the runtime's [`Instant`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock whose [`Time::START`] is now.
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// The present moment.
    pub(crate) fn now(&self) -> Time {
        let micros = self.start.elapsed().as_micros();
        Time::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    /// The moment `time` for the runtime's timers.
    pub(crate) fn instant(&self, time: Time) -> Instant {
        self.start + (time - Time::START)
    }

    /// Unix time in microseconds: the epoch of a node that starts now.
    pub(crate) fn unix_micros() -> u64 {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }
}
