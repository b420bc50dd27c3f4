//! A wide-area link in user space: delay, jitter and loss, as kernels without netem have none.
//!
//! Two TAPs are the ends; one thread moves frames between them, each when it is due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Frames that are under way in one direction; more are dropped, as a full queue of a router does.
const QUEUE_MAX: usize = 20_000;
/// The largest frame: MTU 1500, Ethernet header, some room.
const FRAME_MAX: usize = 2048;
/// Frames read from one end before the other has its turn.
const BURST: usize = 64;
/// How often a link looks whether it should end.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What a link does to each frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weather {
    /// One way.
    pub delay: Duration,
    /// Up to so much more, evenly spread. Frames may overtake each other.
    pub jitter: Duration,
    /// Share of frames that vanish, 0 to 1.
    pub loss: f64,
}

impl Weather {
    /// Nothing to do: the link can be the kernel's own.
    pub(crate) fn is_clear(self) -> bool {
        self.delay.is_zero() && self.jitter.is_zero() && self.loss <= 0.0
    }
}

/// A running link; ends when dropped.
#[derive(Debug)]
pub(crate) struct Wire {
    stop: Arc<AtomicBool>,
    loss_ppm: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Joins two TAPs. The same `seed` loses the same frames.
    pub(crate) fn start(ends: [File; 2], weather: Weather, seed: u64) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let loss_ppm = Arc::new(AtomicU64::new(ppm(weather.loss)));
        let (stopped, loss) = (Arc::clone(&stop), Arc::clone(&loss_ppm));
        let thread = std::thread::Builder::new().name("lab-wire".to_owned()).spawn(move || {
            let mut carrier = Carrier::new(weather, seed);
            while !stopped.load(Ordering::Relaxed) {
                carrier.loss_ppm = loss.load(Ordering::Relaxed);
                // An end that is gone has gone with its namespace.
                if carrier.turn(&ends).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { stop, loss_ppm, thread: Some(thread) })
    }

    /// Changes the share of frames that vanish.
    pub(crate) fn set_loss(&self, loss: f64) {
        self.loss_ppm.store(ppm(loss), Ordering::Relaxed);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It never panics on purpose, and there is nobody left to tell.
            thread.join().ok();
        }
    }
}

fn ppm(share: f64) -> u64 {
    (share.clamp(0.0, 1.0) * 1e6) as u64
}

/// A frame under way: when it is due, its number (for the order of equals), to which end.
type Due = Reverse<(Instant, u64, usize, Vec<u8>)>;

struct Carrier {
    weather: Weather,
    loss_ppm: u64,
    random: u64,
    number: u64,
    queue: BinaryHeap<Due>,
    queued: [usize; 2],
}

impl Carrier {
    fn new(weather: Weather, seed: u64) -> Self {
        let queue = BinaryHeap::new();
        Self { weather, loss_ppm: 0, random: seed, number: 0, queue, queued: [0; 2] }
    }

    /// Waits for a frame or until one is due, takes what has come, hands over what is due.
    fn turn(&mut self, ends: &[File; 2]) -> std::io::Result<()> {
        let wait = self.queue.peek().map_or(LOOK_EVERY, |Reverse((due, ..))| {
            due.saturating_duration_since(Instant::now()).min(LOOK_EVERY)
        });
        let wait =
            Timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: wait.subsec_nanos().into() };
        let mut fds =
            ends.each_ref().map(|end| PollFd::from_borrowed_fd(end.as_fd(), PollFlags::IN));
        match poll(&mut fds, Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = fds.each_ref().map(|fd| !fd.revents().is_empty());
        for (from, is_ready) in ready.into_iter().enumerate() {
            if is_ready {
                self.take(ends, from)?;
            }
        }
        self.hand_over(ends);
        Ok(())
    }

    fn take(&mut self, ends: &[File; 2], from: usize) -> std::io::Result<()> {
        let (to, mut frame) = (1 - from, [0u8; FRAME_MAX]);
        for _ in 0..BURST {
            match (&ends[from]).read(&mut frame) {
                Ok(length) => self.accept(Instant::now(), to, &frame[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The interface is down for now.
                Err(error)
                    if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn accept(&mut self, now: Instant, to: usize, frame: &[u8]) {
        let is_lost = self.loss_ppm > 0 && self.draw() % 1_000_000 < self.loss_ppm;
        if is_lost || self.queued[to] >= QUEUE_MAX {
            return;
        }
        let jitter = self.weather.jitter.as_micros() as u64;
        let extra = if jitter == 0 { 0 } else { self.draw() % (jitter + 1) };
        let due = now + self.weather.delay + Duration::from_micros(extra);
        self.number += 1;
        self.queued[to] += 1;
        self.queue.push(Reverse((due, self.number, to, frame.to_vec())));
    }

    fn hand_over(&mut self, ends: &[File; 2]) {
        let now = Instant::now();
        while self.queue.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            let Some(Reverse((_, _, to, frame))) = self.queue.pop() else { break };
            self.queued[to] -= 1;
            // An interface that is down or full loses the frame, as interfaces do.
            (&ends[to]).write_all(&frame).ok();
        }
    }

    /// SplitMix64: evenly spread is all that is needed here.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carrier(jitter_ms: u64, loss: f64) -> Carrier {
        let weather = Weather {
            delay: Duration::from_millis(20),
            jitter: Duration::from_millis(jitter_ms),
            loss,
        };
        let mut carrier = Carrier::new(weather, 1);
        carrier.loss_ppm = ppm(loss);
        carrier
    }

    #[test]
    fn frames_are_due_after_the_delay_in_their_order() {
        let (mut carrier, now) = (carrier(0, 0.0), Instant::now());
        (0..3u8).for_each(|byte| carrier.accept(now, 1, &[byte]));
        for byte in 0..3u8 {
            let Reverse((due, _, to, frame)) = carrier.queue.pop().unwrap();
            assert_eq!((due - now, to, frame), (Duration::from_millis(20), 1, vec![byte]));
        }
    }

    #[test]
    fn jitter_stays_within_its_bound_and_loss_near_its_share() {
        let (mut carrier, now) = (carrier(5, 0.3), Instant::now());
        (0..10_000).for_each(|_| carrier.accept(now, 0, &[0]));
        assert!((6_700..7_300).contains(&carrier.queue.len()), "{}", carrier.queue.len());
        for Reverse((due, ..)) in &carrier.queue {
            assert!((20..=25).contains(&(*due - now).as_millis()));
        }
    }

    #[test]
    fn a_full_queue_drops() {
        let (mut carrier, now) = (carrier(0, 0.0), Instant::now());
        (0..QUEUE_MAX + 10).for_each(|_| carrier.accept(now, 0, &[0]));
        carrier.accept(now, 1, &[0]);
        assert_eq!(carrier.queue.len(), QUEUE_MAX + 1);
    }
}
