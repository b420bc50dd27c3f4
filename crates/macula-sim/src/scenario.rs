//! Scenario files: what world, and what happens in it, step after step. Format: docs/simulation.md.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::geo::Region;
use crate::nat::NatMix;

/// A scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// What it shows, in a sentence.
    pub about: String,
    /// Nodes unless the command line says otherwise.
    #[serde(default = "default_nodes")]
    pub nodes: u32,
    /// Realms among which the nodes are split; they share nothing but the network.
    #[serde(default = "default_realms")]
    pub realms: u8,
    /// Run it a second time without proximity and report both.
    #[serde(default)]
    pub compare_proximity: bool,
    /// The network.
    #[serde(default)]
    pub network: Network,
    /// How nodes join.
    #[serde(default)]
    pub join: Join,
    /// Nodes that do not do what they should.
    #[serde(default)]
    pub byzantine: Byzantine,
    /// What differs from the overlay's defaults.
    #[serde(default)]
    pub overlay: Tuning,
    /// What happens, in order.
    #[serde(rename = "step")]
    pub steps: Vec<Step>,
}

const fn default_nodes() -> u32 {
    1000
}

const fn default_realms() -> u8 {
    1
}

/// The network between nodes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Where nodes are.
    pub region: Vec<Region>,
    /// How they are connected.
    pub nat: NatMix,
    /// Mean of what an access line adds one way, beyond half a millisecond; exponential.
    #[serde(deserialize_with = "span")]
    pub access: Duration,
    /// A message takes up to this share longer than the line needs.
    pub jitter: f64,
    /// Share of messages that are lost and sent again.
    pub loss: f64,
    /// Networks (/24 or /48) per node.
    pub networks: f64,
    /// Uplink of a node, bytes a second.
    pub uplink_bytes: u32,
    /// Uplink of a gateway, bytes a second.
    pub gateway_uplink_bytes: u32,
    /// A dial fails after this.
    #[serde(deserialize_with = "span")]
    pub dial_timeout: Duration,
    /// A dead link is noticed this late, at the soonest...
    #[serde(deserialize_with = "span")]
    pub detect_min: Duration,
    /// ... and at the latest.
    #[serde(deserialize_with = "span")]
    pub detect_max: Duration,
    /// Pass every message through the production codec.
    pub encode: bool,
    /// About how many nodes there will be; set by the run.
    #[serde(skip)]
    pub nodes_hint: u32,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            region: Region::default_world(),
            nat: NatMix::default(),
            access: Duration::from_millis(4),
            jitter: 0.1,
            loss: 0.002,
            networks: 0.5,
            uplink_bytes: 2_500_000,
            gateway_uplink_bytes: 125_000_000,
            dial_timeout: Duration::from_secs(3),
            detect_min: Duration::from_secs(3),
            detect_max: Duration::from_secs(10),
            encode: false,
            nodes_hint: 0,
        }
    }
}

/// How nodes join.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Join {
    /// Gateways per realm; none given: 4 and one more per 1000 nodes.
    pub gateways: Option<u32>,
    /// So many join each second, as a share of those present...
    pub growth: f64,
    /// ... but at least so many.
    pub per_second_min: f64,
    /// Time to settle when all are there.
    #[serde(deserialize_with = "span")]
    pub settle: Duration,
}

impl Default for Join {
    fn default() -> Self {
        Self { gateways: None, growth: 0.05, per_second_min: 10.0, settle: Duration::from_secs(60) }
    }
}

/// Shares of nodes that misbehave from the beginning.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Byzantine {
    /// Take over routes and drop them, drop what trees carry.
    pub droppers: f64,
    /// Answer every lookup with themselves.
    pub liars: f64,
    /// Subscribe to and store under random names without end.
    pub flooders: f64,
    /// Droppers whose id is as near to a random key as a modest search gets.
    pub squatters: f64,
    /// Leading bits that a squatter shares with its victim.
    pub squat_bits: u8,
}

/// What differs from the overlay's defaults.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tuning {
    /// Prefer near routers.
    pub proximity: Option<bool>,
    /// Closest routers that each keeps links to.
    pub siblings: Option<usize>,
    /// Links wanted in each bucket.
    pub links_per_bucket: Option<usize>,
    /// Below so many a node looks for more.
    pub links_min: Option<usize>,
    /// Above so many a node sheds surplus ones.
    pub links_max: Option<usize>,
    /// Never more than this.
    pub links_cap: Option<usize>,
    /// Children of a node in a tree.
    pub children_max: Option<usize>,
}

/// One step of a scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// Let time pass.
    Wait {
        /// How long.
        #[serde(rename = "for", deserialize_with = "span")]
        length: Duration,
    },
    /// Count links and memory now.
    Measure {},
    /// Look random keys up from random nodes and compare with the truth.
    Lookups {
        /// Name of the figures.
        phase: String,
        /// How many; none given: one per node, within 1,000 to 100,000.
        count: Option<u32>,
        /// Spread over this time.
        #[serde(deserialize_with = "span")]
        over: Duration,
        /// Ways at once.
        #[serde(default = "one_path")]
        paths: u8,
        /// Ask every router on the way, instead of routing once.
        #[serde(default)]
        iterative: bool,
        /// Go on with the next step at once.
        #[serde(default)]
        background: bool,
    },
    /// Switch nodes off without warning.
    Kill {
        /// Share of the live nodes; with `gateways` of the gateways.
        share: f64,
        /// Gateways instead of any nodes.
        #[serde(default)]
        gateways: bool,
        /// Of this region only.
        region: Option<String>,
    },
    /// Nodes leave with a good-bye.
    Leave {
        /// Share of the live nodes.
        share: f64,
        /// Spread over this time.
        #[serde(deserialize_with = "span")]
        over: Duration,
    },
    /// New nodes join by way of random live ones that they remember.
    Join {
        /// Share of the nodes of the scenario.
        share: f64,
        /// Spread over this time.
        #[serde(deserialize_with = "span")]
        over: Duration,
        /// All must have joined so long after.
        #[serde(deserialize_with = "span")]
        within: Duration,
    },
    /// Nothing passes between two sides.
    Partition {
        /// Share of nodes on the smaller side...
        #[serde(default)]
        share: f64,
        /// ... or the regions on that side.
        #[serde(default)]
        regions: Vec<String>,
    },
    /// Everything passes again.
    Heal {},
    /// Nodes leave without warning after sessions of random length, and others take their place.
    Churn {
        /// Share of nodes replaced in an hour.
        per_hour: f64,
        /// Shape of the Weibull distribution of sessions.
        shape: f64,
        /// How long.
        #[serde(rename = "for", deserialize_with = "span")]
        length: Duration,
    },
    /// Topics with publishers and subscribers, in the background.
    Traffic {
        /// Name of the figures.
        phase: String,
        /// Topics.
        topics: u32,
        /// Publishers of each.
        publishers: u32,
        /// Subscribers of each; never more than the nodes left.
        subscribers: u32,
        /// Between two messages of a publisher.
        #[serde(deserialize_with = "span")]
        every: Duration,
        /// Length of payloads, bytes.
        #[serde(default = "default_payload")]
        payload: usize,
        /// Acknowledged messages.
        #[serde(default)]
        qos1: bool,
        /// Every tenth subscriber uses a pattern.
        #[serde(default)]
        patterns: bool,
        /// Between the first subscriptions and the first message.
        #[serde(deserialize_with = "span")]
        settle: Duration,
        /// How long messages are published.
        #[serde(rename = "for", deserialize_with = "span")]
        length: Duration,
    },
    /// Kill nodes that forward for topics, one after the other, in the background.
    KillForwarders {
        /// Between two.
        #[serde(deserialize_with = "span")]
        every: Duration,
        /// How long.
        #[serde(rename = "for", deserialize_with = "span")]
        length: Duration,
    },
    /// What share of all bodies the roots of topics pass on to children, and how long messages take,
    /// meanwhile.
    Forwarded {
        /// Name of the figures.
        phase: String,
        /// How long.
        #[serde(deserialize_with = "span")]
        over: Duration,
    },
    /// Wait until all messages were published and have had their time to arrive.
    Drain {},
    /// Providers and calls of them.
    Calls {
        /// Name of the figures.
        phase: String,
        /// Procedures.
        procedures: u32,
        /// Providers of each.
        providers: u32,
        /// Calls.
        count: u32,
        /// Spread over this time.
        #[serde(deserialize_with = "span")]
        over: Duration,
    },
    /// Values stored by random nodes and fetched by others.
    Store {
        /// Name of the figures.
        phase: String,
        /// Values.
        values: u32,
        /// Between the last put and the first fetch.
        #[serde(deserialize_with = "span")]
        settle: Duration,
        /// Fetches.
        fetches: u32,
        /// Spread over this time.
        #[serde(deserialize_with = "span")]
        over: Duration,
    },
    /// Nodes hear and say nothing for a while.
    Sleep {
        /// Share of the live nodes.
        share: f64,
        /// How long.
        #[serde(rename = "for", deserialize_with = "span")]
        length: Duration,
    },
    /// Clocks of nodes jump ahead.
    ClockJump {
        /// Share of the live nodes.
        share: f64,
        /// How far.
        #[serde(deserialize_with = "span")]
        by: Duration,
    },
    /// Nodes take their time for each message from now on.
    Slow {
        /// Share of the live nodes.
        share: f64,
        /// How long for each.
        #[serde(deserialize_with = "span")]
        delay: Duration,
    },
    /// Wait until random lookups from all over are all right; a violation when that takes longer
    /// than stated.
    Converge {
        /// At most so long.
        #[serde(deserialize_with = "span")]
        within: Duration,
        /// Lookups in each round.
        #[serde(default = "default_probes")]
        probes: u32,
        /// This share of a round must be right.
        #[serde(default = "default_right")]
        right: f64,
    },
}

const fn one_path() -> u8 {
    1
}

const fn default_payload() -> usize {
    128
}

const fn default_probes() -> u32 {
    500
}

const fn default_right() -> f64 {
    1.0
}

/// A scenario cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScenarioError {
    /// The text is not a scenario.
    #[error("not a scenario: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A region is named that the network does not have.
    #[error("the scenario has no region `{0}`")]
    NoRegion(String),
    /// A number makes no sense.
    #[error("{0}")]
    Senseless(&'static str),
}

impl Scenario {
    /// Reads a scenario.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text)?;
        scenario.check()?;
        Ok(scenario)
    }

    /// Reads a scenario with changes of the form `overlay.links_max=40`: a path of keys outside of
    /// steps, and a TOML value.
    pub fn parse_with(text: &str, changes: &[String]) -> Result<Self, ScenarioError> {
        let mut document: toml::Table = toml::from_str(text)?;
        for change in changes {
            let (path, value) =
                change.split_once('=').ok_or(ScenarioError::Senseless("a change is KEY=VALUE"))?;
            let value: toml::Table = toml::from_str(&format!("value = {value}"))?;
            let mut table = &mut document;
            let (keys, last) = path.rsplit_once('.').unwrap_or(("", path));
            for key in keys.split('.').filter(|key| !key.is_empty()) {
                let inner = table.entry(key).or_insert_with(|| toml::Table::new().into());
                table = inner
                    .as_table_mut()
                    .ok_or(ScenarioError::Senseless("a change names a key that has no keys"))?;
            }
            table.extend(value.into_iter().map(|(_, value)| (last.to_owned(), value)));
        }
        let scenario: Self = document.try_into()?;
        scenario.check()?;
        Ok(scenario)
    }

    /// The one of those that come with the program.
    pub fn built_in(name: &str) -> Option<Self> {
        let (_, text) = BUILT_IN.iter().find(|(known, _)| *known == name)?;
        Some(Self::parse(text).expect("a test reads all of them"))
    }

    fn check(&self) -> Result<(), ScenarioError> {
        let regions = &self.network.region;
        if regions.is_empty() || regions.len() > 100 {
            return Err(ScenarioError::Senseless("a world has 1 to 100 regions"));
        }
        if self.realms == 0 {
            return Err(ScenarioError::Senseless("a world has at least one realm"));
        }
        if self.network.uplink_bytes < 1000 || self.network.gateway_uplink_bytes < 1000 {
            return Err(ScenarioError::Senseless("an uplink has at least 1000 bytes a second"));
        }
        if self.byzantine.squat_bits > 20 {
            return Err(ScenarioError::Senseless("squatters share at most 20 bits with a victim"));
        }
        if !(0.0..1.0).contains(&self.network.loss) {
            return Err(ScenarioError::Senseless("loss is a share below 1"));
        }
        for step in &self.steps {
            let named: &[String] = match step {
                Step::Kill { region, .. } => region.as_slice(),
                Step::Partition { regions, .. } => regions,
                _ => &[],
            };
            for name in named {
                self.region(name).ok_or_else(|| ScenarioError::NoRegion(name.clone()))?;
            }
        }
        Ok(())
    }

    /// Number of a region.
    pub(crate) fn region(&self, name: &str) -> Option<u8> {
        self.network.region.iter().position(|region| region.name == name).map(|place| place as u8)
    }
}

/// The scenarios that come with the program: name and text.
pub const BUILT_IN: [(&str, &str); 9] = [
    ("converged", include_str!("../scenarios/converged.toml")),
    ("churn", include_str!("../scenarios/churn.toml")),
    ("kill20", include_str!("../scenarios/kill20.toml")),
    ("gateways-die", include_str!("../scenarios/gateways-die.toml")),
    ("partition", include_str!("../scenarios/partition.toml")),
    ("regions", include_str!("../scenarios/regions.toml")),
    ("byzantine", include_str!("../scenarios/byzantine.toml")),
    ("fanout", include_str!("../scenarios/fanout.toml")),
    ("steady", include_str!("../scenarios/steady.toml")),
];

/// `250ms`, `10s`, `5min`, `2h`.
fn span<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    parse_span(&text).ok_or_else(|| {
        serde::de::Error::custom(format!("`{text}` is not a time: write 250ms, 10s, 5min or 2h"))
    })
}

fn parse_span(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().ok()?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" => number,
        "min" => number * 60.0,
        "h" => number * 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_built_in_scenarios_can_be_read() {
        for (name, text) in BUILT_IN {
            let scenario = Scenario::parse(text).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(scenario.name, name);
            assert!(!scenario.steps.is_empty());
        }
    }

    #[test]
    fn what_a_scenario_does_not_know_is_refused() {
        let head = "name = 'a'\nabout = 'b'\n";
        for wrong in [
            "colour = 1\n[[step]]\ndo = 'heal'",
            "[[step]]\ndo = 'dance'",
            "[[step]]\ndo = 'wait'\nfor = '3 moons'",
            "[[step]]\ndo = 'wait'\nfor = '3s'\nthen = 1",
            "[[step]]\ndo = 'kill'\nshare = 0.1\nregion = 'mars'",
            "[network]\nuplink_bytes = 0\n[[step]]\ndo = 'heal'",
        ] {
            assert!(Scenario::parse(&format!("{head}{wrong}")).is_err(), "{wrong}");
        }
        assert!(Scenario::parse(&format!("{head}[[step]]\ndo = 'wait'\nfor = '3s'")).is_ok());
    }

    #[test]
    fn changes_reach_what_they_name() {
        let (_, text) = BUILT_IN[0];
        let changes = ["overlay.links_max=40".to_owned(), "network.dial_timeout='1s'".to_owned()];
        let scenario = Scenario::parse_with(text, &changes).unwrap();
        assert_eq!(scenario.overlay.links_max, Some(40));
        assert_eq!(scenario.network.dial_timeout, Duration::from_secs(1));
        for wrong in ["overlay.colour=1", "overlay", "nodes.x=1", "nodes='many'"] {
            assert!(Scenario::parse_with(text, &[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn spans_have_units() {
        assert_eq!(parse_span("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_span("1.5h"), Some(Duration::from_secs(5400)));
        assert_eq!(parse_span("10"), None);
        assert_eq!(parse_span("-1s"), None);
    }
}
