//! `macula sub`.

use std::future::{Future, poll_fn};
use std::io::Write;
use std::pin::pin;
use std::task::Poll;

use macula::{Batch, DeliveryMode, SlowPolicy, Subscription};
use macula_gateway::signal::StopSignal;
use tokio::time::Instant;

use crate::args::{ModeArg, PolicyArg, SubArgs};
use crate::connect::{self, Watch};
use crate::failure::{Exit, Failure};
use crate::out;
use crate::printer::{Format, Printer, Shown};

/// Prints messages until told to stop.
pub(crate) async fn run(args: SubArgs) -> Result<(), Failure> {
    let mut stop = StopSignal::listen()?;
    let deadline = args.wait.map(|wait| Instant::now() + wait);
    let opened = async {
        let (node, watch) =
            connect::node(&args.gateway.gateway, &args.gateway.connect, args.realm.membership())
                .await?;
        let mut subscriptions = Vec::with_capacity(args.patterns.len());
        for pattern in &args.patterns {
            let builder = node
                .subscription(pattern)
                .policy(args.policy.into())
                .mode(args.mode.into())
                .retained(!args.no_retained);
            subscriptions.push(builder.open().await?);
        }
        Ok::<_, Failure>((node, watch, subscriptions))
    };
    let (node, watch, mut subscriptions) = tokio::select! {
        opened = opened => opened?,
        _ = stop.received() => return Ok(()),
        () = until(deadline) => return gave_up(&args, 0),
    };
    out::note("ready");
    let format = match (args.json, args.verbose) {
        (true, _) => Format::Json,
        (false, true) => Format::Topic,
        (false, false) => Format::Payload,
    };
    let mut printer = Printer::new(format, std::io::stdout());
    let read = Reader { args: &args, deadline, subscriptions: &mut subscriptions };
    let result = read.run(&mut printer, &watch, &mut stop).await;
    let lost: u64 = subscriptions.iter().map(Subscription::lost).sum();
    if lost > 0 {
        let lost = out::human_count(lost);
        out::note(format_args!("{lost} messages were lost: published or sent too fast"));
    }
    drop(subscriptions);
    connect::close(node, watch).await;
    result
}

struct Reader<'a> {
    args: &'a SubArgs,
    deadline: Option<Instant>,
    subscriptions: &'a mut [Subscription],
}

impl Reader<'_> {
    async fn run<W: Write>(
        self,
        printer: &mut Printer<W>,
        watch: &Watch,
        stop: &mut StopSignal,
    ) -> Result<(), Failure> {
        let mut left = self.args.count.unwrap_or(u64::MAX);
        let asked = left;
        let mut first = 0;
        let end = loop {
            let next = tokio::select! {
                biased;
                _ = stop.received() => break Ok(()),
                () = until(self.deadline) => break gave_up(self.args, asked - left),
                next = next_of(self.subscriptions, first) => next,
                // Nothing waits, so what is held back may go out.
                () = std::future::ready(()), if printer.is_holding() => {
                    flush(printer)?;
                    continue;
                }
                failure = watch.fatal() => break Err(failure),
            };
            let (index, batch) = next;
            first = index + 1;
            let Some(batch) = batch else {
                let reason = self.subscriptions.get(index).and_then(Subscription::end_reason);
                break Err(reason.map_or_else(ended, Failure::from));
            };
            if print(batch, printer, &mut left)? {
                break Ok(());
            }
        };
        flush(printer)?;
        end
    }
}

/// Prints a batch; true when enough was printed.
fn print<W: Write>(
    batch: Batch,
    printer: &mut Printer<W>,
    left: &mut u64,
) -> Result<bool, Failure> {
    for message in batch {
        let due = printer.take(&Shown {
            topic: message.topic(),
            publisher: &message.publisher,
            sequence: message.sequence,
            retained: message.retained,
            payload: &message.payload,
        });
        if due {
            flush(printer)?;
        }
        *left -= 1;
        if *left == 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes what is held back. A reader that does not read blocks this thread and no other work.
fn flush<W: Write>(printer: &mut Printer<W>) -> Result<(), Failure> {
    tokio::task::block_in_place(|| printer.flush()).map_err(out::stdout_failure)
}

/// The next messages of any subscription, beginning the search at `first` so that none starves.
async fn next_of(subscriptions: &mut [Subscription], first: usize) -> (usize, Option<Batch>) {
    let count = subscriptions.len();
    poll_fn(|context| {
        for index in (first..first + count).map(|index| index % count) {
            let Some(subscription) = subscriptions.get_mut(index) else { continue };
            // Dropping this future loses no message and keeps the wake-up.
            if let Poll::Ready(batch) = pin!(subscription.next_batch()).poll(context) {
                return Poll::Ready((index, batch));
            }
        }
        Poll::Pending
    })
    .await
}

/// Completes at `deadline`, or never.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn gave_up(args: &SubArgs, received: u64) -> Result<(), Failure> {
    let Some(count) = args.count else { return Ok(()) };
    Err(Failure::new(
        Exit::Timeout,
        format!("received {received} of {count} messages in time"),
        "wait longer with -W, and check that somebody publishes in this realm",
    ))
}

fn ended() -> Failure {
    Failure::new(Exit::Failure, "the subscription has ended", "try again; --log debug tells more")
}

impl From<PolicyArg> for SlowPolicy {
    fn from(policy: PolicyArg) -> Self {
        match policy {
            PolicyArg::DropOldest => Self::DropOldest,
            PolicyArg::Block => Self::Block,
            PolicyArg::Disconnect => Self::Disconnect,
        }
    }
}

impl From<ModeArg> for DeliveryMode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Ordered => Self::Ordered,
            ModeArg::AsArrives => Self::AsArrives,
            ModeArg::LatestOnly => Self::LatestOnly,
        }
    }
}
