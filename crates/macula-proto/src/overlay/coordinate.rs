//! Where a node is in terms of round-trip times: Vivaldi coordinates (Dabek and others, SIGCOMM 2004),
//! two dimensions and a height, in steps of a quarter of a millisecond.
//!
//! They let a node guess the round-trip time to one that it has never talked to, and so choose near
//! ones among many contacts without a probe. A lie about them costs locality, nothing else.

use std::time::Duration;

/// Steps per millisecond.
const SCALE: f32 = 4.0;
/// How far one sample may move a coordinate (Vivaldi's c_c), share of the error.
const STEP: f32 = 0.25;
/// How fast the own error estimate follows the samples (c_e).
const ERROR_STEP: f32 = 0.25;
/// Samples beyond this say nothing about distance.
const SAMPLE_MAX: Duration = Duration::from_secs(2);
/// The smallest height, milliseconds: the access link.
const HEIGHT_MIN: f32 = 0.1;

/// A place, as it goes over the wire: quarter milliseconds. 6 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coordinate {
    /// First dimension.
    pub x: i16,
    /// Second dimension.
    pub y: i16,
    /// What every path from here costs besides.
    pub height: u16,
}

impl Coordinate {
    /// The round-trip time to expect between two places.
    pub fn rtt(&self, other: &Self) -> Duration {
        let (dx, dy) =
            (f32::from(self.x) - f32::from(other.x), f32::from(self.y) - f32::from(other.y));
        let steps = dx.hypot(dy) + f32::from(self.height) + f32::from(other.height);
        Duration::from_micros((steps / SCALE * 1000.0) as u64)
    }

    /// How far one place is from what it was before.
    pub(super) fn moved(&self, before: &Self) -> Duration {
        let still = |place: &Self| Self { height: 0, ..*place };
        let steps = self.height.abs_diff(before.height);
        still(self).rtt(&still(before)) + Duration::from_micros(u64::from(steps) * 250)
    }

    /// Whether it was never moved.
    pub const fn is_unknown(&self) -> bool {
        self.x == 0 && self.y == 0 && self.height == 0
    }
}

/// The own place, as it is learnt.
#[derive(Clone, Debug)]
pub(super) struct Place {
    x: f32,
    y: f32,
    height: f32,
    /// Relative error of the own coordinate, 0 to 1.
    error: f32,
}

impl Place {
    /// Begins at a point that `draw` spreads, so that two beginners do not sit upon each other.
    pub(super) fn new(draw: u64) -> Self {
        let spread = |bits: u64| (bits & 0xffff) as f32 / 65_536.0 - 0.5;
        Self { x: spread(draw), y: spread(draw >> 16), height: HEIGHT_MIN, error: 1.0 }
    }

    /// Takes a measured round-trip time to a place into account.
    pub(super) fn sample(&mut self, other: &Coordinate, rtt: Duration) {
        if other.is_unknown() || rtt.is_zero() || rtt > SAMPLE_MAX {
            return;
        }
        let measured = rtt.as_secs_f32() * 1000.0;
        let (dx, dy) = (self.x - f32::from(other.x) / SCALE, self.y - f32::from(other.y) / SCALE);
        let plane = dx.hypot(dy);
        let heights = self.height + f32::from(other.height) / SCALE;
        let expected = plane + heights;
        let relative = ((measured - expected).abs() / measured).min(1.0);
        // the other's error is not on the wire: it is taken to be as sure as a settled node
        let weight = self.error / (self.error + 0.2);
        self.error = (self.error * (1.0 - ERROR_STEP * weight) + relative * ERROR_STEP * weight)
            .clamp(0.02, 1.0);
        let pull = STEP * weight * (measured - expected);
        // both at one point: any direction will do
        let (ux, uy) = if plane > 0.01 { (dx / plane, dy / plane) } else { (0.8, 0.6) };
        let share = if expected > 0.01 { plane / expected } else { 0.5 };
        self.x = (self.x + pull * share * ux).clamp(-8_000.0, 8_000.0);
        self.y = (self.y + pull * share * uy).clamp(-8_000.0, 8_000.0);
        self.height = (self.height + pull * (1.0 - share)).clamp(HEIGHT_MIN, 8_000.0);
    }

    /// As it goes over the wire.
    pub(super) fn coordinate(&self) -> Coordinate {
        Coordinate {
            x: (self.x * SCALE) as i16,
            y: (self.y * SCALE) as i16,
            height: ((self.height * SCALE) as u16).max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_on_a_line_learn_their_distances() {
        let truth = [0.0f32, 20.0, 50.0, 90.0, 91.0];
        let mut places: Vec<Place> = (0..5).map(|i| Place::new(i * 0x9e37_79b9)).collect();
        for round in 0..400usize {
            for a in 0..5 {
                let b = (a + 1 + round % 4) % 5;
                let rtt = (truth[a] - truth[b]).abs() + 2.0;
                let other = places[b].coordinate();
                places[a].sample(&other, Duration::from_secs_f32(rtt / 1000.0));
            }
        }
        for a in 0..5 {
            for b in 0..a {
                let rtt = (truth[a] - truth[b]).abs() + 2.0;
                let guess = places[a].coordinate().rtt(&places[b].coordinate()).as_secs_f32() * 1e3;
                assert!((guess - rtt).abs() < 6.0 + rtt * 0.2, "{a} to {b}: {guess} for {rtt}");
            }
        }
    }

    #[test]
    fn absurd_samples_change_nothing_and_never_overflow() {
        let mut place = Place::new(7);
        let before = place.coordinate();
        let far = Coordinate { x: i16::MIN, y: i16::MAX, height: u16::MAX };
        place.sample(&far, Duration::ZERO);
        place.sample(&far, Duration::from_secs(1000));
        assert_eq!(place.coordinate(), before);
        (0..10_000).for_each(|_| place.sample(&far, Duration::from_millis(1)));
        assert!(place.x.is_finite() && place.height >= HEIGHT_MIN);
    }
}
