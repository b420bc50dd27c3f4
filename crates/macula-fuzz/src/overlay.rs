//! Messages of the overlay, and a router of it among hostile neighbours.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use macula_proto::id::{QueryId, SubscriptionId};
use macula_proto::overlay::{Command, Config, Event, Input, Notary, Output, Overlay, wire};
use macula_proto::pubsub::{Pattern, ProcedureName, Topic};
use macula_proto::wire::message::ProviderPolicy;
use macula_proto::{EndpointId, Key, LinkId, RealmId, Time};

/// Neighbours at most.
const LINKS_MAX: u64 = 12;
/// What one input may cause at most: the table's links, a few times.
const OUTPUTS_MAX: usize = 20_000;

struct Anybody;

impl Notary for Anybody {
    fn sign(&self, author: &EndpointId, _: &[u8]) -> [u8; 64] {
        [author.as_bytes().first().copied().unwrap_or_default(); 64]
    }

    fn verify(&self, author: &EndpointId, message: &[u8], signature: &[u8; 64]) -> bool {
        self.sign(author, message) == *signature
    }
}

/// Any bytes: what decodes, encodes to something that decodes to the same. A script of inputs, most of
/// them messages from neighbours: nothing panics, nothing goes to links that are not there, tables
/// stay within their limits.
pub fn overlay(data: &[u8]) {
    let realm = RealmId::of_name("fuzz");
    if let Ok(message) = wire::decode(&realm, data) {
        assert_eq!(wire::decode(&realm, &wire::encode(&message)), Ok(message));
    }
    let config = Arc::new(Config::new(Arc::new(Anybody)));
    let mut world = World {
        overlay: Overlay::new(EndpointId::from_bytes([7; 32]), realm, config, 1),
        now: Time::START,
        up: Vec::new(),
        requests: Vec::new(),
    };
    let mut rest = data;
    while let Some((operation, tail)) = rest.split_first() {
        rest = tail;
        let mut take = |count: usize| {
            let (taken, tail) = rest.split_at(count.min(rest.len()));
            rest = tail;
            taken
        };
        let number = u64::from(operation >> 4);
        match operation & 15 {
            0 | 1 => world.link_up(number),
            2 => world.link_down(number),
            3 => world.pass(Duration::from_millis(50 * (number + 1))),
            4 => world.pass(Duration::from_secs(number + 1)),
            5 => world.command(number, take(1)),
            _ => {
                let length = take(2);
                let count = length.iter().fold(0, |sum, byte| sum * 256 + usize::from(*byte));
                if let Ok(message) = wire::decode(&realm, take(count % 2048)) {
                    world.message(number, message);
                }
            }
        }
    }
    world.pass(Duration::from_secs(60));
}

struct World {
    overlay: Overlay,
    now: Time,
    up: Vec<LinkId>,
    requests: Vec<u64>,
}

impl World {
    fn feed(&mut self, input: Input) {
        self.overlay.handle(self.now, input);
        let mut count = 0;
        while let Some(output) = self.overlay.poll_output() {
            count += 1;
            assert!(count < OUTPUTS_MAX, "one input causes too much");
            match output {
                Output::Send { link, .. } => assert!(self.up.contains(&link), "to nobody"),
                Output::Close { link } => self.up.retain(|other| *other != link),
                Output::Event(Event::Request { request, .. }) => self.requests.push(request),
                Output::Dial { .. } | Output::Redial { .. } | Output::Event(_) => {}
            }
        }
        let sizes = self.overlay.sizes();
        assert!(sizes.links <= self.up.len() && sizes.contacts <= 160 * 20, "{sizes:?}");
        assert!(sizes.routes <= 4096 + 2 * sizes.requests + 64, "{sizes:?}");
        assert!(sizes.record_bytes <= 8 * 1024 * 1024, "{sizes:?}");
    }

    fn link_up(&mut self, number: u64) {
        let link = LinkId(number % LINKS_MAX);
        if !self.up.contains(&link) {
            self.up.push(link);
            let peer = EndpointId::from_bytes([number as u8 * 16 + 1; 32]);
            let rtt = Duration::from_millis(10 * number + 1);
            self.feed(Input::LinkUp { link, peer, rtt, net: number as u32 });
        }
    }

    fn link_down(&mut self, number: u64) {
        let link = LinkId(number % LINKS_MAX);
        if self.up.contains(&link) {
            self.up.retain(|other| *other != link);
            self.feed(Input::LinkDown { link });
        }
    }

    fn message(&mut self, number: u64, message: macula_proto::overlay::Message) {
        let link = LinkId(number % LINKS_MAX);
        if self.up.contains(&link) {
            self.feed(Input::Received { link, message });
        }
    }

    /// Lets time pass, waking the node when it wants to be.
    fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        for _ in 0..2_000 {
            match self.overlay.poll_timeout().filter(|due| *due <= end) {
                Some(due) => self.now = self.now.max(due),
                None => break,
            }
            self.feed(Input::Timeout);
        }
        self.now = end;
    }

    fn command(&mut self, number: u64, argument: &[u8]) {
        let byte = argument.first().copied().unwrap_or_default();
        let key = Key::from_bytes([byte; 20]);
        let query = QueryId(number);
        let subscription = SubscriptionId(u64::from(byte % 4));
        let name = if byte & 1 == 0 { "a.b" } else { "a.c" };
        let (Ok(topic), Ok(procedure)) = (Topic::parse(name), ProcedureName::parse(name)) else {
            return;
        };
        let text = ["a.b", "a.*", "a.**", "a.c"][usize::from(byte % 4)];
        let Ok(pattern) = Pattern::parse(text) else { return };
        let payload = Bytes::copy_from_slice(argument);
        let qos1 = byte & 2 == 0;
        let command = match number {
            0 => Command::Join,
            1 => Command::Leave,
            2 => Command::Lookup { query, target: key, paths: byte % 5 },
            3 | 4 => Command::Subscribe { subscription, pattern, qos1 },
            5 => Command::Unsubscribe { subscription },
            6..=8 => Command::Publish { topic, payload, qos1, retain: byte & 4 == 0 },
            9 => Command::Provide { procedure },
            10 => Command::Withdraw { procedure },
            11 => Command::Call {
                query,
                procedure,
                body: payload,
                deadline: Duration::from_secs(byte.into()),
                policy: ProviderPolicy::Nearest,
                idempotent: qos1,
            },
            12 => match self.requests.pop() {
                Some(request) => Command::Respond { request, result: Ok(payload) },
                None => return,
            },
            13 => Command::Put { query, key, value: payload, lifetime: Duration::from_secs(60) },
            _ => Command::Fetch { query, key, kind: byte % 4 },
        };
        self.feed(Input::Command(command));
    }
}
