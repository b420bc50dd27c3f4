//! Time as the state machines see it: passed in, never read.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::{Add, Sub};
use std::time::Duration;

/// Microseconds since an arbitrary start that the driver chooses.
///
/// There is no `now()`: the driver or the simulator passes time in. `Option<Time>` is 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(NonZeroU64);

const _: () = assert!(size_of::<Option<Time>>() == 8);

impl Time {
    /// The earliest representable moment.
    pub const START: Self = Self(NonZeroU64::MIN);

    /// The moment `micros` microseconds after [`Time::START`]; saturates at the end of time.
    pub const fn from_micros(micros: u64) -> Self {
        match NonZeroU64::new(micros.saturating_add(1)) {
            Some(value) => Self(value),
            None => Self(NonZeroU64::MAX),
        }
    }

    /// Microseconds since [`Time::START`].
    pub const fn as_micros(self) -> u64 {
        self.0.get() - 1
    }

    /// How long after `earlier` this is; zero when `earlier` is later.
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.get().saturating_sub(earlier.0.get()))
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        let micros = u64::try_from(rhs.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(micros))
    }
}

impl Sub for Time {
    type Output = Duration;

    fn sub(self, rhs: Self) -> Duration {
        self.saturating_since(rhs)
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.as_micros();
        write!(f, "{}.{:06}s", micros / 1_000_000, micros % 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adding_never_wraps() {
        let end = Time::from_micros(u64::MAX);
        assert_eq!(end + Duration::MAX, Time(NonZeroU64::MAX));
        assert_eq!(Time::START.saturating_since(end), Duration::ZERO);
        assert_eq!(Time::from_micros(7).as_micros(), 7);
    }
}
