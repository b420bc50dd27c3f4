//! `macula bench hostile`: what good clients notice of garbage that is sent to their gateway.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::protocol::{Job, Wish};
use super::{Crew, TICK, WARM_UP, histogram};
use crate::args::{BenchCommonArgs, BenchHostileArgs, ConnectArgs};
use crate::children::{GatewayProcess, Usage};
use crate::connect;
use crate::out::{self, Paint};

const REALM: &str = "bench";
/// Addresses that the garbage comes from.
const SOURCES: u8 = 16;
/// A newcomer gives up after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two newcomers.
const NEWCOMER_INTERVAL: Duration = Duration::from_millis(100);
/// The gateway tells its counters once a second.
const COUNTERS_TIMEOUT: Duration = Duration::from_millis(1_500);

pub(super) async fn run(args: &BenchHostileArgs) -> Result<()> {
    // A gateway of our own: garbage is for nobody else.
    let common = BenchCommonArgs {
        gateway: None,
        realm: REALM.to_owned(),
        seconds: args.seconds,
        json: args.json,
    };
    let mut crew = Crew::gather(&common).await?;
    let counters = crew.gateway.as_mut().map(Counters::follow).context("a gateway")?;
    let procedure = format!("bench.p{}", std::process::id());
    crew.hire("provider", &common, &Job::Provide { procedure: procedure.clone() }).await?;
    let topic = format!("bench.t{}", std::process::id());
    let job = Job::Mingle { topic, procedure, clients: args.clients };
    let clients = crew.hire("clients", &common, &job).await?;
    let job = Job::Flood { garbage: args.garbage, rate: args.rate, sources: SOURCES };
    let flood = crew.hire("flood", &common, &job).await?;

    crew.wish(clients, Wish::Begin).await?;
    let calm = crew.look(args.seconds, "calm").await?;
    crew.wish(flood, Wish::Begin).await?;
    let hostile = crew.look(args.seconds, "hostile").await?;
    crew.wish(flood, Wish::Stop).await?;
    crew.wish(clients, Wish::Stop).await?;
    tokio::time::sleep(COUNTERS_TIMEOUT).await;
    report(args, &calm, &hostile, &counters.last())?;
    crew.dismiss().await
}

/// What was seen for a while.
struct Seen {
    elapsed: Duration,
    latencies: Histogram<u64>,
    done: u64,
    lost: u64,
    garbage: u64,
    usage: Vec<(&'static str, Usage)>,
    /// How long those took that connected meanwhile.
    newcomers: Histogram<u64>,
    turned_away: u64,
}

impl Crew {
    async fn look(&mut self, span: Duration, what: &'static str) -> Result<Seen> {
        let bar =
            out::progress(Some(span.as_millis() as u64), "{msg:>12} {bar:40} {elapsed_precise}");
        bar.set_message(what);
        tokio::time::sleep(WARM_UP).await;
        self.wish_all(Wish::Reset).await?;
        let (started, before) = (Instant::now(), self.usage());
        let (mut newcomers, mut turned_away) = (histogram(), 0);
        let connect = ConnectArgs::within(CONNECT_TIMEOUT);
        while started.elapsed() < span {
            let dialled = Instant::now();
            match connect::node(&self.address, &connect, (Some(REALM), None)).await {
                Ok((node, watch)) => {
                    newcomers.saturating_record(dialled.elapsed().as_micros() as u64);
                    connect::close(node, watch).await;
                }
                Err(_) => turned_away += 1,
            }
            bar.set_position(started.elapsed().as_millis() as u64);
            let rest = span.saturating_sub(started.elapsed());
            tokio::time::sleep(NEWCOMER_INTERVAL.max(TICK).min(rest)).await;
        }
        let counts = self.wish_all(Wish::Count).await?;
        let (elapsed, after) = (started.elapsed(), self.usage());
        bar.finish_and_clear();
        let usage = after.into_iter().zip(before).map(|((role, after), (_, before))| {
            (role, Usage { cpu: after.cpu.saturating_sub(before.cpu), ..after })
        });
        let usage = usage.collect();
        let mut seen = Seen {
            elapsed,
            latencies: histogram(),
            done: 0,
            lost: 0,
            garbage: 0,
            usage,
            newcomers,
            turned_away,
        };
        for (role, count) in counts {
            match role {
                "flood" => seen.garbage = count.done,
                "clients" => {
                    (seen.done, seen.lost) = (count.done, count.lost);
                    for (latency_us, count) in count.latencies_us {
                        seen.latencies.saturating_record_n(latency_us, count);
                    }
                }
                _ => {}
            }
        }
        Ok(seen)
    }
}

/// The gateway's counters of handshakes, as it last told them.
struct Counters(Arc<Mutex<Value>>);

impl Counters {
    fn follow(gateway: &mut GatewayProcess) -> Self {
        let (mut lines, last) = (gateway.take_lines(), Arc::new(Mutex::new(Value::Null)));
        let counters = Self(last.clone());
        // Ends with the gateway.
        tokio::spawn(async move {
            while let Some(line) = lines.recv().await {
                let Ok(told) = serde_json::from_str::<Value>(&line) else { continue };
                if told["event"] == "handshakes" {
                    *last.lock().unwrap_or_else(PoisonError::into_inner) = told;
                }
            }
        });
        counters
    }

    fn last(&self) -> Value {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(last) = last.as_object_mut() {
            last.remove("event");
        }
        last
    }
}

impl Seen {
    /// CPU time used per time, of one role.
    fn cores(&self, role: &str) -> f64 {
        let usage = self.usage.iter().find(|(name, _)| *name == role);
        usage.map_or(0.0, |(_, usage)| usage.cpu.as_secs_f64() / self.elapsed.as_secs_f64())
    }

    fn resident_bytes(&self) -> u64 {
        let gateway = self.usage.iter().find(|(name, _)| *name == "gateway");
        gateway.map_or(0, |(_, usage)| usage.resident_bytes)
    }

    fn json(&self) -> Value {
        let quantile = |quantile| self.latencies.value_at_quantile(quantile);
        json!({
            "seconds": self.elapsed.as_secs_f64(), "count": self.done, "lost": self.lost,
            "p50_us": quantile(0.5), "p99_us": quantile(0.99), "p999_us": quantile(0.999),
            "max_us": self.latencies.max(),
            "garbage": self.garbage, "garbage_cores": self.cores("flood"),
            "gateway_cores": self.cores("gateway"),
            "clients_cores": self.cores("clients") + self.cores("provider"),
            "gateway_resident_bytes": self.resident_bytes(),
            "newcomers": self.newcomers.len(), "newcomers_turned_away": self.turned_away,
            "newcomers_p50_us": self.newcomers.value_at_quantile(0.5),
            "newcomers_max_us": self.newcomers.max(),
        })
    }
}

fn report(args: &BenchHostileArgs, calm: &Seen, hostile: &Seen, counters: &Value) -> Result<()> {
    let at = |seen: &Seen, quantile| seen.latencies.value_at_quantile(quantile);
    let ratio = |quantile| at(hostile, quantile) as f64 / at(calm, quantile).max(1) as f64;
    // What the garbage alone costs the gateway.
    let extra = (hostile.cores("gateway") - calm.cores("gateway")).max(0.0);
    let per_packet = extra * hostile.elapsed.as_secs_f64() * 1e6 / hostile.garbage.max(1) as f64;
    if args.json {
        return Ok(out::json(&json!({
            "bench": "hostile", "clients": args.clients, "rate": args.rate,
            "garbage": args.garbage, "calm": calm.json(), "hostile": hostile.json(),
            "ratio_p50": ratio(0.5), "ratio_p99": ratio(0.99),
            "gateway_us_per_packet": per_packet, "handshakes": counters,
        }))?);
    }
    let paint = Paint::stdout();
    let name = clap::ValueEnum::to_possible_value(&args.garbage)
        .map_or_else(String::new, |value| value.get_name().to_owned());
    let head = format!("{} clients, {} packets/s of garbage ({name})", args.clients, args.rate);
    out::line(paint.bold(head))?;
    let time = |us| out::human_duration(Duration::from_micros(us));
    for (name, seen) in [("calm", calm), ("hostile", hostile)] {
        out::line(format_args!(
            "  {name:<8} p50 {}   p99 {}   max {}   lost {}   gateway {:.0} % of a core, {:.1} MB",
            time(at(seen, 0.5)),
            time(at(seen, 0.99)),
            time(seen.latencies.max()),
            seen.lost,
            seen.cores("gateway") * 100.0,
            seen.resident_bytes() as f64 / 1e6,
        ))?;
        out::line(format_args!(
            "  {:<8} {} connected within p50 {}, max {}; {} turned away",
            "",
            seen.newcomers.len(),
            time(seen.newcomers.value_at_quantile(0.5)),
            time(seen.newcomers.max()),
            seen.turned_away,
        ))?;
    }
    let sent = hostile.garbage as f64 / hostile.elapsed.as_secs_f64();
    out::line(format_args!(
        "  ratio    p50 {:.2}   p99 {:.2}   gateway {per_packet:.1} µs per packet",
        ratio(0.5),
        ratio(0.99),
    ))?;
    out::line(format_args!(
        "  garbage  {}/s sent with {:.0} % of a core",
        out::human_count(sent as u64),
        hostile.cores("flood") * 100.0,
    ))?;
    let counters = counters.as_object().into_iter().flatten().filter(|(_, count)| **count != 0);
    let counters: Vec<String> = counters.map(|(name, count)| format!("{name} {count}")).collect();
    out::line(format_args!("  gateway  {}", counters.join("   ")))?;
    Ok(())
}
