//! What all nodes of a world may look at while a window runs: who is where, who is up, who is cut
//! off from whom. It changes only between windows.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use macula_proto::overlay::{Config, Contact, Coordinate};
use macula_proto::{EndpointId, Key, RealmId};

use crate::dice::{Dice, mix};
use crate::geo::{self, Atlas, Point};
use crate::nat::{self, Nat, Way};
use crate::queue::WINDOW_MICROS;
use crate::scenario::Network;

/// Even a small world has so many networks, or nodes would be alone for want of others.
const NETS_MIN: f64 = 256.0;

/// A node as the network sees it.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) id: EndpointId,
    pub(crate) key: Key,
    at: Point,
    /// One way over the access line, microseconds.
    access: u32,
    pub(crate) region: u8,
    /// Index of the realm.
    pub(crate) realm: u8,
    pub(crate) nat: Nat,
    pub(crate) net: u32,
    pub(crate) is_gateway: bool,
    pub(crate) is_alive: bool,
    pub(crate) role: Role,
    /// Whether links of others ever went through it.
    pub(crate) relays: AtomicBool,
}

/// How a node behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Role {
    #[default]
    Honest,
    /// Takes routes over and drops them; drops what trees carry.
    Dropper,
    /// Answers every question with itself.
    Liar,
    /// Honest, but subscribes and stores without end.
    Flooder,
    /// A dropper that chose its id to be next to somebody.
    Squatter,
}

impl Role {
    pub(crate) const fn is_honest(self) -> bool {
        matches!(self, Self::Honest)
    }

    pub(crate) const fn drops(self) -> bool {
        matches!(self, Self::Dropper | Self::Squatter)
    }
}

/// Which groups of nodes cannot reach each other.
#[derive(Clone, Debug)]
pub(crate) struct Partition {
    /// Side of each region; `None`: sides are drawn by node.
    pub(crate) regions: Option<Vec<u8>>,
    /// Share of nodes on side 1 when sides are drawn.
    pub(crate) share: f64,
    pub(crate) seed: u64,
}

/// Everything that is shared.
#[derive(Debug)]
pub(crate) struct Hosts {
    pub(crate) list: Vec<Host>,
    by_id: HashMap<(u8, [u8; 8]), u32, BuildHasherDefault<Prefix>>,
    pub(crate) realms: Vec<RealmId>,
    pub(crate) network: Network,
    pub(crate) config: Arc<Config>,
    pub(crate) partition: Option<Partition>,
    /// Live gateways, and all public nodes that ever were.
    gateways: Vec<u32>,
    publics: Vec<u32>,
    pub(crate) seed: u64,
    atlas: Atlas,
}

impl Hosts {
    pub(crate) fn new(
        network: Network,
        realms: Vec<RealmId>,
        config: Arc<Config>,
        seed: u64,
    ) -> Self {
        Self {
            list: Vec::new(),
            by_id: HashMap::default(),
            realms,
            atlas: Atlas::new(&network.region, seed),
            network,
            config,
            partition: None,
            gateways: Vec::new(),
            publics: Vec::new(),
            seed,
        }
    }

    /// Puts one more node into the world, not yet running.
    pub(crate) fn add(&mut self, new: NewHost) -> u32 {
        let index = self.list.len() as u32;
        let mut dice = Dice::new(self.seed, 0x686f_7374_0000_0000 | u64::from(index));
        let realm_id = self.realms[usize::from(new.realm)];
        let (id, key) = loop {
            let id = EndpointId::from_bytes(dice.bytes());
            let key = Contact::new(&realm_id, id, Coordinate::default()).key;
            // whoever squats draws until the key is near enough
            if new.beside.is_none_or(|(other, bits)| key.distance(&other).shared_bits() >= bits) {
                break (id, key);
            }
        };
        let (region, at) = self.atlas.place(&mut dice);
        let nat = if new.is_gateway { Nat::Public } else { self.network.nat.draw(&mut dice) };
        let access = if new.is_gateway {
            300.0
        } else {
            500.0 + dice.exponential(self.network.access.as_micros() as f64).min(40_000.0)
        };
        let nets = self.network.networks * f64::from(self.network.nodes_hint);
        let nets = nets.max(NETS_MIN);
        self.by_id.insert((new.realm, prefix(&id)), index);
        if nat == Nat::Public {
            self.publics.push(index);
        }
        if new.is_gateway {
            self.gateways.push(index);
        }
        self.list.push(Host {
            id,
            key,
            at,
            access: access as u32,
            region,
            realm: new.realm,
            nat,
            net: mix(dice.below(nets as usize) as u64) as u32,
            is_gateway: new.is_gateway,
            is_alive: false,
            role: new.role,
            relays: AtomicBool::new(false),
        });
        index
    }

    #[inline]
    pub(crate) fn get(&self, node: u32) -> &Host {
        &self.list[node as usize]
    }

    pub(crate) fn find(&self, realm: u8, id: &EndpointId) -> Option<u32> {
        self.by_id.get(&(realm, prefix(id))).copied()
    }

    pub(crate) fn set_alive(&mut self, node: u32, is_alive: bool) {
        self.list[node as usize].is_alive = is_alive;
        if self.list[node as usize].is_gateway {
            self.gateways.retain(|gateway| *gateway != node);
            if is_alive {
                self.gateways.push(node);
            }
        }
    }

    /// Whether a partition keeps packets from going between these two.
    #[inline]
    pub(crate) fn is_cut(&self, a: u32, b: u32) -> bool {
        self.partition.as_ref().is_some_and(|cut| self.side(cut, a) != self.side(cut, b))
    }

    fn side(&self, cut: &Partition, node: u32) -> u8 {
        match &cut.regions {
            Some(sides) => sides.get(usize::from(self.get(node).region)).copied().unwrap_or(0),
            None => {
                let draw = mix(cut.seed ^ u64::from(node)) >> 11;
                u8::from((draw as f64 / (1u64 << 53) as f64) < cut.share)
            }
        }
    }

    /// One way between two nodes, microseconds.
    #[inline]
    pub(crate) fn latency(&self, a: u32, b: u32) -> u32 {
        let (a, b) = (self.get(a), self.get(b));
        let micros = geo::fibre_micros(&a.at, &b.at) + a.access + b.access;
        micros.max(WINDOW_MICROS as u32)
    }

    /// How a link from `dialler` to `other` would come about: the relay if it needs one, the one-way
    /// time, and what the handshake takes beyond its round trip. `None`: it needs a relay and there
    /// is none.
    pub(crate) fn path(&self, dialler: u32, other: u32) -> Option<Path> {
        let direct = self.latency(dialler, other);
        let path = |relay, latency, extra| Some(Path { relay, latency, extra });
        match nat::way(self.get(dialler).nat, self.get(other).nat) {
            Way::Direct => path(None, direct, 0),
            Way::Punched => path(None, direct, 2 * direct),
            Way::Relayed => {
                let relay = self.relay(dialler, other)?;
                self.get(relay).relays.store(true, Ordering::Relaxed);
                let legs = self.latency(dialler, relay) + self.latency(relay, other);
                path(Some(relay), legs, direct)
            }
        }
    }

    /// The best of a few gateways that both can reach, or of a few public nodes when all gateways are
    /// dead.
    fn relay(&self, a: u32, b: u32) -> Option<u32> {
        const TRIES: u64 = 6;
        let draw = mix(u64::from(a.min(b)) << 32 | u64::from(a.max(b)));
        let best_of = |pool: &[u32]| {
            (0..TRIES)
                .filter_map(|step| {
                    let place = mix(draw ^ step) % (pool.len().max(1) as u64);
                    let relay = *pool.get(place as usize)?;
                    let is_usable = self.get(relay).is_alive
                        && relay != a
                        && relay != b
                        && !self.is_cut(a, relay)
                        && !self.is_cut(relay, b);
                    is_usable.then(|| (self.latency(a, relay) + self.latency(relay, b), relay))
                })
                .min()
                .map(|(_, relay)| relay)
        };
        best_of(&self.gateways).or_else(|| best_of(&self.publics))
    }
}

/// What is asked of a node when it is added.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NewHost {
    pub(crate) realm: u8,
    pub(crate) is_gateway: bool,
    pub(crate) role: Role,
    /// Next to which key it shall be, and how many bits they shall share.
    pub(crate) beside: Option<(Key, u8)>,
}

/// See [`Hosts::path`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    pub(crate) relay: Option<u32>,
    /// One way, microseconds.
    pub(crate) latency: u32,
    /// Microseconds.
    pub(crate) extra: u32,
}

fn prefix(id: &EndpointId) -> [u8; 8] {
    let [a, b, c, d, e, f, g, h, ..] = *id.as_bytes();
    [a, b, c, d, e, f, g, h]
}

/// Endpoint ids are random already: their first bytes are as good as a hash.
#[derive(Clone, Copy, Debug, Default)]
struct Prefix(u64);

impl Hasher for Prefix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.0 ^= u64::from(byte) << 56;
    }

    fn write_usize(&mut self, _: usize) {}
}

/// Microseconds of a duration.
pub(crate) fn micros(duration: Duration) -> u64 {
    duration.as_micros() as u64
}
