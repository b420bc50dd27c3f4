//! A router and three leaves in two realms, and everything that can happen to them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use macula_proto::id::{CallId, RealmId, RegistrationId, RequestId, SubscriptionId};
use macula_proto::node::{
    Command, Delivery, DeliveryMode, Event, Input, Qos, Role, StreamEnd, SubscribeOptions,
};
use macula_proto::pubsub::{Pattern, ProcedureName, Topic};
use macula_proto::wire::message::{CallFailure, CloseCode, ErrorClass, ProviderPolicy, SlowPolicy};
use macula_proto::wire::{BatchBuilder, BatchIter};

use crate::script::{Script, Step, pick};
use crate::world::{Who, World};

/// The input is steps of four bytes: wishes of the applications, links that break, nodes that
/// restart, time.
///
/// Whatever happens: a handle gets no message twice, and those of one publisher on a topic in order;
/// nothing comes from another realm, or on a topic that was not asked for; every call ends exactly
/// once, an echo with what was said; and queues stay within their limits.
pub fn node(data: &[u8]) {
    let mut script = Script::new(data);
    let mut play = Play::new(script.byte());
    while let Some(step) = script.step().filter(|_| play.steps < STEPS_MAX) {
        play.steps += 1;
        play.step(step);
        play.look();
    }
    play.finish();
}

/// Keeps one input within milliseconds.
const STEPS_MAX: usize = 300;

struct Play {
    world: World,
    router: Who,
    leaves: [Who; 3],
    /// Runs of each node.
    runs: [u8; 4],
    is_down: [bool; 4],
    steps: usize,
    published: u64,
    handles: BTreeMap<(Who, SubscriptionId), Handle>,
    services: BTreeMap<(Who, RegistrationId), (RealmId, &'static str)>,
    calls: BTreeMap<(Who, CallId), CallMade>,
    /// Requests that a handler still works on.
    requests: Vec<(Who, RequestId)>,
}

/// What a subscription has got.
struct Handle {
    realm: RealmId,
    pattern: Pattern,
    is_open: bool,
    /// The highest number, by publisher, its run, and topic.
    last: BTreeMap<(u8, u8, String), u64>,
    retained: BTreeSet<String>,
}

struct CallMade {
    procedure: &'static str,
    argument: Bytes,
    is_done: bool,
}

impl Play {
    fn new(choice: u8) -> Self {
        let world = World::new().tuned(|config| {
            config.lane_queue_bytes_max = LANE_QUEUE_BYTES_MAX;
            config.ring_bytes_max = 400_000;
            config.retained_bytes_max = 200_000;
        });
        let mut world = if choice & 1 == 0 { world } else { world.lazy() };
        let router = world.add(Role::Router);
        let leaves = [(); 3].map(|()| world.add(Role::Leaf));
        let mut play = Self {
            world,
            router,
            leaves,
            runs: [0; 4],
            is_down: [false; 4],
            steps: 0,
            published: 0,
            handles: BTreeMap::new(),
            services: BTreeMap::new(),
            calls: BTreeMap::new(),
            requests: Vec::new(),
        };
        play.enter(router);
        for leaf in leaves {
            play.enter(leaf);
            play.world.connect(leaf, router);
        }
        play.world.settle();
        play
    }

    /// The realms that a node is in from its start: the last leaf only in one.
    fn enter(&mut self, who: Who) {
        let [a, b] = realms();
        self.world.join(who, a);
        if who != self.leaves[2] {
            self.world.join(who, b);
        }
    }

    fn step(&mut self, [what, a, b, c]: Step) {
        let who = pick(&[self.leaves[0], self.leaves[1], self.leaves[2], self.router], a);
        let realm = pick(&realms(), a >> 2);
        match what % 16 {
            0..=3 => self.publish(who, realm, what >> 4, b, c),
            4 => self.subscribe(who, realm, b, c),
            5 => self.unsubscribe(b),
            6 => self.serve(who, realm, b, c),
            7 => self.unserve(b),
            8 | 9 => self.call(who, realm, b, c),
            10 => self.work(a, b, c),
            11 | 12 => self.world.run_for(Duration::from_millis(1 << (a % 14))),
            13 => self.disturb(who, b, c),
            14 => match b % 4 {
                0 => self.world.join(who, realm),
                1 => self.world.command(who, Command::Flush { id: u64::from(c) }),
                2 => self.fill(b, c),
                _ => self.cancel(c),
            },
            _ => match c {
                0..=15 => self.restart(who),
                16..=19 => self.shut_down(who, b),
                _ => self.world.settle(),
            },
        }
    }

    // --- publish and subscribe -----------------------------------------------------------------

    fn publish(&mut self, who: Who, realm: RealmId, how: u8, b: u8, c: u8) {
        let topic = Topic::parse(pick(&TOPICS, b)).expect("a good name");
        let qos = if how & 1 == 0 { Qos::AtLeastOnce } else { Qos::AtMostOnce };
        let retain = how & 6 == 6;
        if !self.world.sims[who]
            .node
            .as_mut()
            .is_some_and(|node| node.publish_room(&realm, &topic, qos))
        {
            return;
        }
        let mut batch = BatchBuilder::new();
        let bytes = if c >= 250 { 70_000 } else { usize::from(c >> 4) * 500 };
        for _ in 0..if c >= 250 { 1 } else { 1 + c % 4 } {
            self.published += 1;
            batch.push(&self.payload(who, realm, topic.as_str(), bytes));
        }
        let (count, body) = batch.finish();
        self.world.command(who, Command::Publish { realm, topic, qos, retain, count, body });
    }

    /// Who publishes what where, and padding.
    fn payload(&self, who: Who, realm: RealmId, topic: &str, padding: usize) -> Vec<u8> {
        let head = Head {
            realm,
            who: who as u8,
            run: self.runs[who],
            number: self.published,
            topic: topic.to_owned(),
        };
        let mut payload = head.to_bytes();
        payload.resize(payload.len() + padding, b'x');
        payload
    }

    fn subscribe(&mut self, who: Who, realm: RealmId, b: u8, c: u8) {
        let subscription = SubscriptionId(self.world.number());
        let pattern = Pattern::parse(pick(&PATTERNS, b)).expect("a good pattern");
        let mut options = SubscribeOptions::default();
        let policies = [SlowPolicy::DropOldest, SlowPolicy::Block, SlowPolicy::Disconnect];
        options.policy = pick(&policies, c);
        options.skip_retained = c & 16 != 0;
        options.mode = pick(
            &[DeliveryMode::Ordered, DeliveryMode::AsArrives, DeliveryMode::LatestOnly],
            c >> 5,
        );
        let handle = Handle {
            realm,
            pattern: pattern.clone(),
            is_open: true,
            last: BTreeMap::new(),
            retained: BTreeSet::new(),
        };
        self.handles.insert((who, subscription), handle);
        self.world.command(who, Command::Subscribe { subscription, realm, pattern, options });
    }

    fn unsubscribe(&mut self, choice: u8) {
        let mut open: Vec<_> = self.handles.iter_mut().filter(|(_, h)| h.is_open).collect();
        if open.is_empty() {
            return;
        }
        let index = usize::from(choice) % open.len();
        let ((who, subscription), handle) = &mut open[index];
        handle.is_open = false;
        let (who, subscription) = (*who, *subscription);
        self.world.command(who, Command::Unsubscribe { subscription });
        // what was on its way to the handle is dropped with it
        self.look();
        self.handles.remove(&(who, subscription));
    }

    fn fill(&mut self, b: u8, c: u8) {
        let keys: Vec<_> = self.handles.keys().copied().collect();
        if keys.is_empty() {
            return;
        }
        let (who, subscription) = pick(&keys, c);
        self.world.input(
            who,
            if b & 4 == 0 {
                Input::HandleFull { subscription }
            } else {
                Input::HandleReady { subscription }
            },
        );
    }

    fn deliver(&mut self, who: Who, delivery: Delivery) {
        let key = (who, delivery.subscription);
        let handle = self.handles.get_mut(&key).expect("messages only for handles that there are");
        let Delivery { topic, publisher, count, body, retained, .. } = delivery;
        assert!(handle.pattern.matches(&topic), "{} got {topic}", handle.pattern);
        let payloads: Vec<Bytes> = BatchIter::new(count, body).collect();
        assert_eq!(payloads.len(), count as usize);
        for payload in payloads {
            let head = Head::from_bytes(&payload);
            assert_eq!(head.realm, handle.realm, "it crossed realms");
            assert_eq!(head.topic, topic.as_str(), "it changed its topic");
            assert_eq!(self.world.sims[usize::from(head.who)].id, publisher);
            if retained {
                // it may be older than what the handle saw, and come once more as what it is
                assert!(handle.retained.insert(head.topic), "a second retained message");
                continue;
            }
            let stream = (head.who, head.run, head.topic.clone());
            let last = handle.last.entry(stream).or_default();
            assert!(
                *last < head.number,
                "{who}: {head:?} after {last} on {} of {:?}",
                handle.pattern,
                key.1
            );
            *last = head.number;
        }
    }

    // --- calls ---------------------------------------------------------------------------------

    fn serve(&mut self, who: Who, realm: RealmId, b: u8, c: u8) {
        let registration = RegistrationId(self.world.number());
        let name = pick(&PROCEDURES, b);
        self.services.insert((who, registration), (realm, name));
        let procedure = ProcedureName::parse(name).expect("a good name");
        let concurrency = 1 + u32::from(c % 4);
        self.world.command(who, Command::Register { registration, realm, procedure, concurrency });
    }

    fn unserve(&mut self, choice: u8) {
        let keys: Vec<_> = self.services.keys().copied().collect();
        if !keys.is_empty() {
            let (who, registration) = pick(&keys, choice);
            self.world.command(who, Command::Unregister { registration });
        }
    }

    fn call(&mut self, who: Who, realm: RealmId, b: u8, c: u8) {
        let call = CallId(self.world.number());
        let procedure = pick(&PROCEDURES, b);
        self.published += 1;
        let padding = if c >= 250 { 70_000 } else { usize::from(c) * 8 };
        let argument = Bytes::from(self.payload(who, realm, procedure, padding));
        use ProviderPolicy::{First, Nearest, Random, RoundRobin};
        let command = Command::Call {
            call,
            realm: Some(realm),
            procedure: ProcedureName::parse(procedure).expect("a good name"),
            deadline: Duration::from_millis(20 << (b >> 5)),
            policy: pick(&[Nearest, RoundRobin, Random, First], c),
            idempotent: b & 8 == 0,
            streaming: b & 16 != 0,
            target: (c & 28 == 28).then(|| self.world.sims[usize::from(c & 3)].id),
            traceparent: Bytes::new(),
            body: argument.clone(),
        };
        self.calls.insert((who, call), CallMade { procedure, argument, is_done: false });
        self.world.command(who, command);
    }

    fn cancel(&mut self, choice: u8) {
        let keys: Vec<_> = self.calls.keys().copied().collect();
        if !keys.is_empty() {
            let (who, call) = pick(&keys, choice);
            self.world.command(who, Command::CancelCall { call });
        }
    }

    /// A handler does something for a request, or a caller sends an item.
    fn work(&mut self, a: u8, b: u8, c: u8) {
        let item = Bytes::from(vec![b'i'; usize::from(c) * 100]);
        if a & 3 == 3 {
            let keys: Vec<_> = self.calls.keys().copied().collect();
            if keys.is_empty() {
                return;
            }
            let (who, call) = pick(&keys, b);
            self.world.command(
                who,
                if a & 4 == 0 {
                    Command::StreamItem { end: StreamEnd::Caller(call), body: item }
                } else {
                    Command::StreamItemsEnd { call }
                },
            );
            return;
        }
        if self.requests.is_empty() {
            return;
        }
        let index = usize::from(b) % self.requests.len();
        let (who, request) = self.requests[index];
        if a & 3 == 2 {
            let end = StreamEnd::Handler(request);
            return self.world.command(who, Command::StreamItem { end, body: item });
        }
        self.requests.swap_remove(index);
        let failure = CallFailure {
            class: ErrorClass::Refused,
            code: REFUSAL,
            message: String::new(),
            retry_after: Duration::ZERO,
            retry_safe: false,
        };
        let result = if a & 3 == 0 { Ok(item) } else { Err(failure) };
        self.world.command(who, Command::Reply { request, result });
    }

    fn requested(
        &mut self,
        who: Who,
        request: RequestId,
        registration: RegistrationId,
        body: Bytes,
    ) {
        let (realm, procedure) =
            self.services.get(&(who, registration)).copied().expect("a service that there is");
        let head = Head::from_bytes(&body);
        assert_eq!((head.realm, head.topic.as_str()), (realm, procedure), "it crossed realms");
        if procedure == ECHO {
            self.world.command(who, Command::Reply { request, result: Ok(body) });
        } else {
            self.requests.push((who, request));
        }
    }

    fn done(&mut self, who: Who, call: CallId, result: Result<Bytes, CallFailure>) {
        let made = self.calls.get_mut(&(who, call)).expect("a call that was made");
        assert!(!std::mem::replace(&mut made.is_done, true), "{call:?} ends twice");
        match result {
            Ok(body) if made.procedure == ECHO => {
                assert_eq!(body, made.argument, "another call's answer");
            }
            Err(failure) if made.procedure == ECHO => {
                assert_ne!(failure.code, REFUSAL, "another call's failure");
            }
            _ => {}
        }
    }

    // --- trouble -------------------------------------------------------------------------------

    fn disturb(&mut self, who: Who, b: u8, c: u8) {
        let router = self.router;
        if who == router {
            return;
        }
        let linked = self.world.wire_between(who, router).is_some();
        match (b % 6, linked) {
            (0 | 1, true) => self.world.cut(who, router),
            (2, true) => {
                self.world.deaf(who, router, true);
                self.world.run_for(Duration::from_millis(u64::from(c) * 8));
                if self.world.wire_between(who, router).is_some() {
                    self.world.deaf(who, router, false);
                }
            }
            (3, true) => {
                self.world.black_hole(who, router);
                self.world.run_for(Duration::from_millis(u64::from(c) * 8));
                if self.world.wire_between(who, router).is_some() {
                    self.world.cut(who, router);
                }
            }
            (4, true) => {} // a second link
            (_, true) => return,
            _ => {}
        }
        if self.world.wire_between(who, router).is_none() || b % 6 == 4 {
            if b & 64 == 0 {
                self.world.run_for(Duration::from_millis(u64::from(c)));
            }
            if b & 128 == 0 && !self.is_down[who] && !self.is_down[router] {
                self.world.connect(who, router);
            }
        }
    }

    /// A node dies and starts again without memory.
    fn restart(&mut self, who: Who) {
        self.look();
        self.runs[who] = self.runs[who].wrapping_add(1);
        self.is_down[who] = false;
        // its application is gone too
        self.handles.retain(|(owner, _), _| *owner != who);
        self.services.retain(|(owner, _), _| *owner != who);
        self.calls.retain(|(owner, _), _| *owner != who);
        self.requests.retain(|(owner, _)| *owner != who);
        self.world.restart(who);
        self.world.take_events(who);
        self.enter(who);
        if !self.is_down[self.router] {
            for leaf in self.leaves {
                if !self.is_down[leaf] && self.world.wire_between(leaf, self.router).is_none() {
                    self.world.connect(leaf, self.router);
                }
            }
        }
    }

    fn shut_down(&mut self, who: Who, b: u8) {
        self.is_down[who] = true;
        let code = if b & 1 == 0 { CloseCode::Done } else { CloseCode::Restarting };
        let reconnect_window = Duration::from_millis(u64::from(b));
        let reason = "enough".to_owned();
        self.world.command(who, Command::Shutdown { code, reason, reconnect_window });
    }

    // --- looking -------------------------------------------------------------------------------

    /// Reads what the applications heard, until they hear no more.
    fn look(&mut self) {
        loop {
            self.world.drain();
            let mut silent = true;
            for who in 0..self.world.sims.len() {
                for event in self.world.take_events(who) {
                    silent = false;
                    self.hear(who, event);
                }
            }
            if silent {
                break;
            }
        }
        for sim in &self.world.sims {
            let Some(node) = &sim.node else { continue };
            for link in node.status().links {
                assert!(link.queued_bytes <= QUEUED_BYTES_MAX, "{} bytes wait", link.queued_bytes);
            }
        }
    }

    fn hear(&mut self, who: Who, event: Event) {
        match event {
            Event::Deliver(delivery) => self.deliver(who, delivery),
            Event::CallDone { call, result } => self.done(who, call, result),
            Event::Request { request, registration, body, .. } => {
                self.requested(who, request, registration, body);
            }
            Event::RequestCancelled { request } => {
                self.requests.retain(|known| *known != (who, request));
            }
            _ => {}
        }
    }

    fn finish(mut self) {
        for _ in 0..8 {
            self.world.run_for(Duration::from_secs(5));
            self.look();
        }
        for ((who, call), made) in &self.calls {
            assert!(made.is_done, "{call:?} of {who} to {} never ends", made.procedure);
        }
        self.leave();
    }

    /// The leaves say goodbye, the router's application ends what it had: nothing may be left.
    fn leave(mut self) {
        let router = self.router;
        for leaf in self.leaves {
            self.shut_down(leaf, 0);
        }
        for (who, subscription) in self.handles.keys().copied().collect::<Vec<_>>() {
            if who == router {
                self.world.command(who, Command::Unsubscribe { subscription });
            }
        }
        for (who, registration) in self.services.keys().copied().collect::<Vec<_>>() {
            if who == router {
                self.world.command(who, Command::Unregister { registration });
            }
        }
        self.world.run_for(Duration::from_secs(30));
        let status = self.world.node(router).status();
        assert!(status.links.is_empty(), "{:?}", status.links);
        for realm in status.realms {
            let left = (realm.peers, realm.subscriptions, realm.registrations);
            assert_eq!(left, (0, 0, 0), "peers, subscriptions, registrations");
        }
    }
}

const LANE_QUEUE_BYTES_MAX: usize = 300_000;
/// The lanes' limits, twice because a source may be one batch beyond; the rest waits for 100 ms.
const QUEUED_BYTES_MAX: usize = 2 * 4 * LANE_QUEUE_BYTES_MAX + 4_000_000;

const TOPICS: [&str; 4] = ["a.b", "a.c", "d", "e"];
const PATTERNS: [&str; 6] = ["**", "a.*", "a.b", "d", "*.b", "a.**"];
const ECHO: &str = "echo";
/// What handlers of other procedures say.
const REFUSAL: u16 = 42;
const PROCEDURES: [&str; 3] = [ECHO, "slow", "other"];

fn realms() -> [RealmId; 2] {
    ["one", "two"].map(RealmId::of_name)
}

/// What stands in front of every payload and argument.
#[derive(Debug)]
struct Head {
    realm: RealmId,
    who: u8,
    run: u8,
    number: u64,
    topic: String,
}

impl Head {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.realm.as_bytes().to_vec();
        bytes.extend([self.who, self.run, self.topic.len() as u8]);
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(self.topic.as_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let (realm, rest) = bytes.split_first_chunk::<32>().expect("a realm");
        let (head, rest) = rest.split_first_chunk::<3>().expect("a head");
        let (number, rest) = rest.split_first_chunk::<8>().expect("a number");
        let topic = rest.get(..usize::from(head[2])).expect("a topic");
        Self {
            realm: RealmId::from_bytes(*realm),
            who: head[0],
            run: head[1],
            number: u64::from_be_bytes(*number),
            topic: String::from_utf8(topic.to_vec()).expect("a name"),
        }
    }
}
