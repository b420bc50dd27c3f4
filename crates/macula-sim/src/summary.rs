//! What a run has found: figures, violations, and the targets that it is held against.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::histogram::Histogram;
use crate::oracle::TrafficFigures;

/// Figures of one phase of lookups.
#[derive(Clone, Debug, Default)]
pub struct LookupFigures {
    /// Name.
    pub phase: String,
    /// Lookups whose origin lived to see the end.
    pub total: u64,
    /// Ended at the closest live node.
    pub ok: u64,
    /// Ended without any answer.
    pub failed: u64,
    /// Hops of those that were answered.
    pub hops: Histogram,
    /// Milliseconds.
    pub millis: Histogram,
    /// Ways tried; routers asked if they were iterative.
    pub attempts: Histogram,
    /// Iterative: `hops` are answers that led on to the closest, one after the other.
    pub iterative: bool,
}

/// Figures of calls, stores, fetches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    /// All.
    pub total: u64,
    /// Those that went well.
    pub ok: u64,
}

/// A figure beside what it should be.
#[derive(Clone, Debug)]
pub struct Target {
    /// Which.
    pub name: String,
    /// Measured.
    pub measured: f64,
    /// Wanted.
    pub wanted: f64,
    /// Whether more is better.
    pub at_least: bool,
}

impl Target {
    /// Whether it is met.
    pub fn is_met(&self) -> bool {
        if self.at_least { self.measured >= self.wanted } else { self.measured <= self.wanted }
    }
}

/// Everything that a run has found.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Scenario.
    pub scenario: String,
    /// Nodes wanted.
    pub nodes: u32,
    /// Seed.
    pub seed: u64,
    /// SHA-256 over everything that happened to every node; hexadecimal.
    pub digest: String,
    /// Links of live nodes when they were counted.
    pub links: Histogram,
    /// Phases of lookups.
    pub lookups: Vec<LookupFigures>,
    /// Phases of traffic.
    pub traffic: Vec<TrafficFigures>,
    /// Calls, puts and fetches by name.
    pub shares: BTreeMap<String, Share>,
    /// Memory per node; none where the system does not tell.
    pub bytes_per_node: Option<u64>,
    /// Bytes that the process has allocated at the end, by nodes; none unless
    /// [`Run::allocated`](crate::Run::allocated) was given.
    pub allocated_bytes_per_node: Option<u64>,
    /// Bytes that a node's overlay has allocated at the end, on average; none unless
    /// [`Run::allocated`](crate::Run::allocated) was given.
    pub overlay_bytes_per_node: Option<u64>,
    /// Virtual time.
    pub virtual_seconds: f64,
    /// Real time.
    pub wall_seconds: f64,
    /// Happenings, messages and their bytes.
    pub events: u64,
    /// Messages.
    pub messages: u64,
    /// Bytes of messages.
    pub bytes: u64,
    /// Messages by kind.
    pub by_kind: Vec<(String, u64)>,
    /// Links made directly and through relays.
    pub direct: u64,
    /// See `direct`.
    pub relayed: u64,
    /// Dials that came to nothing, and dials of a peer that was linked or being dialled.
    pub dials_failed: u64,
    /// See `dials_failed`.
    pub dials_redundant: u64,
    /// Share of routed hops within a region.
    pub intra_region_share: f64,
    /// Messages given to an application twice.
    pub duplicated: u64,
    /// Copies of one message that one node sent, at most.
    pub copies_max: u32,
    /// Depth of trees, at most.
    pub depth_max: u64,
    /// Signatures checked.
    pub verifications: u64,
    /// Violations, and the first of them in words.
    pub violations: u64,
    /// See `violations`.
    pub violations_spelt: Vec<String>,
    /// Seconds until lookups were right after a fault, per `converge` step.
    pub converged_after: Vec<f64>,
    /// Further figures of the scenario.
    pub extra: BTreeMap<String, f64>,
    /// Sums of all nodes' counters that are not zero.
    pub counters: BTreeMap<String, u64>,
    /// Per second of start: lookups and how many were right; deliveries got and missing.
    pub timeline: BTreeMap<u64, Second>,
    /// Moments of faults, seconds, with their names.
    pub faults: Vec<(f64, String)>,
}

/// See [`Summary::timeline`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Second {
    /// Lookups that began.
    pub lookups: u64,
    /// Of them right.
    pub right: u64,
    /// Deliveries of messages published then.
    pub got: u64,
    /// Deliveries that never came.
    pub missing: u64,
}

impl Summary {
    /// Lookups of all phases: all, right.
    pub fn lookups_total(&self) -> (u64, u64) {
        self.lookups.iter().fold((0, 0), |(all, ok), phase| (all + phase.total, ok + phase.ok))
    }

    /// Hops of all phases of routed lookups.
    pub fn hops(&self) -> Histogram {
        let mut hops = Histogram::default();
        self.routed().for_each(|phase| hops.merge(&phase.hops));
        hops
    }

    /// Durations of all phases of routed lookups.
    pub fn lookup_millis(&self) -> Histogram {
        let mut millis = Histogram::default();
        self.routed().for_each(|phase| millis.merge(&phase.millis));
        millis
    }

    fn routed(&self) -> impl Iterator<Item = &LookupFigures> {
        self.lookups.iter().filter(|phase| !phase.iterative)
    }

    /// Deliveries of all phases of traffic: got, lost.
    pub fn deliveries(&self) -> (u64, u64) {
        self.traffic.iter().fold((0, 0), |(got, lost), t| (got + t.delivered, lost + t.lost))
    }

    /// Whether all checks held.
    pub const fn is_clean(&self) -> bool {
        self.violations == 0
    }

    /// One flat object for programs.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        let mut put = |name: &str, value: Value| {
            map.insert(name.to_owned(), value);
        };
        let (lookups, lookups_ok) = self.lookups_total();
        let (delivered, lost) = self.deliveries();
        let hops = self.hops();
        put("scenario", json!(self.scenario));
        put("nodes", json!(self.nodes));
        put("seed", json!(self.seed));
        put("digest", json!(self.digest));
        put("links_mean", json!(round(self.links.mean())));
        put("links_p50", json!(self.links.quantile(0.5)));
        put("links_p99", json!(self.links.quantile(0.99)));
        put("links_max", json!(self.links.max()));
        put("hops_mean", json!(round(hops.mean())));
        put("hops_p99", json!(hops.quantile(0.99)));
        put("lookups", json!(lookups));
        put("lookups_ok", json!(lookups_ok));
        put("latency_p50_ms", json!(self.lookup_millis().quantile(0.5)));
        put("latency_p99_ms", json!(self.lookup_millis().quantile(0.99)));
        put("delivered", json!(delivered));
        put("lost", json!(lost));
        put("duplicated", json!(self.duplicated));
        put("bytes_per_node", json!(self.bytes_per_node));
        put("allocated_bytes_per_node", json!(self.allocated_bytes_per_node));
        put("overlay_bytes_per_node", json!(self.overlay_bytes_per_node));
        put("virtual_seconds", json!(round(self.virtual_seconds)));
        put("wall_seconds", json!(round(self.wall_seconds)));
        put("events", json!(self.events));
        put("messages", json!(self.messages));
        put("message_bytes", json!(self.bytes));
        put("violations", json!(self.violations));
        put("violations_spelt", json!(self.violations_spelt));
        let made = (self.direct + self.relayed).max(1) as f64;
        put("direct_share", json!(round(self.direct as f64 / made)));
        put("relayed", json!(self.relayed));
        put("dials_failed", json!(self.dials_failed));
        put("dials_redundant", json!(self.dials_redundant));
        put("intra_region_share", json!(round(self.intra_region_share)));
        put("copies_max", json!(self.copies_max));
        put("depth_max", json!(self.depth_max));
        put("verifications", json!(self.verifications));
        for phase in &self.lookups {
            let name = &phase.phase;
            put(&format!("lookups_{name}"), json!(phase.total));
            put(&format!("lookups_ok_{name}"), json!(phase.ok));
            put(&format!("lookups_failed_{name}"), json!(phase.failed));
            let (hops, tries) = match phase.iterative {
                true => ("steps", "asked"),
                false => ("hops", "attempts"),
            };
            put(&format!("{hops}_mean_{name}"), json!(round(phase.hops.mean())));
            put(&format!("{hops}_p99_{name}"), json!(phase.hops.quantile(0.99)));
            put(&format!("latency_p50_ms_{name}"), json!(phase.millis.quantile(0.5)));
            put(&format!("latency_p99_ms_{name}"), json!(phase.millis.quantile(0.99)));
            put(&format!("{tries}_mean_{name}"), json!(round(phase.attempts.mean())));
        }
        for phase in &self.traffic {
            let name = &phase.phase;
            put(&format!("published_{name}"), json!(phase.published));
            put(&format!("accepted_{name}"), json!(phase.accepted));
            put(&format!("delivered_{name}"), json!(phase.delivered));
            put(&format!("lost_{name}"), json!(phase.lost));
            put(&format!("delivery_p50_ms_{name}"), json!(phase.millis.quantile(0.5)));
            put(&format!("delivery_p99_ms_{name}"), json!(phase.millis.quantile(0.99)));
            put(&format!("t99_ms_{name}"), json!(phase.t99_millis));
        }
        for (name, share) in &self.shares {
            put(name, json!(share.total));
            put(&format!("{name}_ok"), json!(share.ok));
        }
        if !self.converged_after.is_empty() {
            put("converged_after_seconds", json!(self.converged_after));
        }
        for (name, value) in &self.extra {
            put(name, json!(round(*value)));
        }
        put("by_kind", json!(self.by_kind.iter().cloned().collect::<BTreeMap<_, _>>()));
        put("counters", json!(self.counters));
        Value::Object(map)
    }

    /// The targets that the scenario is held against at this size.
    pub fn targets(&self) -> Vec<Target> {
        let tier = match self.nodes {
            0..=1_000 => 0,
            1_001..=10_000 => 1,
            _ => 2,
        };
        let pick = |values: [f64; 3]| values[tier];
        let mut targets = Vec::new();
        let mut most = |name: &str, measured: f64, wanted: f64| {
            targets.push(Target { name: name.into(), measured, wanted, at_least: false });
        };
        if self.links.total() > 0 {
            most("links per node, mean", self.links.mean(), pick([30.0, 40.0, 48.0]));
            most("links per node, p99", self.links.quantile(0.99) as f64, pick([50.0, 50.0, 60.0]));
        }
        let hops = self.hops();
        if hops.total() > 0 && !matches!(self.scenario.as_str(), "byzantine") {
            most("hops, mean", hops.mean(), pick([3.3, 4.5, 5.6]));
            most("hops, p99", hops.quantile(0.99) as f64, pick([6.0, 8.0, 10.0]));
        }
        if let Some(bytes) = self.bytes_per_node {
            most("memory per node, KiB", bytes as f64 / 1024.0, 40.0);
        }
        if self.scenario == "fanout" {
            most("copies of a message by one node", f64::from(self.copies_max), 8.0);
            let subscribers = self.extra.get("subscribers_fanout").copied().unwrap_or(1.0);
            let depth = subscribers.max(8.0).log(8.0) + hops_bound(self.nodes);
            most("depth of the tree", self.depth_max as f64, depth.ceil());
        }
        if let Some(share) = self.extra.get("root_share_percent_after") {
            most("bodies forwarded by the root after the move, %", *share, 1.0);
        }
        let mut least = |name: String, measured: f64, wanted: f64| {
            targets.push(Target { name, measured, wanted, at_least: true });
        };
        for phase in &self.lookups {
            if phase.total == 0 {
                continue;
            }
            let wanted = match (self.scenario.as_str(), phase.phase.as_str()) {
                ("kill20" | "gateways-die", "1s") => pick([98.0, 98.0, 97.0]),
                ("kill20" | "gateways-die", "30s") => pick([100.0, 99.9, 99.9]),
                ("churn", _) => pick([99.5, 99.0, 99.0]),
                ("byzantine", "paths4") => 99.0,
                ("byzantine", _) => continue,
                _ => pick([100.0, 99.99, 99.9]),
            };
            let share = 100.0 * phase.ok as f64 / phase.total as f64;
            least(format!("lookups right, {} ({}), %", phase.phase, phase.total), share, wanted);
        }
        for phase in &self.traffic {
            let all = phase.delivered + phase.lost;
            if all > 0 {
                let share = 100.0 * phase.delivered as f64 / all as f64;
                least(format!("delivered, {} ({all}), %", phase.phase), share, 100.0);
            }
        }
        for (name, share) in &self.shares {
            if share.total > 0 {
                let measured = 100.0 * share.ok as f64 / share.total as f64;
                least(format!("{name} ({}), %", share.total), measured, 99.0);
            }
        }
        targets
    }
}

/// Hops that a route takes at most, nearly always.
fn hops_bound(nodes: u32) -> f64 {
    match nodes {
        0..=1_000 => 6.0,
        1_001..=10_000 => 8.0,
        _ => 10.0,
    }
}

fn round(number: f64) -> f64 {
    (number * 10_000.0).round() / 10_000.0
}
