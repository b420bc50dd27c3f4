//! `macula bench-worker`: one process of a benchmark. Wishes on stdin, counts on stdout.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use clap::ValueEnum;
use hdrhistogram::Histogram;
use macula::{Node, Publisher, Qos, Request, Service, Subscription};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::sync::watch;

use super::flood::{Flood, Pace};
use super::protocol::{Count, Job, Said, Wish};
use crate::args::{BenchWorkerArgs, ConnectArgs, PolicyArg};
use crate::connect;
use crate::failure::Failure;

/// Connecting gives up after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// In throughput mode the age of every so-manyth message is recorded.
const SAMPLE_EVERY: u64 = 64;
/// A call of the benchmark gives up after this.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// A client that mingles calls and publishes so often.
const MINGLE_INTERVAL: Duration = Duration::from_millis(200);
/// What it sends then, bytes.
const MINGLE_BYTES: usize = 64;
/// A throughput publisher looks after others so often, messages.
const YIELD_EVERY: u64 = 256;

/// Runs the worker until its stdin closes.
pub(crate) async fn run(args: BenchWorkerArgs) -> Result<(), Failure> {
    let meter = Arc::new(Meter::default());
    let (go, going) = watch::channel(false);
    let outcome = start(&args, &meter, going).await;
    let crew = match outcome {
        Ok(crew) => crew,
        Err(error) => return Ok(say(&Said::Failed(format!("{error:#}"))).await?),
    };
    say(&Said::Ready).await?;
    let mut wishes = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = wishes.next_line().await? {
        match serde_json::from_str(&line).map_err(anyhow::Error::from)? {
            Wish::Begin => drop(go.send_replace(true)),
            Wish::Reset => meter.reset(),
            Wish::Count => {}
            Wish::Stop => {
                go.send_replace(false);
                crew.settle(&meter).await;
            }
        }
        say(&Said::Count(meter.count())).await?;
    }
    crew.close().await;
    Ok(())
}

async fn say(said: &Said) -> Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    let mut stdout = tokio::io::stdout();
    stdout.write_all(&line).await?;
    Ok(stdout.flush().await?)
}

/// What was done. Latencies are recorded seldom enough for a lock.
#[derive(Debug, Default)]
pub(super) struct Meter {
    done: AtomicU64,
    base: AtomicU64,
    lost: AtomicU64,
    lost_base: AtomicU64,
    latencies: Mutex<Option<Histogram<u64>>>,
    idle: AtomicBool,
}

impl Meter {
    pub(super) fn add(&self, count: u64) {
        self.done.fetch_add(count, Ordering::Relaxed);
    }

    fn record(&self, latency_us: u64) {
        let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        let histogram = latencies.get_or_insert_with(super::histogram);
        histogram.saturating_record(latency_us.max(1));
    }

    fn reset(&self) {
        self.base.store(self.done.load(Ordering::Relaxed), Ordering::Relaxed);
        self.lost_base.store(self.lost.load(Ordering::Relaxed), Ordering::Relaxed);
        *self.latencies.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn count(&self) -> Count {
        let done_ever = self.done.load(Ordering::Relaxed);
        let latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        let latencies_us = latencies.as_ref().map_or_else(Vec::new, |histogram| {
            let recorded = histogram.iter_recorded();
            recorded.map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
        });
        let lost = self.lost.load(Ordering::Relaxed);
        Count {
            done: done_ever - self.base.load(Ordering::Relaxed),
            done_ever,
            lost: lost.saturating_sub(self.lost_base.load(Ordering::Relaxed)),
            latencies_us,
        }
    }
}

/// What must live as long as the worker.
struct Crew {
    nodes: Vec<Node>,
    publisher: Option<Publisher>,
    _service: Option<Service>,
    _flood: Option<Flood>,
}

impl Crew {
    /// Waits until what was begun is on its way, or answered.
    async fn settle(&self, meter: &Meter) {
        let settled = async {
            while !meter.idle.load(Ordering::Acquire) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if let Some(publisher) = &self.publisher {
                publisher.flush().await.ok();
            }
        };
        tokio::time::timeout(CALL_DEADLINE, settled).await.ok();
    }

    async fn close(self) {
        for node in self.nodes {
            node.close().await;
        }
    }
}

async fn start(
    args: &BenchWorkerArgs,
    meter: &Arc<Meter>,
    going: watch::Receiver<bool>,
) -> Result<Crew> {
    let job: Job = serde_json::from_str(&args.job).context("the job")?;
    meter.idle.store(true, Ordering::Release);
    let mut crew = Crew { nodes: Vec::new(), publisher: None, _service: None, _flood: None };
    if let Job::Flood { garbage, rate, sources } = job {
        let to = tokio::net::lookup_host(args.gateway.host_port()).await?.next();
        let to = to.context("the gateway's address")?;
        let flood = Flood::start(to, garbage, sources, Pace { rate, meter: meter.clone(), going });
        crew._flood = Some(flood.await?);
        return Ok(crew);
    }
    let node = node(args).await?;
    crew.nodes.push(node.clone());
    match job {
        Job::Flood { .. } => {}
        Job::Mingle { topic, procedure, clients } => {
            let topic_of = |index: u32| format!("{topic}.{}", index % clients);
            for index in 0..clients {
                if index > 0 {
                    crew.nodes.push(self::node(args).await?);
                }
                let Some(node) = crew.nodes.last() else { continue };
                let subscription = node.subscription(&topic_of(index)).open().await?;
                tokio::spawn(receive(subscription, meter.clone(), true));
                let publisher = node.publisher(&topic_of(index + 1)).open()?;
                let offset = MINGLE_INTERVAL * index / clients;
                let client = Mingling { node: node.clone(), publisher, meter: meter.clone() };
                tokio::spawn(client.run(procedure.clone(), offset, going.clone()));
            }
        }
        Job::Publish { topic, size, qos1, rate } => {
            let qos = if qos1 { Qos::AtLeastOnce } else { Qos::AtMostOnce };
            let publisher = node.publisher(&topic).qos(qos).open()?;
            crew.publisher = Some(publisher.clone());
            let work = Publishing { publisher, size: size as usize, meter: meter.clone() };
            tokio::spawn(work.run(rate, going));
        }
        Job::Subscribe { topic, subscriptions, policy, every } => {
            let policy = PolicyArg::from_str(&policy, false).map_err(anyhow::Error::msg)?;
            for index in 0..subscriptions {
                // Each is a peer of its own, as it would be in the field.
                if index > 0 {
                    crew.nodes.push(self::node(args).await?);
                }
                let Some(node) = crew.nodes.last() else { continue };
                let subscription = node.subscription(&topic).policy(policy.into()).open().await?;
                tokio::spawn(receive(subscription, meter.clone(), every));
            }
        }
        Job::Provide { procedure } => {
            let builder = node.service(&procedure).concurrency(super::IN_FLIGHT_MAX);
            let echo = |request: Request| async move { Ok(request.payload) };
            crew._service = Some(builder.serve(echo).await?);
        }
        Job::Call { procedure, size, in_flight } => {
            let argument = Bytes::from(vec![b'x'; size as usize]);
            for _ in 0..in_flight {
                let (node, procedure) = (node.clone(), procedure.clone());
                let work = (argument.clone(), meter.clone(), going.clone());
                tokio::spawn(call(node, procedure, work));
            }
        }
    }
    Ok(crew)
}

async fn node(args: &BenchWorkerArgs) -> Result<Node> {
    let connect = ConnectArgs::within(CONNECT_TIMEOUT);
    let (node, _) = connect::node(&args.gateway, &connect, (Some(&args.realm), None)).await?;
    Ok(node)
}

/// One client of many.
struct Mingling {
    node: Node,
    publisher: Publisher,
    meter: Arc<Meter>,
}

impl Mingling {
    async fn run(
        self,
        procedure: String,
        offset: Duration,
        mut going: watch::Receiver<bool>,
    ) -> Result<()> {
        let mut number = 0u64;
        going.wait_for(|go| *go).await?;
        let mut ticks =
            tokio::time::interval_at(tokio::time::Instant::now() + offset, MINGLE_INTERVAL);
        loop {
            going.wait_for(|go| *go).await?;
            ticks.tick().await;
            self.publisher.publish(payload(MINGLE_BYTES, number, unix_us())).await?;
            number += 1;
            let argument = Bytes::from_static(&[b'x'; MINGLE_BYTES]);
            let started = Instant::now();
            let call = self.node.call_with(&procedure).arg(argument).deadline(CALL_DEADLINE);
            match call.send().await {
                Ok(_) => {
                    self.meter.record(started.elapsed().as_micros() as u64);
                    self.meter.add(1);
                }
                Err(error) => {
                    self.meter.lost.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%error, "a call of the benchmark failed");
                }
            }
        }
    }
}

struct Publishing {
    publisher: Publisher,
    size: usize,
    meter: Arc<Meter>,
}

impl Publishing {
    async fn run(self, rate: Option<u32>, mut going: watch::Receiver<bool>) -> Result<()> {
        let mut number = 0u64;
        loop {
            going.wait_for(|go| *go).await?;
            self.meter.idle.store(false, Ordering::Release);
            let (started, from) = (tokio::time::Instant::now(), number);
            while *going.borrow() {
                if let Some(rate) = rate {
                    let due =
                        Duration::from_secs(1).mul_f64((number - from) as f64 / f64::from(rate));
                    tokio::time::sleep_until(started + due).await;
                } else if number.is_multiple_of(YIELD_EVERY) {
                    tokio::task::yield_now().await;
                }
                let stamped = rate.is_some() || number.is_multiple_of(SAMPLE_EVERY);
                let payload = payload(self.size, number, if stamped { unix_us() } else { 0 });
                if self.publisher.publish(payload).await.is_err() {
                    break;
                }
                number += 1;
                self.meter.add(1);
            }
            self.meter.idle.store(true, Ordering::Release);
        }
    }
}

/// A payload that begins with its number and, if it is one to be timed, when it was published.
fn payload(size: usize, number: u64, sent_us: u64) -> Bytes {
    let mut payload = BytesMut::zeroed(size.max(16));
    payload[..8].copy_from_slice(&number.to_be_bytes());
    payload[8..16].copy_from_slice(&sent_us.to_be_bytes());
    payload.freeze()
}

fn stamps(payload: &[u8]) -> Option<(u64, u64)> {
    let number = payload.get(..8)?.try_into().ok()?;
    let sent_us = payload.get(8..16)?.try_into().ok()?;
    Some((u64::from_be_bytes(number), u64::from_be_bytes(sent_us)))
}

async fn receive(mut subscription: Subscription, meter: Arc<Meter>, every: bool) {
    let mut next = None;
    while let Some(batch) = subscription.next_batch().await {
        let (mut count, now_us) = (0, unix_us());
        for payload in batch.into_payloads() {
            count += 1;
            let Some((number, sent_us)) = stamps(&payload) else { continue };
            let missing = next.map_or(0, |next| number.saturating_sub(next));
            next = Some(number + 1);
            if missing > 0 {
                meter.lost.fetch_add(missing, Ordering::Relaxed);
            }
            if sent_us > 0 {
                let now_us = if every { unix_us() } else { now_us };
                meter.record(now_us.saturating_sub(sent_us));
            }
        }
        meter.add(count);
    }
}

async fn call(
    node: Node,
    procedure: String,
    (argument, meter, mut going): (Bytes, Arc<Meter>, watch::Receiver<bool>),
) -> Result<()> {
    loop {
        going.wait_for(|go| *go).await?;
        while *going.borrow() {
            let started = Instant::now();
            let call = node.call_with(&procedure).arg(argument.clone()).deadline(CALL_DEADLINE);
            match call.send().await {
                Ok(_) => {
                    meter.record(started.elapsed().as_micros() as u64);
                    meter.add(1);
                }
                Err(error) => {
                    meter.lost.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%error, "a call of the benchmark failed");
                    // Not a tight loop when everything fails.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }
}

/// Unix time; the processes of a benchmark on one machine share one clock.
fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_carry_number_and_time() {
        assert_eq!(stamps(&payload(16, 7, 42)), Some((7, 42)));
        assert_eq!(payload(1024, 7, 42).len(), 1024);
        assert_eq!(stamps(b"short"), None);
    }

    #[test]
    fn a_meter_counts_from_its_reset() {
        let meter = Meter::default();
        meter.add(10);
        meter.record(5);
        meter.reset();
        meter.add(3);
        meter.record(7);
        let count = meter.count();
        assert_eq!((count.done, count.done_ever), (3, 13));
        assert_eq!(count.latencies_us, [(7, 1)]);
    }
}
