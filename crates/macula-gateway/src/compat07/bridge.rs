//! The door's tasks: between sockets, [`Door`] and the nodes of the realms.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use macula::{CallError, Node, Qos, Refusal, Request, Router};
use macula_proto::Time;
use macula_transport::{
    AnonymousConnection, AnonymousListener, AnonymousReceiver, AnonymousSender,
};
use tokio::sync::{OnceCell, oneshot, watch};
use tokio::task::AbortHandle;

use super::config::{CALL_TIMEOUT, DoorRealm, V07Config};
use super::core::door::{Called, ConnectionId, Door, Now, Output, RealmName, StreamId};
use super::core::wire::{Fault, Outcome};
use super::queue::{Budget, Pushed, Queue};

/// How often what is due is looked for.
const TICK: Duration = Duration::from_millis(250);
/// Bytes that one read takes.
const READ_BYTES_MAX: usize = 64 * 1024;
/// What waits at most of a pattern's native messages; the door takes them at once.
const NATIVE_QUEUE_BYTES_MAX: usize = 4 << 20;
/// Batches likewise.
const NATIVE_QUEUE_BATCHES_MAX: usize = 4_096;
/// Code of the application with which connections are closed; v0.7 clients do not look at it.
const CLOSE_CODE: u16 = 0;
/// Code of refusals that native callers get for what a v0.7 provider says.
pub const REFUSED_BY_V07: u16 = 700;

/// A client that has ended its stream gets so long to take what is under way; then our half is reset, as
/// a v0.7 client waits for its end without limit.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// What all tasks share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) listener: AnonymousListener,
    state: Mutex<State>,
    router: OnceLock<Router>,
    realms: Vec<DoorRealm>,
    queue_bytes_max: usize,
    bytes_per_second_per_client: usize,
    /// What waits for all clients.
    pub(super) queued: Arc<Budget>,
    start: Instant,
    pub(super) stop: watch::Sender<bool>,
    /// Messages dropped as clients did not read.
    pub(super) dropped_slow: AtomicU64,
    /// Times that a client was read later because it sent faster than it may.
    pub(super) slowed: AtomicU64,
}

#[derive(Debug)]
struct State {
    door: Door,
    connections: HashMap<ConnectionId, AnonymousConnection>,
    streams: HashMap<StreamId, Arc<Queue>>,
    /// Tasks that bring native messages.
    subscriptions: HashMap<(RealmName, Arc<str>), AbortHandle>,
    /// Tasks that hold procedures for native callers.
    services: HashMap<(RealmName, String), AbortHandle>,
    /// Native callers that wait.
    requests: HashMap<u64, oneshot::Sender<Outcome>>,
    nodes: HashMap<RealmName, Arc<OnceCell<Node>>>,
    next: u64,
}

impl State {
    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// A message for native peers.
struct ToPublish {
    realm: RealmName,
    topic: Bytes,
    payload: Bytes,
    at_least_once: bool,
    retain: bool,
}

impl Shared {
    pub(super) fn new(
        listener: AnonymousListener,
        door: Door,
        realms: Vec<DoorRealm>,
        config: &V07Config,
    ) -> Self {
        Self {
            listener,
            state: Mutex::new(State {
                door,
                connections: HashMap::new(),
                streams: HashMap::new(),
                subscriptions: HashMap::new(),
                services: HashMap::new(),
                requests: HashMap::new(),
                nodes: HashMap::new(),
                next: 0,
            }),
            router: OnceLock::new(),
            realms,
            queue_bytes_max: config.queue_bytes_max,
            bytes_per_second_per_client: config.bytes_per_second_per_client,
            queued: Budget::new(config.queued_bytes_max),
            start: Instant::now(),
            stop: watch::Sender::new(false),
            dropped_slow: AtomicU64::new(0),
            slowed: AtomicU64::new(0),
        }
    }

    /// Lets clients in from now on.
    pub(super) fn run(self: &Arc<Self>, router: Router) {
        self.router.get_or_init(|| router);
        let shared = Arc::clone(self);
        self.spawn(async move {
            while let Some(connection) = shared.listener.accept().await {
                let id = shared.lock().next();
                shared.spawn(serve(Arc::clone(&shared), id, connection));
            }
        });
        let shared = Arc::clone(self);
        self.spawn(async move {
            let mut ticks = tokio::time::interval(TICK);
            loop {
                ticks.tick().await;
                shared.with(|door, now| door.tick(now));
            }
        });
    }

    /// Ends all tasks.
    pub(super) fn end(&self) {
        self.stop.send_replace(true);
        let mut state = self.lock();
        state.connections.clear();
        state.requests.clear();
        state.nodes.clear();
    }

    pub(super) fn door_stats(&self) -> super::core::door::Stats {
        self.lock().door.stats()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The door leaves its tables whole at each step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a task until the door is closed.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let mut stop = self.stop.subscribe();
        let running = tokio::spawn(async move {
            tokio::select! {
                biased;
                _stopped = stop.wait_for(|stop| *stop) => {}
                () = task => {}
            }
        });
        running.abort_handle()
    }

    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(unix.as_millis()).unwrap_or_default();
        Now { time: Time::START + self.start.elapsed(), unix_ms }
    }

    /// Lets the door act and does what it says, all in one go, so that frames keep their order.
    /// Returns what only a task can do, which has to wait for room.
    fn with(self: &Arc<Self>, act: impl FnOnce(&mut Door, Now)) -> Vec<ToPublish> {
        let mut state = self.lock();
        act(&mut state.door, self.now());
        let mut publishes = Vec::new();
        for output in state.door.take_outputs() {
            self.perform(&mut state, output, &mut publishes);
        }
        publishes
    }

    fn perform(
        self: &Arc<Self>,
        state: &mut State,
        output: Output,
        publishes: &mut Vec<ToPublish>,
    ) {
        match output {
            Output::Send { stream, frame, is_publish } => {
                let Some(queue) = state.streams.get(&stream) else { return };
                match queue.push(frame, is_publish) {
                    Pushed::Queued(0) => {}
                    Pushed::Queued(dropped) => {
                        self.dropped_slow.fetch_add(dropped, Ordering::Relaxed);
                    }
                    Pushed::Overflow => {
                        if let Some(id) = state.door.connection_of(stream) {
                            close(state, id, "answers are not read");
                        }
                    }
                }
            }
            Output::Finish { stream } => {
                if let Some(queue) = state.streams.get(&stream) {
                    queue.finish();
                }
            }
            Output::Close { connection, reason } => close(state, connection, reason),
            Output::Subscribe { realm, pattern } => {
                let key = (realm.clone(), pattern.clone());
                let task = self.spawn(subscribe(Arc::clone(self), realm, pattern));
                if let Some(old) = state.subscriptions.insert(key, task) {
                    old.abort();
                }
            }
            Output::Unsubscribe { realm, pattern } => {
                if let Some(task) = state.subscriptions.remove(&(realm, pattern)) {
                    task.abort();
                }
            }
            Output::Publish { realm, topic, payload, at_least_once, retain } => {
                publishes.push(ToPublish { realm, topic, payload, at_least_once, retain });
            }
            Output::Call { realm, call, procedure, args } => {
                self.spawn(call_native(Arc::clone(self), realm, call, procedure, args));
            }
            Output::Serve { realm, procedure } => {
                let key = (realm.clone(), procedure.clone());
                let task = self.spawn(serve_native(Arc::clone(self), realm, procedure));
                if let Some(old) = state.services.insert(key, task) {
                    old.abort();
                }
            }
            Output::Unserve { realm, procedure } => {
                if let Some(task) = state.services.remove(&(realm, procedure)) {
                    task.abort();
                }
            }
            Output::Answer { request, outcome } => {
                if let Some(waiting) = state.requests.remove(&request) {
                    // Fails when the caller has just given up.
                    waiting.send(outcome).ok();
                }
            }
        }
    }

    /// The node through which the door takes part in a realm.
    async fn node(&self, realm: &RealmName) -> Option<Node> {
        let cell = Arc::clone(self.lock().nodes.entry(realm.clone()).or_default());
        let joined = cell.get_or_try_init(|| async {
            let router = self.router.get().ok_or(macula::JoinError::Closed)?;
            match self.realms.iter().find(|known| known.name() == &**realm) {
                Some(DoorRealm::Guarded(guarded)) => router.guarded_node(guarded).await,
                Some(DoorRealm::Open(_)) | None => router.node(realm).await,
            }
        });
        match joined.await {
            Ok(node) => Some(node.clone()),
            Err(error) => {
                tracing::warn!(%realm, %error, "v0.7 clients cannot take part in a realm");
                None
            }
        }
    }

    /// Publishes for native peers, waiting while they are slow: then the client is not read.
    async fn publish(self: &Arc<Self>, message: ToPublish) {
        let Some(node) = self.node(&message.realm).await else { return };
        let Ok(topic) = std::str::from_utf8(&message.topic) else {
            return self.not_native();
        };
        let published = if message.at_least_once || message.retain {
            let qos = if message.at_least_once { Qos::AtLeastOnce } else { Qos::AtMostOnce };
            match node.publisher(topic).qos(qos).retain(message.retain).open() {
                Ok(publisher) => publisher.publish(message.payload).await,
                Err(error) => Err(error),
            }
        } else {
            node.publish(topic, message.payload).await
        };
        if let Err(error) = published {
            tracing::debug!(%error, "a message of a v0.7 client does not reach native peers");
            self.not_native();
        }
    }

    fn not_native(self: &Arc<Self>) {
        self.with(|door, _| door.not_native());
    }
}

fn close(state: &State, id: ConnectionId, reason: &'static str) {
    if let Some(connection) = state.connections.get(&id) {
        tracing::debug!(remote = %connection.remote(), reason, "a v0.7 client is closed");
        connection.close(CLOSE_CODE, reason);
    }
}

/// One connection, to its end.
async fn serve(shared: Arc<Shared>, id: ConnectionId, connection: AnonymousConnection) {
    tracing::debug!(remote = %connection.remote(), "a v0.7 client connected");
    shared.lock().connections.insert(id, connection.clone());
    shared.with(|door, now| door.opened(now, id));
    // All its streams together have no more than two.
    let budget = Budget::new(2 * shared.queue_bytes_max);
    while let Some((sender, receiver)) = connection.accept_stream().await {
        let all = Arc::clone(&shared.queued);
        let queue = Arc::new(Queue::new(shared.queue_bytes_max, Arc::clone(&budget), all));
        let stream = {
            let mut state = shared.lock();
            let stream = state.next();
            state.streams.insert(stream, Arc::clone(&queue));
            state.door.stream_opened(id, stream);
            stream
        };
        shared.spawn(serve_stream(Arc::clone(&shared), stream, queue, sender, receiver));
    }
    shared.with(|door, _| door.closed(id));
    shared.lock().connections.remove(&id);
    tracing::debug!(remote = %connection.remote(), "a v0.7 client is gone");
}

/// One stream: reading and writing go on beside each other, so that neither waits for the other.
async fn serve_stream(
    shared: Arc<Shared>,
    stream: StreamId,
    queue: Arc<Queue>,
    mut sender: AnonymousSender,
    mut receiver: AnonymousReceiver,
) {
    let reading = async {
        let mut pace = Pace::new(shared.bytes_per_second_per_client);
        while let Some(bytes) = receiver.read(READ_BYTES_MAX).await {
            for message in shared.with(|door, now| door.bytes(now, stream, &bytes)) {
                shared.publish(message).await;
            }
            if let Some(wait) = pace.take(bytes.len()) {
                shared.slowed.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(wait).await;
            }
        }
        shared.with(|door, _| door.stream_ended(stream));
        shared.lock().streams.remove(&stream);
        queue.finish();
    };
    let ours = Arc::clone(&queue);
    let writing = async move {
        let mut frames = Vec::new();
        loop {
            ours.take(&mut frames).await;
            if frames.is_empty() {
                break sender.finish(END_PATIENCE).await;
            }
            if !sender.write_all(&mut frames).await {
                break;
            }
        }
        ours.finish();
    };
    tokio::pin!(reading, writing);
    tokio::select! {
        () = &mut writing => reading.await,
        () = &mut reading => {
            // With the future goes the sender, which resets what is not finished.
            let _in_time = tokio::time::timeout(2 * END_PATIENCE, &mut writing).await;
        }
    }
}

/// Brings native messages of a pattern, until it is aborted.
async fn subscribe(shared: Arc<Shared>, realm: RealmName, pattern: Arc<str>) {
    let Some(node) = shared.node(&realm).await else { return };
    let opening = node
        .subscription(&pattern)
        .retained(false)
        .queue(NATIVE_QUEUE_BYTES_MAX, NATIVE_QUEUE_BATCHES_MAX)
        .open();
    let mut subscription = match opening.await {
        Ok(subscription) => subscription,
        Err(error) => {
            return tracing::debug!(%pattern, %error, "no native messages for v0.7 clients");
        }
    };
    shared.with(|door, _| door.subscribed(&realm, &pattern, true));
    let own = node.id();
    while let Some(batch) = subscription.next_batch().await {
        // What clients published comes back; they have it already.
        if batch.publisher() == own {
            continue;
        }
        shared.with(|door, _| {
            for message in batch {
                let at_least_once = message.qos == Qos::AtLeastOnce;
                let (topic, payload) = (message.topic(), message.payload.clone());
                door.native_message(&realm, &pattern, topic, payload, at_least_once);
            }
        });
    }
    shared.with(|door, _| door.subscribed(&realm, &pattern, false));
}

/// Calls a native provider for a client.
async fn call_native(
    shared: Arc<Shared>,
    realm: RealmName,
    call: u64,
    procedure: Bytes,
    args: Bytes,
) {
    let called = match (shared.node(&realm).await, std::str::from_utf8(&procedure)) {
        (Some(node), Ok(procedure)) => {
            let calling = node.call_with(procedure).arg(args).deadline(CALL_TIMEOUT);
            called(calling.send().await)
        }
        _ => Called::NoProvider,
    };
    shared.with(|door, now| door.called(now, call, called));
}

fn called(result: Result<Bytes, CallError>) -> Called {
    let fault = |code, message: &str| Called::Fault(Fault::new(code, message));
    match result {
        Ok(result) => Called::Result(result),
        Err(CallError::NoProvider | CallError::BadName(_)) => Called::NoProvider,
        // What another v0.7 client said goes through as it was.
        Err(CallError::Refused { code: REFUSED_BY_V07, message, .. }) => {
            let (code, rest) = message.split_once(": ").unwrap_or(("handler_error", &message));
            let copy = |text: &str| Bytes::copy_from_slice(text.as_bytes());
            Called::Fault(Fault { code: copy(code), message: copy(rest) })
        }
        Err(CallError::Refused { code, message, .. }) => {
            fault("handler_error", &format!("{code}: {message}"))
        }
        Err(CallError::Deadline { .. }) => fault("timeout", "no answer in time"),
        Err(error @ CallError::Busy { .. }) => fault("busy", &error.to_string()),
        Err(error) => fault("unavailable", &error.to_string()),
    }
}

/// Offers a client's procedure to native callers, until it is aborted.
async fn serve_native(shared: Arc<Shared>, realm: RealmName, procedure: String) {
    let Some(node) = shared.node(&realm).await else { return };
    let handler = {
        let (shared, realm) = (Arc::downgrade(&shared), realm.clone());
        move |request: Request| {
            let (shared, realm) = (shared.clone(), realm.clone());
            async move {
                match shared.upgrade() {
                    Some(shared) => ask_client(shared, realm, request).await,
                    None => Err(Refusal::new(REFUSED_BY_V07, "unavailable: the door is closed")),
                }
            }
        }
    };
    match node.serve(&procedure, handler).await {
        // Until it is aborted.
        Ok(_service) => std::future::pending().await,
        Err(error) => {
            tracing::debug!(procedure, %error, "a v0.7 client's procedure is not offered")
        }
    }
}

async fn ask_client(
    shared: Arc<Shared>,
    realm: RealmName,
    request: Request,
) -> Result<Bytes, Refusal> {
    let (sender, answered) = oneshot::channel();
    let number = {
        let mut state = shared.lock();
        let number = state.next();
        state.requests.insert(number, sender);
        number
    };
    let waiting = Waiting { shared: &shared, number, deadline: request.deadline };
    let args = request.payload.clone();
    shared.with(|door, now| door.request(now, &realm, number, request.procedure(), args));
    let refusal =
        |code: &str, message: &str| Refusal::new(REFUSED_BY_V07, format!("{code}: {message}"));
    let outcome = tokio::select! {
        outcome = answered => outcome,
        () = request.cancelled() => {
            drop(waiting);
            return Err(refusal("timeout", "no answer in time"));
        }
    };
    match outcome {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(Fault { code, message })) => {
            Err(refusal(&String::from_utf8_lossy(&code), &String::from_utf8_lossy(&message)))
        }
        Err(_closed) => Err(refusal("unavailable", "the door is closed")),
    }
}

/// A native caller that waits; the door hears when it waits no more, for whatever reason.
struct Waiting<'a> {
    shared: &'a Arc<Shared>,
    number: u64,
    deadline: Instant,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.lock().requests.remove(&self.number);
        let is_late = Instant::now() >= self.deadline;
        self.shared.with(|door, _| door.request_gone(self.number, is_late));
    }
}

/// How much a client may still send now.
struct Pace {
    bytes_per_second: usize,
    left: f64,
    since: Instant,
}

impl Pace {
    fn new(bytes_per_second: usize) -> Self {
        Self { bytes_per_second, left: bytes_per_second as f64, since: Instant::now() }
    }

    /// Takes so many bytes; returns how long to wait before the next.
    fn take(&mut self, bytes: usize) -> Option<Duration> {
        if self.bytes_per_second == 0 {
            return None;
        }
        let rate = self.bytes_per_second as f64;
        let now = Instant::now();
        let earned = now.duration_since(self.since).as_secs_f64() * rate;
        self.since = now;
        // A second's worth may come at once.
        self.left = (self.left + earned).min(rate) - bytes as f64;
        (self.left < 0.0).then(|| Duration::from_secs_f64(-self.left / rate))
    }
}
