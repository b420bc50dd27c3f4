//! Connecting to a gateway, and hearing what becomes of the connection.

use std::path::Path;
use std::time::Duration;

use macula::{
    CallBuilder, Event, Events, Node, NodeBuilder, SecretKey, StartError, Status, Strategy,
    TurnServer, TurnUse, Visitor,
};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::address::GatewayAddress;
use crate::args::{ConnectArgs, NatArgs, TurnServerArg};
use crate::failure::{Exit, Failure};
use crate::{known, out};

/// Connects to a gateway and takes part in a realm.
pub(crate) async fn node(
    gateway: &GatewayAddress,
    args: &ConnectArgs,
    (realm, grant): (Option<&str>, Option<&Path>),
) -> Result<(Node, Watch), Failure> {
    node_with(gateway, args, (realm, grant), Strategy::default()).await
}

/// The same, with a say in the paths to peers.
pub(crate) async fn node_with(
    gateway: &GatewayAddress,
    args: &ConnectArgs,
    (realm, grant): (Option<&str>, Option<&Path>),
    strategy: Strategy,
) -> Result<(Node, Watch), Failure> {
    let mut builder = builder(gateway, args)?.strategy(strategy);
    if let Some(realm) = realm {
        builder = builder.realm(realm);
    }
    if let Some(path) = grant {
        builder = builder.grant_file(path);
    }
    let node = builder.start().await.map_err(|error| start_failure(gateway, error))?;
    let watch = Watch::start(node.events());
    Ok((node, watch))
}

/// A connection on which built-in procedures of endpoints are called.
pub(crate) enum Asker {
    /// In no realm: sees the gateway, and what it tells everybody.
    Visitor(Visitor),
    /// In a realm: sees its peers too.
    Member(Node, Watch),
}

impl Asker {
    /// Connects to a gateway, as a member if a realm or a grant is given.
    pub(crate) async fn connect(
        gateway: &GatewayAddress,
        args: &ConnectArgs,
        membership: (Option<&str>, Option<&Path>),
    ) -> Result<Self, Failure> {
        if membership != (None, None) {
            let (node, watch) = node(gateway, args, membership).await?;
            return Ok(Self::Member(node, watch));
        }
        let visitor = builder(gateway, args)?.visit().await;
        Ok(Self::Visitor(visitor.map_err(|error| start_failure(gateway, error))?))
    }

    /// Starts a call to a built-in procedure.
    pub(crate) fn builtin(&self, procedure: &str) -> CallBuilder {
        match self {
            Self::Visitor(visitor) => visitor.builtin(procedure),
            Self::Member(node, _) => node.call_with(procedure).idempotent(true),
        }
    }

    /// Whether the gateway is reached over TLS and TCP.
    pub(crate) async fn is_tunnelled(&self) -> bool {
        self.status().await.is_some_and(|status| status.is_tunnelled)
    }

    /// What this end knows of its own links; `None` once it is closed.
    pub(crate) async fn status(&self) -> Option<Status> {
        let status = match self {
            Self::Visitor(visitor) => visitor.status().await,
            Self::Member(node, _) => node.status().await,
        };
        status.ok()
    }

    /// Says goodbye.
    pub(crate) async fn close(self) {
        match self {
            Self::Visitor(visitor) => visitor.close().await,
            Self::Member(node, watch) => close(node, watch).await,
        }
    }
}

fn builder(gateway: &GatewayAddress, args: &ConnectArgs) -> Result<NodeBuilder, Failure> {
    let mut builder = with_servers(Node::builder(), &args.nat)?
        .gateway(gateway.to_string())
        .connect_timeout(args.connect_timeout)
        .via(args.via.into())
        .port_search(!args.nat.no_port_search)
        .port_mapping(!args.nat.no_port_mapping)
        .carries(args.nat.carry)
        .agent(concat!("macula-cli/", env!("CARGO_PKG_VERSION")));
    if let Some(addr) = args.nat.bind {
        builder = builder.bind(addr);
    }
    if let Some(path) = &args.key {
        builder = builder.key(client_key(path)?);
    }
    if gateway.id.is_none() {
        builder = builder.known_gateways(known::file_of_user()?);
    }
    Ok(builder)
}

/// Adds STUN and TURN servers.
fn with_servers(builder: NodeBuilder, args: &NatArgs) -> Result<NodeBuilder, Failure> {
    let mut servers = Vec::new();
    let mut is_gateway = false;
    for server in &args.turn_servers {
        match (server, &args.turn_user, &args.turn_password) {
            (TurnServerArg::Gateway, ..) => is_gateway = true,
            (TurnServerArg::Uri(uri), Some(username), Some(password)) => {
                let (username, password) = (username.clone(), password.clone());
                servers.push(TurnServer { uri: uri.clone(), username, password });
            }
            (TurnServerArg::Uri(uri), ..) => {
                return Err(Failure::new(
                    Exit::Usage,
                    format!("{uri} wants a username and a password"),
                    "give them in MACULA_TURN_USER and MACULA_TURN_PASSWORD",
                ));
            }
        }
    }
    let when = if args.turn_at_once { TurnUse::AtOnce } else { TurnUse::WhenRelayed };
    let builder = builder.stun_servers(args.stun_servers.iter().cloned());
    Ok(builder.turn_servers(servers).turn_of_gateway(is_gateway).turn_use(when))
}

fn start_failure(gateway: &GatewayAddress, error: StartError) -> Failure {
    match error {
        StartError::WrongKey(wrong) => known::wrong_key(&wrong),
        error @ (StartError::Config(_) | StartError::Bind(_)) => Failure::from(error),
        error => Failure::from(error).context(format_args!("gateway {}", gateway.host_port())),
    }
}

/// The key in a file that must exist.
pub(crate) fn client_key(path: &Path) -> Result<SecretKey, Failure> {
    if !path.exists() {
        return Err(Failure::new(
            Exit::Failure,
            format!("key file {}: there is no such file", path.display()),
            format!("create one with `macula keygen --out {}`", path.display()),
        ));
    }
    let key = macula::load_or_create_key(path).map_err(StartError::from)?;
    Ok(key)
}

/// Closing waits for so long at most: what had to be confirmed was waited for before.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Says goodbye.
pub(crate) async fn close(node: Node, watch: Watch) {
    // What is told from now on is what was asked for.
    drop(watch);
    node.close_within(CLOSE_TIMEOUT).await;
}

/// What the library told since the connection was made.
#[derive(Clone, Debug, Default)]
struct Heard {
    /// It goes no further.
    fatal: Option<Failure>,
    /// The gateway said no to something.
    refused: Option<Failure>,
}

/// Tells people when the connection is lost and comes back, and keeps what went wrong.
/// Dropping it ends that.
#[derive(Debug)]
pub(crate) struct Watch {
    heard: watch::Receiver<Heard>,
    task: AbortHandle,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    fn start(mut events: Events) -> Self {
        let (sender, heard) = watch::channel(Heard::default());
        let task = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match told(&event) {
                    Told::Note(note) => out::note(note),
                    Told::Fatal(failure) => sender.send_modify(|heard| {
                        heard.fatal.get_or_insert(failure);
                    }),
                    Told::Refused(failure) => sender.send_modify(|heard| {
                        heard.refused.get_or_insert(failure);
                    }),
                    Told::Nothing => {}
                }
            }
        });
        Self { heard, task: task.abort_handle() }
    }

    /// Completes when the connection is beyond repair.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub(crate) async fn fatal(&self) -> Failure {
        self.first(|heard| heard.fatal.clone()).await
    }

    /// Completes when the gateway has refused something.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub(crate) async fn refusal(&self) -> Failure {
        self.first(|heard| heard.refused.clone()).await
    }

    /// What the gateway has refused first, if anything.
    pub(crate) fn refused(&self) -> Option<Failure> {
        self.heard.borrow().refused.clone()
    }

    async fn first(&self, pick: impl Fn(&Heard) -> Option<Failure>) -> Failure {
        let mut heard = self.heard.clone();
        match heard.wait_for(|heard| pick(heard).is_some()).await.map(|heard| pick(&heard)) {
            Ok(Some(failure)) => failure,
            // The node was closed on purpose.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

/// What an event means to a command.
enum Told {
    Nothing,
    Note(String),
    Fatal(Failure),
    Refused(Failure),
}

fn told(event: &Event) -> Told {
    match event {
        Event::Disconnected { gateway, reason, .. } => {
            Told::Note(format!("lost gateway {gateway} ({reason}); trying again"))
        }
        Event::Moved { gateway, is_tunnelled, .. } => {
            let way = if *is_tunnelled { "TLS over TCP" } else { "UDP" };
            Told::Note(format!("gateway {gateway} is reached by {way} now"))
        }
        Event::Reconnected { gateway, .. } => Told::Note(format!("gateway {gateway} is back")),
        Event::WrongKey(wrong) => Told::Fatal(known::wrong_key(wrong)),
        Event::RealmDenied { realm, reason } => {
            let error = StartError::Denied { realm: realm.clone(), reason: reason.clone() };
            Told::Fatal(error.into())
        }
        Event::RenewalRefused { realm, reason } => Told::Note(format!(
            "realm {realm}: the renewed grant is not taken ({reason}); the one before still holds"
        )),
        Event::SubscriptionRefused { pattern, code, reason } => {
            let error = macula::SubscribeError::Refused { code: *code, reason: reason.clone() };
            Told::Refused(Failure::from(error).context(pattern))
        }
        Event::RegistrationRefused { procedure, code, reason } => {
            let error = macula::ServeError::Refused { code: *code, reason: reason.clone() };
            Told::Refused(Failure::from(error).context(procedure))
        }
        Event::PublishRefused { topic, code, reason, .. } => {
            let error = macula::PublishError::Refused { code: *code, reason: reason.clone() };
            Told::Refused(Failure::from(error).context(topic))
        }
        Event::Closed { failure: Some(failure) } => Told::Fatal(Failure::new(
            Exit::Failure,
            format!("the connection broke down: {failure}"),
            "try again; --log debug tells more",
        )),
        _ => Told::Nothing,
    }
}
