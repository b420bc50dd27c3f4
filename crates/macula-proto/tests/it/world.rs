//! A world of nodes in virtual time: links with latency, flow control, cuts; no sockets, no sleeps.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use macula_proto::id::{LinkId, RealmId, StreamId, SubscriptionId};
use macula_proto::node::{
    Action, Command, Config, Delivery, Event, Input, Node, Qos, Role, SubscribeOptions, Transmit,
};
use macula_proto::pubsub::{Pattern, ProcedureName, Topic};
use macula_proto::wire::message::{CallFailure, ProviderPolicy};
use macula_proto::wire::{BatchBuilder, BatchIter, Channel, Frame, RawFrame};
use macula_proto::{EndpointId, Time};
use sha2::{Digest, Sha256};

/// What one direction of one channel may hold before the sender waits, as QUIC's flow control.
const PIPE_BYTES_MAX: usize = 1 << 20;

pub type Who = usize;

/// One direction of a channel.
#[derive(Debug, Default)]
struct Pipe {
    frames: VecDeque<(Time, Frame)>,
    bytes: usize,
    /// Bytes taken over but not yet told as `Sent`.
    unsent: VecDeque<usize>,
    paused: bool,
    finished: bool,
    closing: bool,
}

#[derive(Debug)]
struct End {
    who: Who,
    link: LinkId,
    open: bool,
    /// Pipes *towards* this end.
    pipes: BTreeMap<Channel, Pipe>,
}

#[derive(Debug)]
struct Wire {
    ends: [End; 2],
    latency: Duration,
    up: bool,
    /// Nothing arrives any more, and nobody is told.
    black_hole: bool,
}

#[derive(Debug)]
pub struct Sim {
    pub node: Option<Node>,
    pub id: EndpointId,
    pub events: Vec<(Time, Event)>,
    role: Role,
    seed: u8,
    epoch: u64,
    echo: bool,
}

/// How eagerly outputs are drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draining {
    Eager,
    Lazy,
}

#[derive(Debug)]
pub struct World {
    pub now: Time,
    pub sims: Vec<Sim>,
    wires: Vec<Wire>,
    by_link: BTreeMap<(Who, LinkId), (usize, usize)>,
    next_link: u64,
    next_number: u64,
    draining: Draining,
    dirty: Vec<Who>,
    /// A hash over what nodes said, if somebody wants it: it costs more than the nodes.
    digest: Option<Sha256>,
    pub tune: fn(&mut Config),
    closes_hang: bool,
    /// The realm of everything that is asked for.
    pub realm: RealmId,
    pub trace: bool,
}

pub fn realm() -> RealmId {
    RealmId::of_name("com.example.test")
}

pub fn topic(name: &str) -> Topic {
    Topic::parse(name).unwrap()
}

impl World {
    pub fn new() -> Self {
        Self {
            now: Time::from_micros(1_000_000),
            sims: Vec::new(),
            wires: Vec::new(),
            by_link: BTreeMap::new(),
            next_link: 1,
            next_number: 1,
            draining: Draining::Eager,
            dirty: Vec::new(),
            digest: None,
            tune: |_| {},
            closes_hang: false,
            realm: realm(),
            trace: std::env::var_os("WORLD_TRACE").is_some(),
        }
    }

    pub fn lazy(mut self) -> Self {
        self.draining = Draining::Lazy;
        self
    }

    /// Keeps a [`World::digest`].
    pub fn digested(mut self) -> Self {
        self.digest = Some(Sha256::new());
        self
    }

    pub fn tuned(mut self, tune: fn(&mut Config)) -> Self {
        self.tune = tune;
        self
    }

    /// Links that a node closes stay up until they are cut.
    pub fn closes_hang(&mut self, hang: bool) {
        self.closes_hang = hang;
    }

    pub fn add(&mut self, role: Role) -> Who {
        let who = self.sims.len();
        let seed = who as u8 + 1;
        let id = EndpointId::from_bytes([seed; 32]);
        self.sims.push(Sim {
            node: None,
            id,
            events: Vec::new(),
            role,
            seed,
            epoch: 1,
            echo: false,
        });
        self.start(who);
        who
    }

    /// A router that hosts the usual realm.
    pub fn router(&mut self) -> Who {
        let who = self.add(Role::Router);
        self.join(who, self.realm);
        who
    }

    /// A leaf in the usual realm, attached to `router`.
    pub fn leaf(&mut self, router: Who) -> Who {
        let who = self.add(Role::Leaf);
        self.join(who, self.realm);
        self.connect(who, router);
        self.settle();
        who
    }

    fn start(&mut self, who: Who) {
        let sim = &mut self.sims[who];
        let mut config = Config::new(sim.role, sim.epoch);
        (self.tune)(&mut config);
        sim.node = Some(Node::new(sim.id, config, [sim.seed; 32]));
    }

    /// Kills a node without a word and starts it again with no memory. Its links hang in the air
    /// until [`World::cut`].
    pub fn restart(&mut self, who: Who) {
        self.sims[who].epoch += 1;
        for index in 0..self.wires.len() {
            if self.wires[index].ends.iter().any(|end| end.who == who) {
                self.cut_wire(index, Some(who));
            }
        }
        self.start(who);
    }

    pub fn join(&mut self, who: Who, realm: RealmId) {
        self.command(who, Command::Join { realm, grant: Bytes::new() });
    }

    pub fn connect(&mut self, from: Who, to: Who) -> LinkId {
        self.connect_as(from, to, false)
    }

    /// A link between two leaves.
    pub fn connect_peers(&mut self, from: Who, to: Who) -> LinkId {
        self.connect_as(from, to, true)
    }

    fn connect_as(&mut self, from: Who, to: Who, is_peer_link: bool) -> LinkId {
        let (a, b) = (LinkId(self.next_link), LinkId(self.next_link + 1));
        self.next_link += 2;
        let wire = self.wires.len();
        let end = |who, link| End { who, link, open: false, pipes: BTreeMap::new() };
        self.wires.push(Wire {
            ends: [end(from, a), end(to, b)],
            latency: Duration::from_millis(5),
            up: true,
            black_hole: false,
        });
        self.by_link.insert((from, a), (wire, 0));
        self.by_link.insert((to, b), (wire, 1));
        let remote = "192.0.2.1:4433".parse().unwrap();
        let (to_id, from_id) = (self.sims[to].id, self.sims[from].id);
        for (who, link, peer, dialled) in [(from, a, to_id, true), (to, b, from_id, false)] {
            let input = if is_peer_link {
                Input::PeerLinkUp { link, peer, dialled, remote }
            } else {
                Input::LinkUp { link, peer, dialled, remote }
            };
            self.input(who, input);
        }
        a
    }

    pub fn wire_between(&self, a: Who, b: Who) -> Option<usize> {
        self.wires.iter().rposition(|wire| {
            let [x, y] = &wire.ends;
            wire.up && ((x.who == a && y.who == b) || (x.who == b && y.who == a))
        })
    }

    /// Breaks the newest link between two nodes; both are told at once.
    pub fn cut(&mut self, a: Who, b: Who) {
        let wire = self.wire_between(a, b).expect("they have a link");
        self.cut_wire(wire, None);
    }

    /// What is sent from now on the newest link between two nodes takes so long.
    pub fn slow(&mut self, a: Who, b: Who, latency: Duration) {
        let wire = self.wire_between(a, b).expect("they have a link");
        self.wires[wire].latency = latency;
    }

    /// Swallows everything on the newest link between two nodes; nobody is told.
    pub fn black_hole(&mut self, a: Who, b: Who) {
        let wire = self.wire_between(a, b).expect("they have a link");
        self.wires[wire].black_hole = true;
    }

    fn cut_wire(&mut self, wire: usize, except: Option<Who>) {
        if !std::mem::replace(&mut self.wires[wire].up, false) {
            return;
        }
        for end in 0..2 {
            let (who, link) = (self.wires[wire].ends[end].who, self.wires[wire].ends[end].link);
            self.by_link.remove(&(who, link));
            if Some(who) != except {
                self.input(who, Input::LinkDown { link, reason: "cut".to_owned() });
            }
        }
    }

    /// `who` stops (or goes on) reading its lanes on the newest link to `from`, whatever it says.
    pub fn deaf(&mut self, who: Who, from: Who, deaf: bool) {
        let wire = self.wire_between(who, from).expect("they have a link");
        let end = usize::from(self.wires[wire].ends[1].who == who);
        for lane in 0..macula_proto::limits::LANE_COUNT {
            let pipe = self.wires[wire].ends[end].pipes.entry(Channel::Lane(lane)).or_default();
            pipe.paused = deaf;
        }
        self.pump_wire(wire);
    }

    /// As [`World::deaf`], for large messages.
    pub fn bulk_deaf(&mut self, who: Who, from: Who, deaf: bool) {
        let wire = self.wire_between(who, from).expect("they have a link");
        let end = usize::from(self.wires[wire].ends[1].who == who);
        self.wires[wire].ends[end].pipes.entry(Channel::Bulk).or_default().paused = deaf;
        self.pump_wire(wire);
    }

    pub fn input(&mut self, who: Who, input: Input) {
        if self.trace {
            println!("{:?} {who} <- {input:?}", self.now);
        }
        let now = self.now;
        if let Some(node) = &mut self.sims[who].node {
            node.handle_input(now, input);
        }
        if !self.dirty.contains(&who) {
            self.dirty.push(who);
        }
        if self.draining == Draining::Eager {
            self.drain();
        }
    }

    pub fn command(&mut self, who: Who, command: Command) {
        self.input(who, Input::Command(command));
    }

    pub fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    pub fn subscribe(&mut self, who: Who, pattern: &str) -> SubscriptionId {
        self.subscribe_with(who, pattern, SubscribeOptions::default())
    }

    pub fn subscribe_with(
        &mut self,
        who: Who,
        pattern: &str,
        options: SubscribeOptions,
    ) -> SubscriptionId {
        let subscription = SubscriptionId(self.number());
        let pattern = Pattern::parse(pattern).unwrap();
        self.command(who, Command::Subscribe { subscription, realm: self.realm, pattern, options });
        subscription
    }

    pub fn publish(&mut self, who: Who, name: &str, qos: Qos, payload: &str) {
        self.publish_bytes(who, name, qos, false, payload.as_bytes().to_vec());
    }

    pub fn publish_bytes(
        &mut self,
        who: Who,
        name: &str,
        qos: Qos,
        retain: bool,
        payload: Vec<u8>,
    ) {
        let (realm, body) = (self.realm, Bytes::from(payload));
        let command = Command::Publish { realm, topic: topic(name), qos, retain, count: 1, body };
        self.command(who, command);
    }

    pub fn publish_batch(&mut self, who: Who, name: &str, qos: Qos, payloads: &[String]) {
        let mut batch = BatchBuilder::new();
        for payload in payloads {
            batch.push(payload.as_bytes());
        }
        let (count, body) = batch.finish();
        let topic = topic(name);
        let realm = self.realm;
        let command = Command::Publish { realm, topic, qos, retain: false, count, body };
        self.command(who, command);
    }

    pub fn room(&mut self, who: Who, name: &str, qos: Qos) -> bool {
        self.sims[who].node.as_mut().unwrap().publish_room(&self.realm, &topic(name), qos)
    }

    /// Serves a procedure by echoing, at once and for ever.
    pub fn serve_echo(&mut self, who: Who, procedure: &str) {
        self.sims[who].echo = true;
        self.register(who, procedure, 16);
    }

    pub fn register(&mut self, who: Who, procedure: &str, concurrency: u32) {
        let registration = macula_proto::id::RegistrationId(self.number());
        let procedure = ProcedureName::parse(procedure).unwrap();
        self.command(
            who,
            Command::Register { registration, realm: self.realm, procedure, concurrency },
        );
    }

    pub fn call(&mut self, who: Who, procedure: &str, body: &str) -> macula_proto::id::CallId {
        self.call_with(who, procedure, body, |_| {})
    }

    pub fn call_with(
        &mut self,
        who: Who,
        procedure: &str,
        body: &str,
        change: impl FnOnce(&mut CallSpec),
    ) -> macula_proto::id::CallId {
        let call = macula_proto::id::CallId(self.number());
        let mut spec = CallSpec::default();
        change(&mut spec);
        self.command(
            who,
            Command::Call {
                call,
                realm: if spec.endpoint_scope { None } else { Some(self.realm) },
                procedure: ProcedureName::parse(procedure).unwrap(),
                deadline: spec.deadline,
                policy: spec.policy,
                idempotent: spec.idempotent,
                streaming: spec.streaming,
                target: spec.target,
                traceparent: Bytes::new(),
                body: Bytes::copy_from_slice(body.as_bytes()),
            },
        );
        call
    }

    // --- running ---------------------------------------------------------------------------

    /// Runs until nothing is under way, but not beyond timers that are further than 100 ms.
    pub fn settle(&mut self) {
        self.run_for(Duration::from_millis(100));
    }

    pub fn run_for(&mut self, duration: Duration) {
        let until = self.now + duration;
        self.drain();
        while let Some(at) = self.next_event() {
            if at > until {
                break;
            }
            self.now = self.now.max(at);
            self.step();
        }
        self.now = until;
        self.step();
    }

    fn next_event(&self) -> Option<Time> {
        let timers = self
            .sims
            .iter()
            .filter_map(|sim| sim.node.as_ref().and_then(Node::poll_timeout))
            .map(|(at, _)| at);
        let arrivals =
            self.wires.iter().filter(|wire| wire.up && !wire.black_hole).flat_map(|wire| {
                wire.ends.iter().flat_map(|end| {
                    end.pipes
                        .iter()
                        .filter(|(channel, pipe)| readable(end, **channel, pipe))
                        .filter_map(|(_, pipe)| pipe.frames.front().map(|(at, _)| *at))
                })
            });
        timers.chain(arrivals).min()
    }

    fn step(&mut self) {
        let now = self.now;
        for who in 0..self.sims.len() {
            let due = self.sims[who].node.as_ref().and_then(Node::poll_timeout);
            if due.is_some_and(|(at, _)| at <= now) {
                if let Some(node) = &mut self.sims[who].node {
                    node.handle_timeout(now);
                    let next = node.poll_timeout();
                    assert!(next.is_none_or(|(at, _)| at > now), "{who} spins: {next:?}");
                }
                self.dirty.push(who);
            }
        }
        self.drain();
        for wire in 0..self.wires.len() {
            self.pump_wire(wire);
        }
        self.drain();
    }

    fn pump_wire(&mut self, wire: usize) {
        for end in 0..2 {
            let channels: Vec<Channel> = self.wires[wire].ends[end].pipes.keys().copied().collect();
            for channel in channels {
                loop {
                    let now = self.now;
                    let it = &mut self.wires[wire];
                    if !it.up || it.black_hole {
                        break;
                    }
                    let open = it.ends[end].open;
                    let Some(pipe) = it.ends[end].pipes.get_mut(&channel) else { break };
                    if pipe.paused || (!open && channel != Channel::Control) {
                        break;
                    }
                    if pipe.frames.front().is_none_or(|(at, _)| *at > now) {
                        break;
                    }
                    let (_, frame) = pipe.frames.pop_front().expect("just seen");
                    pipe.bytes -= frame.wire_bytes();
                    let (who, link) = (it.ends[end].who, it.ends[end].link);
                    self.tell_sent(wire, 1 - end, channel);
                    self.input(who, Input::Frame { link, channel, frame: raw(&frame) });
                }
                self.finish_streams(wire, end, channel);
            }
        }
    }

    fn finish_streams(&mut self, wire: usize, end: usize, channel: Channel) {
        let Channel::Stream(stream) = channel else { return };
        let there = mirror(stream);
        let over = |end: &End, id| {
            end.pipes
                .get(&Channel::Stream(id))
                .is_some_and(|pipe| pipe.finished && pipe.frames.is_empty())
        };
        let it = &mut self.wires[wire];
        if !it.up || !over(&it.ends[end], stream) || !over(&it.ends[1 - end], there) {
            return;
        }
        it.ends[end].pipes.remove(&channel);
        it.ends[1 - end].pipes.remove(&Channel::Stream(there));
        let told = [(end, stream), (1 - end, there)];
        for (end, stream) in told {
            let (who, link) = (self.wires[wire].ends[end].who, self.wires[wire].ends[end].link);
            self.input(who, Input::StreamClosed { link, stream });
        }
    }

    /// The pipe towards `1 - end`'s peer has room: its sender hears of it.
    fn tell_sent(&mut self, wire: usize, sender: usize, channel: Channel) {
        let theirs = mirror_channel(channel);
        loop {
            let it = &mut self.wires[wire];
            let (who, link) = (it.ends[sender].who, it.ends[sender].link);
            let Some(pipe) = it.ends[1 - sender].pipes.get_mut(&channel) else { return };
            if pipe.bytes > PIPE_BYTES_MAX {
                return;
            }
            let Some(bytes) = pipe.unsent.pop_front() else { return };
            self.input(who, Input::Sent { link, channel: theirs, bytes });
        }
    }

    pub fn drain(&mut self) {
        while let Some(who) = self.dirty.pop() {
            while let Some(node) = &mut self.sims[who].node {
                if let Some(transmit) = node.poll_transmit() {
                    self.note(who, &transmit);
                    self.transmit(who, transmit);
                } else if let Some(action) = node.poll_action() {
                    self.note(who, &action);
                    self.act(who, action);
                } else if let Some(event) = node.poll_event() {
                    self.note(who, &event);
                    self.hear(who, event);
                } else {
                    break;
                }
            }
        }
    }

    fn note(&mut self, who: Who, said: &impl std::fmt::Debug) {
        if self.trace {
            println!("{:?} {who} -> {said:?}", self.now);
        }
        if let Some(digest) = &mut self.digest {
            digest.update(format!("{:?} {who} {said:?}", self.now).as_bytes());
        }
    }

    fn transmit(&mut self, who: Who, transmit: Transmit) {
        let Some((wire, end)) = self.by_link.get(&(who, transmit.link)).copied() else { return };
        let there = mirror_channel(transmit.channel);
        let it = &mut self.wires[wire];
        let bytes = transmit.frame.wire_bytes();
        let at = self.now + it.latency;
        let pipe = it.ends[1 - end].pipes.entry(there).or_default();
        pipe.frames.push_back((at, transmit.frame));
        pipe.bytes += bytes;
        pipe.unsent.push_back(bytes);
        self.tell_sent(wire, end, there);
    }

    fn act(&mut self, who: Who, action: Action) {
        match action {
            Action::OpenLanes { link } => {
                if let Some((wire, end)) = self.by_link.get(&(who, link)).copied() {
                    self.wires[wire].ends[end].open = true;
                }
            }
            Action::Pause { link, channel } => self.set_paused(who, link, channel, true),
            Action::Resume { link, channel } => self.set_paused(who, link, channel, false),
            Action::FinishStream { link, stream } => {
                if let Some((wire, end)) = self.by_link.get(&(who, link)).copied() {
                    let there = mirror(stream);
                    let pipes = &mut self.wires[wire].ends;
                    pipes[1 - end].pipes.entry(Channel::Stream(there)).or_default().finished = true;
                    // we read no more of it either
                    let ours = pipes[end].pipes.entry(Channel::Stream(stream)).or_default();
                    ours.closing = true;
                }
            }
            Action::ResetStream { link, stream } => {
                if let Some((wire, end)) = self.by_link.get(&(who, link)).copied() {
                    let ends = &mut self.wires[wire].ends;
                    ends[end].pipes.remove(&Channel::Stream(stream));
                    ends[1 - end].pipes.remove(&Channel::Stream(mirror(stream)));
                    let (peer, its) = (ends[1 - end].who, ends[1 - end].link);
                    self.input(who, Input::StreamClosed { link, stream });
                    let stream = mirror(stream);
                    self.input(peer, Input::StreamClosed { link: its, stream });
                }
            }
            Action::CloseLink { .. } if self.closes_hang => {}
            Action::CloseLink { link, .. } => {
                if let Some((wire, end)) = self.by_link.get(&(who, link)).copied() {
                    // what is queued on control still arrives
                    let peer = 1 - end;
                    let (to, its) =
                        (self.wires[wire].ends[peer].who, self.wires[wire].ends[peer].link);
                    let control = self.wires[wire].ends[peer].pipes.remove(&Channel::Control);
                    for (_, frame) in control.map(|pipe| pipe.frames).unwrap_or_default() {
                        let channel = Channel::Control;
                        self.input(to, Input::Frame { link: its, channel, frame: raw(&frame) });
                    }
                    self.cut_wire(wire, None);
                }
            }
        }
    }

    fn set_paused(&mut self, who: Who, link: LinkId, channel: Channel, paused: bool) {
        if let Some((wire, end)) = self.by_link.get(&(who, link)).copied() {
            self.wires[wire].ends[end].pipes.entry(channel).or_default().paused = paused;
        }
    }

    fn hear(&mut self, who: Who, event: Event) {
        if let (true, Event::Request { request, body, streaming: false, .. }) =
            (self.sims[who].echo, &event)
        {
            let reply = Command::Reply { request: *request, result: Ok(body.clone()) };
            self.command(who, reply);
        }
        self.sims[who].events.push((self.now, event));
    }

    // --- looking ---------------------------------------------------------------------------

    pub fn take_events(&mut self, who: Who) -> Vec<Event> {
        self.sims[who].events.drain(..).map(|(_, event)| event).collect()
    }

    /// Every message delivered at `who` so far, in order: subscription and text.
    pub fn messages(&self, who: Who) -> Vec<(SubscriptionId, String)> {
        self.deliveries(who)
            .flat_map(|delivery| {
                let subscription = delivery.subscription;
                BatchIter::new(delivery.count, delivery.body.clone())
                    .map(move |body| (subscription, String::from_utf8_lossy(&body).into_owned()))
            })
            .collect()
    }

    pub fn texts(&self, who: Who) -> Vec<String> {
        self.messages(who).into_iter().map(|(_, text)| text).collect()
    }

    pub fn deliveries(&self, who: Who) -> impl Iterator<Item = &Delivery> {
        self.sims[who].events.iter().filter_map(|(_, event)| match event {
            Event::Deliver(delivery) => Some(delivery),
            _ => None,
        })
    }

    pub fn result(
        &self,
        who: Who,
        call: macula_proto::id::CallId,
    ) -> Option<Result<String, CallFailure>> {
        self.sims[who].events.iter().find_map(|(_, event)| match event {
            Event::CallDone { call: done, result } if *done == call => {
                Some(result.clone().map(|body| String::from_utf8_lossy(&body).into_owned()))
            }
            _ => None,
        })
    }

    /// How far the QoS 1 messages of `who` on a topic are: accepted, delivered, receivers.
    pub fn progress(&self, who: Who, name: &str) -> Option<(u64, u64, u32)> {
        self.sims[who].events.iter().rev().find_map(|(_, event)| match event {
            Event::Progress { topic, accepted, delivered, receivers, .. }
                if topic.as_str() == name =>
            {
                Some((*accepted, *delivered, *receivers))
            }
            _ => None,
        })
    }

    pub fn has(&self, who: Who, wanted: impl Fn(&Event) -> bool) -> bool {
        self.sims[who].events.iter().any(|(_, event)| wanted(event))
    }

    pub fn node(&self, who: Who) -> &Node {
        self.sims[who].node.as_ref().expect("it runs")
    }

    /// A hash over everything that any node has said, with the times.
    pub fn digest(&self) -> String {
        let digest = self.digest.clone().expect("a digested world");
        digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[derive(Debug)]
pub struct CallSpec {
    pub deadline: Duration,
    pub policy: ProviderPolicy,
    pub idempotent: bool,
    pub streaming: bool,
    pub endpoint_scope: bool,
    pub target: Option<EndpointId>,
}

impl Default for CallSpec {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(5),
            policy: ProviderPolicy::Nearest,
            idempotent: false,
            streaming: false,
            endpoint_scope: false,
            target: None,
        }
    }
}

fn readable(end: &End, channel: Channel, pipe: &Pipe) -> bool {
    !pipe.paused && (end.open || channel == Channel::Control)
}

/// A stream has an even number at the side that opened it and the next odd one at the other.
fn mirror(stream: StreamId) -> StreamId {
    StreamId(stream.0 ^ 1)
}

fn mirror_channel(channel: Channel) -> Channel {
    match channel {
        Channel::Stream(stream) => Channel::Stream(mirror(stream)),
        other => other,
    }
}

pub fn raw(frame: &Frame) -> RawFrame {
    let mut all = BytesMut::with_capacity(frame.wire_bytes());
    all.extend_from_slice(&frame.head);
    all.extend_from_slice(&frame.body);
    RawFrame { kind: all[0], payload: all.freeze().slice(4..) }
}
