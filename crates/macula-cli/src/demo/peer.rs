//! `macula demo-peer`: one peer of the demo. Orders on stdin, reports on stdout, until stdin closes.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use bytes::Bytes;
use macula::{EndpointId, Message, Node, Qos, Refusal, Request, Service, Subscription};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{Notify, mpsc};

use super::protocol::{Order, Outcome, Parcel, Received, Task, Told};
use crate::args::{ConnectArgs, DemoPeerArgs};
use crate::connect;
use crate::failure::Failure;

/// Reports that may wait for stdout.
const TOLD_MAX: usize = 1024;
/// A call of the demo gives up after this.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// After everything expected is here, look a little longer for what should not come.
const EXTRA_WAIT: Duration = Duration::from_millis(50);

/// Runs the peer.
pub(crate) async fn run(args: DemoPeerArgs) -> Result<(), Failure> {
    let (told, reports) = mpsc::channel(TOLD_MAX);
    let writer = tokio::spawn(write_reports(reports));
    let peer = Arc::new(Peer {
        args,
        told,
        nodes: tokio::sync::Mutex::default(),
        received: Mutex::default(),
        arrived: Notify::new(),
        services: Mutex::default(),
        published: Mutex::default(),
    });
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = orders.next_line().await? {
        let order: Order = serde_json::from_str(&line).map_err(anyhow::Error::from)?;
        let peer = peer.clone();
        // Orders run side by side: a peer may publish while it serves and counts.
        tokio::spawn(async move {
            let outcome = match peer.clone().obey(order.id, order.task).await {
                Ok(outcome) => outcome,
                Err(error) => Outcome::Failed(format!("{error:#}")),
            };
            peer.tell(Told::Done { id: order.id, outcome }).await;
        });
    }
    // All realms share one endpoint.
    if let Some(node) = peer.nodes.lock().await.values().next() {
        node.close().await;
    }
    writer.abort();
    Ok(())
}

async fn write_reports(mut reports: mpsc::Receiver<Told>) -> Result<()> {
    let mut stdout = tokio::io::stdout();
    while let Some(told) = reports.recv().await {
        let mut line = serde_json::to_vec(&told)?;
        line.push(b'\n');
        stdout.write_all(&line).await?;
        stdout.flush().await?;
    }
    Ok(())
}

struct Peer {
    args: DemoPeerArgs,
    told: mpsc::Sender<Told>,
    nodes: tokio::sync::Mutex<HashMap<String, Node>>,
    received: Mutex<Account>,
    arrived: Notify,
    services: Mutex<Vec<Service>>,
    /// Messages published so far, by realm and topic.
    published: Mutex<HashMap<(String, String), Arc<AtomicU64>>>,
}

/// What was received so far, and in which order.
#[derive(Debug, Default)]
struct Account {
    since_last: Received,
    /// The next number expected, by subscribed realm, topic and publisher.
    next: BTreeMap<(String, String, EndpointId), u64>,
}

impl Account {
    /// Takes in a message; returns its text and age.
    fn take(&mut self, realm: &str, message: &Message) -> Option<(String, u64)> {
        let parcel = Parcel::decode(&message.payload)?;
        let age_us = unix_us().saturating_sub(parcel.sent_us);
        let key = (realm.to_owned(), message.topic().to_owned(), message.publisher);
        let next = self.next.entry(key).or_default();
        if parcel.realm != realm {
            self.since_last.foreign += 1;
        } else if parcel.number + 1 == *next {
            self.since_last.doubled += 1;
        } else if parcel.number < *next {
            self.since_last.out_of_order += 1;
        } else {
            self.since_last.messages += 1;
            self.since_last.latencies_us.push(age_us);
            *next = parcel.number + 1;
        }
        Some((parcel.text.to_owned(), age_us))
    }
}

impl Peer {
    async fn tell(&self, told: Told) {
        // Without a writer the director is gone, and this process is about to end.
        self.told.send(told).await.ok();
    }

    /// This peer's node in a realm; connects at first use, and then joins more realms on the same
    /// connection.
    async fn node(&self, realm: &str) -> Result<Node> {
        let mut nodes = self.nodes.lock().await;
        if let Some(node) = nodes.get(realm) {
            return Ok(node.clone());
        }
        if let Some(other) = nodes.values().next() {
            let node = other.realm(realm).await.map_err(Failure::from)?;
            nodes.insert(realm.to_owned(), node.clone());
            return Ok(node);
        }
        let connect = ConnectArgs::within(CALL_DEADLINE);
        let (node, _) = connect::node(&self.args.gateway, &connect, (Some(realm), None)).await?;
        nodes.insert(realm.to_owned(), node.clone());
        let (mut events, told) = (node.events(), self.told.clone());
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let what = match event {
                    macula::Event::Disconnected { reason, .. } => {
                        format!("lost the gateway ({reason}), tries again")
                    }
                    macula::Event::Reconnected { .. } => "is connected again".to_owned(),
                    _ => continue,
                };
                if told.send(Told::Link { what }).await.is_err() {
                    break;
                }
            }
        });
        Ok(node)
    }

    async fn obey(self: Arc<Self>, id: u64, task: Task) -> Result<Outcome> {
        match task {
            Task::Subscribe { realm, pattern, tell } => {
                let subscription = self.node(&realm).await?.subscription(&pattern).open().await?;
                tokio::spawn(self.clone().read(realm, subscription, tell));
                Ok(Outcome::Ready)
            }
            Task::Publish { realm, topics, texts, count, qos1, pause_us } => {
                let qos = if qos1 { Qos::AtLeastOnce } else { Qos::AtMostOnce };
                let node = self.node(&realm).await?;
                let mut publishers = Vec::new();
                for topic in &topics {
                    let published = self.published(&realm, topic);
                    publishers.push((node.publisher(topic).qos(qos).open()?, published));
                }
                if publishers.is_empty() || texts.is_empty() {
                    bail!("nothing to publish");
                }
                let mut pace = Pace::new(pause_us);
                for index in 0..count {
                    let turn = index as usize;
                    let (publisher, published) = &publishers[turn % publishers.len()];
                    let parcel = Parcel {
                        number: published.fetch_add(1, Ordering::Relaxed),
                        sent_us: unix_us(),
                        realm: &realm,
                        text: &texts[turn % texts.len()],
                    };
                    publisher.publish(parcel.encode()).await?;
                    if index == count / 3 {
                        self.tell(Told::Third { id }).await;
                    }
                    pace.wait().await;
                }
                for (publisher, _) in publishers {
                    publisher.flush().await?;
                }
                Ok(Outcome::Published { sent: count })
            }
            Task::Serve { realm, procedure } => {
                let name = self.args.name.clone();
                let node = self.node(&realm).await?;
                let service = node.service(&procedure).serve(move |request| {
                    let answer = square(&name, &request);
                    async move { answer }
                });
                let service = service.await?;
                self.services.lock().unwrap_or_else(PoisonError::into_inner).push(service);
                Ok(Outcome::Ready)
            }
            Task::Call { realm, procedure, count, pause_us } => {
                self.call(id, &realm, &procedure, count, pause_us).await
            }
            Task::Count { expected, within_ms } => {
                Ok(Outcome::Received(self.count(expected, within_ms).await))
            }
        }
    }

    async fn read(self: Arc<Self>, realm: String, mut subscription: Subscription, tell: bool) {
        while let Some(message) = subscription.next().await {
            let taken = self.account().take(&realm, &message);
            if let (Some((text, latency_us)), true) = (taken, tell) {
                let topic = message.topic().to_owned();
                self.tell(Told::Heard { topic, text, latency_us }).await;
            }
            self.arrived.notify_waiters();
        }
    }

    async fn call(
        &self,
        id: u64,
        realm: &str,
        procedure: &str,
        count: u64,
        pause_us: u64,
    ) -> Result<Outcome> {
        let node = self.node(realm).await?;
        let (mut answers, mut failed, mut first_failure) = (BTreeMap::new(), 0, None);
        let mut latencies_us = Vec::new();
        let mut pace = Pace::new(pause_us);
        for number in 0..count {
            let started = Instant::now();
            let call = node
                .call_with(procedure)
                .arg(number.to_string())
                .deadline(CALL_DEADLINE)
                .policy(macula::ProviderPolicy::RoundRobin)
                .idempotent(true);
            let failure = match call.send().await {
                Ok(answer) => match right_answer(&answer, number) {
                    Some(name) => {
                        *answers.entry(name).or_insert(0) += 1;
                        latencies_us.push(started.elapsed().as_micros() as u64);
                        None
                    }
                    None => Some(format!("wrong answer {answer:?} to {number}")),
                },
                Err(error) => Some(error.to_string()),
            };
            if let Some(failure) = failure {
                failed += 1;
                first_failure.get_or_insert(failure);
            }
            if number == count / 3 {
                self.tell(Told::Third { id }).await;
            }
            pace.wait().await;
        }
        let answers = answers.into_iter().collect();
        Ok(Outcome::Called { answers, failed, first_failure, latencies_us })
    }

    async fn count(&self, expected: u64, within_ms: u64) -> Received {
        let all_here = async {
            loop {
                let arrived = self.arrived.notified();
                if self.account().since_last.messages >= expected {
                    break;
                }
                arrived.await;
            }
            tokio::time::sleep(EXTRA_WAIT).await;
        };
        // Too little by then shows in what is returned.
        tokio::time::timeout(Duration::from_millis(within_ms), all_here).await.ok();
        std::mem::take(&mut self.account().since_last)
    }

    fn published(&self, realm: &str, topic: &str) -> Arc<AtomicU64> {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        published.entry((realm.to_owned(), topic.to_owned())).or_default().clone()
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Squares a number and signs the answer.
fn square(name: &str, request: &Request) -> Result<Bytes, Refusal> {
    let number = std::str::from_utf8(&request.payload).ok().and_then(|text| text.parse().ok());
    let Some(number) = number else { return Err(Refusal::new(1, "not a number")) };
    let number: u64 = number;
    Ok(format!("{} {name}", number.wrapping_mul(number)).into())
}

/// The name on an answer, if it is right.
fn right_answer(answer: &[u8], number: u64) -> Option<String> {
    let (square, name) = std::str::from_utf8(answer).ok()?.split_once(' ')?;
    (square.parse() == Ok(number.wrapping_mul(number))).then(|| name.to_owned())
}

/// Keeps an even pace even where timers are coarse.
struct Pace {
    started: tokio::time::Instant,
    pause: Duration,
    steps: u32,
}

impl Pace {
    fn new(pause_us: u64) -> Self {
        let pause = Duration::from_micros(pause_us);
        Self { started: tokio::time::Instant::now(), pause, steps: 0 }
    }

    async fn wait(&mut self) {
        self.steps += 1;
        tokio::time::sleep_until(self.started + self.pause * self.steps).await;
    }
}

/// Unix time; the processes of a demo share one clock.
fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_right_answers_count() {
        assert_eq!(right_answer(b"49 dan", 7).as_deref(), Some("dan"));
        assert_eq!(right_answer(b"48 dan", 7), None);
        assert_eq!(right_answer(b"49", 7), None);
        assert_eq!(right_answer(&[0xff], 7), None);
    }
}
