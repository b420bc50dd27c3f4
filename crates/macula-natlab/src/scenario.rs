//! Trouble for a pair that talks directly, or through a member: how long is it silent, and does it find back?

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::check::measure_delays;
use crate::error::LabError;
use crate::kind::NatKind;
use crate::lab::{Access, Lab, Stop};
use crate::matrix::{Counts, Gateway, Seats, Stage};
use crate::program::{Subject, Told};

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// The initiator's router forgets all flows.
    Reboot,
    /// The initiator moves to the LAN of another router, with another address.
    Roam,
    /// The initiator's cable is out for 5 s.
    LinkDown,
    /// Both routers forget UDP flows after 5 s, and the pair says little.
    Idle,
    /// A tenth of all packets of the initiator's link vanishes.
    Loss,
    /// The pair has no direct path and talks through a third member; the gateway is killed.
    GatewayDies,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Reboot, Self::Roam, Self::LinkDown, Self::Idle, Self::Loss, Self::GatewayDies];

    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Reboot => "reboot",
            Self::Roam => "roam",
            Self::LinkDown => "linkdown",
            Self::Idle => "idle",
            Self::Loss => "loss",
            Self::GatewayDies => "gatewaydies",
        }
    }

    fn kind(self) -> NatKind {
        match self {
            Self::Idle => NatKind::ShortTimeout,
            Self::GatewayDies => NatKind::Symmetric,
            _ => NatKind::PortRestricted,
        }
    }

    /// How the pair talks before.
    fn path(self) -> &'static str {
        if self == Self::GatewayDies { "member" } else { "direct" }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// From the trouble's beginning to the pair's end.
const AFTER: Duration = Duration::from_secs(20);
/// A pair may take so long to find its path.
const PATH_TIMEOUT: Duration = Duration::from_secs(15);
/// It talks that way for so long before the trouble.
const SETTLE: Duration = Duration::from_secs(2);
/// The cable is out for so long.
const OUT: Duration = Duration::from_secs(5);
/// How long the initiator has for its last words.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Beats while a mapping must not die of silence.
const IDLE_INTERVAL: Duration = Duration::from_secs(30);
/// From then on to the pair's end, so that two of these beats are heard.
const IDLE_AFTER: Duration = Duration::from_secs(65);
const LOSS: f64 = 0.1;

/// What became of the pair.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Name of the scenario.
    pub scenario: &'static str,
    /// Longest time between two answers from the trouble on, ms, as the laboratory heard them.
    pub longest_silence_ms: f64,
    /// Longest time from a beat to its answer from the trouble on, ms, by the program's word.
    pub slowest_answer_ms: Option<f64>,
    /// From the trouble until the path was direct again after it had not been, ms.
    pub direct_again_ms: Option<f64>,
    /// Where the pair talks at the end, by its own word.
    pub path_at_end: String,
    /// What the program counted over its whole life.
    pub counts: Option<Counts>,
}

/// Builds what the scenario needs, runs it.
///
/// # Errors
/// When the laboratory does not work, was stopped, or the pair never found the path that the trouble is for.
pub fn run(
    lab: &mut Lab,
    subject: &Subject,
    scenario: Scenario,
    interval: Duration,
    stop: &Stop,
) -> Result<Report, LabError> {
    let access = Access::Single(scenario.kind());
    let (own, peer) = (lab.add_site(access)?, lab.add_site(access)?);
    let third = match scenario {
        Scenario::Roam => Some(lab.add_site(access)?),
        Scenario::GatewayDies => Some(lab.add_site(Access::Single(NatKind::FullCone))?),
        _ => None,
    };
    measure_delays(lab, Duration::ZERO)?;
    let home = tempfile::tempdir().map_err(|error| LabError::new("a directory", error))?;
    let gateway = Gateway::start(lab, subject, home.path(), stop)?;
    let (interval, after) = match scenario {
        Scenario::Idle => (IDLE_INTERVAL, IDLE_AFTER),
        _ => (interval, AFTER),
    };
    let seats = Seats { initiator: (own, 0), responder: (peer, 0) };
    let stage = Stage { lab, subject, gateway: gateway.id(), home: home.path(), stop };
    let time = PATH_TIMEOUT + SETTLE + after;
    let carrier = third.filter(|_| scenario == Scenario::GatewayDies);
    let carrier = carrier.map(|third| stage.start_carrier((third, 0))).transpose()?;
    let mut running = stage.start("pair", seats, time, interval, &[])?;
    loop {
        let told = running.initiator.expect("path", PATH_TIMEOUT, stop)?;
        if told.path == scenario.path() {
            break;
        }
    }
    let mut ear = Ear::default();
    listen(&mut ear, &mut running.initiator, SETTLE, stop)?;
    let trouble = Instant::now();
    ear.last = Some(ear.last.unwrap_or(trouble));
    (ear.longest, ear.slowest) = (Duration::ZERO, None);
    let mut gateway = Some(gateway);
    match scenario {
        Scenario::Reboot => lab.sites[own].reboot()?,
        Scenario::Roam => lab.roam(own, third.unwrap_or(own))?,
        Scenario::LinkDown => {
            lab.sites[own].hosts[0].unplug()?;
            listen(&mut ear, &mut running.initiator, OUT, stop)?;
            lab.sites[own].hosts[0].replug()?;
        }
        Scenario::Idle => {}
        Scenario::Loss => lab.set_loss(own, LOSS)?,
        Scenario::GatewayDies => gateway.take().into_iter().for_each(Gateway::kill),
    }
    listen(&mut ear, &mut running.initiator, after, stop)?;
    ear.silence_until(Instant::now());
    running.initiator.ask_to_end();
    // Its last answers, and its counts; one that has nothing more to say just ends.
    listen(&mut ear, &mut running.initiator, LAST_WORDS, stop).ok();
    running.initiator.end();
    running.responder.end();
    carrier.into_iter().for_each(crate::program::Program::end);
    gateway.into_iter().for_each(Gateway::end);
    Ok(Report {
        scenario: scenario.name(),
        longest_silence_ms: ear.longest.as_secs_f64() * 1e3,
        slowest_answer_ms: ear.slowest,
        direct_again_ms: ear
            .direct_again
            .and_then(|when| when.checked_duration_since(trouble))
            .map(|time| time.as_secs_f64() * 1e3),
        path_at_end: ear.path,
        counts: ear.counts,
    })
}

/// What was heard.
#[derive(Debug, Default)]
struct Ear {
    last: Option<Instant>,
    longest: Duration,
    slowest: Option<f64>,
    direct_again: Option<Instant>,
    path: String,
    counts: Option<Counts>,
}

impl Ear {
    fn hear(&mut self, told: &Told) {
        let now = Instant::now();
        if !told.path.is_empty() {
            if told.path == "direct" && !self.path.is_empty() && self.path != "direct" {
                self.direct_again = Some(now);
            }
            self.path.clone_from(&told.path);
        }
        match told.event.as_str() {
            "beat" => {
                self.silence_until(now);
                // A beat that the trouble swallowed has no time of its own.
                if self.slowest.is_none_or(|slowest| told.rtt_ms.is_some_and(|it| it > slowest)) {
                    self.slowest = told.rtt_ms;
                }
            }
            "done" => self.counts = Some(told.into()),
            _ => {}
        }
    }

    fn silence_until(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            self.longest = self.longest.max(now.saturating_duration_since(last));
        }
    }
}

fn listen(
    ear: &mut Ear,
    program: &mut crate::program::Program,
    time: Duration,
    stop: &Stop,
) -> Result<(), LabError> {
    let until = Instant::now() + time;
    while Instant::now() < until && ear.counts.is_none() {
        stop.check()?;
        let left = until.saturating_duration_since(Instant::now());
        if let Some(told) = program.next(left.min(Duration::from_millis(100)))? {
            ear.hear(&told);
        }
    }
    Ok(())
}
