//! The handle of a gateway.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use macula_grant::{GrantVerifier, Realm, Record};
use macula_proto::EndpointId;
use macula_proto::node::{Admission, Asker, Config, Extension, Role, Stats};
use macula_proto::wire::message::CloseCode;
use macula_transport::{
    Endpoint, EndpointConfig, HandshakeLimits, HandshakeStats, SecretKey, TunnelConfig,
    TunnelError, TunnelStats,
};
use tokio::sync::mpsc;

use crate::builder::{KeySource, bind_error, missing};
use crate::clock::Clock;
use crate::driver::connector;
use crate::endpoint::{self, Started};
use crate::error::{Closed, JoinError, StartError};
use crate::event::Events;
use crate::membership::Membership;
use crate::node::Node;
use crate::records;
use crate::shared::{CloseCommand, Command, Owner};
use crate::status::Status;

/// Of the memory budget, large messages that are not complete may take so much beside it.
const LOADING_SHARE: usize = 4;
/// What closing and draining give to what has begun.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// What a peer's handshake may take unless told otherwise.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of a [`Router`]; made by [`Router::builder`].
#[derive(Clone, Debug)]
#[must_use = "nothing starts before `start`"]
pub struct RouterBuilder {
    listen: Option<SocketAddr>,
    realms: Vec<String>,
    guarded: Vec<Realm>,
    revocations: Option<PathBuf>,
    admission: Admission,
    key: KeySource,
    config: Config,
    agent: Option<String>,
    handshake_timeout: Duration,
    handshakes: HandshakeLimits,
    tunnels: bool,
}

impl RouterBuilder {
    /// Where to listen (UDP). `[::]:4433` takes IPv4 too; port 0 takes any. Required.
    pub fn listen(mut self, addr: SocketAddr) -> Self {
        self.listen = Some(addr);
        self
    }

    /// Hosts an open realm, by name. Several are allowed; at least one is required, or
    /// [`RouterBuilder::any_open_realm`].
    pub fn realm(mut self, name: impl Into<String>) -> Self {
        self.realms.push(name.into());
        self
    }

    /// Hosts a guarded realm: peers need a grant that its root stands behind.
    pub fn guarded_realm(mut self, realm: Realm) -> Self {
        self.guarded.push(realm);
        self
    }

    /// Keeps the latest record of revocations of each guarded realm that was named in this folder,
    /// which is made if need be. Those that are there hold from the start. Default: they are
    /// forgotten when the router ends, and whoever was revoked can come back until its grant
    /// expires; as they are for realms that are hosted without being named.
    pub fn revocations_dir(mut self, folder: impl AsRef<Path>) -> Self {
        self.revocations = Some(folder.as_ref().to_owned());
        self
    }

    /// Hosts any open realm that a peer asks for, and any guarded one that it has a grant for: for
    /// labs and closed networks.
    pub fn any_open_realm(mut self) -> Self {
        self.admission = Admission::AnyOpen;
        self
    }

    /// The router's identity. Default: a key made for this run, which is of little use as peers
    /// pin it.
    pub fn key(mut self, key: SecretKey) -> Self {
        self.key = KeySource::Given(key);
        self
    }

    /// Reads the router's identity from a file; makes one, readable by its owner only, if it does
    /// not exist.
    pub fn key_file(mut self, path: impl AsRef<Path>) -> Self {
        self.key = KeySource::File(path.as_ref().to_owned());
        self
    }

    /// Links at once; more are refused with a reason. Default: 16,384.
    pub fn links_max(mut self, links_max: usize) -> Self {
        self.config.links_max = links_max;
        self
    }

    /// Realms at once, with [`RouterBuilder::any_open_realm`]. Default: 1,024.
    pub fn realms_max(mut self, realms_max: usize) -> Self {
        self.config.realms_max = realms_max;
        self
    }

    /// Changes limits and patience of the core, all at once: see [`Config`]'s fields. What the
    /// other methods set (role, admission, epoch, agent) is not taken from here.
    pub fn limits(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// What a peer's handshake may take. Default: 5 s.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// Changes what handshakes of peers may use; links do not count. See [`HandshakeLimits`].
    pub fn handshakes(mut self, change: impl FnOnce(&mut HandshakeLimits)) -> Self {
        change(&mut self.handshakes);
        self
    }

    /// Whether peers may come over TLS and TCP, once [`Router::listen_for_tunnels`] says where.
    /// Default: no.
    pub fn tunnels(mut self, tunnels: bool) -> Self {
        self.tunnels = tunnels;
        self
    }

    /// Program and version told to peers. Default: this library's.
    pub fn agent(mut self, agent: impl Into<String>) -> Self {
        self.agent = Some(agent.into());
        self
    }

    /// Starts the router; resolves when it listens and hosts its realms.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running.
    ///
    /// # Cancel safety
    /// Dropping the future stops everything.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time.
    pub async fn start(self) -> Result<Router, StartError> {
        let listen = self.listen.ok_or_else(|| missing("an address", "listen"))?;
        let is_empty = self.realms.is_empty() && self.guarded.is_empty();
        if is_empty && self.admission == Admission::Joined {
            return Err(missing("a realm", "realm`, `guarded_realm` or `any_open_realm"));
        }
        let open: Result<Vec<_>, _> = self.realms.iter().map(|it| Membership::open(it)).collect();
        let mut hosted = open?;
        let records = match &self.revocations {
            Some(folder) => records::load(folder)?,
            None => Vec::new(),
        };
        hosted.extend(self.guarded.iter().map(Membership::hosted));
        let records = records.into_iter().filter(|record| self.guarded.contains(record.realm()));
        let records: Vec<Record> = records.collect();
        let key = self.key.load()?;
        let mut config = self.config;
        (config.role, config.epoch) = (Role::Router, Clock::unix_micros());
        config.admission = self.admission;
        config.agent = self.agent.unwrap_or(config.agent);
        config.verifier = Some(Arc::new(GrantVerifier::new()));
        let mut settings = EndpointConfig::new(key.clone());
        settings.listen = Some(listen);
        settings.accept = true;
        settings.tunnels = self.tunnels;
        settings.handshake_timeout = self.handshake_timeout;
        settings.handshakes = self.handshakes;
        settings.loading_bytes_max = config.memory_bytes_max / LOADING_SHARE;
        let counters =
            Arc::new(TunnelCounters { inner: config.extension.take(), endpoint: OnceLock::new() });
        config.extension = if self.tunnels {
            Some(Arc::clone(&counters) as Arc<dyn Extension>)
        } else {
            counters.inner.clone()
        };
        let socket = Endpoint::bind(&settings).map_err(bind_error)?;
        let local_addr = socket.local_addr();
        let Started { owner, endpoint, links } = endpoint::start(&key, config, socket)?;
        // Realms first: a peer that comes at once shall not be told that they do not exist.
        for membership in hosted {
            owner.join(membership).await?;
        }
        // Then what was revoked: nobody gets in before it is known.
        for record in records {
            let record = Bytes::copy_from_slice(record.as_bytes());
            let revoked = owner.shared.command(Command::Revoke { record }).await;
            revoked.map_err(|Closed| StartError::Closed)?;
        }
        if let Some(folder) = self.revocations {
            let (sender, kept) = mpsc::channel(records::WAITING_MAX);
            owner.shared.records.get_or_init(|| sender);
            let closed = owner.shared.closed.clone();
            owner.tasks.spawn(records::keep(folder, kept, closed));
        }
        let weak = Arc::downgrade(&endpoint);
        counters.endpoint.get_or_init(|| weak.clone());
        owner.tasks.spawn(connector::accept(owner.shared.clone(), endpoint, links));
        Ok(Router { owner, endpoint: weak, local_addr })
    }
}

/// Tells the counters of tunnels beside what another extension tells.
#[derive(Debug)]
struct TunnelCounters {
    inner: Option<Arc<dyn Extension>>,
    endpoint: OnceLock<Weak<Endpoint>>,
}

impl Extension for TunnelCounters {
    fn answer(&self, procedure: &str, asker: Asker) -> Option<Bytes> {
        self.inner.as_ref()?.answer(procedure, asker)
    }

    fn counters(&self) -> Vec<(String, u64)> {
        let mut counters = self.inner.as_ref().map(|it| it.counters()).unwrap_or_default();
        if let Some(endpoint) = self.endpoint.get().and_then(Weak::upgrade) {
            let named = endpoint.tunnels().named();
            counters.extend(named.map(|(name, value)| (name.to_owned(), value)));
        }
        counters
    }
}

/// A gateway: keeps other nodes' subscriptions and services and forwards between them.
///
/// Cheap to clone. When the last handle, those of its local nodes included, is dropped, it stops at
/// once; [`Router::drain`] and [`Router::close`] end it in order.
#[derive(Clone, Debug)]
pub struct Router {
    owner: Arc<Owner>,
    /// Weak: the socket goes when the router is closed, also while handles are left.
    endpoint: Weak<Endpoint>,
    local_addr: SocketAddr,
}

impl Router {
    /// Starts the making of a router.
    pub fn builder() -> RouterBuilder {
        RouterBuilder {
            listen: None,
            realms: Vec::new(),
            guarded: Vec::new(),
            revocations: None,
            admission: Admission::Joined,
            key: KeySource::default(),
            config: Config::new(Role::Router, 0),
            agent: None,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            handshakes: HandshakeLimits::default(),
            tunnels: false,
        }
    }

    /// The router's id: its public key.
    pub fn id(&self) -> EndpointId {
        self.owner.shared.id
    }

    /// The address that it listens at.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What it is connected to, hosts and has done.
    ///
    /// # Errors
    /// When the router is closed.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn status(&self) -> Result<Status, Closed> {
        self.owner.shared.ask(|answer| Command::Status { answer }).await
    }

    /// Its counters.
    ///
    /// # Errors
    /// When the router is closed.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn stats(&self) -> Result<Stats, Closed> {
        Ok(self.status().await?.stats)
    }

    /// What became of the handshakes of peers since the start: what was let in and what was kept
    /// out, and by which limit. All zero once the router is closed.
    pub fn handshakes(&self) -> HandshakeStats {
        self.endpoint.upgrade().map(|endpoint| endpoint.handshakes()).unwrap_or_default()
    }

    /// Takes peers over TLS and TCP too, for networks that let no UDP pass; possible once, and only
    /// with [`RouterBuilder::tunnels`]. Returns the addresses.
    ///
    /// # Errors
    /// See [`TunnelError`]; none is taken then.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time.
    pub fn listen_for_tunnels(
        &self,
        config: &TunnelConfig,
    ) -> Result<Vec<SocketAddr>, TunnelError> {
        let endpoint = self.endpoint.upgrade().ok_or(TunnelError::Unusable)?;
        endpoint.listen_for_tunnels(config)
    }

    /// What became of those who came over TLS and TCP.
    pub fn tunnels(&self) -> TunnelStats {
        self.endpoint.upgrade().map(|endpoint| endpoint.tunnels()).unwrap_or_default()
    }

    /// What happens to it from now on.
    pub fn events(&self) -> Events {
        self.owner.shared.listen()
    }

    /// A node within this endpoint, without a link: publishes, subscribes, calls and serves right
    /// at the router. Hosts the realm if it is not hosted yet. [`Node::close`] closes the router.
    ///
    /// # Errors
    /// [`JoinError::BadName`] and [`JoinError::Closed`].
    ///
    /// # Cancel safety
    /// Dropping the future may leave the realm hosted.
    pub async fn node(&self, realm: &str) -> Result<Node, JoinError> {
        let id = self.owner.join(Membership::open(realm)?).await?;
        Ok(Node::new(self.owner.clone(), id, realm))
    }

    /// As [`Router::node`], in a guarded realm that this router hosts. What the node does there is not
    /// held to any grant: whoever runs the router answers for it.
    ///
    /// # Errors
    /// [`JoinError::Closed`].
    ///
    /// # Cancel safety
    /// As [`Router::node`].
    pub async fn guarded_node(&self, realm: &Realm) -> Result<Node, JoinError> {
        let membership = Membership::hosted(realm);
        let name = membership.name.clone();
        let id = self.owner.join(membership).await?;
        Ok(Node::new(self.owner.clone(), id, &name))
    }

    /// Goes down for a restart: refuses what is new, tells all peers to come back somewhere within
    /// `reconnect_window`, closes all links, and ends. Gives up waiting after 5 s.
    ///
    /// # Cancel safety
    /// Once begun, draining goes on when the future is dropped, as long as a handle is left.
    pub async fn drain(&self, reconnect_window: Duration) {
        self.end(CloseCode::Restarting, "the gateway restarts", reconnect_window).await;
    }

    /// Goes down: tells all peers, closes all links, and ends. Gives up waiting after 5 s.
    ///
    /// # Cancel safety
    /// As [`Router::drain`].
    pub async fn close(&self) {
        self.end(CloseCode::Done, "the gateway closes", Duration::ZERO).await;
    }

    async fn end(&self, code: CloseCode, reason: &str, reconnect_window: Duration) {
        let (reason, timeout) = (reason.to_owned(), CLOSE_TIMEOUT);
        self.owner.close(CloseCommand { code, reason, reconnect_window, timeout }).await;
    }
}
