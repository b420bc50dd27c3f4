//! A share of the nodes and what happens to them.
//!
//! A shard handles one window of virtual time node by node, without looking at other shards. What
//! its nodes send goes to the queue of the receiver's shard and cannot arrive in the same window.
//! The order of events at a node depends on times and numbers only, never on the number of shards.

use std::time::Duration;

use macula_proto::overlay::{
    Answer, Body, Command, Event, Input, Load, Message, Output, Overlay, Reply, TreeAct,
};
use macula_proto::time::Time;
use macula_proto::{EndpointId, LinkId};

use crate::bytes::{recode, wire_bytes};
use crate::dice::{Dice, mix};
use crate::histogram::Histogram;
use crate::hosts::{Hosts, Role, micros};
use crate::queue::{Queue, WINDOW_MICROS, window_of};

/// Something that will happen to a node.
#[derive(Debug)]
pub(crate) struct Happening {
    /// Microseconds.
    pub(crate) time: u64,
    pub(crate) to: u32,
    pub(crate) from: u32,
    /// Number among those of `from`.
    pub(crate) number: u32,
    pub(crate) what: What,
}

/// `from` of what the director does.
pub(crate) const DIRECTOR: u32 = u32::MAX;

/// What happens.
#[derive(Debug)]
pub(crate) enum What {
    /// The node asked to be woken.
    Wake,
    /// A message.
    Message(LinkId, Message),
    /// Somebody dials.
    Dialled { link: LinkId, latency: u32, relay: Option<u32> },
    /// The other side of an own dial is there.
    Linked { link: LinkId, latency: u32, relay: Option<u32> },
    /// An own dial has taken too long.
    DialTimeout { link: LinkId },
    /// A link is gone, noticed here.
    Down { link: LinkId },
    /// The same after the processing delay of a slow node.
    Late(Box<Self>),
    /// The application wants something.
    Command(Box<Command>),
    /// Link with these, then join.
    Bootstrap(Box<[u32]>),
    /// The machine wakes from sleep.
    Thaw,
}

/// What the director hears of.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) time: u64,
    pub(crate) node: u32,
    pub(crate) what: Heard,
}

#[derive(Debug)]
pub(crate) enum Heard {
    Event(Event),
    /// None of those that a joiner tried to link with answered.
    BootstrapFailed,
}

/// One end of a link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) peer: u32,
    /// One way, microseconds.
    latency: u32,
    pub(crate) relay: Option<u32>,
    /// Nothing sent later arrives before this.
    last: u64,
}

#[derive(Clone, Copy, Debug)]
struct Dial {
    link: LinkId,
    peer: u32,
    is_bootstrap: bool,
}

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) overlay: Option<Box<Overlay>>,
    /// Links, and their ends in the same order.
    pub(crate) links: Vec<LinkId>,
    pub(crate) ends: Vec<End>,
    dials: Vec<Dial>,
    dice: Dice,
    /// Happenings that this node has caused.
    number: u32,
    /// Links that this node has dialled.
    dialled: u32,
    /// Window of the wake that counts; those in other windows are stale.
    next_wake: u64,
    /// When the uplink has sent all that it was given, microseconds.
    uplink_free: u64,
    /// Bytes a second.
    uplink: u32,
    /// How far the node's clock is ahead, microseconds.
    pub(crate) clock_ahead: u64,
    pub(crate) asleep_until: u64,
    /// Processing delay, microseconds.
    pub(crate) slow: u32,
    wants_join: bool,
    /// When it last passed on data of a tree; 0: never.
    pub(crate) forwarded_at: u64,
    /// Bodies that it has passed on to children, bytes.
    pub(crate) forwarded: u64,
    /// The last data that it passed on, and how often.
    copies: (u64, u32),
    /// Everything that has happened to it.
    pub(crate) digest: u64,
}

const NEVER: u64 = u64::MAX;

impl Node {
    pub(crate) fn new(seed: u64, index: u32, uplink: u32) -> Self {
        Self {
            overlay: None,
            links: Vec::new(),
            ends: Vec::new(),
            dials: Vec::new(),
            dice: Dice::new(seed, 0x6e6f_6465_0000_0000 | u64::from(index)),
            number: 0,
            dialled: 0,
            next_wake: NEVER,
            uplink_free: 0,
            uplink,
            clock_ahead: 0,
            asleep_until: 0,
            slow: 0,
            wants_join: false,
            forwarded_at: 0,
            forwarded: 0,
            copies: (0, 0),
            digest: 0,
        }
    }

    fn next_number(&mut self) -> u32 {
        self.number = self.number.wrapping_add(1);
        self.number
    }

    fn end_of(&self, link: LinkId) -> Option<usize> {
        self.links.iter().position(|other| *other == link)
    }

    fn link_with(&self, peer: u32) -> Option<LinkId> {
        let place = self.ends.iter().position(|end| end.peer == peer)?;
        Some(self.links[place])
    }

    fn take_end(&mut self, link: LinkId) -> Option<End> {
        let place = self.end_of(link)?;
        self.links.swap_remove(place);
        Some(self.ends.swap_remove(place))
    }

    fn add_end(&mut self, link: LinkId, end: End) {
        self.links.push(link);
        self.ends.push(end);
    }

    /// Forgets everything but its numbers, which must never repeat.
    pub(crate) fn stop(&mut self) {
        self.overlay = None;
        (self.links, self.ends, self.dials) = (Vec::new(), Vec::new(), Vec::new());
        self.next_wake = NEVER;
        self.wants_join = false;
        (self.clock_ahead, self.asleep_until, self.slow) = (0, 0, 0);
    }

    /// Peers that an own dial may still link with, and the links.
    pub(crate) fn open_dials(&self) -> impl Iterator<Item = (u32, LinkId)> {
        self.dials.iter().map(|dial| (dial.peer, dial.link))
    }
}

/// What a shard has counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) happenings: u64,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) wakes: u64,
    /// Routed hops, all and within one region.
    pub(crate) hops: u64,
    pub(crate) hops_within: u64,
    /// Links made.
    pub(crate) direct: u64,
    pub(crate) relayed: u64,
    pub(crate) dials_failed: u64,
    pub(crate) dials_redundant: u64,
    pub(crate) ttl_exceeded: u64,
    /// Copies of one message that a node sent to children, at most.
    pub(crate) copies_max: u32,
    /// Depth of trees, as parents tell it.
    pub(crate) depth: Histogram,
    pub(crate) by_kind: [u64; 12],
}

impl Tally {
    pub(crate) fn merge(&mut self, other: &Self) {
        self.happenings += other.happenings;
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.wakes += other.wakes;
        self.hops += other.hops;
        self.hops_within += other.hops_within;
        self.direct += other.direct;
        self.relayed += other.relayed;
        self.dials_failed += other.dials_failed;
        self.dials_redundant += other.dials_redundant;
        self.ttl_exceeded += other.ttl_exceeded;
        self.copies_max = self.copies_max.max(other.copies_max);
        self.depth.merge(&other.depth);
        self.by_kind.iter_mut().zip(other.by_kind).for_each(|(own, more)| *own += more);
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) nodes: Vec<Node>,
    pub(crate) air: Air,
}

/// What is around the nodes of a shard.
#[derive(Debug)]
pub(crate) struct Air {
    pub(crate) index: usize,
    pub(crate) shards: usize,
    queue: Queue<Happening>,
    wakes: Queue<u32>,
    /// For each shard, until the window ends.
    pub(crate) outboxes: Vec<Vec<Happening>>,
    /// The first window that something in an outbox is for.
    sent_first: u64,
    /// From other shards, not yet in the queue.
    pub(crate) inbox: Vec<Vec<Happening>>,
    /// The first window in which anything happens, without what is in the inbox.
    next: u64,
    pub(crate) reports: Vec<Report>,
    pub(crate) tally: Tally,
}

impl Shard {
    pub(crate) fn new(index: usize, shards: usize) -> Self {
        let air = Air {
            index,
            shards,
            queue: Queue::new(),
            wakes: Queue::new(),
            outboxes: (0..shards).map(|_| Vec::new()).collect(),
            sent_first: NEVER,
            inbox: Vec::new(),
            next: NEVER,
            reports: Vec::new(),
            tally: Tally::default(),
        };
        Self { nodes: Vec::new(), air }
    }

    /// Adds what the director causes.
    pub(crate) fn push(&mut self, happening: Happening) {
        let window = window_of(happening.time);
        self.air.queue.push(window, happening);
        self.air.next = self.air.next.min(window.max(self.air.queue.next_window()));
    }

    /// The next window in which anything happens here, or by what was sent from here in the last one.
    pub(crate) fn next(&self) -> u64 {
        self.air.next.min(self.air.sent_first)
    }

    /// Handles one window.
    pub(crate) fn run(&mut self, hosts: &Hosts, window: u64) {
        for mut mail in std::mem::take(&mut self.air.inbox) {
            for happening in mail.drain(..) {
                self.air.queue.push(window_of(happening.time), happening);
            }
        }
        self.air.sent_first = NEVER;
        let mut happenings = self.air.queue.take(window);
        let mut wakes = self.air.wakes.take(window);
        for node in wakes.drain(..) {
            happenings.push(Happening {
                time: window * WINDOW_MICROS,
                to: node,
                from: 0,
                number: 0,
                what: What::Wake,
            });
        }
        self.air.wakes.recycle(wakes);
        happenings.sort_unstable_by_key(|h| (h.to, h.time, h.from, h.number));
        for happening in happenings.drain(..) {
            let node = &mut self.nodes[happening.to as usize / self.air.shards];
            node.happen(&mut self.air, hosts, window, happening);
        }
        self.air.queue.recycle(happenings);
        let first = |a: Option<u64>| a.unwrap_or(NEVER);
        self.air.next = first(self.air.queue.first()).min(first(self.air.wakes.first()));
    }
}

impl Node {
    fn happen(&mut self, air: &mut Air, hosts: &Hosts, window: u64, happening: Happening) {
        let Happening { time, to: me, from, number, what } = happening;
        if self.overlay.is_none() || (time < self.asleep_until && !matches!(what, What::Thaw)) {
            return;
        }
        if matches!(what, What::Wake) {
            if self.next_wake != window {
                return;
            }
            self.next_wake = NEVER;
            air.tally.wakes += 1;
        }
        air.tally.happenings += 1;
        self.digest = mix(self.digest ^ mix(time ^ (u64::from(from) << 32) ^ u64::from(number)));
        if self.slow > 0 && matches!(what, What::Message(..)) {
            let time = time + u64::from(self.slow);
            let what = What::Late(Box::new(what));
            air.queue.push(window_of(time), Happening { time, to: me, from, number, what });
            return;
        }
        self.digest ^= what_kind(&what);
        let mut at = At { me, time, window, hosts, air };
        match what {
            What::Late(late) => self.handle_what(&mut at, from, *late),
            other => self.handle_what(&mut at, from, other),
        }
        self.schedule(&mut at);
    }

    fn handle_what(&mut self, at: &mut At<'_>, from: u32, what: What) {
        match what {
            What::Wake => self.handle(at, Input::Timeout),
            What::Message(link, message) => self.received(at, link, message),
            What::Dialled { link, latency, relay } => {
                self.dialled(at, from, link, latency, relay);
            }
            What::Linked { link, latency, relay } => self.linked(at, from, link, latency, relay),
            What::DialTimeout { link } => self.dial_timeout(at, link),
            What::Down { link } => {
                if self.take_end(link).is_some() {
                    self.handle(at, Input::LinkDown { link });
                }
            }
            What::Late(_) => {}
            What::Command(command) => self.handle(at, Input::Command(*command)),
            What::Bootstrap(peers) => {
                self.wants_join = true;
                if peers.is_empty() {
                    self.wants_join = false;
                    self.handle(at, Input::Command(Command::Join));
                }
                peers.iter().for_each(|peer| self.dial(at, *peer, true));
            }
            What::Thaw => self.handle(at, Input::Timeout),
        }
    }

    /// Gives the overlay an input and does what it wants.
    fn handle(&mut self, at: &mut At<'_>, input: Input) {
        let Some(mut overlay) = self.overlay.take() else { return };
        let now = Time::from_micros(at.time + self.clock_ahead);
        overlay.handle(now, input);
        while let Some(output) = overlay.poll_output() {
            match output {
                Output::Send { link, message } => self.send(at, link, message),
                Output::Dial { peer } | Output::Redial { peer } => {
                    let realm = at.hosts.get(at.me).realm;
                    match at.hosts.find(realm, &peer) {
                        Some(peer) if peer != at.me => self.dial(at, peer, false),
                        _ => overlay.handle(now, Input::DialFailed { peer }),
                    }
                }
                Output::Close { link } => self.close(at, link),
                Output::Event(Event::Request { request, procedure, body, .. }) => {
                    let _ = procedure;
                    let respond = Command::Respond { request, result: Ok(body) };
                    let what = What::Command(Box::new(respond));
                    self.cause(at, at.me, at.time + 2 * WINDOW_MICROS, what);
                }
                Output::Event(event) => {
                    let what = Heard::Event(event);
                    at.air.reports.push(Report { time: at.time, node: at.me, what });
                }
            }
        }
        self.overlay = Some(overlay);
    }

    /// Sees to it that the node is woken when it wants to be.
    fn schedule(&mut self, at: &mut At<'_>) {
        let Some(overlay) = &self.overlay else { return };
        let Some(wanted) = overlay.poll_timeout() else { return };
        let micros = wanted.as_micros().saturating_sub(self.clock_ahead);
        // up to the next window, so that wakes share it with messages
        let window = window_of(micros.saturating_add(WINDOW_MICROS - 1)).max(at.window + 1);
        if window < self.next_wake {
            self.next_wake = window;
            at.air.wakes.push(window, at.me);
        }
    }

    fn cause(&mut self, at: &mut At<'_>, to: u32, time: u64, what: What) {
        let time = time.max(at.time + WINDOW_MICROS);
        let happening = Happening { time, to, from: at.me, number: self.next_number(), what };
        let shard = to as usize % at.air.shards;
        if shard == at.air.index {
            at.air.queue.push(window_of(time), happening);
        } else {
            at.air.sent_first = at.air.sent_first.min(window_of(time));
            at.air.outboxes[shard].push(happening);
        }
    }

    fn send(&mut self, at: &mut At<'_>, link: LinkId, message: Message) {
        let Some(place) = self.end_of(link) else { return };
        let network = &at.hosts.network;
        let bytes = wire_bytes(&message);
        if let Message::Tree(tree) = &message {
            self.note_tree(at, &tree.act);
        }
        // the uplink sends one message after the other
        let sending = (bytes as u64 * 1_000_000) / u64::from(self.uplink.max(1));
        let leaves = self.uplink_free.max(at.time) + sending;
        self.uplink_free = leaves;
        let latency = f64::from(self.ends[place].latency);
        let mut travels = latency * (1.0 + network.jitter * self.dice.unit());
        // a lost packet is sent again after a round trip and a bit, and holds back what follows
        let mut again = 2.25 * latency;
        while self.dice.chance(network.loss) && again < 1e7 {
            travels += again;
            again *= 2.0;
        }
        let end = &mut self.ends[place];
        let arrives = (leaves + travels as u64).max(end.last + 1).max(at.time + WINDOW_MICROS);
        end.last = arrives;
        let peer = end.peer;
        at.air.tally.messages += 1;
        at.air.tally.bytes += bytes as u64;
        self.cause(at, peer, arrives, What::Message(link, message));
    }

    fn note_tree(&mut self, at: &mut At<'_>, act: &TreeAct) {
        if let TreeAct::Data { load: Load::Batch(batch), .. } = act {
            self.forwarded += batch.body.len() as u64;
        }
        match act {
            TreeAct::Data { at: cursor, replay: false, load: Load::Batch(batch) } => {
                self.forwarded_at = at.time;
                let name = mix(cursor.stream ^ mix(batch.first ^ mix(cursor.offset)));
                self.copies = (name, if self.copies.0 == name { self.copies.1 + 1 } else { 1 });
                at.air.tally.copies_max = at.air.tally.copies_max.max(self.copies.1);
            }
            TreeAct::Joined { depth, .. } => at.air.tally.depth.add(u64::from(*depth) + 1),
            _ => {}
        }
    }

    fn received(&mut self, at: &mut At<'_>, link: LinkId, message: Message) {
        let Some(place) = self.end_of(link) else { return };
        let End { peer, relay, .. } = self.ends[place];
        let (hosts, tally) = (at.hosts, &mut at.air.tally);
        if hosts.partition.is_some()
            && (hosts.is_cut(peer, at.me)
                || relay.is_some_and(|r| hosts.is_cut(r, at.me) || hosts.is_cut(r, peer)))
        {
            return;
        }
        tally.by_kind[message_kind(&message)] += 1;
        self.digest = mix(self.digest ^ wire_bytes(&message) as u64);
        let own = hosts.get(at.me);
        if let Message::Route(route) = &message {
            tally.hops += 1;
            tally.hops_within += u64::from(own.region == hosts.get(peer).region);
            if u64::from(route.hops) + u64::from(route.ttl) > 20 {
                tally.ttl_exceeded += 1;
            }
        }
        if !own.role.is_honest() {
            if let Some(message) = self.misbehave(at, own.role, link, message) {
                self.handle(at, Input::Received { link, message });
            }
            return;
        }
        let message = match hosts.realms.get(usize::from(own.realm)) {
            Some(realm) if hosts.network.encode => recode(realm, message),
            _ => message,
        };
        self.handle(at, Input::Received { link, message });
    }

    /// What a Byzantine node does with a message; gives it back when it behaves for once.
    fn misbehave(
        &mut self,
        at: &mut At<'_>,
        role: Role,
        link: LinkId,
        message: Message,
    ) -> Option<Message> {
        match message {
            Message::Route(route) if role.drops() => {
                self.send(at, link, Message::Ack { id: route.id });
                None
            }
            Message::Tree(tree) if role.drops() && matches!(tree.act, TreeAct::Data { .. }) => None,
            Message::Route(route)
                if role == Role::Liar
                    && matches!(route.body, Body::Find { .. } | Body::Near { .. }) =>
            {
                let me = self.overlay.as_ref().map(|overlay| overlay.me())?;
                let reply = match route.body {
                    Body::Near { .. } => Reply::Near(vec![me]),
                    _ => Reply::Closest(vec![me]),
                };
                let answer = Answer { id: route.id, hops: route.hops, reply };
                self.send(at, link, Message::Ack { id: route.id });
                self.send(at, link, Message::Answer(Box::new(answer)));
                None
            }
            other => Some(other),
        }
    }

    fn dial(&mut self, at: &mut At<'_>, peer: u32, is_bootstrap: bool) {
        if self.link_with(peer).is_some() || self.dials.iter().any(|dial| dial.peer == peer) {
            at.air.tally.dials_redundant += 1;
            if is_bootstrap {
                self.join_if_wanted(at);
            }
            return;
        }
        self.dialled += 1;
        let link = LinkId(u64::from(at.me) << 32 | u64::from(self.dialled));
        self.dials.push(Dial { link, peer, is_bootstrap });
        let timeout = at.time + micros(at.hosts.network.dial_timeout);
        if let Some(path) = at.hosts.path(at.me, peer) {
            let arrives = at.time + u64::from(path.extra) + u64::from(path.latency);
            let what = What::Dialled { link, latency: path.latency, relay: path.relay };
            self.cause(at, peer, arrives, what);
        }
        self.cause(at, at.me, timeout, What::DialTimeout { link });
    }

    /// Somebody dials this node.
    fn dialled(
        &mut self,
        at: &mut At<'_>,
        from: u32,
        link: LinkId,
        latency: u32,
        relay: Option<u32>,
    ) {
        if at.hosts.is_cut(from, at.me) {
            return;
        }
        if let Some(own) = self.dials.iter().position(|dial| dial.peer == from) {
            // both dial at once: the link of the one with the smaller id stays
            if at.hosts.get(at.me).id < at.hosts.get(from).id {
                return;
            }
            self.dials.swap_remove(own);
        }
        if let Some(old) = self.link_with(from) {
            // it would not dial if it still had the old one
            self.take_end(old);
            self.handle(at, Input::LinkDown { link: old });
        }
        self.add_end(link, End { peer: from, latency, relay, last: 0 });
        // what is sent on the link must not overtake the handshake
        let answer = at.time + u64::from(latency);
        if let Some(place) = self.end_of(link) {
            self.ends[place].last = answer.max(at.time + WINDOW_MICROS);
        }
        self.cause(at, from, answer, What::Linked { link, latency, relay });
        if relay.is_some() {
            at.air.tally.relayed += 1;
        } else {
            at.air.tally.direct += 1;
        }
        self.link_up(at, from, link, latency);
    }

    /// The node that this one dialled has answered.
    fn linked(
        &mut self,
        at: &mut At<'_>,
        from: u32,
        link: LinkId,
        latency: u32,
        relay: Option<u32>,
    ) {
        let Some(place) = self.dials.iter().position(|dial| dial.link == link) else {
            // given up in the meantime, or the other's own dial was taken
            let down = What::Down { link };
            self.cause(at, from, at.time + u64::from(latency), down);
            return;
        };
        self.dials.swap_remove(place);
        if at.hosts.is_cut(from, at.me) {
            return;
        }
        if let Some(old) = self.link_with(from) {
            self.take_end(old);
            self.handle(at, Input::LinkDown { link: old });
        }
        self.add_end(link, End { peer: from, latency, relay, last: 0 });
        self.link_up(at, from, link, latency);
        self.join_if_wanted(at);
    }

    fn link_up(&mut self, at: &mut At<'_>, peer: u32, link: LinkId, latency: u32) {
        let host = at.hosts.get(peer);
        let jitter = 1.0 + at.hosts.network.jitter * self.dice.unit();
        let rtt = Duration::from_micros((2.0 * f64::from(latency) * jitter) as u64);
        let (peer, net) = (host.id, host.net);
        self.handle(at, Input::LinkUp { link, peer, rtt, net });
    }

    fn join_if_wanted(&mut self, at: &mut At<'_>) {
        if std::mem::take(&mut self.wants_join) {
            self.handle(at, Input::Command(Command::Join));
        }
    }

    fn dial_timeout(&mut self, at: &mut At<'_>, link: LinkId) {
        let Some(place) = self.dials.iter().position(|dial| dial.link == link) else { return };
        let dial = self.dials.swap_remove(place);
        at.air.tally.dials_failed += 1;
        let peer: EndpointId = at.hosts.get(dial.peer).id;
        if !dial.is_bootstrap {
            self.handle(at, Input::DialFailed { peer });
        } else if self.wants_join && !self.dials.iter().any(|dial| dial.is_bootstrap) {
            self.wants_join = false;
            let what = Heard::BootstrapFailed;
            at.air.reports.push(Report { time: at.time, node: at.me, what });
        }
    }

    fn close(&mut self, at: &mut At<'_>, link: LinkId) {
        let Some(end) = self.take_end(link) else { return };
        let arrives = (at.time + u64::from(end.latency)).max(end.last + 1);
        self.cause(at, end.peer, arrives, What::Down { link });
    }
}

/// Where and when something happens.
struct At<'a> {
    me: u32,
    time: u64,
    window: u64,
    hosts: &'a Hosts,
    air: &'a mut Air,
}

const fn what_kind(what: &What) -> u64 {
    match what {
        What::Wake => 1,
        What::Message(..) => 2,
        What::Dialled { .. } => 3,
        What::Linked { .. } => 4,
        What::DialTimeout { .. } => 5,
        What::Down { .. } => 6,
        What::Late(_) => 7,
        What::Command(_) => 8,
        What::Bootstrap(_) => 9,
        What::Thaw => 10,
    }
}

/// Names of [`Tally::by_kind`].
pub(crate) const MESSAGE_KINDS: [&str; 12] = [
    "route",
    "ack",
    "nack",
    "answer",
    "siblings",
    "keep",
    "leave",
    "probe",
    "alive",
    "replicate",
    "kept",
    "tree",
];

const fn message_kind(message: &Message) -> usize {
    match message {
        Message::Route(_) => 0,
        Message::Ack { .. } => 1,
        Message::Nack { .. } => 2,
        Message::Answer(_) => 3,
        Message::Siblings { .. } => 4,
        Message::Keep { .. } => 5,
        Message::Leave => 6,
        Message::Probe { .. } => 7,
        Message::Alive { .. } => 8,
        Message::Replicate { .. } => 9,
        Message::Kept { .. } => 10,
        Message::Tree(_) => 11,
    }
}
