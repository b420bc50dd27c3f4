//! `macula lab nat`: the laboratory of NATs.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use macula_gateway::signal::StopSignal;
use macula_natlab::audit::{self, Audit, Flow};
use macula_natlab::matrix::{self, PairResult, Plan, Summary, Verdict};
use macula_natlab::scenario::{self, Scenario};
use macula_natlab::{Lab, LabError, LabErrorKind, NatKind, Settings, Shared, Stop, Weather, check};
use macula_natlab::{MixShare, matrix::Subject};
use serde_json::json;

use crate::args::duration;
use crate::failure::{Exit, Failure};
use crate::out::{self, Paint};

/// Realm of the pairs.
const REALM: &str = "lab";
/// Pairs of `--small` may try for so long, that all end within 50 s.
const SMALL_PAIR_TIME: Duration = Duration::from_secs(4);
/// Pairs of `--small` at a time; each host mostly waits.
const SMALL_PARALLEL: usize = 5;

#[derive(Debug, Args)]
pub(crate) struct LabNatArgs {
    /// A telling handful of NAT types, within 50 s
    #[arg(long, conflicts_with = "types")]
    pub(crate) small: bool,
    /// NAT types, each as initiator and as responder; also samelan, hairpin, nohairpin, samecgn,
    /// samecgn-nohairpin [default: all]
    #[arg(short, long, value_name = "TYPES", value_delimiter = ',')]
    pub(crate) types: Vec<String>,
    /// Only verify that each NAT is what it says, and the delays; no program runs
    #[arg(long, conflicts_with_all = ["scenario", "small"])]
    pub(crate) check: bool,
    /// Disturb one direct pair instead of running the matrix
    #[arg(long, value_enum, conflicts_with_all = ["small", "types"])]
    pub(crate) scenario: Option<ScenarioArg>,
    /// Move pairs between relay and direct path while numbered messages go to and fro, and look whether any is
    /// lost, doubled or reordered
    #[arg(long, conflicts_with_all = ["small", "types", "check", "scenario"])]
    pub(crate) audit: bool,
    /// Messages of --audit, over all its pairs
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000, requires = "audit",
          value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(crate) messages: u64,
    /// Pairs of --audit
    #[arg(long, value_name = "COUNT", default_value_t = 6, requires = "audit",
          value_parser = clap::value_parser!(u8).range(1..=6))]
    pub(crate) pairs: u8,
    /// Run a steady flow between two cone NATs, and tell how much of it gateways carry
    #[arg(long, conflicts_with_all = ["audit", "small", "types", "check", "scenario"])]
    pub(crate) flow: bool,
    /// How long --flow sends
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "flow",
          value_parser = clap::value_parser!(u64).range(5..=3600))]
    pub(crate) seconds: u64,
    /// How long a pair may try to become direct, in whole seconds
    #[arg(long, value_name = "SECONDS", default_value = "8s", value_parser = duration)]
    pub(crate) pair_time: Duration,
    /// Time between two messages of a pair
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = duration)]
    pub(crate) interval: Duration,
    /// Pairs at a time
    #[arg(short, long, value_name = "COUNT", default_value_t = 4,
          value_parser = clap::value_parser!(u8).range(1..=32))]
    pub(crate) parallel: u8,
    /// Delay of each host's link, one way; gateways have none
    #[arg(long, value_name = "DURATION", default_value = "20ms", value_parser = duration)]
    pub(crate) delay: Duration,
    /// Links without delay: the kernel's own
    #[arg(long, conflicts_with_all = ["delay", "jitter", "loss"])]
    pub(crate) no_delay: bool,
    /// Up to so much more delay on each packet
    #[arg(long, value_name = "DURATION", default_value = "0ms", value_parser = duration)]
    pub(crate) jitter: Duration,
    /// Share of packets that each link loses, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub(crate) loss: f64,
    /// What jitter and loss come from
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Leave the laboratory standing afterwards, until Ctrl-C
    #[arg(long)]
    pub(crate) keep: bool,
    /// Print one JSON object on the last line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScenarioArg {
    /// The router of one side forgets all flows
    Reboot,
    /// One side moves to another LAN
    Roam,
    /// One side's cable is out for 5 s
    Linkdown,
    /// NATs that forget UDP after 5 s, and a pair that says little
    Idle,
    /// A tenth of all packets of one side vanishes
    Loss,
    /// A pair behind symmetric NATs talks through a third member, and the gateway is killed
    Gatewaydies,
}

impl From<ScenarioArg> for Scenario {
    fn from(arg: ScenarioArg) -> Self {
        match arg {
            ScenarioArg::Reboot => Self::Reboot,
            ScenarioArg::Roam => Self::Roam,
            ScenarioArg::Linkdown => Self::LinkDown,
            ScenarioArg::Idle => Self::Idle,
            ScenarioArg::Loss => Self::Loss,
            ScenarioArg::Gatewaydies => Self::GatewayDies,
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "write a number, for example 0.02".to_owned())?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("between 0 and 1".to_owned()) }
}

/// Runs the command. The laboratory waits on threads, and is told to end when a signal comes.
pub(crate) async fn run(args: LabNatArgs) -> Result<(), Failure> {
    let mut signals = StopSignal::listen()?;
    let stop = Arc::new(Stop::new());
    let asked = Arc::clone(&stop);
    let mut work = tokio::task::spawn_blocking(move || work(&args, &asked));
    let done = tokio::select! {
        done = &mut work => done,
        signal = signals.received() => {
            out::note(format_args!("{signal}: the laboratory is taken down"));
            stop.ask();
            work.await
        }
    };
    done.map_err(|error| Failure::new(Exit::Failure, format!("bug: {error}"), "please report it"))?
}

impl From<LabError> for Failure {
    fn from(error: LabError) -> Self {
        let what = error.to_string();
        match error.kind() {
            LabErrorKind::CannotRun => {
                Self::new(Exit::CannotRun, what, "docs/nat.md says what the laboratory needs")
            }
            LabErrorKind::Stopped => {
                Self::new(Exit::Failure, "interrupted; everything was removed", "")
            }
            LabErrorKind::Failed => Self::new(Exit::Failure, what, ""),
        }
    }
}

fn work(args: &LabNatArgs, stop: &Stop) -> Result<(), Failure> {
    let (kinds, shared) = chosen(args)?;
    let weather = Weather { delay: args.delay, jitter: args.jitter, loss: args.loss };
    let settings = Settings { weather: (!args.no_delay).then_some(weather), seed: args.seed };
    let mut lab = Lab::build(settings)?;
    let done = if args.check {
        run_check(&mut lab, &kinds, &shared, args.json, stop)
    } else if args.audit {
        run_audit(&mut lab, args, stop)
    } else if args.flow {
        run_flow(&mut lab, args, stop)
    } else if let Some(scenario) = args.scenario {
        run_scenario(&mut lab, scenario.into(), args, stop)
    } else {
        run_matrix(&mut lab, kinds, shared, args, stop)
    };
    if args.keep && !stop.is_asked() {
        out::note(format_args!(
            "The laboratory stands until Ctrl-C. Enter a host: ip netns exec {} sh",
            lab.namespaces().last().copied().unwrap_or_default()
        ));
        while !stop.is_asked() {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    done
}

fn chosen(args: &LabNatArgs) -> Result<(Vec<NatKind>, Vec<Shared>), Failure> {
    if args.small {
        return Ok((NatKind::SMALL.to_vec(), Vec::new()));
    }
    if args.types.is_empty() {
        let kinds = if args.check { &NatKind::ALL } else { NatKind::MATRIX };
        return Ok((kinds.to_vec(), Shared::ALL.to_vec()));
    }
    let (mut kinds, mut shared) = (Vec::new(), Vec::new());
    for name in &args.types {
        match (name.parse::<NatKind>(), name.parse::<Shared>()) {
            (Ok(kind), _) if !kinds.contains(&kind) => kinds.push(kind),
            (_, Ok(one)) if !shared.contains(&one) => shared.push(one),
            (Err(error), Err(_)) => {
                let advice = "also samelan, hairpin, nohairpin, samecgn, samecgn-nohairpin";
                return Err(Failure::new(Exit::Usage, error.to_string(), advice));
            }
            _ => {}
        }
    }
    Ok((kinds, shared))
}

fn run_check(
    lab: &mut Lab,
    kinds: &[NatKind],
    shared: &[Shared],
    json: bool,
    stop: &Stop,
) -> Result<(), Failure> {
    let total = (kinds.len() + shared.len()) as u64;
    let bar = out::progress(Some(total), "{bar:30} {pos}/{len} {msg}");
    let findings = check::run(lab, kinds, shared, stop, &mut |name| {
        bar.set_message(name.to_owned());
        bar.inc(1);
    })?;
    bar.set_message("coturn");
    let coturn = check::coturn(lab, kinds)?;
    bar.finish_and_clear();
    let wrong = findings.iter().filter(|finding| !finding.is_right).count();
    let said = |name: &str| {
        let found = coturn.iter().flatten().find(|(kind, _)| kind.name() == name);
        found.map(|(_, said)| said.as_str())
    };
    if json {
        let rows = findings.iter().map(|finding| {
            json!({
                "type": finding.name,
                "wanted": finding.wanted,
                "seen": finding.seen,
                "round_trip_ms": finding.round_trip.map(|time| time.as_secs_f64() * 1e3),
                "coturn": said(finding.name),
                "right": finding.is_right,
            })
        });
        out::json(&json!({"types": rows.collect::<Vec<_>>(), "wrong": wrong}))?;
    } else {
        let paint = Paint::stdout();
        out::line(format_args!(
            "{:<18} {:<42} {:>10}  {:<6} by coturn",
            "type", "seen", "round trip", ""
        ))?;
        for finding in &findings {
            let verdict = if finding.is_right { paint.green("ok") } else { paint.red("WRONG") };
            out::line(format_args!(
                "{:<18} {:<42} {:>10}  {verdict:<6} {}",
                finding.name,
                finding.seen,
                finding.round_trip.map(out::human_duration).unwrap_or_default(),
                said(finding.name).unwrap_or("-"),
            ))?;
            if !finding.is_right {
                out::line(format_args!("{:<18} {} was wanted", "", finding.wanted))?;
            }
        }
    }
    if wrong == 0 {
        return Ok(());
    }
    let what = format!("{wrong} types are not what they should be");
    Err(Failure::new(Exit::Failure, what, "do not trust runs on this machine before that is clear"))
}

fn subject() -> Result<Subject, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::from(error).context("cannot find this program's own file"))?;
    Ok(Subject { program, leading: Vec::new(), realm: REALM.to_owned() })
}

fn run_scenario(
    lab: &mut Lab,
    scenario: Scenario,
    args: &LabNatArgs,
    stop: &Stop,
) -> Result<(), Failure> {
    let bar = out::progress(None, "{spinner} {msg}");
    let about = if scenario == Scenario::Idle { 80 } else { 30 };
    bar.set_message(format!("{scenario}: about {about} s"));
    bar.enable_steady_tick(Duration::from_millis(200));
    let report = scenario::run(lab, &subject()?, scenario, args.interval, stop)?;
    bar.finish_and_clear();
    if args.json {
        return out::json(&report);
    }
    let again = report.direct_again_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms"));
    out::line(format_args!("{:<28} {:.0} ms", "longest silence", report.longest_silence_ms))?;
    if let Some(ms) = report.slowest_answer_ms {
        out::line(format_args!("{:<28} {ms:.0} ms", "slowest answer"))?;
    }
    out::line(format_args!("{:<28} {again}", "direct again after"))?;
    out::line(format_args!("{:<28} {}", "path at the end", report.path_at_end))?;
    if let Some(counts) = report.counts {
        out::line(format_args!(
            "sent {}, received {}, lost {}, duplicated {}, reordered {}",
            counts.sent, counts.received, counts.lost, counts.duplicated, counts.reordered
        ))?;
    }
    Ok(())
}

fn run_audit(lab: &mut Lab, args: &LabNatArgs, stop: &Stop) -> Result<(), Failure> {
    let bar = out::progress(None, "{spinner} {elapsed} {msg}");
    bar.set_message("audit: 20 s to some minutes");
    bar.enable_steady_tick(Duration::from_millis(200));
    let (pairs, parallel) = (args.pairs.into(), args.parallel.into());
    let audit = audit::run(lab, &subject()?, args.messages, pairs, parallel, stop);
    bar.finish_and_clear();
    let audit = audit?;
    if args.json {
        out::json(&audit)?;
    } else {
        print_audit(&audit)?;
    }
    if audit.failed == 0 {
        return Ok(());
    }
    let what = format!("{} of {} pairs are not clean", audit.failed, audit.pairs.len());
    let advice = "each must have every message back once and in order, and move three times";
    Err(Failure::new(Exit::Failure, what, advice))
}

fn print_audit(audit: &Audit) -> Result<(), Failure> {
    let line = |pair: &str, counts: [u64; 4], switches: [u64; 2]| {
        let [received, lost, duplicated, reordered] = counts;
        let [told, counted] = switches;
        out::line(format_args!(
            "{pair:<34} {received:>9} {lost:>6} {duplicated:>8} {reordered:>10} {told:>9} {counted:>8}"
        ))
    };
    out::line(Paint::stdout().bold(format_args!(
        "{:<34} {:>9} {:>6} {:>8} {:>10} {:>9} {:>8}",
        "pair", "received", "lost", "doubled", "reordered", "switches", "counted"
    )))?;
    for pair in &audit.pairs {
        let name = format!("{} to {}", pair.initiator, pair.responder);
        let counts = pair.counts.unwrap_or_default();
        line(
            &name,
            [counts.received, counts.lost, counts.duplicated, counts.reordered],
            [pair.switches, pair.kernel_switches],
        )?;
        if let Some(note) = &pair.note {
            out::line(format_args!("  {note}"))?;
        }
    }
    line(
        "all",
        [audit.received, audit.lost, audit.duplicated, audit.reordered],
        [audit.switches, audit.kernel_switches],
    )
}

fn run_flow(lab: &mut Lab, args: &LabNatArgs, stop: &Stop) -> Result<(), Failure> {
    let bar = out::progress(None, "{spinner} {elapsed} {msg}");
    bar.set_message(format!("flow: {} s", args.seconds));
    bar.enable_steady_tick(Duration::from_millis(200));
    let flow = audit::flow(lab, &subject()?, args.seconds, stop);
    bar.finish_and_clear();
    let flow: Flow = flow?;
    if args.json {
        return out::json(&flow);
    }
    let Flow { seconds, message_bytes, gateway_bytes, direct_bytes, .. } = flow;
    let kind = flow.kind;
    out::line(format_args!("{kind} to {kind}, {message_bytes} bytes to and fro for {seconds} s"))?;
    out::line(format_args!("with the gateway {gateway_bytes} bytes, host to host {direct_bytes}"))?;
    out::line(format_args!("share of the gateway: {:.2} %", 100.0 * flow.gateway_share))
}

fn run_matrix(
    lab: &mut Lab,
    kinds: Vec<NatKind>,
    shared: Vec<Shared>,
    args: &LabNatArgs,
    stop: &Stop,
) -> Result<(), Failure> {
    let plan = Plan {
        kinds,
        shared,
        pair_time: if args.small { SMALL_PAIR_TIME } else { args.pair_time },
        interval: args.interval,
        parallel: if args.small { SMALL_PARALLEL } else { args.parallel.into() },
        jitter: args.jitter,
    };
    let bar = out::progress(Some(1), "{bar:30} {pos}/{len} {msg}");
    let outcome = matrix::run(lab, &subject()?, &plan, stop, &|done, of, name| {
        tell(&bar, done, of, name);
    });
    bar.finish_and_clear();
    let summary = outcome?.summary();
    if args.json {
        out::json(&summary)?;
    } else {
        print(&plan, &summary)?;
    }
    let Some(pair) = summary.results.iter().find(|pair| pair.verdict == Verdict::Failed) else {
        return Ok(());
    };
    let note = pair.note.as_deref().unwrap_or("no message was answered");
    let (one, other) = (&pair.initiator, &pair.responder);
    let what = format!("{} pairs failed; the first, {one} to {other}: {note}", summary.failed);
    Err(Failure::new(Exit::Failure, what, "--keep leaves the laboratory standing to look into"))
}

fn tell(bar: &ProgressBar, done: usize, of: usize, name: &str) {
    bar.set_length(of.max(1) as u64);
    bar.set_position(done as u64);
    bar.set_message(if of == 0 { format!("building {name}") } else { name.to_owned() });
}

fn print(plan: &Plan, summary: &Summary) -> Result<(), Failure> {
    let paint = Paint::stdout();
    let find = |one: &str, other: &str| {
        summary.results.iter().find(|pair| pair.initiator == one && pair.responder == other)
    };
    if !plan.kinds.is_empty() {
        let heads = plan.kinds.iter().map(|kind| format!("{kind:>14}")).collect::<String>();
        out::line(paint.bold(format_args!("{:<14}{heads}", "from \\ to")))?;
    }
    for row in &plan.kinds {
        let mut line = format!("{row:<14}");
        for column in &plan.kinds {
            line +=
                &find(row.name(), column.name()).map(|pair| cell(paint, pair)).unwrap_or_default();
        }
        out::line(line)?;
    }
    for shared in &plan.shared {
        if let Some(pair) = find(shared.name(), shared.name()) {
            out::line(format_args!("{shared:<18}{}", cell(paint, pair)))?;
        }
    }
    for pair in &summary.results {
        if let Some(note) = &pair.note {
            let verb =
                if pair.verdict == Verdict::Failed { paint.red("!") } else { paint.yellow("?") };
            out::line(format_args!("{verb} {} to {}: {note}", pair.initiator, pair.responder))?;
        }
    }
    print_figures(summary)
}

/// Fourteen columns, colours not counted.
fn cell(paint: Paint, pair: &PairResult) -> String {
    let time = |ms: Option<f64>| ms.map(|ms| format!(" {ms:.0}")).unwrap_or_default();
    let (text, verdict) = match pair.verdict {
        Verdict::Direct => (format!("direct{}", time(pair.direct_ms)), pair.verdict),
        Verdict::Relayed => (format!("relay{}", time(pair.usable_ms)), pair.verdict),
        Verdict::Failed => ("FAILED".to_owned(), pair.verdict),
    };
    let text = format!("{text:>14}");
    match verdict {
        Verdict::Direct => paint.green(text),
        Verdict::Relayed => paint.yellow(text),
        Verdict::Failed => paint.red(text),
    }
}

fn print_figures(summary: &Summary) -> Result<(), Failure> {
    let Summary { pairs, direct, relayed, failed, .. } = summary;
    out::line(format_args!(
        "{pairs} pairs: {direct} direct, {relayed} relayed, {failed} failed, in {:.0} s",
        summary.wall_seconds
    ))?;
    if let Some(cone) = summary.cone_direct_share {
        out::line(format_args!("cone to cone: {:.1} % direct", 100.0 * cone))?;
    }
    let mixes = &summary.mixes;
    for (name, mix) in
        [("consumer", mixes.consumer), ("mobile", mixes.mobile), ("office", mixes.office)]
    {
        let Some(MixShare { v4, with_v6, with_mapping, covered }) = mix else { continue };
        let mapped = with_mapping.map_or_else(String::new, |share| {
            format!(", and port mapping {:>5.1} %", 100.0 * share)
        });
        out::line(format_args!(
            "mix {name:<9} {:>5.1} % direct, with IPv6 {:>5.1} %{mapped} ({:.0} % of its pairs measured)",
            100.0 * v4,
            100.0 * with_v6,
            100.0 * covered
        ))?;
    }
    let times = &summary.times;
    let show = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0} ms"));
    out::line(format_args!(
        "usable after {} (p50), {} (p95); direct after {} (p50), {} (p95)",
        show(times.usable_p50_ms),
        show(times.usable_p95_ms),
        show(times.direct_p50_ms),
        show(times.direct_p95_ms)
    ))?;
    out::line(format_args!(
        "round trips measured: host to gateway {:.1} ms, host to host {}",
        summary.host_relay_ms,
        show(summary.host_host_ms)
    ))
}
