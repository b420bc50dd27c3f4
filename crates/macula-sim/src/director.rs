//! Makes happen what a scenario says, and compares what comes out with what should.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use macula_proto::id::{QueryId, SubscriptionId};
use macula_proto::limits::ROUTES_WATCHED_MAX;
use macula_proto::overlay::{Command, Config, Event};
use macula_proto::pubsub::{Pattern, ProcedureName, Topic};
use macula_proto::wire::message::ProviderPolicy;
use macula_proto::{Key, KeyKind, RealmId};
use sha2::{Digest, Sha256};

use crate::dice::{Dice, mix};
use crate::hosts::{Hosts, NewHost, Partition, Role, micros};
use crate::memory::resident_bytes;
use crate::notary::SimNotary;
use crate::oracle::{DELIVERY_WITHIN, Oracle};
use crate::scenario::{Scenario, Step};
use crate::shard::{Heard, MESSAGE_KINDS, Report};
use crate::summary::{LookupFigures, Share, Summary};
use crate::truth::Truth;
use crate::world::World;

/// The director looks at the world this often, microseconds.
const TICK: u64 = 10_000;
const SECOND: u64 = 1_000_000;
/// A joiner is given so many peers to begin with.
const BOOTSTRAP_PEERS: usize = 2;
/// So many nodes of a realm join by its gateways; later ones mostly by others.
const GATEWAY_JOINS: usize = 1000;
/// A node that has not joined after this is asked to try again.
const JOIN_RETRY: u64 = 30 * SECOND;
/// All that was asked of the overlay must have ended after this.
const PATIENCE: u64 = 60 * SECOND;
/// Tables are looked at this often, of so many nodes.
const INSPECT_EVERY: u64 = 5 * SECOND;
const INSPECTED: usize = 1000;
/// A forwarder is a node that has passed something on within this.
const FORWARDED_WITHIN: u64 = 5 * SECOND;

/// How a scenario is run.
#[derive(Clone, Debug)]
pub struct Run {
    /// Nodes; none given: as the scenario says.
    pub nodes: Option<u32>,
    /// Everything random comes from it.
    pub seed: u64,
    /// 1 or more; the result is the same.
    pub threads: usize,
    /// Lookups in each `lookups` step that does not say how many.
    pub lookups: Option<u32>,
    /// Overrides the scenario.
    pub proximity: Option<bool>,
    /// Tells how many bytes the process has allocated; [`Summary::overlay_bytes_per_node`] needs it.
    pub allocated: Option<fn() -> u64>,
}

impl Default for Run {
    fn default() -> Self {
        Self { nodes: None, seed: 1, threads: 1, lookups: None, proximity: None, allocated: None }
    }
}

/// How far a run is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Virtual time.
    pub seconds: f64,
    /// Steps done, and all; joining is the first.
    pub step: (usize, usize),
    /// What the step is.
    pub doing: &'static str,
    /// Nodes that have joined.
    pub joined: usize,
    /// Things that have happened.
    pub events: u64,
}

/// Runs a scenario to its end. `progress` hears of it about once a virtual second.
pub fn run(scenario: &Scenario, run: &Run, progress: &mut dyn FnMut(&Progress)) -> Summary {
    if !scenario.compare_proximity || run.proximity.is_some() {
        return Director::new(scenario, run).play(progress);
    }
    let without = Run { proximity: Some(false), ..run.clone() };
    let plain = Director::new(scenario, &without).play(progress);
    let with = Run { proximity: Some(true), ..run.clone() };
    let mut summary = Director::new(scenario, &with).play(progress);
    let mut put = |name: &str, value: f64| {
        summary.extra.insert(name.into(), value);
    };
    put("intra_region_share_without_proximity", plain.intra_region_share);
    put("latency_p50_ms_without_proximity", plain.lookup_millis().quantile(0.5) as f64);
    put("latency_p99_ms_without_proximity", plain.lookup_millis().quantile(0.99) as f64);
    put("hops_mean_without_proximity", plain.hops().mean());
    // the second world grows into the room that the first has left
    summary.bytes_per_node = plain.bytes_per_node;
    summary.violations += plain.violations;
    summary.violations_spelt.extend(plain.violations_spelt);
    summary.wall_seconds += plain.wall_seconds;
    summary.virtual_seconds += plain.virtual_seconds;
    summary
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Off,
    Joining,
    Joined,
    /// Gone for good.
    Gone,
}

/// How a lookup is done.
#[derive(Clone, Copy, Debug)]
enum Lookup {
    Routed { paths: u8 },
    Iterative,
}

/// Something that the director will do.
#[derive(Clone, Debug)]
enum Action {
    JoinWave,
    JoinRetry { node: u32, start: u32 },
    JoinNew,
    Death { node: u32, start: u32, replace: bool },
    Leave { node: u32 },
    Stop { node: u32 },
    Lookup { phase: usize, way: Lookup },
    Publish { node: u32, start: u32, stream: Stream },
    KillForwarder { every: u64, until: u64 },
    Call { procedure: ProcedureName, share: usize, realm: u8 },
    Fetch { key: Key, value: Bytes, share: usize, realm: u8 },
    Flood { node: u32 },
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    topic: u32,
    every: u64,
    until: u64,
    payload: usize,
    qos1: bool,
}

/// A question to the overlay that has not ended.
#[derive(Clone, Debug)]
enum Question {
    Lookup { phase: usize, node: u32, started: u64, target: Key, truth: Option<u32> },
    Call { share: usize },
    Put { share: usize },
    Fetch { share: usize, value: Bytes },
    Done,
}

/// Sessions of nodes under churn.
#[derive(Clone, Copy, Debug)]
struct Sessions {
    shape: f64,
    scale: f64,
    until: u64,
}

pub(crate) struct Director<'a> {
    scenario: &'a Scenario,
    options: Run,
    nodes: u32,
    world: World,
    notary: Arc<SimNotary>,
    dice: Dice,
    truths: Vec<Truth>,
    /// Of the same, without nodes that misbehave.
    honest: Vec<Truth>,
    states: Vec<State>,
    starts: Vec<u32>,
    /// Joined nodes by realm, and where each is in there.
    joined: Vec<Vec<u32>>,
    places: Vec<u32>,
    gateways: Vec<Vec<u32>>,
    agenda: BTreeMap<(u64, u64), Action>,
    planned: u64,
    questions: Vec<Question>,
    open: usize,
    phases: Vec<LookupFigures>,
    shares: Vec<(String, Share)>,
    oracle: Oracle,
    topics: Vec<(Topic, u8)>,
    /// Numbers of topics by realm and name.
    topic_numbers: BTreeMap<(u8, Topic), u32>,
    last_publish: u64,
    partition_since: Option<u64>,
    sessions: Option<Sessions>,
    next_to_join: u32,
    summary: Summary,
    resident_before: Option<u64>,
    step: (usize, &'static str),
    told: u64,
    fan: Option<(u32, Vec<u32>, usize)>,
    /// The largest tables seen.
    largest: BTreeMap<&'static str, usize>,
}

impl<'a> Director<'a> {
    pub(crate) fn new(scenario: &'a Scenario, options: &Run) -> Self {
        let resident_before = resident_bytes();
        let nodes = options.nodes.unwrap_or(scenario.nodes).max(2);
        let notary = Arc::new(SimNotary::new(options.seed));
        let mut config = Config::new(notary.clone());
        let tuning = &scenario.overlay;
        config.proximity = options.proximity.or(tuning.proximity).unwrap_or(config.proximity);
        config.siblings = tuning.siblings.unwrap_or(config.siblings);
        config.links_per_bucket = tuning.links_per_bucket.unwrap_or(config.links_per_bucket);
        config.links_min = tuning.links_min.unwrap_or(config.links_min);
        config.links_max = tuning.links_max.unwrap_or(config.links_max);
        config.links_cap = tuning.links_cap.unwrap_or(config.links_cap);
        config.children_max = tuning.children_max.unwrap_or(config.children_max);
        let realms: Vec<RealmId> =
            (0..scenario.realms).map(|realm| RealmId::of_name(&format!("sim.{realm}"))).collect();
        let mut network = scenario.network.clone();
        network.nodes_hint = nodes;
        let count = realms.len();
        let hosts = Hosts::new(network, realms, Arc::new(config), options.seed);
        let mut director = Self {
            scenario,
            options: options.clone(),
            nodes,
            world: World::new(hosts, options.threads),
            notary,
            dice: Dice::new(options.seed, 0x6469_7265),
            truths: (0..count).map(|_| Truth::new()).collect(),
            honest: (0..count).map(|_| Truth::new()).collect(),
            states: Vec::new(),
            starts: Vec::new(),
            joined: vec![Vec::new(); count],
            places: Vec::new(),
            gateways: vec![Vec::new(); count],
            agenda: BTreeMap::new(),
            planned: 0,
            questions: Vec::new(),
            open: 0,
            phases: Vec::new(),
            shares: Vec::new(),
            oracle: Oracle::default(),
            topics: Vec::new(),
            topic_numbers: BTreeMap::new(),
            last_publish: 0,
            partition_since: None,
            sessions: None,
            next_to_join: 0,
            summary: Summary::default(),
            resident_before,
            step: (0, "join"),
            told: 0,
            fan: None,
            largest: BTreeMap::new(),
        };
        director.populate();
        director
    }

    /// Draws all nodes; none runs yet.
    fn populate(&mut self) {
        let per_realm = self.nodes / u32::from(self.scenario.realms);
        let wanted = self.scenario.join.gateways.unwrap_or(4 + per_realm / 1000);
        let gateways = wanted.clamp(1, per_realm.max(1)) * u32::from(self.scenario.realms);
        let byzantine = self.scenario.byzantine;
        for index in 0..self.nodes {
            let is_gateway = index < gateways;
            let mut new = NewHost {
                realm: (index % u32::from(self.scenario.realms)) as u8,
                is_gateway,
                ..NewHost::default()
            };
            if !is_gateway {
                let mut draw = self.dice.unit();
                for (share, role) in [
                    (byzantine.droppers, Role::Dropper),
                    (byzantine.liars, Role::Liar),
                    (byzantine.flooders, Role::Flooder),
                    (byzantine.squatters, Role::Squatter),
                ] {
                    if (0.0..share).contains(&draw) {
                        new.role = role;
                    }
                    draw -= share;
                }
                if new.role == Role::Squatter {
                    let victim = Key::from_bytes(self.dice.bytes());
                    new.beside = Some((victim, byzantine.squat_bits));
                }
            }
            let node = self.add(new);
            if is_gateway {
                self.gateways[usize::from(new.realm)].push(node);
            }
        }
    }

    fn add(&mut self, new: NewHost) -> u32 {
        self.states.push(State::Off);
        self.starts.push(0);
        self.places.push(u32::MAX);
        self.world.add(new)
    }

    pub(crate) fn play(mut self, progress: &mut dyn FnMut(&Progress)) -> Summary {
        let began = Instant::now();
        self.plan(0, Action::JoinWave);
        let wanted = self.nodes as usize;
        let mut patience = u64::MAX;
        while self.joined_count() < wanted && self.world.now() < patience {
            self.tick(progress);
            if self.next_to_join >= self.nodes && patience == u64::MAX {
                patience = self.world.now() + 3 * PATIENCE;
            }
        }
        if self.joined_count() < wanted {
            let missing = wanted - self.joined_count();
            let now = self.world.now();
            self.oracle.violation(now, format!("{missing} nodes have not joined"));
        }
        self.summary.extra.insert("join_seconds".into(), self.world.now() as f64 / 1e6);
        self.pass(self.scenario.join.settle, progress);
        let steps = &self.scenario.steps;
        for (index, step) in steps.iter().enumerate() {
            self.step = (index + 1, name_of(step));
            self.take_step(step, progress);
        }
        self.end(began.elapsed())
    }

    fn take_step(&mut self, step: &Step, progress: &mut dyn FnMut(&Progress)) {
        let now = self.world.now();
        match step {
            Step::Wait { length } => self.pass(*length, progress),
            Step::Measure {} => self.measure(),
            Step::Lookups { phase, count, over, paths, iterative, background } => {
                let count = count
                    .or(self.options.lookups)
                    .unwrap_or_else(|| self.nodes.clamp(1000, 100_000));
                let phase = self.lookup_phase(phase);
                self.phases[phase].iterative = *iterative;
                let way =
                    if *iterative { Lookup::Iterative } else { Lookup::Routed { paths: *paths } };
                let gap = micros(*over) as f64 / f64::from(count.max(1));
                for number in 0..count {
                    let at = now + (f64::from(number) * gap) as u64;
                    self.plan(at, Action::Lookup { phase, way });
                }
                if !background {
                    self.pass(*over, progress);
                    self.wait_for_answers(progress);
                }
            }
            Step::Kill { share, gateways, region } => {
                let region = region.as_deref().and_then(|name| self.scenario.region(name));
                let victims = self.choose(*share, |hosts, node| {
                    let host = hosts.get(node);
                    (!gateways || host.is_gateway) && region.is_none_or(|r| host.region == r)
                });
                self.fault(format!("{} nodes die", victims.len()));
                victims.into_iter().for_each(|node| self.kill(node));
            }
            Step::Leave { share, over } => {
                for node in self.choose(*share, |hosts, node| !hosts.get(node).is_gateway) {
                    let at = now + self.dice.below(micros(*over) as usize + 1) as u64;
                    self.plan(at, Action::Leave { node });
                }
                self.fault("nodes leave".into());
            }
            Step::Join { share, over, within } => self.join_more(*share, *over, *within, progress),
            Step::Partition { share, regions } => self.cut(*share, regions),
            Step::Heal {} => self.heal(),
            Step::Churn { per_hour, shape, length } => {
                self.fault("churn begins".into());
                self.churn(*per_hour, *shape, *length);
            }
            Step::Traffic { .. } => self.traffic(step),
            Step::KillForwarders { every, length } => {
                self.fault("forwarders die".into());
                let (every, until) = (micros(*every).max(TICK), now + micros(*length));
                self.plan(now, Action::KillForwarder { every, until });
                self.pass(*length, progress);
            }
            Step::Forwarded { phase, over } => self.forwarded(phase, *over, progress),
            Step::Drain {} => self.drain(progress),
            Step::Calls { .. } => self.calls(step, progress),
            Step::Store { .. } => self.store(step, progress),
            Step::Sleep { share, length } => {
                for node in self.choose(*share, |_, _| true) {
                    self.world.sleep(node, *length);
                }
                let until = now + micros(*length + Duration::from_secs(20));
                self.oracle.disturbed(now, until);
                self.fault("nodes sleep".into());
            }
            Step::ClockJump { share, by } => {
                for node in self.choose(*share, |_, _| true) {
                    self.world.jump_clock(node, *by);
                }
                self.fault("clocks jump".into());
            }
            Step::Slow { share, delay } => {
                for node in self.choose(*share, |_, _| true) {
                    self.world.slow_down(node, *delay);
                }
                self.fault("nodes are slow".into());
            }
            Step::Converge { within, probes, right } => {
                self.converge(*within, *probes, *right, progress);
            }
        }
    }

    // ---- time

    fn plan(&mut self, at: u64, action: Action) {
        self.planned += 1;
        self.agenda.insert((at, self.planned), action);
    }

    fn pass(&mut self, length: Duration, progress: &mut dyn FnMut(&Progress)) {
        let until = self.world.now() + micros(length);
        while self.world.now() < until {
            self.tick(progress);
        }
    }

    fn tick(&mut self, progress: &mut dyn FnMut(&Progress)) {
        let until = self.world.now() + TICK;
        while let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 < until) {
            let ((at, _), action) = entry.remove_entry();
            self.act(at.max(self.world.now()), action);
        }
        for report in self.world.advance(until) {
            self.hear(report);
        }
        if until % INSPECT_EVERY < TICK {
            self.inspect();
        }
        if until >= self.told + SECOND {
            self.told = until;
            progress(&Progress {
                seconds: until as f64 / 1e6,
                step: (self.step.0, self.scenario.steps.len() + 1),
                doing: self.step.1,
                joined: self.joined_count(),
                events: self.world.happened(),
            });
        }
    }

    fn act(&mut self, at: u64, action: Action) {
        match action {
            Action::JoinWave => self.join_wave(at),
            Action::JoinRetry { node, start } => {
                if self.is_state(node, start, State::Joining) {
                    let peers = self.peers_for(node);
                    self.world.bootstrap(node, &peers, at);
                    self.plan(at + JOIN_RETRY, Action::JoinRetry { node, start });
                }
            }
            Action::JoinNew => {
                self.join_new(at);
            }
            Action::Death { node, start, replace } => {
                if self.starts[node as usize] == start
                    && !matches!(self.states[node as usize], State::Off | State::Gone)
                {
                    self.kill(node);
                    if replace {
                        self.join_new(at);
                    }
                }
            }
            Action::Leave { node } => {
                if self.states[node as usize] == State::Joined {
                    self.forget(node);
                    self.world.command(node, at, Command::Leave);
                    self.plan(at + SECOND, Action::Stop { node });
                }
            }
            Action::Stop { node } => self.world.stop(node),
            Action::Lookup { phase, way } => {
                let realm = self.dice.below(self.joined.len());
                if let Some(node) = self.any_honest(realm) {
                    let target = Key::from_bytes(self.dice.bytes());
                    self.look_up(phase, node, target, way, at);
                }
            }
            Action::Publish { node, start, stream } => self.publish(at, node, start, stream),
            Action::KillForwarder { every, until } => {
                self.kill_forwarder();
                if at + every < until {
                    self.plan(at + every, Action::KillForwarder { every, until });
                }
            }
            Action::Call { procedure, share, realm } => {
                if let Some(node) = self.any_honest(usize::from(realm)) {
                    let query = self.ask(Question::Call { share });
                    self.shares[share].1.total += 1;
                    let command = Command::Call {
                        query,
                        procedure,
                        body: Bytes::from_static(b"hello"),
                        deadline: Duration::from_secs(10),
                        policy: ProviderPolicy::Nearest,
                        idempotent: true,
                    };
                    self.world.command(node, at, command);
                }
            }
            Action::Fetch { key, value, share, realm } => {
                if let Some(node) = self.any_honest(usize::from(realm)) {
                    let query = self.ask(Question::Fetch { share, value });
                    self.shares[share].1.total += 1;
                    let kind = macula_proto::overlay::kind::USER;
                    self.world.command(node, at, Command::Fetch { query, key, kind });
                }
            }
            Action::Flood { node } => self.flood(at, node),
        }
    }

    // ---- nodes

    fn joined_count(&self) -> usize {
        self.joined.iter().map(Vec::len).sum()
    }

    fn is_state(&self, node: u32, start: u32, state: State) -> bool {
        self.starts[node as usize] == start && self.states[node as usize] == state
    }

    /// So many join now as the scenario lets join in a tenth of a second.
    fn join_wave(&mut self, at: u64) {
        let join = &self.scenario.join;
        let present = self.joined_count() as f64;
        let per_wave = (join.growth * present).max(join.per_second_min) / 10.0;
        let whole = per_wave.floor();
        let count = whole as u32 + u32::from(self.dice.chance(per_wave - whole));
        // the first of each realm is there before the others come
        let realms = u32::from(self.scenario.realms);
        let count = if self.next_to_join < realms { realms } else { count };
        let is_ready = self.next_to_join < realms || self.joined.iter().all(|all| !all.is_empty());
        for _ in 0..if is_ready { count } else { 0 } {
            if self.next_to_join >= self.nodes {
                return;
            }
            let node = self.next_to_join;
            self.next_to_join += 1;
            self.start(node, at + self.dice.clone().below(100_000) as u64);
            self.dice.u64();
        }
        self.plan(at + SECOND / 10, Action::JoinWave);
    }

    fn start(&mut self, node: u32, at: u64) {
        self.states[node as usize] = State::Joining;
        self.starts[node as usize] += 1;
        let peers = self.peers_for(node);
        self.world.start(node, &peers, at);
        let start = self.starts[node as usize];
        self.plan(at + JOIN_RETRY, Action::JoinRetry { node, start });
        if self.world.hosts.get(node).role == Role::Flooder {
            self.plan(at + JOIN_RETRY, Action::Flood { node });
        }
    }

    /// Whom a node begins with: gateways as long as there are few nodes, then others it remembers.
    fn peers_for(&mut self, node: u32) -> Vec<u32> {
        let realm = usize::from(self.world.hosts.get(node).realm);
        let joined = &self.joined[realm];
        let live: Vec<u32> = self.gateways[realm]
            .iter()
            .filter(|gateway| self.states[**gateway as usize] == State::Joined && **gateway != node)
            .copied()
            .collect();
        let mut peers = Vec::new();
        let by_gateway = GATEWAY_JOINS as f64 / joined.len().max(1) as f64;
        for _ in 0..BOOTSTRAP_PEERS * 4 {
            let peer = if !live.is_empty() && self.dice.chance(by_gateway) {
                live[self.dice.below(live.len())]
            } else if joined.is_empty() {
                break;
            } else {
                joined[self.dice.below(joined.len())]
            };
            if peer != node && !peers.contains(&peer) {
                peers.push(peer);
            }
            if peers.len() == BOOTSTRAP_PEERS {
                break;
            }
        }
        peers
    }

    fn join_new(&mut self, at: u64) -> u32 {
        let realm = self.dice.below(self.joined.len()) as u8;
        let node = self.add(NewHost { realm, ..NewHost::default() });
        self.start(node, at);
        if let Some(sessions) = self.sessions.filter(|sessions| at < sessions.until) {
            let length = self.dice.weibull(sessions.shape, sessions.scale);
            let (end, start) = (at + (length * 1e6) as u64, self.starts[node as usize]);
            if end < sessions.until {
                self.plan(end, Action::Death { node, start, replace: true });
            }
        }
        node
    }

    fn join_more(
        &mut self,
        share: f64,
        over: Duration,
        within: Duration,
        progress: &mut dyn FnMut(&Progress),
    ) {
        let now = self.world.now();
        let count = (share * f64::from(self.nodes)).round() as usize;
        let first = self.states.len();
        for _ in 0..count {
            let at = now + self.dice.below(micros(over) as usize + 1) as u64;
            self.plan(at, Action::JoinNew);
        }
        self.pass(over, progress);
        let deadline = self.world.now() + micros(within);
        let missing = |director: &Self| {
            (first..director.states.len()).filter(|n| director.states[*n] == State::Joining).count()
        };
        while missing(self) > 0 && self.world.now() < deadline {
            self.tick(progress);
        }
        let missing = missing(self);
        let share = Share { total: count as u64, ok: (count - missing.min(count)) as u64 };
        self.shares.push(("joins".into(), share));
        if missing > 0 {
            let now = self.world.now();
            self.oracle.violation(now, format!("{missing} of {count} new nodes have not joined"));
        }
    }

    fn on_joined(&mut self, node: u32) {
        if self.states[node as usize] != State::Joining {
            return;
        }
        self.states[node as usize] = State::Joined;
        let host = self.world.hosts.get(node);
        let realm = usize::from(host.realm);
        self.truths[realm].insert(host.key, node);
        if host.role.is_honest() {
            self.honest[realm].insert(host.key, node);
        }
        self.places[node as usize] = self.joined[realm].len() as u32;
        self.joined[realm].push(node);
    }

    /// The node does not count any more.
    fn forget(&mut self, node: u32) {
        if self.states[node as usize] == State::Joined {
            let host = self.world.hosts.get(node);
            let realm = usize::from(host.realm);
            self.truths[realm].remove(&host.key);
            self.honest[realm].remove(&host.key);
            let place = self.places[node as usize] as usize;
            self.joined[realm].swap_remove(place);
            if let Some(moved) = self.joined[realm].get(place) {
                self.places[*moved as usize] = place as u32;
            }
        }
        self.states[node as usize] = State::Gone;
        let now = self.world.now();
        self.oracle.gone(node, now);
    }

    fn kill(&mut self, node: u32) {
        self.forget(node);
        self.world.kill(node);
    }

    fn any(&mut self, realm: usize) -> Option<u32> {
        let place = self.dice.below(self.joined[realm].len());
        self.joined[realm].get(place).copied()
    }

    /// A node that does what it should and is awake.
    fn any_honest(&mut self, realm: usize) -> Option<u32> {
        (0..100).find_map(|_| {
            let node = self.any(realm)?;
            let is_awake = self.world.node(node).asleep_until <= self.world.now();
            (is_awake && self.world.hosts.get(node).role.is_honest()).then_some(node)
        })
    }

    /// This share of the joined nodes that fit.
    fn choose(&mut self, share: f64, fits: impl Fn(&Hosts, u32) -> bool) -> Vec<u32> {
        let hosts = &self.world.hosts;
        let mut pool: Vec<u32> =
            self.joined.iter().flatten().copied().filter(|node| fits(hosts, *node)).collect();
        pool.sort_unstable();
        let count = (share * pool.len() as f64).round() as usize;
        self.dice.sample(&pool, count)
    }

    fn fault(&mut self, name: String) {
        let now = self.world.now() as f64 / 1e6;
        self.summary.faults.push((now, name));
    }

    fn churn(&mut self, per_hour: f64, shape: f64, length: Duration) {
        let now = self.world.now();
        let mean = 3600.0 / per_hour.max(1e-9);
        let scale = mean / gamma(1.0 + 1.0 / shape);
        let until = now + micros(length);
        self.sessions = Some(Sessions { shape, scale, until });
        let mut nodes: Vec<u32> = self.joined.iter().flatten().copied().collect();
        nodes.sort_unstable();
        for node in nodes {
            if self.world.hosts.get(node).is_gateway {
                continue;
            }
            // what remains of a session that one looks into at random: longer ones are met more often
            let session = scale * draw_gamma(1.0 + 1.0 / shape, &mut self.dice).powf(1.0 / shape);
            let end = now + (session * self.dice.unit() * 1e6) as u64;
            if end < until {
                let start = self.starts[node as usize];
                self.plan(end, Action::Death { node, start, replace: true });
            }
        }
    }

    fn kill_forwarder(&mut self) {
        let now = self.world.now();
        let (mut forwarders, mut others) = (Vec::new(), Vec::new());
        let nodes: Vec<u32> = self.joined.iter().flatten().copied().collect();
        for node in nodes {
            let at = self.world.node(node).forwarded_at;
            if at > 0 && at + FORWARDED_WITHIN > now {
                forwarders.push(node);
            } else {
                others.push(node);
            }
        }
        let publishing: Vec<u32> = self
            .agenda
            .values()
            .filter_map(|action| match action {
                Action::Publish { node, .. } => Some(*node),
                _ => None,
            })
            .collect();
        let oracle = &self.oracle;
        forwarders.retain(|node| !oracle.takes_part(*node) && !publishing.contains(node));
        forwarders.sort_unstable();
        let victim = self.dice.sample(&forwarders, 1).pop();
        *self.summary.extra.entry("forwarders_killed".into()).or_default() +=
            f64::from(u8::from(victim.is_some()));
        if let Some(victim) = victim {
            self.kill(victim);
        }
    }

    fn flood(&mut self, at: u64, node: u32) {
        if self.states[node as usize] == State::Gone {
            return;
        }
        for _ in 0..5 {
            let name = format!("flood.{:016x}", self.dice.u64());
            let subscription = SubscriptionId(1 << 31 | self.dice.u64() >> 34);
            if let Ok(pattern) = Pattern::parse(&name) {
                let command = Command::Subscribe { subscription, pattern, qos1: true };
                self.world.command(node, at, command);
            }
            let query = self.ask(Question::Done);
            let command = Command::Put {
                query,
                key: Key::from_bytes(self.dice.bytes()),
                value: Bytes::from(vec![7; 1000]),
                lifetime: Duration::from_secs(3600),
            };
            self.world.command(node, at, command);
        }
        self.plan(at + SECOND, Action::Flood { node });
    }

    // ---- the network

    fn cut(&mut self, share: f64, regions: &[String]) {
        let regions = (!regions.is_empty()).then(|| {
            let mut sides = vec![0; self.scenario.network.region.len()];
            for name in regions {
                if let Some(region) = self.scenario.region(name) {
                    sides[usize::from(region)] = 1;
                }
            }
            sides
        });
        let seed = mix(self.options.seed ^ self.world.now());
        self.world.hosts.partition = Some(Partition { regions, share, seed });
        self.world.break_links(|own, peer, hosts, relay| {
            hosts.is_cut(own, peer)
                || relay.is_some_and(|r| hosts.is_cut(own, r) || hosts.is_cut(r, peer))
        });
        self.partition_since = Some(self.world.now());
        self.fault("partition".into());
    }

    fn heal(&mut self) {
        self.world.hosts.partition = None;
        if let Some(since) = self.partition_since.take() {
            let until = self.world.now() + 30 * SECOND;
            self.oracle.disturbed(since, until);
        }
        self.fault("healed".into());
    }

    fn converge(
        &mut self,
        within: Duration,
        probes: u32,
        right: f64,
        progress: &mut dyn FnMut(&Progress),
    ) {
        let since = self.world.now();
        loop {
            let began = self.world.now();
            let phase = self.phases.len();
            self.phases.push(LookupFigures::default());
            for number in 0..probes {
                let at = began + u64::from(number) * SECOND / u64::from(probes.max(1));
                self.plan(at, Action::Lookup { phase, way: Lookup::Routed { paths: 1 } });
            }
            self.pass(Duration::from_secs(1), progress);
            self.wait_for_answers(progress);
            let figures = self.phases.pop().unwrap_or_default();
            let after = began - since;
            if figures.total > 0 && figures.ok as f64 >= right * figures.total as f64 {
                self.summary.converged_after.push(after as f64 / 1e6);
                return;
            }
            if after > micros(within) {
                let (ok, total) = (figures.ok, figures.total);
                let stated = within.as_secs_f64();
                self.oracle.violation(
                    began,
                    format!("not converged after {stated} s: {ok} of {total} lookups right"),
                );
                return;
            }
        }
    }

    // ---- lookups, calls, values

    fn lookup_phase(&mut self, name: &str) -> usize {
        self.phases.push(LookupFigures { phase: name.into(), ..LookupFigures::default() });
        self.phases.len() - 1
    }

    fn ask(&mut self, question: Question) -> QueryId {
        self.open += usize::from(!matches!(question, Question::Done));
        self.questions.push(question);
        QueryId(self.questions.len() as u64 - 1)
    }

    fn look_up(&mut self, phase: usize, node: u32, target: Key, way: Lookup, at: u64) {
        let realm = usize::from(self.world.hosts.get(node).realm);
        let truth = self.truths[realm].closest(&target);
        let query = self.ask(Question::Lookup { phase, node, started: at, target, truth });
        let command = match way {
            Lookup::Routed { paths } => Command::Lookup { query, target, paths },
            Lookup::Iterative => Command::Walk { query, target },
        };
        self.world.command(node, at, command);
    }

    /// Until all questions have an answer; those of nodes that died never get one.
    fn wait_for_answers(&mut self, progress: &mut dyn FnMut(&Progress)) {
        let until = self.world.now() + PATIENCE;
        while self.open > 0 && self.world.now() < until {
            self.tick(progress);
        }
        if self.open == 0 {
            return;
        }
        let now = self.world.now();
        let mut unanswered = 0;
        for place in 0..self.questions.len() {
            let question = std::mem::replace(&mut self.questions[place], Question::Done);
            if let Question::Lookup { phase, node, .. } = question
                && self.states[node as usize] == State::Joined
            {
                unanswered += 1;
                self.phases[phase].total += 1;
                self.phases[phase].failed += 1;
            }
        }
        self.open = 0;
        if unanswered > 0 {
            self.oracle.violation(now, format!("{unanswered} lookups have not ended"));
        }
    }

    fn looked_up(&mut self, report: &Report, question: Question, event: &Event) {
        let Question::Lookup { phase, node, started, target, truth } = question else { return };
        let (closest, hops, attempts) = match event {
            Event::LookupDone { closest, hops, attempts, .. } => {
                (closest, *hops, u64::from(*attempts))
            }
            Event::WalkDone { closest, steps, asked, .. } => (closest, *steps, u64::from(*asked)),
            _ => return,
        };
        if node != report.node {
            let what = "a lookup was answered to somebody else".to_owned();
            return self.oracle.violation(report.time, what);
        }
        let realm = usize::from(self.world.hosts.get(node).realm);
        let now_truth = self.truths[realm].closest(&target);
        let hosts = &self.world.hosts;
        let found = closest.first().and_then(|contact| hosts.find(realm as u8, &contact.id));
        let distance = |node: u32| hosts.get(node).key.distance(&target);
        let mut right = found.is_some_and(|found| {
            Some(found) == truth
                || Some(found) == now_truth
                // one that has just come up and is even closer
                || (hosts.get(found).is_alive
                    && now_truth.is_none_or(|truth| distance(found) < distance(truth)))
        });
        if !right && self.honest[realm].len() < self.truths[realm].len() {
            // those that misbehave may hide themselves, but not others
            let honest = closest
                .iter()
                .filter_map(|contact| hosts.find(realm as u8, &contact.id))
                .find(|node| hosts.get(*node).role.is_honest());
            right = honest.is_some() && honest == self.honest[realm].closest(&target);
        }
        let figures = &mut self.phases[phase];
        figures.total += 1;
        figures.ok += u64::from(right);
        figures.failed += u64::from(closest.is_empty());
        if !closest.is_empty() {
            figures.hops.add(u64::from(hops));
            figures.millis.add(report.time.saturating_sub(started) / 1000);
        }
        figures.attempts.add(attempts);
        let second = self.summary.timeline.entry(started / SECOND).or_default();
        second.lookups += 1;
        second.right += u64::from(right);
    }

    fn share(&mut self, name: String) -> usize {
        self.shares.push((name, Share::default()));
        self.shares.len() - 1
    }

    fn calls(&mut self, step: &Step, progress: &mut dyn FnMut(&Progress)) {
        let Step::Calls { phase, procedures, providers, count, over } = step else { return };
        let now = self.world.now();
        let share = self.share(phase.clone());
        let mut known = Vec::new();
        for number in 0..*procedures {
            let realm = (number % u32::from(self.scenario.realms)) as u8;
            let name = format!("sim.{phase}.{number}");
            let Ok(procedure) = ProcedureName::parse(&name) else { continue };
            let pool = self.honest_nodes(realm);
            for node in self.dice.sample(&pool, *providers as usize) {
                let command = Command::Provide { procedure: procedure.clone() };
                self.world.command(node, now, command);
            }
            known.push((procedure, realm));
        }
        self.pass(Duration::from_secs(5), progress);
        let now = self.world.now();
        for number in 0..*count {
            let at = now + micros(*over) * u64::from(number) / u64::from((*count).max(1));
            let Some((procedure, realm)) = known.get(self.dice.below(known.len())) else { break };
            let (procedure, realm) = (procedure.clone(), *realm);
            self.plan(at, Action::Call { procedure, share, realm });
        }
        self.pass(*over, progress);
        self.wait_for_answers(progress);
    }

    fn store(&mut self, step: &Step, progress: &mut dyn FnMut(&Progress)) {
        let Step::Store { phase, values, settle, fetches, over } = step else { return };
        let now = self.world.now();
        let puts = self.share(format!("{phase}_puts"));
        let gets = self.share(format!("{phase}_fetches"));
        let mut known = Vec::new();
        for number in 0..*values {
            let realm = (number % u32::from(self.scenario.realms)) as u8;
            let Some(node) = self.any_honest(usize::from(realm)) else { continue };
            let key = Key::from_bytes(self.dice.bytes());
            let value = Bytes::from(format!("value {number} of realm {realm}"));
            let query = self.ask(Question::Put { share: puts });
            self.shares[puts].1.total += 1;
            let lifetime = Duration::from_secs(600);
            let command = Command::Put { query, key, value: value.clone(), lifetime };
            self.world.command(node, now + self.dice.below(1_000_000) as u64, command);
            known.push((key, value, realm));
        }
        self.pass(Duration::from_secs(1) + *settle, progress);
        let now = self.world.now();
        for number in 0..*fetches {
            let at = now + micros(*over) * u64::from(number) / u64::from((*fetches).max(1));
            let Some(chosen) = known.get(self.dice.below(known.len())) else { break };
            let (key, value, realm) = chosen.clone();
            self.plan(at, Action::Fetch { key, value, share: gets, realm });
        }
        self.pass(*over, progress);
        self.wait_for_answers(progress);
    }

    fn honest_nodes(&self, realm: u8) -> Vec<u32> {
        let hosts = &self.world.hosts;
        let mut nodes: Vec<u32> = self.joined[usize::from(realm)]
            .iter()
            .copied()
            .filter(|node| hosts.get(*node).role.is_honest())
            .collect();
        nodes.sort_unstable();
        nodes
    }

    // ---- topics

    fn traffic(&mut self, step: &Step) {
        let Step::Traffic {
            phase,
            topics,
            publishers,
            subscribers,
            every,
            payload,
            qos1,
            patterns,
            settle,
            length,
        } = step
        else {
            return;
        };
        let now = self.world.now();
        let figures = self.oracle.phase(phase);
        for number in 0..*topics {
            let realm = (number % u32::from(self.scenario.realms)) as u8;
            // realms use the same names: nothing may cross
            let name = number / u32::from(self.scenario.realms);
            let Ok(topic) = Topic::parse(&format!("sim.{phase}.{name}.data")) else { continue };
            let place = self.oracle.topic(realm, figures);
            self.topics.push((topic.clone(), realm));
            self.topic_numbers.insert((realm, topic.clone()), place);
            let pool = self.honest_nodes(realm);
            let wanted = (*publishers + *subscribers) as usize;
            let mut chosen = self.dice.sample(&pool, wanted);
            let senders: Vec<u32> =
                chosen.drain(..(*publishers as usize).min(chosen.len())).collect();
            for (index, node) in chosen.iter().enumerate() {
                let is_pattern = *patterns && index % 10 == 9;
                let pattern = if is_pattern {
                    format!("sim.{phase}.{name}.*")
                } else {
                    topic.as_str().to_owned()
                };
                let Ok(pattern) = Pattern::parse(&pattern) else { continue };
                let at = now + self.dice.below(micros(*settle) as usize / 3 + 1) as u64;
                let subscription = self.oracle.subscribed(*node, place, is_pattern, at);
                let subscription = SubscriptionId(u64::from(subscription));
                let command = Command::Subscribe { subscription, pattern, qos1: *qos1 };
                self.world.command(*node, at, command);
            }
            let (begin, until) = (now + micros(*settle), now + micros(*settle) + micros(*length));
            self.last_publish = self.last_publish.max(until);
            let every = micros(*every).max(1000);
            let stream = Stream { topic: place, every, until, payload: *payload, qos1: *qos1 };
            for node in &senders {
                let start = self.starts[*node as usize];
                let at = begin + self.dice.below(every as usize) as u64;
                self.plan(at, Action::Publish { node: *node, start, stream });
            }
            let name = format!("subscribers_{phase}");
            *self.summary.extra.entry(name).or_default() += chosen.len() as f64;
            if let Some(publisher) = senders.first().filter(|_| self.scenario.name == "fanout") {
                self.fan = Some((*publisher, chosen, *payload));
            }
        }
    }

    /// Who passes bodies on, for a while.
    fn forwarded(&mut self, phase: &str, over: Duration, progress: &mut dyn FnMut(&Progress)) {
        let nodes = self.states.len() as u32;
        let (began, before) = (self.world.now(), self.forwarded_by(nodes));
        self.pass(over, progress);
        let now = self.forwarded_by(nodes);
        let grown = |node: u32| {
            let (now, before) = (now.get(node as usize), before.get(node as usize));
            now.copied().unwrap_or_default() - before.copied().unwrap_or_default()
        };
        let hosts = &self.world.hosts;
        let root = |(topic, realm): &(Topic, u8)| {
            let id = hosts.realms.get(usize::from(*realm))?;
            let key = Key::derive(id, KeyKind::Topic, topic.as_str().as_bytes());
            self.truths.get(usize::from(*realm))?.closest(&key)
        };
        let roots: BTreeSet<u32> = self.topics.iter().filter_map(root).collect();
        let by_roots: u64 = roots.into_iter().map(grown).sum();
        let all: u64 = (0..nodes).map(grown).sum();
        let delays = self.oracle.delays(began, self.world.now());
        let figures = [
            ("root_share_percent", 100.0 * by_roots as f64 / all.max(1) as f64),
            ("root_kilobytes_per_second", by_roots as f64 / 1000.0 / over.as_secs_f64()),
            ("delivery_p50_ms", delays.quantile(0.5) as f64),
            ("delivery_p99_ms", delays.quantile(0.99) as f64),
        ];
        for (name, value) in figures {
            self.summary.extra.insert(format!("{name}_{phase}"), value);
        }
    }

    fn forwarded_by(&mut self, nodes: u32) -> Vec<u64> {
        (0..nodes).map(|node| self.world.node(node).forwarded).collect()
    }

    fn publish(&mut self, at: u64, node: u32, start: u32, stream: Stream) {
        if !self.is_state(node, start, State::Joined) {
            return;
        }
        let payload =
            self.oracle.publishes((node, start), stream.topic, stream.qos1, at, stream.payload);
        let (topic, _) = self.topics[stream.topic as usize].clone();
        let command =
            Command::Publish { topic, payload: payload.into(), qos1: stream.qos1, retain: false };
        self.world.command(node, at, command);
        if at + stream.every < stream.until {
            self.plan(at + stream.every, Action::Publish { node, start, stream });
        }
    }

    fn drain(&mut self, progress: &mut dyn FnMut(&Progress)) {
        let until = self.last_publish + micros(DELIVERY_WITHIN);
        while self.world.now() < until {
            self.pass(Duration::from_secs(1), progress);
            let now = self.world.now();
            if now > self.last_publish + SECOND && self.oracle.is_complete(now) {
                break;
            }
        }
        self.wait_for_answers(progress);
    }

    // ---- what nodes say

    fn hear(&mut self, report: Report) {
        let Report { time, node, .. } = report;
        let event = match &report.what {
            Heard::BootstrapFailed => {
                let start = self.starts[node as usize];
                if self.is_state(node, start, State::Joining) {
                    let peers = self.peers_for(node);
                    let now = self.world.now();
                    self.world.bootstrap(node, &peers, now);
                }
                return;
            }
            Heard::Event(event) => event,
        };
        match event {
            Event::Joined => self.on_joined(node),
            Event::Lonely { .. } => {
                if matches!(self.states[node as usize], State::Joining | State::Joined) {
                    let peers = self.peers_for(node);
                    let now = self.world.now();
                    self.world.bootstrap(node, &peers, now);
                }
            }
            Event::LookupDone { query, .. } | Event::WalkDone { query, .. } => {
                let question = self.answered(*query, time);
                self.looked_up(&report, question, event);
            }
            Event::CallDone { query, result, .. } => {
                if let Question::Call { share } = self.answered(*query, time) {
                    self.shares[share].1.ok += u64::from(result.is_ok());
                }
            }
            Event::PutDone { query, result } => {
                if let Question::Put { share } = self.answered(*query, time) {
                    self.shares[share].1.ok += u64::from(result.is_ok());
                }
            }
            Event::FetchDone { query, records } => {
                if let Question::Fetch { share, value } = self.answered(*query, time) {
                    let is_right = records
                        .as_ref()
                        .is_some_and(|all| all.iter().any(|record| record.value == value));
                    self.shares[share].1.ok += u64::from(is_right);
                }
            }
            Event::Deliver { subscriptions, publish, replay } => {
                let realm = self.world.hosts.get(node).realm;
                let tag = self.world.hosts.realms[usize::from(realm)].tag();
                let subscriptions: Vec<u64> =
                    subscriptions.iter().map(|s| s.0).filter(|s| *s < 1 << 31).collect();
                self.oracle.delivered(node, &subscriptions, publish, *replay, tag, time);
            }
            Event::Published { topic, sequence, result } => {
                let realm = self.world.hosts.get(node).realm;
                if let Some(number) = self.topic_numbers.get(&(realm, topic.clone())) {
                    let start = self.starts[node as usize];
                    let told = (*sequence, result.is_ok());
                    self.oracle.published((node, start), *number, told, time);
                }
            }
            Event::Lost { count, .. } => {
                *self.summary.extra.entry("lost_told".into()).or_default() += *count as f64;
            }
            _ => {}
        }
    }

    fn answered(&mut self, query: QueryId, at: u64) -> Question {
        let Some(question) = self.questions.get_mut(query.0 as usize) else {
            self.oracle.violation(at, "an answer to a question that nobody asked".into());
            return Question::Done;
        };
        let question = std::mem::replace(question, Question::Done);
        if !matches!(question, Question::Done) {
            self.open = self.open.saturating_sub(1);
        }
        question
    }

    // ---- limits

    /// Looks whether tables of some nodes are within their limits.
    fn inspect(&mut self) {
        let now = self.world.now();
        let mut nodes: Vec<u32> = self.joined.iter().flatten().copied().collect();
        if nodes.len() > INSPECTED {
            let place = (now / INSPECT_EVERY) as usize * INSPECTED % nodes.len();
            nodes.rotate_left(place);
            nodes.truncate(INSPECTED);
            nodes.extend(self.gateways.iter().flatten());
        }
        let config = self.world.hosts.config.clone();
        for node in nodes {
            let state = self.world.node(node);
            let held = state.links.len();
            let is_awake = state.asleep_until <= now;
            let Some(overlay) = &state.overlay else { continue };
            let (sizes, trees) = (overlay.sizes(), overlay.tree_sizes());
            let limits = [
                (
                    "links",
                    sizes.links,
                    config.links_cap + config.traffic_links_max + config.newcomers_max,
                ),
                ("contacts", sizes.contacts, 160 * config.contacts_per_bucket),
                ("routes", sizes.routes, ROUTES_WATCHED_MAX),
                ("record bytes", sizes.record_bytes, config.store.bytes_max),
                ("trees", trees.trees, config.trees.trees_max),
                ("children of one tree", trees.children_max, config.children_max),
                ("source trees", trees.sources, config.trees.sources_max),
                ("ring bytes", trees.ring_bytes, config.trees.ring_bytes_max),
                ("retained bytes", trees.retained_bytes, config.trees.retained_bytes_max),
            ];
            for (name, size, limit) in limits {
                let largest = self.largest.entry(name).or_default();
                *largest = (*largest).max(size);
                if size > limit {
                    let what = format!("node {node} has {size} {name}, more than {limit}");
                    self.oracle.violation(now, what);
                }
            }
            if is_awake && held != sizes.links {
                let links = sizes.links;
                let what = format!("node {node} has {held} links and knows of {links}");
                self.oracle.violation(now, what);
            }
        }
    }

    // ---- figures

    fn measure(&mut self) {
        let nodes: Vec<u32> = self.joined.iter().flatten().copied().collect();
        for node in &nodes {
            let links = self.world.node(*node).links.len() as u64;
            self.summary.links.add(links);
        }
        if let (Some(before), Some(now)) = (self.resident_before, resident_bytes()) {
            let grown = now.saturating_sub(before);
            self.summary.bytes_per_node = Some(grown / nodes.len().max(1) as u64);
        }
    }

    fn end(mut self, wall: Duration) -> Summary {
        if self.summary.links.total() == 0 {
            self.measure();
        }
        let now = self.world.now();
        for (second, got, missing) in self.oracle.settle(now) {
            let entry = self.summary.timeline.entry(second).or_default();
            (entry.got, entry.missing) = (got, missing);
        }
        self.star();
        let tally = self.world.tally();
        if tally.ttl_exceeded > 0 {
            let what = format!("{} routed messages were beyond their TTL", tally.ttl_exceeded);
            self.oracle.violation(now, what);
        }
        let digest = self.digest();
        let counters = self.counters();
        let mut summary = std::mem::take(&mut self.summary);
        summary.scenario.clone_from(&self.scenario.name);
        summary.nodes = self.nodes;
        summary.seed = self.options.seed;
        summary.digest = digest;
        summary.lookups = std::mem::take(&mut self.phases);
        summary.traffic = self.oracle.phases().to_vec();
        summary.shares = std::mem::take(&mut self.shares).into_iter().collect();
        summary.virtual_seconds = now as f64 / 1e6;
        summary.wall_seconds = wall.as_secs_f64();
        summary.events = tally.happenings;
        summary.messages = tally.messages;
        summary.bytes = tally.bytes;
        summary.by_kind =
            MESSAGE_KINDS.iter().map(|kind| (*kind).to_owned()).zip(tally.by_kind).collect();
        (summary.direct, summary.relayed) = (tally.direct, tally.relayed);
        summary.dials_failed = tally.dials_failed;
        summary.dials_redundant = tally.dials_redundant;
        summary.intra_region_share = tally.hops_within as f64 / tally.hops.max(1) as f64;
        summary.duplicated = self.oracle.duplicated;
        summary.copies_max = tally.copies_max;
        summary.depth_max = tally.depth.max();
        summary.verifications = self.notary.counts().1;
        summary.violations = self.oracle.violations();
        summary.violations_spelt = self.oracle.spelt().to_vec();
        summary.counters = counters;
        for (name, largest) in &self.largest {
            summary.extra.insert(format!("largest_{}", name.replace(' ', "_")), *largest as f64);
        }
        self.weigh(&mut summary);
        summary
    }

    /// What the nodes' overlays hold on average, by what is free without them.
    fn weigh(&mut self, summary: &mut Summary) {
        let Some(allocated) = self.options.allocated else { return };
        let nodes: Vec<u32> = self.joined.iter().flatten().copied().collect();
        let count = nodes.len().max(1) as u64;
        let before = allocated();
        for node in &nodes {
            self.world.node(*node).overlay = None;
        }
        summary.allocated_bytes_per_node = Some(before / count);
        summary.overlay_bytes_per_node = Some(before.saturating_sub(allocated()) / count);
    }

    /// How long a star would take for the same subscribers: one hub with the uplink of a node, in
    /// the place of a gateway, sends to one after the other.
    fn star(&mut self) {
        let Some((publisher, subscribers, payload)) = self.fan.take() else { return };
        let hosts = &self.world.hosts;
        let sending = (payload + 150) as f64 * 1e6 / f64::from(hosts.network.uplink_bytes);
        let first = f64::from(hosts.latency(publisher, 0));
        let mut arrivals: Vec<f64> = subscribers
            .iter()
            .enumerate()
            .map(|(place, node)| {
                first + (place + 1) as f64 * sending + f64::from(hosts.latency(0, *node))
            })
            .collect();
        arrivals.sort_by(f64::total_cmp);
        let place = (arrivals.len() * 99).div_ceil(100).saturating_sub(1);
        let t99 = arrivals.get(place).copied().unwrap_or(0.0) / 1000.0;
        self.summary.extra.insert("star_t99_ms".into(), t99);
    }

    fn digest(&mut self) -> String {
        let mut hasher = Sha256::new();
        for node in 0..self.states.len() as u32 {
            hasher.update(self.world.node(node).digest.to_be_bytes());
        }
        hasher.update(self.oracle.digest.to_be_bytes());
        for phase in &self.phases {
            hasher.update(phase.ok.to_be_bytes());
            hasher.update(phase.total.to_be_bytes());
        }
        let bytes: [u8; 32] = hasher.finalize().into();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Sums of all live nodes' counters.
    fn counters(&mut self) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        let nodes: Vec<u32> = self.joined.iter().flatten().copied().collect();
        for node in nodes {
            let Some(overlay) = &self.world.node(node).overlay else { continue };
            // the counters have no list of their names but this
            let text = format!("{:?}", overlay.stats());
            let fields = text.split_once('{').map_or("", |(_, rest)| rest.trim_end_matches('}'));
            for field in fields.split(',') {
                if let Some((name, value)) = field.split_once(':')
                    && let Ok(value @ 1..) = value.trim().parse::<u64>()
                {
                    *sums.entry(name.trim().to_owned()).or_default() += value;
                }
            }
        }
        sums
    }
}

const fn name_of(step: &Step) -> &'static str {
    match step {
        Step::Wait { .. } => "wait",
        Step::Measure {} => "measure",
        Step::Lookups { .. } => "lookups",
        Step::Kill { .. } => "kill",
        Step::Leave { .. } => "leave",
        Step::Join { .. } => "join more",
        Step::Partition { .. } => "partition",
        Step::Heal {} => "heal",
        Step::Churn { .. } => "churn",
        Step::Traffic { .. } => "traffic",
        Step::KillForwarders { .. } => "kill forwarders",
        Step::Forwarded { .. } => "forwarded",
        Step::Drain {} => "drain",
        Step::Calls { .. } => "calls",
        Step::Store { .. } => "store",
        Step::Sleep { .. } => "sleep",
        Step::ClockJump { .. } => "clock jump",
        Step::Slow { .. } => "slow",
        Step::Converge { .. } => "converge",
    }
}

/// The gamma function (Lanczos).
fn gamma(x: f64) -> f64 {
    const C: [f64; 9] = [
        0.999_999_999_999_809_9,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    let x = x - 1.0;
    let t = x + 7.5;
    let sum: f64 =
        C.iter().enumerate().skip(1).map(|(i, c)| c / (x + i as f64)).sum::<f64>() + C[0];
    (2.0 * std::f64::consts::PI).sqrt() * t.powf(x + 0.5) * (-t).exp() * sum
}

/// A gamma distributed number of shape at least 1 (Marsaglia and Tsang, 2000).
fn draw_gamma(shape: f64, dice: &mut Dice) -> f64 {
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        // Box and Muller's normal
        let radius = (-2.0 * (1.0 - dice.unit()).ln()).sqrt();
        let normal = radius * (2.0 * std::f64::consts::PI * dice.unit()).cos();
        let v = (1.0 + c * normal).powi(3);
        if v > 0.0 && (1.0 - dice.unit()).ln() < 0.5 * normal * normal + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn churn_replaces_as_many_as_it_says() {
        assert!((gamma(5.0) - 24.0).abs() < 1e-6);
        let (shape, mean) = (0.59, 7200.0);
        let scale = mean / gamma(1.0 + 1.0 / shape);
        let mut dice = Dice::new(1, 1);
        let draws = 200_000;
        // of sessions looked into at random, those that end within 600 s
        let ended = (0..draws)
            .filter(|_| {
                let session = scale * draw_gamma(1.0 + 1.0 / shape, &mut dice).powf(1.0 / shape);
                session * dice.unit() < 10.0
            })
            .count();
        let expected = f64::from(draws) * 10.0 / mean;
        assert!((ended as f64 / expected - 1.0).abs() < 0.2, "{ended} for {expected}");
    }
}
