//! The scenarios: what happens, what must hold.

use std::time::Duration;

use anyhow::{Result, bail};

use super::protocol::{Outcome, Received, Task};
use super::show::{Row, Show};
use super::stage::{NAMES, Stage};

const ADA: usize = 0;
const BEN: usize = 1;
const CLEO: usize = 2;
const DAN: usize = 3;

/// The realm of the scenarios that need only one.
pub(super) const REALM: &str = "demo.lab";
/// Receivers wait this long for what was surely sent.
const COUNT_TIMEOUT: Duration = Duration::from_secs(5);
/// After a gateway restart they wait longer.
const RESTART_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the gateway stays away when it is killed.
const OUTAGE: Duration = Duration::from_millis(400);

fn subscribe(realm: &str, pattern: &str, tell: bool) -> Task {
    Task::Subscribe { realm: realm.to_owned(), pattern: pattern.to_owned(), tell }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// Adds up what several peers received.
fn total(parts: &[Received]) -> Received {
    let mut sum = Received::default();
    for part in parts {
        sum.messages += part.messages;
        sum.doubled += part.doubled;
        sum.out_of_order += part.out_of_order;
        sum.foreign += part.foreign;
        sum.latencies_us.extend(&part.latencies_us);
    }
    sum
}

fn row_of(scenario: &'static str, sent: u64, received: &Received) -> Row {
    let mut row = Row::new(scenario, sent, &received.latencies_us);
    row.must(received.doubled == 0, || format!("{} came twice", received.doubled));
    row.must(received.out_of_order == 0, || format!("{} out of order", received.out_of_order));
    row.must(received.foreign == 0, || format!("{} from another realm", received.foreign));
    row
}

/// Two people talk.
pub(super) async fn chat(stage: &mut Stage, show: &Show) -> Result<Row> {
    show.scene("Chat", "two peers talk through the gateway")?;
    stage.ask(show, ADA, subscribe(REALM, "chat.ben", true)).await?;
    stage.ask(show, BEN, subscribe(REALM, "chat.ada", true)).await?;
    let lines = [
        (ADA, "Hello Ben, do you hear me?"),
        (BEN, "Loud and clear. Where do you run?"),
        (ADA, "In a process of my own, over QUIC."),
        (BEN, "So do I. Shall we look at the sensors?"),
        (ADA, "Yes, let us."),
    ];
    let mut received = Vec::new();
    for (peer, text) in lines {
        let task = Task::Publish {
            realm: REALM.to_owned(),
            topics: vec![format!("chat.{}", NAMES[peer])],
            texts: texts(&[text]),
            count: 1,
            qos1: false,
            pause_us: 0,
        };
        stage.ask(show, peer, task).await?;
        let other = if peer == ADA { BEN } else { ADA };
        received.extend(stage.count(show, &[(other, 1)], COUNT_TIMEOUT).await?);
    }
    Ok(row_of("chat", lines.len() as u64, &total(&received)))
}

/// One publishes, three subscribe with different patterns.
pub(super) async fn sensors(stage: &mut Stage, show: &Show) -> Result<Row> {
    /// Messages per topic.
    const COUNT: u64 = 400;
    show.scene("Sensor fan-out", "one publisher, three subscribers, patterns")?;
    let topics = ["plant.hall1.temp", "plant.hall1.humidity", "plant.hall2.temp"];
    let subscribers = [(BEN, "plant.hall1.*", 2), (CLEO, "plant.**", 3), (DAN, "plant.*.temp", 2)];
    for (peer, pattern, _) in subscribers {
        stage.ask(show, peer, subscribe(REALM, pattern, false)).await?;
        show.event(NAMES[peer], &format!("subscribes to {pattern}"))?;
    }
    let count = COUNT * topics.len() as u64;
    show.event(NAMES[ADA], &format!("publishes {count} readings on {}", topics.join(", ")))?;
    let task = Task::Publish {
        realm: REALM.to_owned(),
        topics: texts(&topics),
        texts: texts(&["21.5", "48", "19.0"]),
        count,
        qos1: false,
        pause_us: 1_000,
    };
    stage.ask(show, ADA, task).await?;
    let expected = subscribers.map(|(peer, _, matching)| (peer, matching * COUNT));
    let received = stage.count(show, &expected, COUNT_TIMEOUT).await?;
    for ((peer, _, _), received) in subscribers.iter().zip(&received) {
        show.event(NAMES[*peer], &format!("received {}", received.messages))?;
    }
    let sent = expected.iter().map(|(_, count)| count).sum();
    Ok(row_of("sensor fan-out", sent, &total(&received)))
}

/// Two providers; one is killed while two callers are busy.
pub(super) async fn rpc(stage: &mut Stage, show: &Show) -> Result<Row> {
    /// Calls per caller.
    const COUNT: u64 = 300;
    show.scene("RPC failover", "two providers, one is killed while callers are busy")?;
    let procedure = "math.square";
    for peer in [CLEO, DAN] {
        let task = Task::Serve { realm: REALM.to_owned(), procedure: procedure.to_owned() };
        stage.ask(show, peer, task).await?;
        show.event(NAMES[peer], &format!("serves {procedure}"))?;
    }
    let mut calls = Vec::new();
    for peer in [ADA, BEN] {
        let task = Task::Call {
            realm: REALM.to_owned(),
            procedure: procedure.to_owned(),
            count: COUNT,
            pause_us: 1_000,
        };
        calls.push(stage.order(peer, task).await?);
        show.event(NAMES[peer], &format!("calls {procedure} {COUNT} times"))?;
    }
    if let Some(first) = calls.first() {
        stage.third(show, *first).await?;
    }
    show.event(NAMES[DAN], "is killed (SIGKILL)")?;
    stage.kill_peer(DAN).await?;
    let (mut latencies, mut failed, mut failure) = (Vec::new(), 0, None);
    for (peer, outcome) in [ADA, BEN].into_iter().zip(stage.finish(show, &calls).await?) {
        let Outcome::Called { answers, failed: some, first_failure, latencies_us } = outcome else {
            bail!("calling ended with {outcome:?}");
        };
        let by: Vec<String> =
            answers.iter().map(|(name, count)| format!("{count} from {name}")).collect();
        show.event(NAMES[peer], &format!("has its answers: {}", by.join(", ")))?;
        latencies.extend(latencies_us);
        failed += some;
        failure = failure.or(first_failure);
    }
    stage.restart_peer(DAN)?;
    show.event(NAMES[DAN], "is started again")?;
    let mut row = Row::new("rpc failover", 2 * COUNT, &latencies);
    row.must(failed == 0, || {
        format!("{failed} calls failed, the first: {}", failure.unwrap_or_default())
    });
    Ok(row)
}

/// The same topic in two realms.
pub(super) async fn realms(stage: &mut Stage, show: &Show) -> Result<Row> {
    /// Messages per realm.
    const COUNT: u64 = 300;
    show.scene("Realm isolation", "the same topic in two realms, one gateway")?;
    let realms = [("demo.red", ADA, CLEO), ("demo.blue", BEN, DAN)];
    for (realm, _, subscriber) in realms {
        stage.ask(show, subscriber, subscribe(realm, "news.**", false)).await?;
        show.event(NAMES[subscriber], &format!("subscribes to news.** in {realm}"))?;
    }
    let mut publishing = Vec::new();
    for (realm, publisher, _) in realms {
        let task = Task::Publish {
            realm: realm.to_owned(),
            topics: texts(&["news.today"]),
            texts: texts(&["extra, extra"]),
            count: COUNT,
            qos1: false,
            pause_us: 500,
        };
        publishing.push(stage.order(publisher, task).await?);
        show.event(NAMES[publisher], &format!("publishes {COUNT} on news.today in {realm}"))?;
    }
    stage.finish(show, &publishing).await?;
    let expected = realms.map(|(_, _, subscriber)| (subscriber, COUNT));
    let received = stage.count(show, &expected, COUNT_TIMEOUT).await?;
    for ((realm, _, peer), received) in realms.iter().zip(&received) {
        let (all, foreign) = (received.messages, received.foreign);
        let what = format!("received {all} in {realm}, {foreign} of another realm");
        show.event(NAMES[*peer], &what)?;
    }
    Ok(row_of("realm isolation", 2 * COUNT, &total(&received)))
}

/// The gateway is killed while acknowledged messages are in flight.
pub(super) async fn restart(stage: &mut Stage, show: &Show) -> Result<Row> {
    /// Messages, each to two subscribers.
    const COUNT: u64 = 3_000;
    show.scene("Gateway restart", "killed and started again with QoS 1 in flight")?;
    for peer in [BEN, CLEO] {
        stage.ask(show, peer, subscribe(REALM, "ledger.**", false)).await?;
        show.event(NAMES[peer], "subscribes to ledger.**")?;
    }
    let task = Task::Publish {
        realm: REALM.to_owned(),
        topics: texts(&["ledger.bookings"]),
        texts: texts(&["a booking that must not be lost"]),
        count: COUNT,
        qos1: true,
        pause_us: 400,
    };
    let publishing = stage.order(ADA, task).await?;
    show.event(NAMES[ADA], &format!("publishes {COUNT} bookings with QoS 1"))?;
    stage.third(show, publishing).await?;
    stage.gateway().kill().await?;
    show.event("gateway", "is killed (SIGKILL)")?;
    tokio::time::sleep(OUTAGE).await;
    stage.gateway().restart().await?;
    show.event("gateway", "is started again, its memory is gone")?;
    show.event(NAMES[ADA], "waits until the new gateway has waited for all its subscribers")?;
    stage.finish(show, &[publishing]).await?;
    show.event(NAMES[ADA], "has every booking confirmed")?;
    let received = stage.count(show, &[(BEN, COUNT), (CLEO, COUNT)], RESTART_TIMEOUT).await?;
    for (peer, received) in [BEN, CLEO].into_iter().zip(&received) {
        show.event(NAMES[peer], &format!("received {}, each once", received.messages))?;
    }
    Ok(row_of("gateway restart", 2 * COUNT, &total(&received)))
}
