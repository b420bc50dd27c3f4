//! `macula bench soak`: a real gateway and many nodes under random load and trouble, checked
//! against a reference.
//!
//! [`model`] says what must hold. The choices come from a seed; how they meet in time does not, so
//! the same seed makes a similar run, not the same one.

mod dice;
mod member;
mod model;
mod trouble;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use self::dice::Dice;
use self::member::Member;
use self::model::{Model, REALMS};
use self::trouble::Samples;
use crate::args::{BenchSoakArgs, ConnectArgs};
use crate::children::GatewayProcess;
use crate::connect::Asker;
use crate::failure::{Exit, Failure};
use crate::out::{self, Paint};

/// Nodes that stay for the whole run, in all realms, and subscribe to everything.
const STEADY: usize = 2;
/// Handles of one node.
const SUBSCRIPTIONS_MAX: usize = 6;
/// Services of one node.
const SERVICES_MAX: usize = 4;
/// Longest pause between two operations, milliseconds.
const PAUSE_MS_MAX: usize = 8;
/// How often things are checked and sampled.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How often progress is told.
const TELL_INTERVAL: Duration = Duration::from_secs(5);
/// Restarts of the gateway are at least so far apart in a long run.
const RESTART_INTERVAL_MIN: Duration = Duration::from_secs(30);
/// Publishes and calls that were begun end within this.
const FINISH_TIMEOUT: Duration = Duration::from_secs(75);
/// After the nodes have gone, the gateway forgets them within this: sessions live for 10 s.
const FORGET_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs until the time is over; fails when something did not hold.
pub(super) async fn run(args: &BenchSoakArgs) -> Result<(), Failure> {
    let seed = args.seed.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64)
    });
    out::note(format_args!("soak: seed {seed}, {} min, {} nodes", args.minutes, args.nodes));
    let model = Arc::new(Model::default());
    let soak = Soak::begin(args, seed, model.clone()).await?;
    let (summary, samples) = soak.run().await?;
    let violations = model.violations.load(Ordering::Relaxed);
    report(args, seed, &model, &summary, &samples)?;
    if violations == 0 {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Failure,
        format!("{violations} violations"),
        format!("run it again with --seed {seed}"),
    ))
}

struct Soak {
    model: Arc<Model>,
    dice: Dice,
    span: Duration,
    started: Instant,
    gateway: GatewayProcess,
    address: String,
    /// The steady ones first; an empty place is filled by and by.
    members: Vec<Option<Member>>,
    deaf: Member,
    /// Moments at which the gateway ends, from the start, and whether it may drain.
    restarts: Vec<(Duration, bool)>,
    restarted: u64,
    samples: Samples,
    /// Members on their way in and out.
    moving: JoinSet<Option<(usize, Member)>>,
    troubles: JoinSet<Result<()>>,
    /// Tasks of this process before anything began.
    tasks_before: usize,
    _home: tempfile::TempDir,
}

/// What the end of a run tells beside the model's counts.
struct Summary {
    seconds: f64,
    restarts: u64,
}

impl Soak {
    async fn begin(args: &BenchSoakArgs, seed: u64, model: Arc<Model>) -> Result<Self> {
        let tasks_before = alive_tasks();
        let mut dice = Dice::new(seed);
        let home = tempfile::Builder::new().prefix("macula-soak-").tempdir()?;
        let gateway = GatewayProcess::start(home.path()).await?;
        model.gateway_started();
        let address = gateway.address().to_string();
        let all: Vec<usize> = (0..REALMS.len()).collect();
        let mut members = Vec::new();
        for index in 0..usize::from(args.nodes) {
            let realms = if index < STEADY { all.clone() } else { some_realms(&mut dice) };
            let mut member = Member::start(model.clone(), &address, &realms).await?;
            if index < STEADY {
                member.subscribe_all(&mut dice);
                member.serve_all(&mut dice).await;
            }
            members.push(Some(member));
        }
        let mut deaf = Member::start(model.clone(), &address, &all).await?;
        deaf.play_deaf(&mut dice);

        let mut troubles = JoinSet::new();
        let socket = gateway.address().host_port().parse().context("the gateway's address")?;
        let id = gateway.address().id.context("the gateway's id")?;
        troubles.spawn(trouble::spray(socket, dice.split()));
        troubles.spawn(trouble::keep_silent(socket, id));
        let span = Duration::from_secs_f64(args.minutes * 60.0);
        Ok(Self {
            model,
            restarts: restarts(span, &mut dice),
            dice,
            span,
            started: Instant::now(),
            gateway,
            address,
            members,
            deaf,
            restarted: 0,
            samples: Samples::default(),
            moving: JoinSet::new(),
            troubles,
            tasks_before,
            _home: home,
        })
    }

    async fn run(mut self) -> Result<(Summary, Samples)> {
        let (mut checked, mut told) = (Instant::now(), Instant::now());
        while self.started.elapsed() < self.span {
            self.operate().await?;
            if checked.elapsed() >= CHECK_INTERVAL {
                checked = Instant::now();
                self.model.judge();
                let is_quiet = self.is_undisturbed();
                self.samples.take(self.gateway.pid(), is_quiet);
                if let Some(ended) = self.troubles.try_join_next() {
                    ended?.context("a maker of trouble")?;
                }
            }
            if told.elapsed() >= TELL_INTERVAL {
                told = Instant::now();
                self.tell();
            }
            let pause = Duration::from_millis(self.dice.below(PAUSE_MS_MAX) as u64);
            tokio::time::sleep(pause).await;
        }
        self.end().await
    }

    /// Does one thing.
    async fn operate(&mut self) -> Result<()> {
        while let Some(moved) = self.moving.try_join_next() {
            if let Some((index, member)) = moved? {
                self.members[index] = Some(member);
            }
        }
        if self.restarts.first().is_some_and(|(at, _)| *at <= self.started.elapsed()) {
            let (_, drains) = self.restarts.remove(0);
            return self.restart(drains).await;
        }
        self.model.operations.fetch_add(1, Ordering::Relaxed);
        let index = self.dice.below(self.members.len());
        let dice = &mut self.dice;
        let choice = dice.below(1000);
        let Some(member) = self.members.get_mut(index).and_then(Option::as_mut) else {
            return Ok(());
        };
        if !member.has_time() {
            return Ok(());
        }
        match choice {
            0..500 => member.publish(dice),
            500..800 => member.call(dice),
            800..890 if member.subscriptions() < SUBSCRIPTIONS_MAX => member.subscribe(dice),
            890..950 if member.subscriptions() > REALMS.len() => member.unsubscribe(dice),
            950..973 if member.services() < SERVICES_MAX => member.serve(dice).await,
            973..990 if index >= STEADY => member.unserve(dice),
            990..995 if index >= STEADY => self.replace(index),
            _ => {}
        }
        Ok(())
    }

    /// A node goes, in order or not, and another comes to its place.
    fn replace(&mut self, index: usize) {
        let Some(member) = self.members.get_mut(index).and_then(Option::take) else { return };
        if self.dice.once_in(2) {
            self.moving.spawn(async move {
                member.close().await;
                None
            });
        }
        let (model, address) = (self.model.clone(), self.address.clone());
        let (realms, mut dice) = (some_realms(&mut self.dice), self.dice.split());
        self.moving.spawn(async move {
            loop {
                // The gateway may be down just then.
                if let Ok(mut member) = Member::start(model.clone(), &address, &realms).await {
                    member.subscribe(&mut dice);
                    return Some((index, member));
                }
            }
        });
    }

    async fn restart(&mut self, drains: bool) -> Result<()> {
        if drains {
            self.gateway.stop().await.context("the gateway drains")?;
        } else {
            self.gateway.kill().await?;
            let pause = Duration::from_millis(self.dice.below(1500) as u64);
            tokio::time::sleep(pause).await;
        }
        self.gateway.restart().await?;
        self.model.gateway_started();
        self.restarted += 1;
        Ok(())
    }

    /// Whether the gateway will run on from here nearly to the end.
    fn is_undisturbed(&self) -> bool {
        self.restarts.len() <= 1 && self.started.elapsed() < self.span.mul_f64(LAST_RESTART)
    }

    fn tell(&self) {
        let Counts {
            operations,
            published,
            received,
            calls_good,
            calls_failed,
            checked,
            violations,
        } = Counts::of(&self.model);
        out::note(format_args!(
            "{:>4} s  {operations} operations  {published} published, {received} received, \
             {checked} checked  {calls_good} calls, {calls_failed} failed  {} restarts  \
             gateway {} MB  {violations} violations",
            self.started.elapsed().as_secs(),
            self.restarted,
            self.samples.resident_bytes / 1_000_000,
        ));
    }

    /// Lets everything come to its end, and looks at what is left.
    async fn end(mut self) -> Result<(Summary, Samples)> {
        self.troubles.shutdown().await;
        let members = std::mem::take(&mut self.members).into_iter().flatten();
        let mut members: Vec<Member> = members.collect();
        while let Some(moved) = self.moving.join_next().await {
            members.extend(moved?.map(|(_, member)| member));
        }
        for member in &mut members {
            member.finish(FINISH_TIMEOUT).await;
        }
        while self.model.judge() > 0 {
            tokio::time::sleep(CHECK_INTERVAL / 10).await;
        }
        let seconds = self.started.elapsed().as_secs_f64();
        self.tell();
        if let Some(complaint) = self.samples.complaint() {
            self.model.violated(complaint);
        }
        for member in members.into_iter().chain([self.deaf]) {
            member.close().await;
        }
        for realm in REALMS {
            if let Some(left) = left_in(&self.gateway, realm).await? {
                self.model.violated(format!("without nodes, the gateway has {left} in {realm}"));
            }
        }
        if let Some(left) = tasks_left(self.tasks_before).await {
            self.model.violated(format!("{left} tasks outlive their nodes"));
        }
        if let Err(error) = self.gateway.end().await {
            self.model.violated(format!("{error:#}"));
        }
        Ok((Summary { seconds, restarts: self.restarted }, self.samples))
    }
}

/// The last restart, as a part of the whole time. Between the others and it, memory is compared.
const LAST_RESTART: f64 = 0.9;
/// All restarts but the last come in this part of the time.
const RESTARTS: std::ops::Range<f64> = 0.2..0.5;

/// When the gateway is restarted, and whether it may drain. Both ways in every run.
fn restarts(span: Duration, dice: &mut Dice) -> Vec<(Duration, bool)> {
    let mut restarts = vec![(span.mul_f64(RESTARTS.start), false)];
    let mut at = span.mul_f64(RESTARTS.start) + RESTART_INTERVAL_MIN;
    while at < span.mul_f64(RESTARTS.end) {
        restarts.push((at, dice.once_in(3)));
        at += RESTART_INTERVAL_MIN + Duration::from_secs(dice.below(15) as u64);
    }
    restarts.push((span.mul_f64(LAST_RESTART), true));
    restarts
}

/// One realm, or two.
fn some_realms(dice: &mut Dice) -> Vec<usize> {
    let first = dice.below(REALMS.len());
    let second = dice.below(REALMS.len());
    if first == second { vec![first] } else { vec![first, second] }
}

/// What the gateway still knows of a realm whose nodes have gone.
async fn left_in(gateway: &GatewayProcess, realm: &str) -> Result<Option<Value>> {
    let connect = ConnectArgs::within(Duration::from_secs(5));
    let asker = Asker::connect(gateway.address(), &connect, (Some(realm), None)).await?;
    let deadline = Instant::now() + FORGET_TIMEOUT;
    let left = loop {
        let status = asker.builtin("macula.stats").send().await?;
        let status: Value = serde_json::from_slice(&status)?;
        let realm = status["realms"].get(0).cloned().unwrap_or_default();
        // The one that asks is a peer, too.
        let of_interest = json!({
            "peers": realm["peers"], "subscriptions": realm["subscriptions"],
            "registrations": realm["registrations"], "links": status["links"],
        });
        let nothing = json!({"peers": 1, "subscriptions": 0, "registrations": 0, "links": 1});
        if of_interest == nothing {
            break None;
        }
        if Instant::now() >= deadline {
            break Some(of_interest);
        }
        tokio::time::sleep(CHECK_INTERVAL / 10).await;
    };
    asker.close().await;
    Ok(left)
}

fn alive_tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// Tasks beyond `before`, the gateway's two readers aside, once there was time for them to end.
async fn tasks_left(before: usize) -> Option<usize> {
    const OF_A_PROCESS: usize = 2;
    // QUIC lingers for three of its timeouts, which are long on a busy machine.
    for _ in 0..200 {
        if alive_tasks() <= before + OF_A_PROCESS {
            return None;
        }
        tokio::time::sleep(CHECK_INTERVAL / 10).await;
    }
    Some(alive_tasks().saturating_sub(before + OF_A_PROCESS))
}

struct Counts {
    operations: u64,
    published: u64,
    received: u64,
    calls_good: u64,
    calls_failed: u64,
    checked: u64,
    violations: u64,
}

impl Counts {
    fn of(model: &Model) -> Self {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Self {
            operations: of(&model.operations),
            published: of(&model.published),
            received: of(&model.received),
            calls_good: of(&model.calls_good),
            calls_failed: of(&model.calls_failed),
            checked: of(&model.checked),
            violations: of(&model.violations),
        }
    }
}

fn report(
    args: &BenchSoakArgs,
    seed: u64,
    model: &Model,
    summary: &Summary,
    samples: &Samples,
) -> Result<(), Failure> {
    let counts = Counts::of(model);
    if args.json {
        return out::json(&json!({
            "bench": "soak", "seed": seed, "seconds": summary.seconds, "nodes": args.nodes,
            "operations": counts.operations, "published": counts.published,
            "received": counts.received, "deliveries_checked": counts.checked,
            "calls": counts.calls_good, "calls_failed": counts.calls_failed,
            "call_failures": model.failures(),
            "restarts": summary.restarts,
            "gateway_resident_bytes_max": samples.resident_bytes_max,
            "violations": counts.violations, "told": model.told(),
        }));
    }
    let (paint, human) = (Paint::stdout(), out::human_count);
    let head = format!("soak, seed {seed}, {} nodes, {:.0} s", args.nodes, summary.seconds);
    out::line(paint.bold(head))?;
    out::line(format_args!(
        "  {} operations   {} messages published   {} received   {} restarts",
        human(counts.operations),
        human(counts.published),
        human(counts.received),
        summary.restarts
    ))?;
    out::line(format_args!(
        "  {} calls ended as they should, {} with an error   {} deliveries were owed and came",
        human(counts.calls_good),
        human(counts.calls_failed),
        human(counts.checked),
    ))?;
    let why = model.failures();
    if !why.is_empty() {
        let why: Vec<String> = why.iter().map(|(why, count)| format!("{why} {count}")).collect();
        out::line(format_args!("  errors  {}", why.join("   ")))?;
    }
    let megabytes = samples.resident_bytes_max as f64 / 1e6;
    out::line(format_args!("  gateway memory  at most {megabytes:.1} MB"))?;
    match counts.violations {
        0 => out::line(paint.green("  nothing was violated")),
        _ => model.told().iter().try_for_each(|what| out::line(format_args!("  {what}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_leave_half_of_the_time_undisturbed() {
        for minutes in [0.1, 3.0, 10.0] {
            let span = Duration::from_secs_f64(minutes * 60.0);
            let restarts = restarts(span, &mut Dice::new(7));
            assert!(restarts.len() >= 2 && restarts.is_sorted());
            let before_last = restarts[restarts.len() - 2].0;
            assert!(before_last <= span.mul_f64(RESTARTS.end));
        }
    }
}
