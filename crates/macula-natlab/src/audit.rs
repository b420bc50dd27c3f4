//! Whether anything is lost, doubled or reordered when a pair moves between relay and direct path, and how little
//! of a flow gateways carry.
//!
//! Messages are numbered items of one streaming call over the link between the peers; the responder sends each
//! back, so each crosses the link twice, and the initiator compares. The laboratory makes the pair move: both
//! routers drop what goes host to host, and let it pass again. Verdicts are the kernel's byte counters'.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::check::measure_delays;
use crate::counters::{Counters, Traffic};
use crate::error::LabError;
use crate::kind::NatKind;
use crate::lab::{Access, Lab, Stop};
use crate::matrix::{Counts, Gateway, Running, Seats, Stage};
use crate::program::{Subject, Told};

/// The pairs of an audit, initiator first.
pub const PAIRS: [(NatKind, NatKind); 6] = [
    (NatKind::PortRestricted, NatKind::PortRestricted),
    (NatKind::Linux, NatKind::LinuxOpen),
    (NatKind::FullCone, NatKind::AddrRestricted),
    (NatKind::Cgnat, NatKind::Linux),
    (NatKind::V6Fw, NatKind::V6Fw),
    (NatKind::Public, NatKind::Fw),
];

/// Switches that every pair of an audit must make: to the direct path, back to the relay, to the direct one.
pub const SWITCHES_MIN: u64 = 3;
/// Messages go out in portions, so often.
const INTERVAL: Duration = Duration::from_millis(10);
/// A pair sends at most so many messages a second.
const RATE_MAX: u64 = 5_000;
/// A pair sends for at least so long, that it has the time to move.
const TIME_MIN: Duration = Duration::from_secs(16);
/// A pair ends after this, and what did not come back is lost: slow machines take longer than the rates say.
const TIME_MAX: Duration = Duration::from_secs(300);
/// A pair stays on a path for so long. Its last second is counted.
const STAY: Duration = Duration::from_millis(1600);
const COUNTED: Duration = Duration::from_secs(1);
/// Payload of a message of a flow, bytes, and the time between two: 100 KiB/s each way.
const FLOW_BYTES: &str = "1024";
const FLOW_INTERVAL: Duration = Duration::from_millis(10);
/// What programs get beyond their time.
const GRACE: Duration = Duration::from_secs(30);

/// One pair of an audit.
#[derive(Clone, Debug, Serialize)]
pub struct AuditedPair {
    /// Kind of the initiator.
    pub initiator: String,
    /// Kind of the responder.
    pub responder: String,
    /// Changes of the path that the initiator told, relay to direct and back; a link starts on the relay.
    pub switches: u64,
    /// Changes that the byte counters of both hosts show, looked at once on each path.
    pub kernel_switches: u64,
    /// Times that the call between the peers ended early and was made again.
    pub broken: u64,
    /// What the initiator counted; `None` when it did not end in time.
    pub counts: Option<Counts>,
    /// From the pair's start to its end, s.
    pub seconds: f64,
    /// What went wrong.
    pub note: Option<String>,
}

impl AuditedPair {
    /// Every message of a pair that moved often enough came back once and in order.
    #[must_use]
    pub fn is_clean(&self, messages: u64) -> bool {
        let is_exact = |counts: &Counts| {
            counts.sent == messages
                && counts.received == messages
                && (counts.lost, counts.duplicated, counts.reordered) == (0, 0, 0)
        };
        self.counts.as_ref().is_some_and(is_exact)
            && self.switches >= SWITCHES_MIN
            && self.kernel_switches >= SWITCHES_MIN
    }
}

/// A whole audit.
#[derive(Clone, Debug, Serialize)]
pub struct Audit {
    /// Messages that were to be sent, over all pairs.
    pub messages: u64,
    /// Sums of what initiators counted.
    pub received: u64,
    /// The same.
    pub lost: u64,
    /// The same.
    pub duplicated: u64,
    /// The same.
    pub reordered: u64,
    /// Sum over all pairs, by the programs.
    pub switches: u64,
    /// Sum over all pairs, by the byte counters.
    pub kernel_switches: u64,
    /// Pairs that are not clean.
    pub failed: usize,
    /// How long all took.
    pub wall_seconds: f64,
    /// Each pair.
    pub pairs: Vec<AuditedPair>,
}

/// Runs the first `pairs` of [`PAIRS`], `parallel` at a time. Messages are split evenly; the first pairs get one
/// more where that does not come out.
///
/// # Errors
/// When the laboratory or the gateway does not work, or was stopped. Pairs that fail are results.
pub fn run(
    lab: &mut Lab,
    subject: &Subject,
    messages: u64,
    pairs: usize,
    parallel: usize,
    stop: &Stop,
) -> Result<Audit, LabError> {
    let begun = Instant::now();
    let mut seats = Vec::new();
    for (one, other) in PAIRS.into_iter().take(pairs.max(1)) {
        stop.check()?;
        let (one, other) =
            (lab.add_site(Access::Single(one))?, lab.add_site(Access::Single(other))?);
        seats.push(Seats { initiator: (one, 0), responder: (other, 0) });
    }
    measure_delays(lab, Duration::ZERO)?;
    let home = tempfile::tempdir().map_err(|error| LabError::new("a directory", error))?;
    let gateway = Gateway::start(lab, subject, home.path(), stop)?;
    let stage = Stage { lab, subject, gateway: gateway.id(), home: home.path(), stop };
    let shares = shares(messages, seats.len());
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..parallel.max(1) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some((seats, share)) = seats.get(index).zip(shares.get(index)) else {
                        return;
                    };
                    let pair = audit(&stage, index, *seats, *share);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((index, *share, pair));
                }
            });
        }
    });
    gateway.end();
    stop.check()?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(index, ..)| *index);
    let failed = done.iter().filter(|(_, share, pair)| !pair.is_clean(*share)).count();
    let pairs: Vec<AuditedPair> = done.into_iter().map(|(.., pair)| pair).collect();
    let sum =
        |of: fn(&Counts) -> u64| pairs.iter().filter_map(|it| it.counts.as_ref()).map(of).sum();
    Ok(Audit {
        messages,
        received: sum(|counts| counts.received),
        lost: sum(|counts| counts.lost),
        duplicated: sum(|counts| counts.duplicated),
        reordered: sum(|counts| counts.reordered),
        switches: pairs.iter().map(|pair| pair.switches).sum(),
        kernel_switches: pairs.iter().map(|pair| pair.kernel_switches).sum(),
        failed,
        wall_seconds: begun.elapsed().as_secs_f64(),
        pairs,
    })
}

fn shares(messages: u64, pairs: usize) -> Vec<u64> {
    let pairs = pairs.max(1) as u64;
    (0..pairs).map(|index| messages / pairs + u64::from(index < messages % pairs)).collect()
}

/// How many messages go out at each [`INTERVAL`].
fn portion(messages: u64) -> u64 {
    let rate = (messages / TIME_MIN.as_secs()).clamp(1, RATE_MAX);
    (rate * INTERVAL.as_millis() as u64 / 1000).max(1)
}

fn audit(stage: &Stage<'_>, index: usize, seats: Seats, messages: u64) -> AuditedPair {
    let begun = Instant::now();
    let name = |seat: (usize, usize)| stage.lab.sites[seat.0].access.to_string();
    let mut pair = AuditedPair {
        initiator: name(seats.initiator),
        responder: name(seats.responder),
        switches: 0,
        kernel_switches: 0,
        broken: 0,
        counts: None,
        seconds: 0.0,
        note: None,
    };
    let (count, batch) = (messages.to_string(), portion(messages).to_string());
    let more = ["--quiet", "--count", &count, "--batch", &batch];
    let followed = stage.start(&format!("pair{index}"), seats, TIME_MAX, INTERVAL, &more).and_then(
        |mut running| {
            let followed = Mover { stage, seats, running: &mut running, pair: &mut pair }.follow();
            running.initiator.end();
            running.responder.end();
            followed
        },
    );
    pair.note = followed.err().map(|error| error.to_string());
    pair.seconds = begun.elapsed().as_secs_f64();
    pair
}

/// Moves a pair to and fro until it has sent everything.
struct Mover<'a, 'b> {
    stage: &'a Stage<'b>,
    seats: Seats,
    running: &'a mut Running,
    pair: &'a mut AuditedPair,
}

impl Mover<'_, '_> {
    fn follow(&mut self) -> Result<(), LabError> {
        let until = Instant::now() + TIME_MAX + GRACE;
        let (mut is_direct, mut was_counted_direct) = (false, false);
        // When the pair came to the path that it is on, and what was counted since the last second of its stay.
        let (mut since, mut before): (_, Option<[Counters; 2]>) = (Instant::now(), None);
        let (mut is_cut, mut is_counted) = (false, false);
        while Instant::now() < until {
            self.stage.stop.check()?;
            let is_where_wanted = is_direct != is_cut;
            let stayed = since.elapsed();
            if is_where_wanted && !is_counted && stayed >= STAY {
                if let Some(before) = &before {
                    let counted = counted_direct(before, &self.stage.count(self.seats)?);
                    self.pair.kernel_switches +=
                        u64::from(counted == Some(is_direct) && is_direct != was_counted_direct);
                    was_counted_direct = counted.unwrap_or(was_counted_direct);
                }
                is_counted = true;
                is_cut = !is_cut;
                self.cut(is_cut)?;
            } else if is_where_wanted && before.is_none() && stayed >= STAY - COUNTED {
                before = Some(self.stage.count(self.seats)?);
            }
            let Some(told) = self.running.initiator.next(Duration::from_millis(50))? else {
                continue;
            };
            if told.event == "done" {
                self.pair.counts = Some((&told).into());
                return self.cut(false);
            }
            self.pair.broken += u64::from(told.event == "broken");
            if let Some(path) = path_of(&told)
                && path != is_direct
            {
                (is_direct, since, before, is_counted) = (path, Instant::now(), None, false);
                self.pair.switches += 1;
            }
        }
        self.cut(false)?;
        Err(LabError::new("the audit", format_args!("not at its end within {TIME_MAX:?}")))
    }

    fn cut(&self, is_cut: bool) -> Result<(), LabError> {
        for seat in [self.seats.initiator, self.seats.responder] {
            self.stage.lab.sites[seat.0].cut_direct(is_cut)?;
        }
        Ok(())
    }
}

/// Whether the initiator tells that it is on the direct path, when it tells of a path.
fn path_of(told: &Told) -> Option<bool> {
    matches!(told.event.as_str(), "connected" | "path").then(|| told.path == "direct")
}

/// Which path payload took at both hosts; `None` when they differ.
fn counted_direct(before: &[Counters; 2], after: &[Counters; 2]) -> Option<bool> {
    let [one, other]: [Traffic; 2] =
        std::array::from_fn(|host| after[host].since(&before[host], Lab::is_relay));
    (one.is_direct() == other.is_direct()).then(|| one.is_direct())
}

/// How a flow between two peers went.
#[derive(Clone, Debug, Serialize)]
pub struct Flow {
    /// Kind of both sides.
    pub kind: &'static str,
    /// How long messages were sent, s.
    pub seconds: u64,
    /// Payload of a message, bytes; each goes there and back.
    pub message_bytes: u64,
    /// Bytes of IP packets that the initiator exchanged with the gateway, from its start to its end.
    pub gateway_bytes: u64,
    /// Bytes of IP packets that it exchanged with the responder's router.
    pub direct_bytes: u64,
    /// Of both.
    pub gateway_share: f64,
    /// What the initiator counted.
    pub counts: Option<Counts>,
}

/// Runs a steady flow between two peers behind [`NatKind::PortRestricted`] for `seconds`.
///
/// # Errors
/// When the laboratory does not work, was stopped, or the pair did not link.
pub fn flow(lab: &mut Lab, subject: &Subject, seconds: u64, stop: &Stop) -> Result<Flow, LabError> {
    let kind = NatKind::PortRestricted;
    let access = Access::Single(kind);
    let (one, other) = (lab.add_site(access)?, lab.add_site(access)?);
    measure_delays(lab, Duration::ZERO)?;
    let home = tempfile::tempdir().map_err(|error| LabError::new("a directory", error))?;
    let gateway = Gateway::start(lab, subject, home.path(), stop)?;
    let seats = Seats { initiator: (one, 0), responder: (other, 0) };
    let stage = Stage { lab, subject, gateway: gateway.id(), home: home.path(), stop };
    let [before, _] = stage.count(seats)?;
    let time = Duration::from_secs(seconds);
    let more = ["--quiet", "--bytes", FLOW_BYTES];
    let mut running = stage.start("pair", seats, time, FLOW_INTERVAL, &more)?;
    let done = running.initiator.expect("done", time + GRACE, stop)?;
    let [after, _] = stage.count(seats)?;
    running.initiator.end();
    running.responder.end();
    gateway.end();
    let traffic = after.since(&before, Lab::is_relay);
    let direct_bytes = traffic.sent + traffic.received;
    let all = (traffic.relayed + direct_bytes).max(1);
    Ok(Flow {
        kind: kind.name(),
        seconds,
        message_bytes: FLOW_BYTES.parse().unwrap_or_default(),
        gateway_bytes: traffic.relayed,
        direct_bytes,
        gateway_share: traffic.relayed as f64 / all as f64,
        counts: Some((&done).into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_split_without_rest() {
        assert_eq!(shares(1_000_000, 6).iter().sum::<u64>(), 1_000_000);
        assert_eq!(shares(20, 3), [7, 7, 6]);
    }

    #[test]
    fn small_audits_send_slowly_and_large_ones_no_faster_than_they_may() {
        assert_eq!(portion(1), 1);
        assert_eq!(portion(10_000), 6);
        assert_eq!(portion(1_000_000), 50);
    }

    #[test]
    fn an_audit_is_clean_only_with_all_messages_and_switches() {
        let told = Told { sent: 5, received: 5, ..Told::default() };
        let pair = AuditedPair {
            initiator: String::new(),
            responder: String::new(),
            switches: 3,
            kernel_switches: 3,
            broken: 0,
            counts: Some((&told).into()),
            seconds: 1.0,
            note: None,
        };
        assert!(pair.is_clean(5));
        assert!(!pair.is_clean(6));
        assert!(!AuditedPair { kernel_switches: 2, ..pair.clone() }.is_clean(5));
        assert!(!AuditedPair { counts: None, ..pair.clone() }.is_clean(5));
        for told in [
            Told { lost: 1, ..told.clone() },
            Told { duplicated: 1, ..told.clone() },
            Told { reordered: 1, ..told },
        ] {
            assert!(!AuditedPair { counts: Some((&told).into()), ..pair.clone() }.is_clean(5));
        }
    }
}
