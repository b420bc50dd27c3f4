//! A node of the soak run, and everything that its application does.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use macula::{
    CallError, Event, Node, ProviderPolicy, PublishError, Qos, Refusal, Request, Service,
    SlowPolicy,
};
use tokio::task::{JoinHandle, JoinSet};

use super::dice::Dice;
use super::model::{Handle, Head, Model, Offer, PATTERNS, Presence, Proof, REALMS, TOPICS, lock};

/// Starting a node gives up after this; the gateway may be down just then.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Work of one node at once; what comes beyond is left out.
const TASKS_MAX: usize = 64;
/// A publisher that waits for `delivered` gives up after this; nothing is proved then.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
/// A call ends with its deadline; so long after it, it never does.
const CALL_GRACE: Duration = Duration::from_secs(10);
/// What the procedure `fail` says.
const REFUSAL: u16 = 4242;
/// What a deaf subscription may have waiting: little, so that the gateway notices.
const DEAF_QUEUE: (usize, usize) = (64 * 1024, 16);

/// Procedures; each realm has its own.
pub(super) const PROCEDURES: [&str; 4] = ["echo", "sleep", "fail", "stream"];

/// One node with its handles, in one realm or several.
#[derive(Debug)]
pub(super) struct Member {
    model: Arc<Model>,
    presence: Arc<Presence>,
    nodes: Vec<(usize, Node)>,
    /// Last numbers, by realm and topic. Locked while publishing, so that numbers and messages have
    /// the same order.
    lines: Lines,
    handles: Vec<(Arc<Handle>, JoinHandle<()>)>,
    services: Vec<(Arc<Offer>, Service)>,
    tasks: JoinSet<()>,
    watch: JoinHandle<()>,
}

type Lines = Arc<std::sync::Mutex<HashMap<(usize, usize), Arc<tokio::sync::Mutex<u64>>>>>;

impl Member {
    /// Starts a node and joins the realms.
    pub(super) async fn start(
        model: Arc<Model>,
        gateway: &str,
        realms: &[usize],
    ) -> anyhow::Result<Self> {
        let mut nodes: Vec<(usize, Node)> = Vec::new();
        for realm in realms {
            let node = match nodes.first() {
                Some((_, node)) => {
                    let joined = tokio::time::timeout(CONNECT_TIMEOUT, node.realm(REALMS[*realm]));
                    joined.await??
                }
                None => {
                    let builder = Node::builder().realm(REALMS[*realm]).gateway(gateway);
                    builder.connect_timeout(CONNECT_TIMEOUT).start().await?
                }
            };
            nodes.push((*realm, node));
        }
        let (_, node) = nodes.first().ok_or_else(|| anyhow::anyhow!("no realm"))?;
        let presence = Presence::new(model.introduce(node.id()));
        let (mut events, seen) = (node.events(), presence.clone());
        let watch = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    Event::Disconnected { .. } => seen.lost(),
                    Event::Reconnected { .. } => seen.back(),
                    _ => {}
                }
            }
        });
        Ok(Self {
            model,
            presence,
            nodes,
            lines: Lines::default(),
            handles: Vec::new(),
            services: Vec::new(),
            tasks: JoinSet::new(),
            watch,
        })
    }

    fn node(&self, dice: &mut Dice) -> Option<(usize, Node)> {
        dice.pick(&self.nodes).cloned()
    }

    /// Forgets what has ended; false when there is too much to do to begin more.
    pub(super) fn has_time(&mut self) -> bool {
        while let Some(ended) = self.tasks.try_join_next() {
            if ended.is_err_and(|error| error.is_panic()) {
                self.model.violated("a task of the soak run panicked");
            }
        }
        self.tasks.len() < TASKS_MAX
    }

    // --- publish and subscribe -----------------------------------------------------------------

    /// Publishes a few messages, and with QoS 1 waits until they are delivered.
    pub(super) fn publish(&mut self, dice: &mut Dice) {
        let Some((realm, node)) = self.node(dice) else { return };
        let topic = dice.below(TOPICS.len());
        let qos = if dice.once_in(2) { Qos::AtLeastOnce } else { Qos::AtMostOnce };
        let count = if dice.once_in(30) { 1 } else { 1 + dice.below(20) };
        let largest = match dice.below(100) {
            0..3 => 200 * 1024,
            3..10 => 20 * 1024,
            _ => 400,
        };
        let sizes = (0..if largest > 1024 { 1 } else { count }).map(|_| dice.below(largest));
        let sizes: Vec<usize> = sizes.collect();
        let line = lock(&self.lines).entry((realm, topic)).or_default().clone();
        let (model, publisher) = (self.model.clone(), self.presence.number);
        let head = Head {
            realm: realm as u8,
            topic: topic as u8,
            idempotent: false,
            publisher,
            number: 0,
        };
        self.tasks.spawn(async move {
            let published = publish(&model, &node, (qos, head), &line, &sizes).await;
            if let Err(error) = published {
                match error {
                    PublishError::Closed | PublishError::Refused { .. } => {}
                    error => model.violated(format!("publishing: {error}")),
                }
            }
        });
    }

    /// Subscribes to something, or to `pattern`, in one of its realms.
    pub(super) fn subscribe(&mut self, dice: &mut Dice) {
        let Some(pattern) = dice.pick(&PATTERNS) else { return };
        let Some((realm, node)) = self.node(dice) else { return };
        let handle = Handle::new(realm, pattern, self.presence.clone(), false);
        self.listen(node, handle, dice);
    }

    /// Subscribes to everything in all of its realms.
    pub(super) fn subscribe_all(&mut self, dice: &mut Dice) {
        for (realm, node) in self.nodes.clone() {
            let handle = Handle::new(realm, "**", self.presence.clone(), false);
            self.listen(node, handle, dice);
        }
    }

    /// Subscribes with each policy in one of its realms, and seldom reads.
    pub(super) fn play_deaf(&mut self, dice: &mut Dice) {
        for (realm, node) in self.nodes.clone() {
            let handle = Handle::new(realm, "deaf.*", self.presence.clone(), true);
            self.listen(node, handle, dice);
        }
    }

    fn listen(&mut self, node: Node, handle: Arc<Handle>, dice: &mut Dice) {
        let policies = [SlowPolicy::DropOldest, SlowPolicy::Block, SlowPolicy::Disconnect];
        // one that reads is never slow, unless the machine is: then it should not be cut off
        let policy = policies[dice.below(if handle.is_deaf { 3 } else { 2 })];
        let mut builder = node.subscription(handle.pattern).policy(policy);
        if handle.is_deaf {
            builder = builder.queue(DEAF_QUEUE.0, DEAF_QUEUE.1);
        }
        let (model, mut dice) = (self.model.clone(), dice.split());
        let ours = handle.clone();
        let reader = tokio::spawn(async move {
            let Ok(mut subscription) = builder.open().await else { return };
            // From now on it is owed messages. A handle that opens late is one that opened now.
            let opened = Handle::new(ours.realm, ours.pattern, ours.node.clone(), ours.is_deaf);
            model.opened(opened.clone());
            let closed = Closing(ours.clone(), opened.clone());
            while let Some(batch) = subscription.next_batch().await {
                for message in batch {
                    opened.got(&model, &message);
                }
                if opened.is_deaf && dice.once_in(15) {
                    let silence = Duration::from_millis(dice.below(14_000) as u64);
                    tokio::time::sleep(silence).await;
                }
            }
            if !closed.is_wanted() {
                let reason = subscription.end_reason();
                model.violated(format!("{} ended by itself: {reason:?}", opened.name()));
            }
        });
        self.handles.push((handle, reader));
    }

    pub(super) fn unsubscribe(&mut self, dice: &mut Dice) {
        if !self.handles.is_empty() {
            let (handle, reader) = self.handles.swap_remove(dice.below(self.handles.len()));
            handle.is_closed.store(true, Ordering::Release);
            reader.abort();
        }
    }

    pub(super) fn subscriptions(&self) -> usize {
        self.handles.len()
    }

    // --- calls ---------------------------------------------------------------------------------

    /// Offers a procedure in one of its realms.
    pub(super) async fn serve(&mut self, dice: &mut Dice) {
        let Some((realm, node)) = self.node(dice) else { return };
        let index = dice.below(PROCEDURES.len());
        self.serve_one(realm, &node, index, dice).await;
    }

    /// Offers every procedure in all of its realms.
    pub(super) async fn serve_all(&mut self, dice: &mut Dice) {
        for (realm, node) in self.nodes.clone() {
            for index in 0..PROCEDURES.len() {
                self.serve_one(realm, &node, index, dice).await;
            }
        }
    }

    async fn serve_one(&mut self, realm: usize, node: &Node, index: usize, dice: &mut Dice) {
        let builder = node.service(PROCEDURES[index]).concurrency(1 + dice.below(32) as u32);
        let model = self.model.clone();
        let begin = move |request: &Request| begin(&model, realm, index, request);
        let serving = async {
            match PROCEDURES[index] {
                "stream" => {
                    let serving = builder.serve_streaming(move |request, mut items, sender| {
                        let head = begin(&request);
                        async move {
                            head?;
                            let mut count = 0u32;
                            while let Some(item) = items.next().await {
                                count += 1;
                                if sender.send(item).await.is_err() {
                                    break;
                                }
                            }
                            Ok(count.to_be_bytes().to_vec())
                        }
                    });
                    serving.await
                }
                name => {
                    let serving = builder.serve(move |request| {
                        let head = begin(&request);
                        async move {
                            let head = head?;
                            if name == "sleep" {
                                let nap = Duration::from_millis(head.number % 700);
                                tokio::time::sleep(nap).await;
                            }
                            if name == "fail" {
                                return Err(Refusal::new(REFUSAL, "as asked"));
                            }
                            Ok(request.payload)
                        }
                    });
                    serving.await
                }
            }
        };
        // While there is no gateway, this would wait for the next one.
        if let Ok(Ok(service)) = tokio::time::timeout(Duration::from_millis(500), serving).await {
            let (node, opened) = (self.presence.clone(), Instant::now());
            let is_closed = AtomicBool::new(false);
            let offer = Arc::new(Offer { realm, procedure: index, node, opened, is_closed });
            self.model.offered(offer.clone());
            self.services.push((offer, service));
        }
    }

    pub(super) fn unserve(&mut self, dice: &mut Dice) {
        if !self.services.is_empty() {
            let (offer, service) = self.services.swap_remove(dice.below(self.services.len()));
            offer.is_closed.store(true, Ordering::Release);
            drop(service);
        }
    }

    pub(super) fn services(&self) -> usize {
        self.services.len()
    }

    /// Calls a procedure; gives up now and then.
    pub(super) fn call(&mut self, dice: &mut Dice) {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let Some((realm, node)) = self.node(dice) else { return };
        let index = dice.below(PROCEDURES.len());
        let head = Head {
            realm: realm as u8,
            topic: index as u8,
            idempotent: dice.once_in(3),
            publisher: self.presence.number,
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
        };
        let padding = if dice.once_in(40) { 100 * 1024 } else { 300 };
        let padding = dice.below(if PROCEDURES[index] == "stream" { 300 } else { padding });
        let policies =
            [ProviderPolicy::Nearest, ProviderPolicy::RoundRobin, ProviderPolicy::Random];
        let deadline = Duration::from_millis(100 + dice.below(4000) as u64);
        let call = node
            .call_with(PROCEDURES[index])
            .arg(head.payload(padding))
            .idempotent(head.idempotent)
            .policy(policies[dice.below(policies.len())])
            .deadline(deadline);
        let given_up = dice.once_in(20).then(|| Duration::from_millis(dice.below(300) as u64));
        let (model, items) = (self.model.clone(), dice.below(20) as u32);
        let asked = Instant::now();
        self.tasks.spawn(async move {
            let asking = Box::pin(async {
                match PROCEDURES[index] {
                    "stream" => stream(&model, call, items).await,
                    _ => call.send().await.map(|answer| answer == head.payload(padding)),
                }
            });
            let patience = given_up.unwrap_or(deadline + CALL_GRACE);
            match tokio::time::timeout(patience, asking).await {
                Ok(answer) => called(&model, head, asked, answer),
                Err(_) if given_up.is_some() => model.failed("given up"),
                Err(_) => model.violated(format!("call {head:?} never ended")),
            }
        });
    }

    // --- the end -------------------------------------------------------------------------------

    /// Waits for what was begun, at most so long.
    pub(super) async fn finish(&mut self, patience: Duration) {
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, ended).await.is_err() {
            let left = self.tasks.len();
            self.model.violated(format!("{left} publishes and calls have no end"));
        }
    }

    /// Says goodbye.
    pub(super) async fn close(self) {
        self.expect_nothing();
        if let Some((_, node)) = self.nodes.first() {
            node.close().await;
        }
    }

    fn expect_nothing(&self) {
        for (handle, _) in &self.handles {
            handle.is_closed.store(true, Ordering::Release);
        }
        for (offer, _) in &self.services {
            offer.is_closed.store(true, Ordering::Release);
        }
    }
}

/// Without `close` before it, the node vanishes like a program that was killed.
impl Drop for Member {
    fn drop(&mut self) {
        self.expect_nothing();
        for (_, reader) in &self.handles {
            reader.abort();
        }
        self.watch.abort();
    }
}

/// Whoever ends the reader of a handle, the handle is owed nothing any more.
struct Closing(Arc<Handle>, Arc<Handle>);

impl Closing {
    fn is_wanted(&self) -> bool {
        self.0.is_closed.load(Ordering::Acquire)
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.1.is_closed.store(true, Ordering::Release);
    }
}

async fn publish(
    model: &Model,
    node: &Node,
    (qos, mut head): (Qos, Head),
    line: &tokio::sync::Mutex<u64>,
    sizes: &[usize],
) -> Result<(), PublishError> {
    let topic = usize::from(head.topic);
    let retain = TOPICS[topic].starts_with("kept");
    let publisher = node.publisher(TOPICS[topic]).qos(qos).retain(retain).open()?;
    let mut numbers = Vec::new();
    let (began, refused) = (Instant::now(), publisher.report().refused);
    {
        let mut last = line.lock().await;
        for size in sizes {
            *last += 1;
            head.number = *last;
            publisher.publish(head.payload(*size)).await?;
            model.published.fetch_add(1, Ordering::Relaxed);
            numbers.push(head.number);
        }
    }
    if qos == Qos::AtMostOnce {
        return Ok(());
    }
    let Ok(report) = tokio::time::timeout(FLUSH_TIMEOUT, publisher.flush()).await else {
        return Ok(());
    };
    if report?.refused == refused {
        let realm = usize::from(head.realm);
        let (publisher, proved) = (head.publisher, Instant::now());
        model.proved(Proof { realm, topic, publisher, numbers, began, proved });
    }
    Ok(())
}

/// A request has come: is it for us, and the first time?
fn begin(model: &Model, realm: usize, index: usize, request: &Request) -> Result<Head, Refusal> {
    let head = Head::read(&request.payload);
    match head.filter(|head| (usize::from(head.realm), usize::from(head.topic)) == (realm, index)) {
        Some(head) => {
            if !head.idempotent {
                model.runs(head.number);
            }
            Ok(head)
        }
        None => {
            let name = PROCEDURES[index];
            model.violated(format!("{name} in {} was called with {head:?}", REALMS[realm]));
            Err(Refusal::new(1, "not for me"))
        }
    }
}

/// Whether the end of a call is one that it may have.
fn called(model: &Model, head: Head, asked: Instant, answer: Result<bool, CallError>) {
    let name = PROCEDURES[usize::from(head.topic)];
    let good = || {
        model.calls_good.fetch_add(1, Ordering::Relaxed);
    };
    match answer {
        Ok(true) if name != "fail" => good(),
        Err(CallError::Refused { code: REFUSAL, .. }) if name == "fail" => good(),
        Ok(_) => model.violated(format!("call {head:?} to {name}: a wrong answer")),
        Err(CallError::NoProvider) => {
            model.nobody_serves(usize::from(head.realm), usize::from(head.topic), asked);
        }
        Err(CallError::Unreachable { .. }) => model.failed("unreachable"),
        Err(CallError::Deadline { .. }) => model.failed("deadline"),
        Err(CallError::Busy { .. }) => model.failed("busy"),
        Err(CallError::Cancelled { .. } | CallError::Closed) => model.failed("closing"),
        Err(error) => model.violated(format!("call {head:?} to {name}: {error}")),
    }
}

/// Sends items and wants each back, and their number at the end.
async fn stream(model: &Model, call: macula::CallBuilder, items: u32) -> Result<bool, CallError> {
    let mut stream = call.open().await?;
    for item in 0..items {
        if stream.send(item.to_be_bytes().to_vec()).await.is_err() {
            return stream.result().await.map(|_| false);
        }
    }
    stream.finish();
    let mut back = 0u32;
    while let Some(item) = stream.next().await {
        if item != back.to_be_bytes()[..] {
            model.violated(format!("item {back} of a stream came back as {item:?}"));
        }
        back += 1;
    }
    let result = stream.result().await?;
    Ok(back == items && result == items.to_be_bytes()[..])
}
