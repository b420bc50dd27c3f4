//! `macula bench`: whole processes, real sockets, all encrypted.
//!
//! Without a gateway given, one is started on loopback. Publisher, subscribers, provider and caller
//! are processes of their own, so that CPU time can be told apart. `soak` measures nothing: it looks
//! for what does not hold.

mod flood;
mod hostile;
mod protocol;
mod soak;
mod worker;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hdrhistogram::Histogram;
use macula_gateway::signal::StopSignal;
use serde_json::{Value, json};

use crate::address::GatewayAddress;
use crate::args::{BenchCommand, BenchCommonArgs, BenchPubsubArgs, BenchRpcArgs};
use crate::children::{GatewayProcess, Process, Usage};
use crate::failure::{Exit, Failure};
use crate::out::{self, Paint};

use protocol::{Count, Job, Said, Wish};

pub(crate) use flood::Garbage;
pub(crate) use worker::run as run_worker;

/// Before anything is measured.
const WARM_UP: Duration = Duration::from_millis(500);
/// A worker answers within this.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// After the publisher has stopped, receivers may still be busy for so long.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Subscriber processes; more subscribers share them.
const SUBSCRIBER_PROCESSES_MAX: u32 = 8;
/// The provider works on so many calls at once.
const IN_FLIGHT_MAX: u32 = 16_384;
/// How often the progress bar moves.
const TICK: Duration = Duration::from_millis(100);

/// Runs a benchmark and prints its figures.
pub(crate) async fn run(command: BenchCommand) -> Result<(), Failure> {
    let mut stop = StopSignal::listen()?;
    let measure = async {
        match &command {
            BenchCommand::Pubsub(args) => pubsub(args).await.map_err(Failure::from),
            BenchCommand::Rpc(args) => rpc(args).await.map_err(Failure::from),
            BenchCommand::Soak(args) => Box::pin(soak::run(args)).await,
            BenchCommand::Hostile(args) => hostile::run(args).await.map_err(Failure::from),
        }
    };
    tokio::select! {
        done = measure => done,
        signal = stop.received() => {
            Err(Failure::new(Exit::Failure, format!("interrupted by {signal}"), ""))
        }
    }
}

/// An empty histogram of microseconds, up to a minute, to three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3)
        .unwrap_or_else(|_| unreachable!("the bounds are constants in range"))
}

async fn pubsub(args: &BenchPubsubArgs) -> Result<()> {
    let qos1 = args.qos == "1";
    let topic = format!("bench.t{}", std::process::id());
    let policy = clap::ValueEnum::to_possible_value(&args.policy)
        .map_or_else(String::new, |value| value.get_name().to_owned());
    let processes = args.subscribers.min(SUBSCRIBER_PROCESSES_MAX);
    let mut crew = Crew::gather(&args.common).await?;
    for index in 0..processes {
        // The first ones take one more when it does not come out even.
        let more = u32::from(index < args.subscribers % processes);
        let job = Job::Subscribe {
            topic: topic.clone(),
            subscriptions: args.subscribers / processes + more,
            policy: policy.clone(),
            every: args.rate.is_some(),
        };
        crew.hire("subscriber", &args.common, &job).await?;
    }
    let job = Job::Publish { topic, size: args.size, qos1, rate: args.rate };
    let publisher = crew.hire("publisher", &args.common, &job).await?;
    let measured = crew.measure(publisher, args.common.seconds).await?;
    let head = format!(
        "{} B, 1 -> {}, QoS {}{}",
        args.size,
        args.subscribers,
        args.qos,
        args.rate.map_or_else(String::new, |rate| format!(", {rate} msg/s")),
    );
    let settings = json!({
        "bench": "pubsub", "size": args.size, "subscribers": args.subscribers,
        "qos": u8::from(qos1), "rate": args.rate,
    });
    let received = measured.sum("subscriber");
    // What the publisher sent and the counts of gaps disagree when whole tails are missing.
    let expected = measured.published_ever * u64::from(args.subscribers);
    let lost = expected.saturating_sub(received.done_ever);
    report(&args.common, &head, settings, &measured, &received, lost)?;
    crew.dismiss().await
}

async fn rpc(args: &BenchRpcArgs) -> Result<()> {
    let procedure = format!("bench.p{}", std::process::id());
    let mut crew = Crew::gather(&args.common).await?;
    crew.hire("provider", &args.common, &Job::Provide { procedure: procedure.clone() }).await?;
    let job = Job::Call { procedure, size: args.size, in_flight: args.in_flight };
    let caller = crew.hire("caller", &args.common, &job).await?;
    let measured = crew.measure(caller, args.common.seconds).await?;
    let head = format!("{} B, {} in flight", args.size, args.in_flight);
    let settings = json!({"bench": "rpc", "size": args.size, "in_flight": args.in_flight});
    let called = measured.sum("caller");
    report(&args.common, &head, settings, &measured, &called, called.lost)?;
    crew.dismiss().await
}

/// The processes of a benchmark.
struct Crew {
    gateway: Option<GatewayProcess>,
    address: GatewayAddress,
    workers: Vec<(&'static str, Process)>,
    home: tempfile::TempDir,
}

/// What a benchmark found.
struct Measured {
    elapsed: Duration,
    counts: Vec<(&'static str, Count)>,
    /// Processes with CPU time used while measuring and memory at its end.
    usage: Vec<(&'static str, Usage)>,
    published_ever: u64,
}

impl Measured {
    /// All counts of one role together.
    fn sum(&self, role: &str) -> Count {
        let mut sum = Count::default();
        for (_, count) in self.counts.iter().filter(|(name, _)| *name == role) {
            sum.done += count.done;
            sum.done_ever += count.done_ever;
            sum.lost += count.lost;
            sum.latencies_us.extend(&count.latencies_us);
        }
        sum
    }
}

impl Crew {
    async fn gather(common: &BenchCommonArgs) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("macula-bench-").tempdir()?;
        let (gateway, address) = match &common.gateway {
            Some(address) => (None, address.clone()),
            None => {
                let gateway = GatewayProcess::start(home.path()).await?;
                let address = gateway.address().clone();
                (Some(gateway), address)
            }
        };
        Ok(Self { gateway, address, workers: Vec::new(), home })
    }

    /// Starts a worker and waits until it is ready; returns its index.
    async fn hire(
        &mut self,
        role: &'static str,
        common: &BenchCommonArgs,
        job: &Job,
    ) -> Result<usize> {
        let (address, job) = (self.address.to_string(), serde_json::to_string(job)?);
        let realm = common.realm.as_str();
        let arguments = ["bench-worker", "-g", &address, "-r", realm, "--job", &job];
        // A worker pins an unpinned gateway where this user does, not in the temporary directory.
        let user_home = macula_gateway::home::directory();
        let home: &Path = match (&common.gateway, &user_home) {
            (Some(_), Some(user_home)) => user_home,
            _ => self.home.path(),
        };
        let mut process = Process::start(role, &arguments.map(str::to_owned), home)?;
        match process.expect(ANSWER_TIMEOUT).await? {
            Said::Ready => {}
            Said::Failed(why) => bail!("{role}: {why}"),
            other @ Said::Count(_) => bail!("{role} said {other:?} before it was ready"),
        }
        self.workers.push((role, process));
        Ok(self.workers.len() - 1)
    }

    /// Lets the worker `driving` do its job for `span`.
    async fn measure(&mut self, driving: usize, span: Duration) -> Result<Measured> {
        let bar =
            out::progress(Some(span.as_millis() as u64), "{msg:>12} {bar:40} {elapsed_precise}");
        bar.set_message("warming up");
        self.wish(driving, Wish::Begin).await?;
        tokio::time::sleep(WARM_UP).await;
        self.wish_all(Wish::Reset).await?;
        let (started, before) = (Instant::now(), self.usage());
        bar.set_message("measuring");
        while started.elapsed() < span {
            tokio::time::sleep(TICK.min(span.saturating_sub(started.elapsed()))).await;
            bar.set_position(started.elapsed().as_millis() as u64);
        }
        let counts = self.wish_all(Wish::Count).await?;
        let (elapsed, after) = (started.elapsed(), self.usage());
        bar.set_message("settling");
        let published_ever = self.wish(driving, Wish::Stop).await?.done_ever;
        let settled = self.settle(driving).await?;
        bar.finish_and_clear();
        let usage = after.into_iter().zip(before).map(|((role, after), (_, before))| {
            let cpu = after.cpu.saturating_sub(before.cpu);
            (role, Usage { cpu, ..after })
        });
        let usage = usage.collect();
        // Rates from the measured span, totals from the end.
        let counts = counts.into_iter().zip(settled).map(|((role, count), (_, end))| {
            (role, Count { done_ever: end.done_ever, lost: end.lost, ..count })
        });
        Ok(Measured { elapsed, counts: counts.collect(), usage, published_ever })
    }

    /// Waits until nobody receives anything any more.
    async fn settle(&mut self, driving: usize) -> Result<Vec<(&'static str, Count)>> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        let mut last = Vec::new();
        loop {
            let counts = self.wish_all(Wish::Count).await?;
            let done: Vec<u64> = counts.iter().map(|(_, count)| count.done_ever).collect();
            if done == last || Instant::now() >= deadline || self.workers.len() <= driving {
                return Ok(counts);
            }
            last = done;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    async fn wish(&mut self, worker: usize, wish: Wish) -> Result<Count> {
        let Some((role, process)) = self.workers.get_mut(worker) else { bail!("no such worker") };
        process.tell(&wish).await?;
        match process.expect(ANSWER_TIMEOUT).await? {
            Said::Count(count) => Ok(count),
            Said::Failed(why) => bail!("{role}: {why}"),
            Said::Ready => bail!("{role} is ready again"),
        }
    }

    async fn wish_all(&mut self, wish: Wish) -> Result<Vec<(&'static str, Count)>> {
        let mut counts = Vec::with_capacity(self.workers.len());
        for index in 0..self.workers.len() {
            let count = self.wish(index, wish).await?;
            counts.extend(self.workers.get(index).map(|(role, _)| (*role, count)));
        }
        Ok(counts)
    }

    fn usage(&self) -> Vec<(&'static str, Usage)> {
        let gateway = self.gateway.as_ref().and_then(GatewayProcess::pid);
        let workers = self.workers.iter().map(|(role, process)| (*role, process.pid()));
        std::iter::once(("gateway", gateway))
            .chain(workers)
            .filter_map(|(role, pid)| Some((role, Usage::of_process(pid?)?)))
            .collect()
    }

    async fn dismiss(self) -> Result<()> {
        for (_, worker) in self.workers {
            worker.end().await?;
        }
        if let Some(gateway) = self.gateway {
            gateway.end().await?;
        }
        Ok(())
    }
}

fn report(
    common: &BenchCommonArgs,
    head: &str,
    mut settings: Value,
    measured: &Measured,
    done: &Count,
    lost: u64,
) -> Result<()> {
    let mut latencies = histogram();
    for (latency_us, count) in &done.latencies_us {
        latencies.saturating_record_n(*latency_us, *count);
    }
    let seconds = measured.elapsed.as_secs_f64();
    let size = settings["size"].as_u64().unwrap_or(0);
    let per_second = done.done as f64 / seconds;
    let megabytes = per_second * size as f64 / 1e6;
    let quantile = |quantile| latencies.value_at_quantile(quantile);
    // One per role: several subscribers together.
    let mut cpu: Vec<(&str, f64)> = Vec::new();
    for (role, usage) in &measured.usage {
        let micros = usage.cpu.as_micros() as f64 / done.done.max(1) as f64;
        match cpu.iter_mut().find(|(name, _)| name == role) {
            Some((_, sum)) => *sum += micros,
            None => cpu.push((role, micros)),
        }
    }
    let resident = measured.usage.iter().find(|(role, _)| *role == "gateway");
    let resident_bytes = resident.map(|(_, usage)| usage.resident_bytes);
    if common.json {
        let cpu: serde_json::Map<String, Value> =
            cpu.iter().map(|(role, micros)| ((*role).to_owned(), json!(micros))).collect();
        let figures = json!({
            "seconds": seconds, "count": done.done, "per_second": per_second,
            "megabytes_per_second": megabytes, "lost": lost,
            "p50_us": quantile(0.5), "p99_us": quantile(0.99), "p999_us": quantile(0.999),
            "max_us": latencies.max(), "cpu_us_per_message": cpu,
            "gateway_resident_bytes": resident_bytes,
        });
        if let (Some(to), Value::Object(from)) = (settings.as_object_mut(), figures) {
            to.extend(from);
        }
        return Ok(out::json(&settings)?);
    }
    let paint = Paint::stdout();
    let unit = if settings["bench"] == "rpc" { "calls" } else { "messages" };
    let time = |quantile| out::human_duration(Duration::from_micros(quantile));
    out::line(paint.bold(format_args!("{unit}, {head}, {seconds:.1} s")))?;
    let rate = out::human_count(per_second as u64);
    out::line(format_args!("  {rate} {unit}/s   {megabytes:.1} MB/s   lost {lost}"))?;
    // As fast as possible means that queues are full, and waiting in them is the latency.
    let full = settings["bench"] == "pubsub" && settings["rate"].is_null();
    let note = if full { "   (queues full; --rate measures without)" } else { "" };
    out::line(format_args!(
        "  latency  p50 {}   p99 {}   p99.9 {}   max {}{note}",
        time(quantile(0.5)),
        time(quantile(0.99)),
        time(quantile(0.999)),
        time(latencies.max()),
    ))?;
    let cpu: Vec<String> =
        cpu.iter().map(|(role, micros)| format!("{role} {micros:.2} µs")).collect();
    if !cpu.is_empty() {
        out::line(format_args!("  CPU per {}  {}", unit.trim_end_matches('s'), cpu.join("   ")))?;
    }
    if let Some(bytes) = resident_bytes {
        let megabytes = bytes as f64 / 1e6;
        out::line(format_args!("  gateway memory  {megabytes:.1} MB"))?;
    }
    Ok(())
}
