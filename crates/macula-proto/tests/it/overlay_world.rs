//! A small world of overlay nodes in virtual time: fixed places on a plane, messages that take as
//! long as the way is, links that come up after a handshake and go down when somebody dies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use macula_proto::id::QueryId;
use macula_proto::overlay::{
    Command, Config, Contact, Event, Input, Message, Notary, Output, Overlay,
};
use macula_proto::{EndpointId, Key, KeyKind, LinkId, RealmId, Time};
use sha2::{Digest, Sha256};

/// Signs by a keyed hash that only the world knows: nodes cannot forge each other's signatures.
pub struct WorldNotary;

impl Notary for WorldNotary {
    fn sign(&self, author: &EndpointId, message: &[u8]) -> [u8; 64] {
        let digest = Sha256::new()
            .chain_update(b"the world's secret")
            .chain_update(author.as_bytes())
            .chain_update(message)
            .finalize();
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(&digest);
        signature
    }

    fn verify(&self, author: &EndpointId, message: &[u8], signature: &[u8; 64]) -> bool {
        self.sign(author, message) == *signature
    }
}

enum Happening {
    Input(Input),
    Dialled(EndpointId),
}

pub struct World {
    pub now: Time,
    pub nodes: Vec<Option<Overlay>>,
    pub ids: Vec<EndpointId>,
    /// What each node's application has heard and no test has taken yet.
    pub events: Vec<Vec<Event>>,
    /// Messages to a node that its wire swallows, by what this says.
    pub swallow: Vec<fn(&Message) -> bool>,
    /// What a node does to each message before it sends it, told who it is itself.
    pub tamper: Vec<fn(&mut Message, Contact)>,
    /// The side of the rift that each node is on.
    side: Option<fn(usize) -> bool>,
    config: Arc<Config>,
    realm: RealmId,
    index: BTreeMap<EndpointId, usize>,
    links: BTreeMap<(usize, LinkId), (usize, LinkId)>,
    queue: BTreeMap<(Time, u64), (usize, Happening)>,
    arrivals: BTreeMap<(usize, LinkId), Time>,
    timers: Vec<Option<Time>>,
    wakes: BTreeSet<(Time, usize)>,
    count: u64,
}

pub fn id(number: u64) -> EndpointId {
    EndpointId::from_bytes(Sha256::digest(number.to_be_bytes()).into())
}

pub fn realm() -> RealmId {
    RealmId::of_name("org.example.overlay")
}

pub fn key(name: &str) -> Key {
    Key::derive(&realm(), KeyKind::Record, name.as_bytes())
}

impl World {
    pub fn new() -> Self {
        Self {
            now: Time::START,
            nodes: Vec::new(),
            ids: Vec::new(),
            events: Vec::new(),
            swallow: Vec::new(),
            tamper: Vec::new(),
            side: None,
            config: Arc::new(Config::new(Arc::new(WorldNotary))),
            realm: realm(),
            index: BTreeMap::new(),
            links: BTreeMap::new(),
            queue: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            timers: Vec::new(),
            wakes: BTreeSet::new(),
            count: 0,
        }
    }

    /// `count` nodes that joined one after the other, and settled.
    pub fn of(count: usize) -> Self {
        let mut world = Self::new();
        for _ in 0..count {
            world.add();
            world.run(Duration::from_millis(500));
        }
        world.run(Duration::from_secs(60));
        let joined = world.events.iter().flatten().filter(|e| matches!(e, Event::Joined)).count();
        assert_eq!(joined, count, "all have joined");
        world.events.iter_mut().for_each(Vec::clear);
        world
    }

    /// A new node, joining by way of one that is alive.
    pub fn add(&mut self) -> usize {
        let node = self.nodes.len();
        let me = id(node as u64);
        self.ids.push(me);
        self.index.insert(me, node);
        let overlay = Overlay::new(me, self.realm, self.config.clone(), node as u64);
        self.nodes.push(Some(overlay));
        self.events.push(Vec::new());
        self.swallow.push(|_| false);
        self.tamper.push(|_, _| {});
        self.timers.push(None);
        let host = (0..node).rev().find(|other| self.is_alive(*other));
        if let Some(host) = host {
            self.link(node, host);
        }
        self.command(node, Command::Join);
        node
    }

    pub fn is_alive(&self, node: usize) -> bool {
        self.nodes[node].is_some()
    }

    pub fn live(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.is_alive(*node)).collect()
    }

    pub fn node(&self, node: usize) -> &Overlay {
        self.nodes[node].as_ref().expect("alive")
    }

    /// One way, between 1 and about 40 ms.
    fn latency(&self, a: usize, b: usize) -> Duration {
        let place = |node: usize| {
            let bytes = self.ids[node].as_bytes();
            (f64::from(bytes[0]) / 10.0, f64::from(bytes[1]) / 10.0)
        };
        let (p, q) = (place(a), place(b));
        Duration::from_secs_f64(((p.0 - q.0).hypot(p.1 - q.1) + 1.0) / 1000.0)
    }

    fn schedule(&mut self, at: Time, node: usize, what: Happening) {
        self.count += 1;
        self.queue.insert((at, self.count), (node, what));
    }

    /// Connects two nodes, if both are alive and not connected yet.
    pub fn link(&mut self, a: usize, b: usize) {
        if !self.is_alive(a) {
            return;
        }
        let peer = self.ids[b];
        if !self.is_alive(b) || self.is_across(a, b) {
            return self.feed(a, Input::DialFailed { peer });
        }
        if a == b || self.links.iter().any(|((from, _), (to, _))| (*from, *to) == (a, b)) {
            return;
        }
        self.count += 2;
        let (here, there) = (LinkId(self.count), LinkId(self.count + 1));
        self.count += 1;
        self.links.insert((a, here), (b, there));
        self.links.insert((b, there), (a, here));
        let rtt = self.latency(a, b) * 2;
        let (peer_a, peer_b) = (self.ids[a], self.ids[b]);
        self.feed(b, Input::LinkUp { link: there, peer: peer_a, rtt, net: a as u32 });
        self.feed(a, Input::LinkUp { link: here, peer: peer_b, rtt, net: b as u32 });
    }

    pub fn command(&mut self, node: usize, command: Command) {
        self.feed(node, Input::Command(command));
    }

    /// Gives a node an input at this moment and does what it wants.
    pub fn feed(&mut self, node: usize, input: Input) {
        let now = self.now;
        let Some(mut overlay) = self.nodes[node].take() else { return };
        overlay.handle(now, input);
        let mut closed = Vec::new();
        while let Some(output) = overlay.poll_output() {
            match output {
                Output::Send { link, mut message } => {
                    (self.tamper[node])(&mut message, overlay.me());
                    let Some(&(to, there)) = self.links.get(&(node, link)) else { continue };
                    let soonest = self.arrivals.get(&(node, link)).copied().unwrap_or(now);
                    let at = (now + self.latency(node, to)).max(soonest);
                    self.arrivals.insert((node, link), at);
                    let input = Input::Received { link: there, message };
                    self.schedule(at, to, Happening::Input(input));
                }
                Output::Dial { peer } | Output::Redial { peer } => {
                    let rtt = self.latency(node, self.index[&peer]) * 2;
                    self.schedule(now + rtt, node, Happening::Dialled(peer));
                }
                Output::Close { link } => closed.push(link),
                Output::Event(event) => self.events[node].push(event),
            }
        }
        let due = overlay.poll_timeout().map(|due| due.max(now));
        if let Some(old) = self.timers[node] {
            self.wakes.remove(&(old, node));
        }
        self.timers[node] = due;
        self.wakes.extend(due.map(|due| (due, node)));
        self.nodes[node] = Some(overlay);
        for link in closed {
            self.cut(node, link, self.latency(node, node));
        }
    }

    /// Ends a link; the other side hears of it after a while.
    fn cut(&mut self, node: usize, link: LinkId, after: Duration) {
        let Some((other, there)) = self.links.remove(&(node, link)) else { return };
        self.links.remove(&(other, there));
        self.schedule(self.now + after, other, Happening::Input(Input::LinkDown { link: there }));
    }

    /// A node dies without a word; its neighbours' transports notice after five seconds.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node] = None;
        if let Some(due) = self.timers[node].take() {
            self.wakes.remove(&(due, node));
        }
        let links: Vec<LinkId> =
            self.links.keys().filter(|(of, _)| *of == node).map(|(_, link)| *link).collect();
        for link in links {
            // the other end stays, and speaks into the void
            if let Some((other, there)) = self.links.remove(&(node, link)) {
                let down = Happening::Input(Input::LinkDown { link: there });
                self.schedule(self.now + Duration::from_secs(5), other, down);
            }
        }
    }

    /// Lets time pass.
    pub fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let next = self.queue.first_key_value().map(|((at, _), _)| *at);
            let wake = self.wakes.first().map(|(at, _)| *at);
            let Some(at) = [next, wake].into_iter().flatten().min().filter(|at| *at <= end) else {
                break;
            };
            self.now = at;
            if next == Some(at) {
                let (_, (node, what)) = self.queue.pop_first().expect("seen");
                match what {
                    Happening::Input(Input::Received { message, .. })
                        if (self.swallow[node])(&message) => {}
                    Happening::Input(input) => self.feed(node, input),
                    Happening::Dialled(peer) => self.link(node, self.index[&peer]),
                }
            } else if let Some((_, node)) = self.wakes.pop_first() {
                self.timers[node] = None;
                self.feed(node, Input::Timeout);
            }
        }
        self.now = end;
    }

    /// Opens a rift: nothing gets across, links over it go down after five seconds.
    pub fn split(&mut self, side: fn(usize) -> bool) {
        self.side = Some(side);
        let across: Vec<(usize, LinkId)> = self
            .links
            .iter()
            .filter(|((a, _), (b, _))| side(*a) != side(*b))
            .map(|(end, _)| *end)
            .collect();
        for (node, link) in across {
            self.links.remove(&(node, link));
            let down = Happening::Input(Input::LinkDown { link });
            self.schedule(self.now + Duration::from_secs(5), node, down);
        }
    }

    /// Closes the rift.
    pub fn heal(&mut self) {
        self.side = None;
    }

    fn is_across(&self, a: usize, b: usize) -> bool {
        self.side.is_some_and(|side| side(a) != side(b))
    }

    /// Takes the events of a node.
    pub fn take(&mut self, node: usize) -> Vec<Event> {
        std::mem::take(&mut self.events[node])
    }

    /// The live node closest to a key.
    pub fn closest(&self, key: &Key) -> usize {
        let distance = |node: &usize| self.node(*node).me().key.distance(key);
        self.live().into_iter().min_by_key(distance).expect("somebody lives")
    }

    /// Looks a key up and returns whom it found.
    pub fn lookup(&mut self, from: usize, target: Key, paths: u8) -> Option<EndpointId> {
        let query = QueryId(self.count + 1_000_000);
        self.count += 1;
        self.command(from, Command::Lookup { query, target, paths });
        self.run(Duration::from_secs(40));
        self.take(from).into_iter().find_map(|event| match event {
            Event::LookupDone { query: of, closest, .. } if of == query => {
                closest.first().map(|contact| contact.id)
            }
            _ => None,
        })
    }
}
