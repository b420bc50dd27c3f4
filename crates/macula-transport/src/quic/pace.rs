//! How bursts are paced.
//!
//! noq 1.4 paces at a window per round trip and lets at most 10 ms of that rate go at once. Until a
//! path is measured it takes a third of a second for the round trip, and what it derives from that it
//! keeps while the window stays as it is, which is as long as little is sent. So on a link of 40 ms or
//! more the second packet of a burst waits for milliseconds, and a handshake has several such bursts.
//! RFC 9002 §7.7 allows an initial window at once; here it is.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use noq::congestion::{Controller, ControllerFactory, ControllerMetrics, Cubic, CubicConfig};

/// How much of a rate noq lets go at once.
const BURST_INTERVAL: Duration = Duration::from_millis(10);

/// Makes congestion controllers: Cubic (RFC 9438) that lets an initial window go at once.
#[derive(Debug, Default)]
pub(super) struct Factory {
    cubic: Arc<CubicConfig>,
}

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let cubic = Cubic::new(Arc::clone(&self.cubic), now, mtu);
        Box::new(Paced { cubic, mtu, round_trip: None })
    }
}

#[derive(Clone, Debug)]
struct Paced {
    cubic: Cubic,
    mtu: u16,
    /// Smoothed; unknown at first.
    round_trip: Option<Duration>,
}

impl Paced {
    /// The rate in bytes per second at which noq lets an initial window go at once (RFC 9002 §7.2).
    fn floor(&self) -> u64 {
        let mtu = u64::from(self.mtu);
        let initial_window = (10 * mtu).min((2 * mtu).max(14_720));
        per_second(initial_window, BURST_INTERVAL)
    }

    /// The rate to pace at; `None` where noq's own is no less.
    fn rate(&self) -> Option<u64> {
        let own = self.round_trip.map_or(0, |time| per_second(self.cubic.window(), time));
        let floor = self.floor();
        (own < floor).then_some(floor)
    }
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let nanos = time.as_nanos().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

impl Controller for Paced {
    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        number: u64,
        is_app_limited: bool,
        rtt: &noq_proto::RttEstimator,
    ) {
        self.round_trip = Some(rtt.get());
        self.cubic.on_ack(now, sent, bytes, number, is_app_limited, rtt);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent: bool,
        is_ecn: bool,
        lost_bytes: u64,
        largest: u64,
    ) {
        self.cubic.on_congestion_event(now, sent, is_persistent, is_ecn, lost_bytes, largest);
    }

    fn on_spurious_congestion_event(&mut self) {
        self.cubic.on_spurious_congestion_event();
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.mtu = mtu;
        self.cubic.on_mtu_update(mtu);
    }

    fn window(&self) -> u64 {
        self.cubic.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.cubic.metrics();
        metrics.pacing_rate = self.rate();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paced(mtu: u16, round_trip: Option<Duration>) -> Paced {
        let cubic = Cubic::new(Arc::default(), Instant::now(), mtu);
        Paced { cubic, mtu, round_trip }
    }

    #[test]
    fn an_initial_window_goes_at_once_until_the_link_is_faster_than_that() {
        let burst = |mtu, round_trip: Option<u64>| {
            let rate = paced(mtu, round_trip.map(Duration::from_millis)).metrics().pacing_rate;
            rate.map(|rate| rate / 100)
        };
        assert_eq!(burst(1200, None), Some(12_000));
        assert_eq!(burst(1200, Some(80)), Some(12_000));
        assert_eq!(burst(1452, Some(80)), Some(14_520));
        assert_eq!(burst(6500, Some(80)), Some(14_720));
        assert_eq!(burst(1200, Some(9)), None, "12,000 bytes in 9 ms");
        assert_eq!(burst(1200, Some(0)), None);
    }

    #[test]
    fn a_larger_packet_is_heard_of() {
        let mut paced = paced(1200, None);
        paced.on_mtu_update(9000);
        assert_eq!(paced.metrics().pacing_rate, Some(1_800_000));
        assert_eq!(paced.clone_box().window(), paced.window());
    }
}
