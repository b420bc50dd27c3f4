//! The one task that owns the core and joins it with the transport.
//!
//! Everything comes in through [`Inbox`] and the doorbell, is fed to the core in batches, and what
//! the core wants goes out at once: frames and actions to links, events to handles. Nothing here
//! waits for a handle or for a link. Dropping the driver, in whichever way it ends, resolves
//! everything that anybody waits for.

mod closing;
mod commands;
pub(crate) mod connector;
mod deliver;
mod inbox;
mod links;
mod peers;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use macula_proto::auth::UnixTime;
use macula_proto::id::{CallId, LinkId, RegistrationId, RequestId, SubscriptionId};
use macula_proto::node::{self, Input, Node, StreamEnd};
use macula_proto::pubsub::Pattern;
use macula_proto::wire::message::CallFailure;
use macula_proto::{EndpointId, RealmId, Time};
use macula_transport::{Endpoint, LinkEvent};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::closing::Closing;
pub(crate) use self::inbox::Inbox;
use self::inbox::{Alarm, Gathering, Round, step_aside};
use self::links::Link;
pub(crate) use self::links::{LinkEnd, NewLink, Origin};
use crate::clock::Clock;
use crate::doorbell::Notes;
use crate::error::{JoinError, ServeError, SubscribeError};
use crate::event::Event;
use crate::peer::{PeerError, PeerLink};
use crate::publish::{Taken, TopicBuffer};
use crate::serve::ServiceShared;
use crate::shared::Shared;
use crate::streaming::{Outgo, Pipe};
use crate::subscription::Queue;

/// Batches that one topic hands over before it is the next one's turn.
const BATCHES_PER_TURN: usize = 8;
/// Items that one streaming call hands over before it is the next one's turn.
const ITEMS_PER_TURN: usize = 32;
/// The core's timers are not looked at more often than this.
const TICK: Duration = Duration::from_millis(1);
/// The core is told what time it is when it does something, this often at most.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);

/// Owns the core.
#[derive(Debug)]
pub(crate) struct Driver {
    shared: Arc<Shared>,
    node: Node,
    /// Handed to every link.
    link_events: mpsc::Sender<LinkEvent>,
    links: HashMap<LinkId, Link>,
    next_link: u64,
    /// The gateway that a leaf is connected to.
    gateway: Option<String>,
    /// The link to it, and whether that runs in a tunnel.
    gateway_link: Option<(LinkId, bool)>,
    /// A gateway was connected before, so the next time is a reconnection.
    was_connected: bool,
    realms: HashMap<RealmId, RealmEntry>,
    subscriptions: HashMap<SubscriptionId, SubscriptionEntry>,
    registrations: HashMap<RegistrationId, RegistrationEntry>,
    requests: HashMap<RequestId, RequestEntry>,
    calls: HashMap<CallId, CallEntry>,
    flushes: HashMap<u64, oneshot::Sender<()>>,
    next_flush: u64,
    /// Topics with messages to hand over.
    dirty_topics: VecDeque<Arc<TopicBuffer>>,
    /// Streaming calls with items to hand over.
    dirty_pipes: VecDeque<Arc<Pipe>>,
    /// What events lead to; fed to the core once they are drained.
    followups: Vec<Input>,
    closing: Option<Closing>,
    /// When the core was told the time by the calendar.
    clock_told: Option<Time>,
    /// The socket that peers are dialled from.
    endpoint: Arc<Endpoint>,
    /// Where links to peers that are dialled here come in.
    new_links: mpsc::Sender<NewLink>,
    peers: HashMap<EndpointId, PeerEntry>,
}

/// A peer that is, was or shall be linked.
#[derive(Debug)]
struct PeerEntry {
    /// The link that is used.
    link: watch::Sender<Option<macula_transport::Link>>,
    waiters: Vec<oneshot::Sender<Result<PeerLink, PeerError>>>,
    is_dialling: bool,
}

#[derive(Debug, Default)]
struct RealmEntry {
    name: String,
    grant: Bytes,
    /// The gateway's last answer.
    answer: Option<Result<(), JoinError>>,
    waiters: Vec<oneshot::Sender<Result<(), JoinError>>>,
}

#[derive(Debug)]
struct SubscriptionEntry {
    queue: Arc<Queue>,
    pattern: Pattern,
    /// Until the first answer.
    waiter: Option<oneshot::Sender<Result<(), SubscribeError>>>,
}

#[derive(Debug)]
struct RegistrationEntry {
    service: Arc<ServiceShared>,
    /// Until the first answer.
    waiter: Option<oneshot::Sender<Result<(), ServeError>>>,
}

#[derive(Debug)]
struct RequestEntry {
    task: AbortHandle,
    cancelled: CancellationToken,
    pipe: Option<Arc<Pipe>>,
}

#[derive(Debug)]
struct CallEntry {
    answer: oneshot::Sender<Result<Bytes, CallFailure>>,
    pipe: Option<Arc<Pipe>>,
}

impl Driver {
    pub(crate) fn new(
        shared: Arc<Shared>,
        node: Node,
        link_events: mpsc::Sender<LinkEvent>,
        endpoint: Arc<Endpoint>,
        new_links: mpsc::Sender<NewLink>,
    ) -> Self {
        Self {
            shared,
            node,
            link_events,
            links: HashMap::new(),
            next_link: 1,
            gateway: None,
            gateway_link: None,
            was_connected: false,
            realms: HashMap::new(),
            subscriptions: HashMap::new(),
            registrations: HashMap::new(),
            requests: HashMap::new(),
            calls: HashMap::new(),
            flushes: HashMap::new(),
            next_flush: 1,
            dirty_topics: VecDeque::new(),
            dirty_pipes: VecDeque::new(),
            followups: Vec::new(),
            closing: None,
            clock_told: None,
            endpoint,
            new_links,
            peers: HashMap::new(),
        }
    }

    /// Runs until closed or aborted.
    pub(crate) async fn run(mut self, mut inbox: Inbox) {
        let mut round = Round::default();
        let mut notes = Notes::default();
        let mut alarm = Alarm::default();
        let mut gathering = Gathering::default();
        let shared = self.shared.clone();
        let mut is_busy = false;
        while !self.is_finished() {
            alarm.set(self.wake_at());
            tokio::select! {
                biased;
                () = shared.abort.cancelled() => break,
                () = inbox.receive(&mut round) => {}
                () = shared.doorbell.rung() => {}
                () = alarm.rings() => {}
                // Lets other tasks run, then goes on with what did not fit the last turn.
                () = tokio::task::yield_now(), if is_busy => {}
            }
            if !round.commands.is_empty() || shared.doorbell.has_replies() {
                gathering.wait().await;
            }
            inbox.fill(&mut round);
            shared.doorbell.take(&mut notes);
            gathering.came(round.commands.len() + notes.replies.len());
            is_busy = self.turn(&mut round, &mut notes);
            step_aside().await;
        }
    }

    /// Feeds what has come, then lets the core have its say. Returns whether something was left
    /// for the next turn.
    fn turn(&mut self, round: &mut Round, notes: &mut Notes) -> bool {
        let now = self.shared.clock.now();
        self.tell_wall_clock(now);
        for command in round.commands.drain(..) {
            self.on_command(now, command);
        }
        for link in round.new_links.drain(..) {
            self.on_new_link(now, link);
        }
        for event in round.link_events.drain(..) {
            self.on_link_event(now, event);
        }
        self.on_notes(now, notes);
        // Before publishing: what is due may make room, and nothing else would tell.
        self.node.handle_timeout(now);
        let mut is_busy = self.pump_topics(now);
        is_busy |= self.pump_pipes(now);
        self.settle(now);
        self.advance_closing(now);
        is_busy
    }

    /// Tells the core what time it is, for the clock may have jumped since.
    fn tell_wall_clock(&mut self, now: Time) {
        let is_due = self.clock_told.is_none_or(|told| now - told >= CLOCK_INTERVAL);
        if is_due {
            self.clock_told = Some(now);
            let unix = UnixTime(Clock::unix_micros() / 1_000);
            self.node.handle_input(now, Input::WallClock { unix });
        }
    }

    /// Passes on everything that the core wants said or done.
    fn settle(&mut self, now: Time) {
        loop {
            while let Some(transmit) = self.node.poll_transmit() {
                self.send(transmit);
            }
            while let Some((link, datagram)) = self.node.poll_datagram() {
                self.relay(link, datagram);
            }
            while let Some(action) = self.node.poll_action() {
                self.act(action);
            }
            while let Some(event) = self.node.poll_event() {
                self.deliver(event);
            }
            if self.followups.is_empty() {
                break;
            }
            let mut followups = std::mem::take(&mut self.followups);
            for input in followups.drain(..) {
                self.node.handle_input(now, input);
            }
            self.followups = followups;
        }
    }

    /// Hands over what was published, topic by topic, as far as the core has room.
    fn pump_topics(&mut self, now: Time) -> bool {
        let mut is_busy = false;
        for _ in 0..self.dirty_topics.len() {
            let Some(buffer) = self.dirty_topics.pop_front() else { break };
            match self.pump_topic(now, &buffer) {
                Pumped::Emptied => {}
                Pumped::NoRoom => self.dirty_topics.push_back(buffer),
                Pumped::TurnIsOver => {
                    self.dirty_topics.push_back(buffer);
                    is_busy = true;
                }
            }
        }
        is_busy
    }

    fn pump_topic(&mut self, now: Time, buffer: &TopicBuffer) -> Pumped {
        for _ in 0..BATCHES_PER_TURN {
            let node = &mut self.node;
            match buffer.take(|qos| node.publish_room(&buffer.realm, &buffer.topic, qos)) {
                Taken::Batch(batch) => {
                    let publish = node::Command::Publish {
                        realm: buffer.realm,
                        topic: buffer.topic.clone(),
                        qos: batch.kind.qos,
                        retain: batch.kind.retain,
                        count: batch.count,
                        body: batch.body,
                    };
                    self.command(now, publish);
                    buffer.on_handed(self.node.last_sequence(&buffer.realm, &buffer.topic));
                }
                Taken::NoRoom => return Pumped::NoRoom,
                Taken::Empty => return Pumped::Emptied,
            }
        }
        Pumped::TurnIsOver
    }

    /// Hands over items and answers of streaming calls.
    fn pump_pipes(&mut self, now: Time) -> bool {
        let mut is_busy = false;
        for _ in 0..self.dirty_pipes.len() {
            let Some(pipe) = self.dirty_pipes.pop_front() else { break };
            if self.pump_pipe(now, &pipe) {
                self.dirty_pipes.push_back(pipe);
                is_busy = true;
            }
        }
        is_busy
    }

    /// Returns whether the pipe has more than fits in one turn.
    fn pump_pipe(&mut self, now: Time, pipe: &Pipe) -> bool {
        for _ in 0..ITEMS_PER_TURN {
            match pipe.take() {
                Some(Outgo::Item(body)) => {
                    self.command(now, node::Command::StreamItem { end: pipe.end, body });
                    // Whether there is room for the next is an event, so it is looked at now.
                    self.settle(now);
                }
                Some(Outgo::ItemsEnd) => {
                    if let StreamEnd::Caller(call) = pipe.end {
                        self.command(now, node::Command::StreamItemsEnd { call });
                    }
                }
                Some(Outgo::Result(result)) => {
                    if let StreamEnd::Handler(request) = pipe.end {
                        self.reply(now, request, result);
                    }
                }
                None => return false,
            }
        }
        true
    }

    /// Feeds a command to the core.
    fn command(&mut self, now: Time, command: node::Command) {
        self.node.handle_input(now, Input::Command(command));
    }

    /// When the core or the closing wants to be woken.
    fn wake_at(&self) -> Option<Instant> {
        // A core that names a moment in the past must not make this loop spin.
        let soonest = Instant::now() + TICK;
        let core = self.node.poll_timeout().map(|(at, _)| self.shared.clock.instant(at));
        let closing = self.closing.as_ref().map(Closing::wake_at);
        core.into_iter().chain(closing).min().map(|at| at.max(soonest))
    }
}

enum Pumped {
    Emptied,
    NoRoom,
    TurnIsOver,
}

impl Drop for Driver {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.stopping.cancel();
        // In this order: what is appended from now on finds the doorbell closed; all others are
        // on one of the lists.
        let last = shared.doorbell.close();
        for buffer in last.topics.iter().chain(&self.dirty_topics) {
            buffer.close();
        }
        shared.topics.close();
        for subscription in self.subscriptions.values() {
            subscription.queue.end(SubscribeError::Closed);
        }
        let of_calls = self.calls.values().filter_map(|call| call.pipe.as_ref());
        let of_requests = self.requests.values().filter_map(|request| request.pipe.as_ref());
        for pipe in last.pipes.iter().chain(of_calls).chain(of_requests) {
            pipe.close();
        }
        for request in self.requests.values() {
            request.cancelled.cancel();
            request.task.abort();
        }
        let failure = std::thread::panicking().then(|| "internal error".to_owned());
        if failure.is_some() {
            tracing::error!("the driver panicked; the endpoint is closed");
        }
        shared.emit(Event::Closed { failure });
        shared.closed.cancel();
    }
}
