//! Pairs of programs, each behind its NAT: who gets a direct path, and when.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::check::{Delays, measure_delays};
use crate::counters::{Counters, Traffic};
use crate::error::{LabError, LabErrorKind};
use crate::kind::{NatKind, Shared};
use crate::lab::{Access, Lab, RELAYS_V4, RELAYS_V6, Site, Stop};
use crate::mix::{MIXES, MixShare};
pub use crate::program::Subject;
use crate::program::{Program, Told};

/// Programs are ready within this.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes are counted over this once the program says that it is direct.
const WINDOW: Duration = Duration::from_millis(1200);
/// A pair may take this much longer than it should.
const GRACE: Duration = Duration::from_secs(5);
/// Where the gateway listens.
const PORT: u16 = 4433;

/// Where it listens by TCP beside that.
const WEB_PORT: u16 = 443;

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Rows and columns.
    pub kinds: Vec<NatKind>,
    /// Pairs beside the matrix.
    pub shared: Vec<Shared>,
    /// How long a pair may try.
    pub pair_time: Duration,
    /// Between two beats.
    pub interval: Duration,
    /// Pairs at a time.
    pub parallel: usize,
    /// Jitter of the links, for the measurement of the delay.
    pub jitter: Duration,
}

/// What became of a pair, by the byte counters of both hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Payload goes host to host.
    Direct,
    /// It goes by way of a gateway.
    Relayed,
    /// No payload went.
    Failed,
}

/// One ordered pair.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairResult {
    /// Kind of the initiator.
    pub initiator: String,
    /// Kind of the responder.
    pub responder: String,
    /// What the kernels counted.
    pub verdict: Verdict,
    /// From the initiator's start until messages went, ms, by its own word.
    pub usable_ms: Option<f64>,
    /// From its start until the path was direct, ms, by its own word.
    pub direct_ms: Option<f64>,
    /// Why it failed, or where the program's word and the counters differ.
    pub note: Option<String>,
}

/// All pairs of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// In the order of the plan.
    pub results: Vec<PairResult>,
    /// Measured before.
    pub delays: Delays,
    /// All in all, building included.
    pub wall: Duration,
}

/// A gateway in its place.
#[derive(Debug)]
pub(crate) struct Gateway {
    program: Program,
    id: String,
}

impl Gateway {
    pub(crate) fn start(
        lab: &Lab,
        subject: &Subject,
        home: &Path,
        stop: &Stop,
    ) -> Result<Self, LabError> {
        let listen = format!("[::]:{PORT}");
        // By TCP also where the firewalls of offices let it pass.
        let tunnels = format!("{listen},[::]:{WEB_PORT}");
        let arguments = [
            "gateway",
            "--json",
            "--until-stdin-closes",
            "--listen",
            &listen,
            "--tunnel-listen",
            &tunnels,
        ];
        let mut program = Program::start(
            subject,
            "the gateway",
            &lab.gateway,
            &home.join("gateway"),
            &arguments,
        )?;
        let told = program.expect("listening", READY_TIMEOUT, stop)?;
        Ok(Self { program, id: told.id })
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn end(self) {
        self.program.end();
    }

    /// Ends it without a word to anybody.
    pub(crate) fn kill(self) {
        drop(self.program);
    }
}

/// Where a pair runs: sites and hosts of initiator and responder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seats {
    pub(crate) initiator: (usize, usize),
    pub(crate) responder: (usize, usize),
}

/// Two programs that talk.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) initiator: Program,
    pub(crate) responder: Program,
}

/// What pairs have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) subject: &'a Subject,
    /// The gateway's endpoint id.
    pub(crate) gateway: &'a str,
    pub(crate) home: &'a Path,
    pub(crate) stop: &'a Stop,
}

impl Stage<'_> {
    /// The gateway as a host of this access should name it.
    fn address(&self, access: Access) -> String {
        let id = self.gateway;
        match access {
            Access::Single(kind) if !kind.has_v4() => format!("{id}@[{}]:{PORT}", RELAYS_V6[0]),
            _ => format!("{id}@{}:{PORT}", RELAYS_V4[0]),
        }
    }

    fn site(&self, seat: (usize, usize)) -> &Site {
        &self.lab.sites[seat.0]
    }

    /// Starts both; `time` is what the initiator is told, and `more` goes on its command line.
    pub(crate) fn start(
        &self,
        name: &str,
        seats: Seats,
        time: Duration,
        interval: Duration,
        more: &[&str],
    ) -> Result<Running, LabError> {
        let Subject { realm, .. } = self.subject;
        let (one, other) = (self.site(seats.initiator), self.site(seats.responder));
        let here = self.address(other.access);
        let mut arguments = vec!["lab", "responder", "-g", &here, "-r", realm, "--json"];
        // Nobody hears the responder: one that tells of each beat of many would soon wait.
        arguments.extend(more.iter().filter(|word| **word == "--quiet"));
        let netns = &other.hosts[seats.responder.1].netns;
        let home = self.home.join(name);
        let mut responder = Program::start(
            self.subject,
            "the responder",
            netns,
            &home.join("responder"),
            &arguments,
        )?;
        let ready = responder.expect("ready", READY_TIMEOUT, self.stop)?;
        let here = self.address(one.access);
        let seconds = time.as_secs().to_string();
        let every = format!("{}ms", interval.as_millis());
        let mut arguments = vec![
            "lab",
            "initiator",
            "-g",
            &here,
            "-r",
            realm,
            "--peer",
            &ready.id,
            "--json",
            "--for",
            &seconds,
            "--interval",
            &every,
        ];
        arguments.extend(more);
        let netns = &one.hosts[seats.initiator.1].netns;
        let initiator = Program::start(
            self.subject,
            "the initiator",
            netns,
            &home.join("initiator"),
            &arguments,
        )?;
        Ok(Running { initiator, responder })
    }

    /// Starts a third member, which carries packets of others.
    pub(crate) fn start_carrier(&self, seat: (usize, usize)) -> Result<Program, LabError> {
        let (site, realm) = (self.site(seat), &self.subject.realm);
        let here = self.address(site.access);
        let arguments = ["lab", "responder", "-g", &here, "-r", realm, "--json", "--carry"];
        let (netns, home) = (&site.hosts[seat.1].netns, self.home.join("carrier"));
        let mut carrier = Program::start(self.subject, "the carrier", netns, &home, &arguments)?;
        carrier.expect("ready", READY_TIMEOUT, self.stop)?;
        Ok(carrier)
    }

    pub(crate) fn count(&self, seats: Seats) -> Result<[Counters; 2], LabError> {
        let read = |seat: (usize, usize)| Counters::read(&self.site(seat).hosts[seat.1].netns);
        Ok([read(seats.initiator)?, read(seats.responder)?])
    }

    fn pair(&self, name: &str, seats: Seats, plan: &Plan) -> Result<PairResult, LabError> {
        self.site(seats.initiator).forget()?;
        if seats.initiator.0 != seats.responder.0 {
            self.site(seats.responder).forget()?;
        }
        let mut result = PairResult {
            initiator: self.site(seats.initiator).access.to_string(),
            responder: self.site(seats.responder).access.to_string(),
            verdict: Verdict::Failed,
            usable_ms: None,
            direct_ms: None,
            note: None,
        };
        let followed =
            self.start(name, seats, plan.pair_time, plan.interval, &[]).and_then(|mut running| {
                let followed = self.follow(&mut running, seats, plan, &mut result);
                running.initiator.end();
                running.responder.end();
                followed
            });
        match followed {
            Err(error) if error.kind() == LabErrorKind::Stopped => return Err(error),
            Err(error) => result.note = Some(error.to_string()),
            Ok(()) => {}
        }
        Ok(result)
    }

    /// Hears the initiator until the verdict is clear or its time is over.
    fn follow(
        &self,
        running: &mut Running,
        seats: Seats,
        plan: &Plan,
        result: &mut PairResult,
    ) -> Result<(), LabError> {
        let until = Instant::now() + plan.pair_time + GRACE;
        let mut before: Option<(Instant, [Counters; 2])> = None;
        let (mut beats, mut is_direct) = (0u64, false);
        while Instant::now() < until {
            self.stop.check()?;
            // A relayed pair is judged by its last seconds, a direct one by the first that it is.
            let age = before.as_ref().map(|(since, _)| since.elapsed());
            if age.is_none_or(|age| age >= WINDOW) && result.usable_ms.is_some() {
                if let Some((_, before)) = &before {
                    result.verdict = judge(before, &self.count(seats)?, beats);
                    if result.verdict == Verdict::Direct && is_direct {
                        return Ok(());
                    }
                }
                before = Some((Instant::now(), self.count(seats)?));
                beats = 0;
            }
            let Some(told) = running.initiator.next(Duration::from_millis(100))? else { continue };
            match told.event.as_str() {
                "connected" | "path" => {
                    is_direct = told.path == "direct";
                    result.usable_ms.get_or_insert(told.ms);
                    if is_direct {
                        result.direct_ms.get_or_insert(told.ms);
                        before = None;
                    }
                }
                "beat" => beats += 1,
                "done" => break,
                _ => {}
            }
        }
        if is_direct != (result.verdict == Verdict::Direct) {
            let word = if is_direct { "direct" } else { "relayed" };
            result.note = Some(format!("the program says {word}, the byte counters do not"));
        }
        Ok(())
    }
}

fn judge(before: &[Counters; 2], after: &[Counters; 2], beats: u64) -> Verdict {
    let [one, other]: [Traffic; 2] =
        std::array::from_fn(|host| after[host].since(&before[host], Lab::is_relay));
    if one.is_direct() && other.is_direct() {
        Verdict::Direct
    } else if beats > 0 {
        Verdict::Relayed
    } else {
        Verdict::Failed
    }
}

/// Builds two sites of each kind (and those that are shared), measures the delays, and runs all pairs.
///
/// # Errors
/// When the laboratory or the gateway does not work, or was stopped. Pairs that fail are results.
pub fn run(
    lab: &mut Lab,
    subject: &Subject,
    plan: &Plan,
    stop: &Stop,
    progress: &(dyn Fn(usize, usize, &str) + Sync),
) -> Result<Outcome, LabError> {
    let begun = Instant::now();
    let mut pairs = Vec::new();
    let mut sites = Vec::new();
    for kind in &plan.kinds {
        stop.check()?;
        progress(0, 0, kind.name());
        let access = Access::Single(*kind);
        sites.push((lab.add_site(access)?, lab.add_site(access)?));
    }
    // Neighbours in this order share no site, so they can run at the same time.
    for step in 0..sites.len() {
        for (row, (initiator, _)) in sites.iter().enumerate() {
            let (_, responder) = sites[(row + step) % sites.len()];
            pairs.push(Seats { initiator: (*initiator, 0), responder: (responder, 0) });
        }
    }
    for shared in &plan.shared {
        stop.check()?;
        let site = lab.add_site(Access::Shared(*shared))?;
        pairs.push(Seats { initiator: (site, 0), responder: (site, 1) });
    }
    let delays = measure_delays(lab, plan.jitter)?;
    let home = tempfile::tempdir().map_err(|error| LabError::new("a directory", error))?;
    let gateway = Gateway::start(lab, subject, home.path(), stop)?;
    let stage = Stage { lab, subject, gateway: gateway.id(), home: home.path(), stop };
    let results = run_pairs(&stage, plan, &pairs, progress);
    gateway.end();
    Ok(Outcome { results: results?, delays, wall: begun.elapsed() })
}

/// What is still to do, and what is in use.
struct Board {
    waiting: Vec<usize>,
    busy: BTreeSet<usize>,
    results: Vec<Option<Result<PairResult, LabError>>>,
}

fn run_pairs(
    stage: &Stage<'_>,
    plan: &Plan,
    pairs: &[Seats],
    progress: &(dyn Fn(usize, usize, &str) + Sync),
) -> Result<Vec<PairResult>, LabError> {
    let waiting = (0..pairs.len()).rev().collect();
    let results = pairs.iter().map(|_| None).collect();
    let board = Mutex::new(Board { waiting, busy: BTreeSet::new(), results });
    let freed = Condvar::new();
    let lock = || board.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..plan.parallel.max(1) {
            scope.spawn(|| {
                loop {
                    let mut held = lock();
                    let index = loop {
                        if held.waiting.is_empty() || stage.stop.is_asked() {
                            return;
                        }
                        let is_free = |index: &usize| {
                            let Seats { initiator, responder } = pairs[*index];
                            !held.busy.contains(&initiator.0) && !held.busy.contains(&responder.0)
                        };
                        if let Some(place) = held.waiting.iter().rposition(is_free) {
                            break held.waiting.remove(place);
                        }
                        let wait = Duration::from_millis(200);
                        held = freed
                            .wait_timeout(held, wait)
                            .unwrap_or_else(PoisonError::into_inner)
                            .0;
                    };
                    let seats = pairs[index];
                    held.busy.extend([seats.initiator.0, seats.responder.0]);
                    drop(held);
                    let result = stage.pair(&format!("pair{index}"), seats, plan);
                    let mut held = lock();
                    held.busy.remove(&seats.initiator.0);
                    held.busy.remove(&seats.responder.0);
                    let name = result
                        .as_ref()
                        .map(|result| format!("{} x {}", result.initiator, result.responder))
                        .unwrap_or_default();
                    held.results[index] = Some(result);
                    let done = held.results.iter().flatten().count();
                    drop(held);
                    freed.notify_all();
                    progress(done, pairs.len(), &name);
                }
            });
        }
    });
    stage.stop.check()?;
    let board = board.into_inner().unwrap_or_else(PoisonError::into_inner);
    board.results.into_iter().flatten().collect()
}

/// What a run says in figures.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Ordered pairs that were tried.
    pub pairs: usize,
    /// By the byte counters.
    pub direct: usize,
    /// By the byte counters.
    pub relayed: usize,
    /// Without payload.
    pub failed: usize,
    /// Share of direct pairs among those of two NATs with endpoint-independent mapping, 0 to 1.
    pub cone_direct_share: Option<f64>,
    /// Shares of populations.
    pub mixes: Mixes,
    /// Times of the programs.
    pub times: Times,
    /// Measured round trip from hosts to gateways, ms.
    pub host_relay_ms: f64,
    /// Measured round trip between hosts, ms.
    pub host_host_ms: Option<f64>,
    /// How long all took.
    pub wall_seconds: f64,
    /// Each pair.
    pub results: Vec<PairResult>,
}

/// One share for each of [`MIXES`].
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Mixes {
    /// Homes.
    pub consumer: Option<MixShare>,
    /// People on the move.
    pub mobile: Option<MixShare>,
    /// Offices.
    pub office: Option<MixShare>,
}

/// Milliseconds since the initiator's start.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Times {
    /// Until messages went.
    pub usable_p50_ms: Option<f64>,
    /// The same.
    pub usable_p95_ms: Option<f64>,
    /// Until the path was direct.
    pub direct_p50_ms: Option<f64>,
    /// The same.
    pub direct_p95_ms: Option<f64>,
}

impl Outcome {
    /// The figures.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let count = |verdict| self.results.iter().filter(|one| one.verdict == verdict).count();
        let cell = |initiator: NatKind, responder: NatKind| {
            let found = self
                .results
                .iter()
                .find(|one| one.initiator == initiator.name() && one.responder == responder.name());
            found.map(|one| f64::from(one.verdict == Verdict::Direct))
        };
        let cones = NatKind::ALL.into_iter().filter(|kind| kind.is_cone());
        let cone_cells: Vec<f64> = cones
            .clone()
            .flat_map(|one| cones.clone().filter_map(move |other| cell(one, other)))
            .collect();
        let v6 = cell(NatKind::V6Fw, NatKind::V6Fw).or_else(|| cell(NatKind::Dual, NatKind::Dual));
        let [consumer, mobile, office] = MIXES.map(|mix| mix.share(cell, v6.unwrap_or(0.0)));
        let times = |of: fn(&PairResult) -> Option<f64>| {
            let mut times: Vec<f64> = self.results.iter().filter_map(of).collect();
            times.sort_unstable_by(f64::total_cmp);
            times
        };
        let (usable, direct) = (times(|one| one.usable_ms), times(direct_time));
        Summary {
            pairs: self.results.len(),
            direct: count(Verdict::Direct),
            relayed: count(Verdict::Relayed),
            failed: count(Verdict::Failed),
            cone_direct_share: (!cone_cells.is_empty())
                .then(|| cone_cells.iter().sum::<f64>() / cone_cells.len() as f64),
            mixes: Mixes { consumer, mobile, office },
            times: Times {
                usable_p50_ms: quantile(&usable, 0.5),
                usable_p95_ms: quantile(&usable, 0.95),
                direct_p50_ms: quantile(&direct, 0.5),
                direct_p95_ms: quantile(&direct, 0.95),
            },
            host_relay_ms: self.delays.host_relay.as_secs_f64() * 1e3,
            host_host_ms: self.delays.host_host.map(|time| time.as_secs_f64() * 1e3),
            wall_seconds: self.wall.as_secs_f64(),
            results: self.results.clone(),
        }
    }
}

/// Only where the counters agree.
fn direct_time(one: &PairResult) -> Option<f64> {
    one.direct_ms.filter(|_| one.verdict == Verdict::Direct)
}

/// Nearest rank; of sorted numbers.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// What a pair's program counted at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Counts {
    /// Beats.
    pub sent: u64,
    /// Beats answered.
    pub received: u64,
    /// Beats not answered.
    pub lost: u64,
    /// Answers that came twice.
    pub duplicated: u64,
    /// Answers out of order.
    pub reordered: u64,
    /// Longest time without an answer, ms.
    pub longest_silence_ms: f64,
}

impl From<&Told> for Counts {
    fn from(told: &Told) -> Self {
        Self {
            sent: told.sent,
            received: told.received,
            lost: told.lost,
            duplicated: told.duplicated,
            reordered: told.reordered,
            longest_silence_ms: told.longest_silence_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(one: NatKind, other: NatKind, verdict: Verdict, ms: f64) -> PairResult {
        PairResult {
            initiator: one.to_string(),
            responder: other.to_string(),
            verdict,
            usable_ms: Some(ms / 2.0),
            direct_ms: Some(ms),
            note: None,
        }
    }

    #[test]
    fn a_summary_counts_verdicts_and_takes_times_of_direct_pairs_only() {
        use NatKind::{Linux, PortRestricted, Symmetric};
        let outcome = Outcome {
            results: vec![
                pair(Linux, Linux, Verdict::Direct, 100.0),
                pair(Linux, PortRestricted, Verdict::Direct, 300.0),
                pair(Linux, Symmetric, Verdict::Relayed, 9_000.0),
                pair(PortRestricted, Linux, Verdict::Failed, 9_000.0),
            ],
            delays: Delays { host_relay: Duration::from_millis(40), host_host: None },
            wall: Duration::from_secs(1),
        };
        let summary = outcome.summary();
        assert_eq!((summary.pairs, summary.direct, summary.relayed, summary.failed), (4, 2, 1, 1));
        assert_eq!(summary.times.direct_p50_ms, Some(100.0));
        assert_eq!(summary.times.direct_p95_ms, Some(300.0));
        assert!((summary.cone_direct_share.unwrap() - 2.0 / 3.0).abs() < 1e-9);
        // Weights .36 x .36, .36 x .18 twice, .36 x .06; the first two are direct.
        let consumer = summary.mixes.consumer.unwrap();
        assert!((consumer.v4 - (0.1296 + 0.0648) / 0.2808).abs() < 1e-9);
        assert!((consumer.with_v6 - consumer.v4).abs() < 1e-9, "no IPv6 pair was measured");
    }

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[7.0], 0.95), Some(7.0));
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0], 0.5), Some(2.0));
    }
}
