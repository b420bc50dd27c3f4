//! What an endpoint says about itself when asked.

use std::time::Duration;

use macula_proto::EndpointId;
use macula_proto::node::{LinkStatus, RealmSummary, Role, Stats};
use macula_transport::{PathInfo, SearchStats, TurnStatus};

/// What an endpoint is connected to, serves and has done.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// The endpoint's id.
    pub id: EndpointId,
    /// Router or leaf.
    pub role: Role,
    /// Time since it started.
    pub uptime: Duration,
    /// The gateway that a leaf is connected to, as configured; `None` while it is not.
    pub gateway: Option<String>,
    /// Whether the link to it runs over TLS and TCP, as where UDP does not pass.
    pub is_tunnelled: bool,
    /// Links whose handshake is done.
    pub links: Vec<LinkStatus>,
    /// The paths of links to peers, gateways apart.
    pub paths: Vec<(EndpointId, PathInfo)>,
    /// The TURN servers that were asked to relay for links to peers, and what they relay.
    pub turn: Vec<TurnStatus>,
    /// What searches for paths through hard NATs have done.
    pub searches: SearchStats,
    /// Realms joined or hosted.
    pub realms: Vec<RealmStatus>,
    /// Counters since the start.
    pub stats: Stats,
}

/// One realm in a [`Status`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RealmStatus {
    /// The realm's name, where this endpoint was told it; peers name realms by id only.
    pub name: Option<String>,
    /// What is known of it.
    pub summary: RealmSummary,
}
