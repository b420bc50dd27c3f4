//! `macula pub`.

use std::time::Duration;

use bytes::Bytes;
use indicatif::ProgressBar;
use macula::{DeliveryReport, Publisher, Qos};
use macula_gateway::signal::StopSignal;
use tokio::time::Instant;

use crate::args::PubArgs;
use crate::connect;
use crate::failure::{Exit, Failure};
use crate::{input, out};

/// How often progress is looked at.
const TICK: Duration = Duration::from_millis(100);
/// The progress bar appears when the work takes longer than this.
const BAR_AFTER: Duration = Duration::from_secs(1);

/// Publishes a payload, or every line of the input.
pub(crate) async fn run(args: PubArgs) -> Result<(), Failure> {
    let mut stop = StopSignal::listen()?;
    let (node, watch) = tokio::select! {
        connected = connect::node(&args.gateway.gateway, &args.gateway.connect, args.realm.membership())
            => connected?,
        signal = stop.received() => return Err(interrupted(signal)),
    };
    let qos = if args.qos == "1" { Qos::AtLeastOnce } else { Qos::AtMostOnce };
    let publisher = node.publisher(&args.topic).qos(qos).retain(args.retain).open()?;
    let work = Work { args: &args, publisher: &publisher, qos };
    let result = tokio::select! {
        result = work.run() => result,
        failure = watch.fatal() => Err(failure),
        signal = stop.received() => Err(interrupted(signal)),
    };
    let result = result.map_err(|failure| work.with_count(failure));
    // What the gateway said no to explains more than what did not come about for it.
    let result = match watch.refused() {
        Some(refused) => Err(work.with_count(refused)),
        None => result,
    };
    connect::close(node, watch).await;
    result
}

struct Work<'a> {
    args: &'a PubArgs,
    publisher: &'a Publisher,
    qos: Qos,
}

impl Work<'_> {
    async fn run(&self) -> Result<(), Failure> {
        let bar = Bar::new(self.args.lines);
        let literal = self.args.payload.as_deref().filter(|payload| *payload != "-");
        match (literal, self.args.lines) {
            (Some(text), false) => {
                self.publish(Bytes::copy_from_slice(text.as_bytes()), &bar).await?;
            }
            (Some(text), true) => {
                for line in text.lines() {
                    self.publish(Bytes::copy_from_slice(line.as_bytes()), &bar).await?;
                }
            }
            (None, false) => {
                let payload = input::payload(macula::MESSAGE_BYTES_MAX).await?;
                self.publish(payload, &bar).await?;
            }
            (None, true) => {
                let mut lines = input::lines(std::io::stdin(), macula::MESSAGE_BYTES_MAX);
                while let Some(group) = lines.recv().await {
                    for line in group? {
                        self.publish(line, &bar).await?;
                    }
                    bar.update(self.publisher.report(), self.qos);
                }
            }
        }
        self.flush(&bar).await?;
        bar.finish();
        let report = self.publisher.report();
        let nobody = report.receivers == 0 && report.published > 0;
        if self.qos == Qos::AtLeastOnce && !self.args.retain && nobody {
            return Err(Failure::new(
                Exit::Nobody,
                format!("nobody subscribes to {}", self.args.topic),
                "start a subscriber first, or keep the message for later ones with --retain",
            ));
        }
        Ok(())
    }

    async fn publish(&self, payload: Bytes, bar: &Bar) -> Result<(), Failure> {
        if self.args.no_wait {
            return Ok(self.publisher.try_publish(payload)?);
        }
        // Mostly there is room, and then no timer is needed.
        match self.publisher.try_publish(payload.clone()) {
            Ok(()) => return Ok(()),
            Err(macula::TryPublishError::WouldBlock) => {}
            Err(error) => return Err(error.into()),
        }
        let publish = self.publisher.publish(payload);
        self.while_it_moves(publish, bar).await.unwrap_or_else(|| {
            Err(Failure::new(
                Exit::BackPressure,
                format!("there was no room to publish for {:?}", self.args.timeout),
                "a subscriber or the network is slower; give it more time with --timeout",
            ))
        })
    }

    async fn flush(&self, bar: &Bar) -> Result<(), Failure> {
        let flushed = self.while_it_moves(self.publisher.flush(), bar).await;
        let Some(flushed) = flushed else {
            return Err(Failure::new(
                Exit::Timeout,
                format!("nothing was confirmed for {:?}", self.args.timeout),
                "see that the gateway runs and its subscribers read; --timeout gives more time",
            ));
        };
        flushed.map(|_| ())
    }

    /// Waits for `work` as long as something moves; `None` when nothing did for the timeout.
    async fn while_it_moves<T, E>(
        &self,
        work: impl Future<Output = Result<T, E>>,
        bar: &Bar,
    ) -> Option<Result<T, Failure>>
    where
        Failure: From<E>,
    {
        let mut work = std::pin::pin!(work);
        let (mut report, mut moved_at) = (self.publisher.report(), Instant::now());
        loop {
            tokio::select! {
                biased;
                result = &mut work => return Some(result.map_err(Failure::from)),
                () = tokio::time::sleep(TICK) => {}
            }
            let now = self.publisher.report();
            bar.update(now, self.qos);
            if now != report {
                (report, moved_at) = (now, Instant::now());
            } else if moved_at.elapsed() >= self.args.timeout {
                return None;
            }
        }
    }

    /// Says how far the messages came.
    fn with_count(&self, mut failure: Failure) -> Failure {
        let report = self.publisher.report();
        if self.qos == Qos::AtLeastOnce && failure.exit != Exit::Nobody && report.published > 0 {
            let open = report.published.saturating_sub(report.delivered);
            failure.what = format!(
                "{}\n{} of {} messages are not confirmed delivered ({} are accepted by the gateway)",
                failure.what,
                out::human_count(open),
                out::human_count(report.published),
                out::human_count(report.accepted),
            );
        }
        failure
    }
}

fn interrupted(signal: &str) -> Failure {
    Failure::new(Exit::Failure, format!("interrupted by {signal}"), "")
}

/// Progress of long work, on a terminal.
struct Bar {
    bar: Option<ProgressBar>,
    started: Instant,
}

impl Bar {
    fn new(is_long: bool) -> Self {
        let template = "{spinner} {msg}  {per_sec} {elapsed}";
        let bar = is_long.then(|| out::progress(None, template));
        Self { bar, started: Instant::now() }
    }

    fn update(&self, report: DeliveryReport, qos: Qos) {
        let Some(bar) = &self.bar else { return };
        if self.started.elapsed() < BAR_AFTER {
            return;
        }
        let published = out::human_count(report.published);
        bar.set_message(match qos {
            Qos::AtMostOnce => format!("{published} published"),
            Qos::AtLeastOnce => {
                let delivered = out::human_count(report.delivered);
                format!("{published} published, {delivered} confirmed delivered")
            }
        });
        bar.set_position(report.published);
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
