//! Making a node.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use macula_grant::{Grant, GrantVerifier};
use macula_proto::node::{Config, Role};
use macula_transport::{
    Endpoint, EndpointConfig, SecretKey, Strategy, StunUri, TurnServer, TurnUse,
};
use tokio::sync::watch;

use crate::carriers;
use crate::clock::Clock;
use crate::driver::connector::{self, Connector, Progress};
use crate::endpoint::{self, Started};
use crate::error::{JoinError, StartError};
use crate::event::{Event, Events};
use crate::gateway::{GatewayAddress, KnownGateways, Via};
use crate::key::load_or_create_key;
use crate::membership::{self, GrantSource, Membership};
use crate::node::Node;
use crate::shared::Owner;
use crate::turn;
use crate::visitor::Visitor;

/// A start that is not told otherwise gives up after this.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// What is carried for other members: for each, and for all.
const CARRIED_BYTES_PER_SECOND_PER_PEER: u64 = 1 << 20;
const CARRIED_BYTES_PER_SECOND: u64 = 4 << 20;

/// Where an endpoint's key comes from.
#[derive(Clone, Debug, Default)]
pub(crate) enum KeySource {
    /// Made for this run.
    #[default]
    Ephemeral,
    Given(SecretKey),
    File(PathBuf),
}

impl KeySource {
    pub(crate) fn load(&self) -> Result<SecretKey, StartError> {
        match self {
            Self::Ephemeral => SecretKey::generate()
                .map_err(|error| StartError::Config(format!("no key: {error}"))),
            Self::Given(key) => Ok(key.clone()),
            Self::File(path) => Ok(load_or_create_key(path)?),
        }
    }
}

/// Settings of a [`Node`]; made by [`Node::builder`].
#[derive(Clone, Debug)]
#[must_use = "nothing starts before `start`"]
pub struct NodeBuilder {
    realm: Option<String>,
    grant: GrantSource,
    gateways: Vec<String>,
    key: KeySource,
    known_gateways: Option<PathBuf>,
    connect_timeout: Duration,
    agent: Option<String>,
    strategy: Strategy,
    via: Via,
    stun_servers: Vec<StunUri>,
    turn_servers: Vec<TurnServer>,
    turn_of_gateway: bool,
    turn_use: TurnUse,
    port_search: bool,
    carries: bool,
    bind: Option<SocketAddr>,
    port_mapping: bool,
}

impl NodeBuilder {
    pub(crate) fn new() -> Self {
        Self {
            realm: None,
            grant: GrantSource::None,
            gateways: Vec::new(),
            key: KeySource::default(),
            known_gateways: None,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            agent: None,
            strategy: Strategy::default(),
            via: Via::default(),
            stun_servers: Vec::new(),
            turn_servers: Vec::new(),
            turn_of_gateway: false,
            turn_use: TurnUse::default(),
            port_search: true,
            carries: false,
            bind: None,
            port_mapping: true,
        }
    }

    /// The open realm to join, by name, for example `com.example.energy`. Required, or a grant: then
    /// the name is in the grant, and one that is given here must be the same.
    pub fn realm(mut self, name: impl Into<String>) -> Self {
        self.realm = Some(name.into());
        self
    }

    /// The guarded realm to join, and the proof that this node may. Grants are for one endpoint, so
    /// the node's key must be given, too.
    pub fn grant(mut self, grant: Grant) -> Self {
        self.grant = GrantSource::Given(Box::new(grant));
        self
    }

    /// As [`NodeBuilder::grant`], from a file as `macula realm grant` writes it. When the file is
    /// replaced by a renewed grant, that is shown to the gateway without interruption.
    pub fn grant_file(mut self, path: impl AsRef<Path>) -> Self {
        self.grant = GrantSource::File(path.as_ref().to_owned());
        self
    }

    /// Adds a gateway, `HOST:PORT` or `ENDPOINTID@HOST:PORT`; at least one is required. With
    /// several, they are tried in this order. Names are resolved at every attempt.
    ///
    /// With an id the gateway must have that key. Without, the key that it has at first is pinned
    /// and must stay, see [`NodeBuilder::known_gateways`].
    pub fn gateway(mut self, address: impl Into<String>) -> Self {
        self.gateways.push(address.into());
        self
    }

    /// The node's identity. Default: a key made for this run.
    pub fn key(mut self, key: SecretKey) -> Self {
        self.key = KeySource::Given(key);
        self
    }

    /// Reads the node's identity from a file; makes one, readable by its owner only, if it does
    /// not exist.
    pub fn key_file(mut self, path: impl AsRef<Path>) -> Self {
        self.key = KeySource::File(path.as_ref().to_owned());
        self
    }

    /// Keeps the pinned keys of gateways in a file, one `HOST:PORT ENDPOINTID` a line. Default:
    /// pins last as long as the node.
    pub fn known_gateways(mut self, path: impl AsRef<Path>) -> Self {
        self.known_gateways = Some(path.as_ref().to_owned());
        self
    }

    /// How long [`NodeBuilder::start`] tries to reach a gateway. Default: 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Which paths links to peers may use, see [`Node::peer`]. With [`Strategy::AlwaysRelay`]
    /// publishes stay with the gateway. Default: [`Strategy::Opportunistic`].
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// How gateways are reached. Default: [`Via::Auto`].
    pub fn via(mut self, via: Via) -> Self {
        self.via = via;
        self
    }

    /// STUN servers (RFC 8489) that are asked where this node is seen, beside the gateway, from the
    /// socket that it uses. At most 8 are. `stun:HOST:PORT` parses as a [`StunUri`].
    pub fn stun_servers(mut self, servers: impl IntoIterator<Item = StunUri>) -> Self {
        self.stun_servers = servers.into_iter().collect();
        self
    }

    /// TURN servers (RFC 8656) that relay for links to peers which stay without a direct path; the
    /// gateway relays until then, and when they fail. Two are used at once, and the next when one
    /// fails. Servers of any make will do; `turn:HOST:PORT?transport=udp`, the same with `tcp`, and
    /// `turns:HOST:PORT` parse as a [`macula_transport::TurnUri`].
    pub fn turn_servers(mut self, servers: impl IntoIterator<Item = TurnServer>) -> Self {
        self.turn_servers = servers.into_iter().collect();
        self
    }

    /// Also uses the TURN server of the gateway, with credentials that it gives to members of the
    /// realm. Default: no.
    pub fn turn_of_gateway(mut self, is_used: bool) -> Self {
        self.turn_of_gateway = is_used;
        self
    }

    /// When TURN servers are asked for an address. Default: [`TurnUse::WhenRelayed`].
    pub fn turn_use(mut self, when: TurnUse) -> Self {
        self.turn_use = when;
        self
    }

    /// Whether links to peers look for a direct path where plain hole punching finds none, because
    /// one of the two NATs uses another port for each destination: with up to 256 sockets, or up to
    /// 2,000 probes of ports of the peer's NAT, within seconds, ever more rarely, and never more than
    /// two thousand a minute for all peers. Small home routers may not like that. Default: on.
    pub fn port_search(mut self, on: bool) -> Self {
        self.port_search = on;
        self
    }

    /// The address and port that the node's one UDP socket is bound to, for a firewall with fixed ports;
    /// `[::]:PORT` takes IPv4 too. Default: a free port of both address families.
    pub fn bind(mut self, addr: SocketAddr) -> Self {
        self.bind = Some(addr);
        self
    }

    /// Whether this node carries packets between other members of its realms that have no direct path to
    /// each other, and that it reaches directly itself: at most 1 MiB/s for one and 4 MiB/s in all. It
    /// cannot read them. In a guarded realm the sender's grant must allow `relay`. Such links go on when
    /// their gateway is gone. Default: it does not.
    pub fn carries(mut self, on: bool) -> Self {
        self.carries = on;
        self
    }

    /// Whether the router is asked to map the node's port, by PCP, NAT-PMP and UPnP, as long as there
    /// are links to peers; it is given back afterwards. Only with the feature `portmap`, which is on
    /// by default. Default: it is.
    pub fn port_mapping(mut self, on: bool) -> Self {
        self.port_mapping = on;
        self
    }

    /// Program and version told to peers. Default: this library's.
    pub fn agent(mut self, agent: impl Into<String>) -> Self {
        self.agent = Some(agent.into());
        self
    }

    /// Starts the node; resolves when a gateway is connected and has admitted it to the realm.
    ///
    /// From then on the node stays connected by itself.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running.
    ///
    /// # Cancel safety
    /// Dropping the future stops everything.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time.
    pub async fn start(mut self) -> Result<Node, StartError> {
        let (name, source) = (self.realm.take(), std::mem::take(&mut self.grant));
        let grant = source.load()?;
        let open = match (&name, &grant) {
            (Some(name), None) => Some(Membership::open(name)?),
            (Some(name), Some(grant)) if *name != grant.realm().name.as_str() => {
                let realm = grant.realm();
                let text = format!("the grant is for realm {realm}, and not for {name}");
                return Err(StartError::Config(text));
            }
            (_, Some(_)) => None,
            (None, None) => return Err(missing("a realm", "realm` or `grant")),
        };
        let timeout = self.connect_timeout;
        let turn = self.turn_of_gateway.then(|| self.turn_servers.clone());
        let Dialling { owner, progress, endpoint, .. } = self.dial(true)?;
        let membership = match (open, &grant) {
            (None, Some(grant)) => Membership::granted(grant, owner.shared.id)?,
            (Some(open), _) => open,
            (None, None) => return Err(StartError::Closed),
        };
        let node = connected(&owner, membership, progress, timeout).await?;
        if let Some(others) = turn {
            let following = turn::follow(Arc::downgrade(&owner), endpoint, others);
            owner.tasks.spawn(following);
        }
        if let (GrantSource::File(path), Some(grant)) = (source, grant) {
            owner.tasks.spawn(membership::follow(owner.shared.clone(), path, grant));
        }
        Ok(node)
    }

    /// Connects without taking part in a realm; resolves when a gateway is connected.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running.
    ///
    /// # Cancel safety
    /// Dropping the future stops everything.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time.
    pub async fn visit(self) -> Result<Visitor, StartError> {
        let timeout = self.connect_timeout;
        let Dialling { owner, progress, mut events, .. } = self.dial(false)?;
        let visiting = async {
            while let Some(event) = events.next().await {
                match event {
                    Event::Connected { peer, .. } => return Ok(peer),
                    Event::WrongKey(wrong) => return Err(StartError::WrongKey(wrong)),
                    _ => {}
                }
            }
            Err(StartError::Closed)
        };
        match tokio::time::timeout(timeout, visiting).await {
            Ok(peer) => Ok(Visitor::new(owner, peer?)),
            Err(_) => Err(unreachable(&progress, timeout)),
        }
    }

    /// Starts an endpoint that dials its gateways, and has links to peers or not.
    fn dial(self, peers: bool) -> Result<Dialling, StartError> {
        if self.gateways.is_empty() {
            return Err(missing("a gateway", "gateway"));
        }
        let gateways: Vec<GatewayAddress> = self
            .gateways
            .iter()
            .map(|text| text.parse().map_err(StartError::Config))
            .collect::<Result<_, _>>()?;
        let known =
            KnownGateways::load(self.known_gateways.as_deref()).map_err(StartError::Config)?;
        let key = self.key.load()?;
        let mut config = Config::new(Role::Leaf, Clock::unix_micros());
        if let Some(agent) = self.agent {
            config.agent = agent;
        }
        config.verifier = Some(Arc::new(GrantVerifier::new()));
        config.peer_publishes = self.strategy != Strategy::AlwaysRelay;
        config.carries = self.carries && peers;
        config.relay_bytes_per_second_per_peer = CARRIED_BYTES_PER_SECOND_PER_PEER;
        config.relay_bytes_per_second = CARRIED_BYTES_PER_SECOND;
        let mut settings = EndpointConfig::new(key.clone());
        (settings.carries, settings.listen) = (config.carries, self.bind);
        (settings.peers, settings.strategy) = (peers, self.strategy);
        settings.tunnels = self.via != Via::Udp;
        (settings.stun_servers, settings.turn_servers) = (self.stun_servers, self.turn_servers);
        settings.turn_use = self.turn_use;
        (settings.port_search, settings.port_mapping) = (self.port_search, self.port_mapping);
        let socket = Endpoint::bind(&settings).map_err(bind_error)?;
        let Started { owner, endpoint, links } = endpoint::start(&key, config, socket)?;
        let (accepting, accepted) = (endpoint.clone(), links.clone());
        let dialling = endpoint.clone();
        // Before anything can happen, so that nothing is missed.
        let events = owner.shared.listen();
        let (sender, progress) = watch::channel(Progress::default());
        let connector = Connector {
            via: self.via,
            shared: owner.shared.clone(),
            endpoint: dialling,
            gateways,
            known,
            links,
            progress: sender,
            // Spreads the clients of one gateway; differs by key, which is all it takes.
            seed: owner
                .shared
                .id
                .as_bytes()
                .iter()
                .fold(0, |seed: u64, byte| seed.rotate_left(5) ^ u64::from(*byte)),
        };
        owner.tasks.spawn(connector.run());
        if peers {
            let telling = turn::tell_stun_servers(Arc::downgrade(&owner), accepting.clone());
            owner.tasks.spawn(telling);
            let finding = carriers::find(Arc::downgrade(&owner), accepting.clone());
            owner.tasks.spawn(finding);
            owner.tasks.spawn(connector::accept(owner.shared.clone(), accepting, accepted));
        }
        Ok(Dialling { owner, progress, events, endpoint })
    }
}

/// An endpoint that dials its gateways.
struct Dialling {
    owner: Arc<Owner>,
    progress: watch::Receiver<Progress>,
    events: Events,
    endpoint: Arc<Endpoint>,
}

/// Waits for the admission to the realm, or for what makes it hopeless. Dropping `owner` on the
/// way out stops everything.
async fn connected(
    owner: &Arc<Owner>,
    membership: Membership,
    mut progress: watch::Receiver<Progress>,
    timeout: Duration,
) -> Result<Node, StartError> {
    let name = membership.name.clone();
    let hopeless = async {
        match progress.wait_for(|progress| progress.is_hopeless.is_some()).await {
            Ok(progress) => progress.is_hopeless.clone(),
            Err(_) => None,
        }
    };
    let outcome = tokio::select! {
        biased;
        joined = owner.join(membership) => joined,
        wrong = hopeless => match wrong {
            Some(wrong) => return Err(StartError::WrongKey(wrong)),
            None => Err(JoinError::Closed),
        },
        () = tokio::time::sleep(timeout) => Err(JoinError::Timeout),
    };
    match outcome {
        Ok(realm) => Ok(Node::new(owner.clone(), realm, &name)),
        Err(JoinError::Timeout) => Err(unreachable(&progress, timeout)),
        Err(error) => Err(error.into()),
    }
}

fn unreachable(progress: &watch::Receiver<Progress>, after: Duration) -> StartError {
    let last_failure = progress.borrow().last_failure.clone();
    let reason = last_failure.unwrap_or_else(|| "no answer".to_owned());
    StartError::Unreachable { after, reason }
}

pub(crate) fn bind_error(error: macula_transport::BindError) -> StartError {
    // The source says what the system said, so it belongs to the text.
    let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
    StartError::Bind(format!("{error}{}", source.unwrap_or_default()))
}

pub(crate) fn missing(what: &str, setting: &str) -> StartError {
    StartError::Config(format!("{what} is required: set `{setting}`"))
}
