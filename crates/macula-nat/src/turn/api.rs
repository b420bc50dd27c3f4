//! What goes into a server and comes out of it.

use std::net::SocketAddr;
use std::time::Duration;

use macula_proto::Time;

use super::credentials::Issuer;
use super::policy::PeerPolicy;

/// The moment of an input.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Time that never goes back.
    pub time: Time,
    /// Seconds since 1970, for the expiry of credentials.
    pub unix: u64,
}

/// One of the addresses and transports that clients come in at; the driver numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub u32);

/// A client as the network shows it: the five-tuple of RFC 8656 §3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Client {
    /// Where it came in.
    pub listener: ListenerId,
    /// Its address, in canonical form.
    pub remote: SocketAddr,
}

/// A relayed transport address, by the number that the server gives it; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayId(pub u64);

/// Which port a relay needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Any.
    Any,
    /// An even one (RFC 8656 §18.6).
    Even,
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output<'a> {
    /// Send to a client. ChannelData for clients of a stream must be padded to four bytes.
    ToClient {
        /// Who.
        client: Client,
        /// The packet.
        data: Vec<u8>,
    },
    /// Send from a relay's socket.
    ToPeer {
        /// Which relay.
        relay: RelayId,
        /// To where.
        peer: SocketAddr,
        /// The packet.
        data: &'a [u8],
    },
    /// Open a UDP socket and report it with [`Server::bound`](super::Server::bound).
    Bind {
        /// Its number from now on.
        relay: RelayId,
        /// For whom.
        client: Client,
        /// Whether it is IPv6.
        is_ipv6: bool,
        /// Which port.
        port: Port,
    },
    /// Close a relay's socket.
    Close {
        /// Which.
        relay: RelayId,
    },
}

/// Bounds of what clients may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Allocations at once; beyond it 508.
    pub allocations_max: usize,
    /// Allocations of one user; beyond it 486.
    pub allocations_per_user_max: usize,
    /// Allocations of clients at one IPv4 address or IPv6 /64; beyond it 486.
    pub allocations_per_address_max: usize,
    /// Peers that one allocation may have permissions for at once, and channels; beyond it 508.
    pub peers_per_allocation_max: usize,
    /// Longest lifetime of an allocation before it must be refreshed.
    pub lifetime_max: Duration,
    /// Bytes a second of data, both directions together, of all allocations of one user; what is
    /// above is dropped. 0: no limit.
    pub bytes_per_second_per_user: u64,
    /// The same for all users together.
    pub bytes_per_second: u64,
    /// Answers a second to one IPv4 address or IPv6 /64 that has proved nothing: Binding, challenges
    /// and refusals. More are not sent, so that a forged source is not flooded by us.
    pub answers_per_source: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            allocations_max: 4_096,
            allocations_per_user_max: 16,
            allocations_per_address_max: 256,
            peers_per_allocation_max: 64,
            lifetime_max: Duration::from_secs(3_600),
            bytes_per_second_per_user: 4 << 20,
            bytes_per_second: 64 << 20,
            answers_per_source: 100,
        }
    }
}

/// What a server is made of.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Realm of the credentials (RFC 8489 §9.2), at most 128 bytes.
    pub realm: String,
    /// Checks credentials.
    pub issuer: Issuer,
    /// Whom relays may reach.
    pub policy: PeerPolicy,
    /// How much may be used.
    pub limits: Limits,
    /// Whether relays with IPv4 and IPv6 can be had.
    pub has_ipv4: bool,
    /// See above.
    pub has_ipv6: bool,
    /// Random bytes: for nonces, and to spread sources over a table.
    pub seed: [u8; 32],
}

/// Counters since the start; `allocations` and `users` are of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Allocations that there are.
    pub allocations: u64,
    /// Users who have one.
    pub users: u64,
    /// Allocations made.
    pub allocated: u64,
    /// Allocations that were not refreshed in time.
    pub expired: u64,
    /// Requests without credentials, which is how every client begins, and stale nonces.
    pub challenged: u64,
    /// Wrong, expired or missing credentials.
    pub unauthorized: u64,
    /// Strangers' requests not answered because of their rate.
    pub unanswered: u64,
    /// Refused: the user has too many allocations.
    pub refused_user: u64,
    /// Refused: too many allocations from one address.
    pub refused_address: u64,
    /// Refused: too many allocations in all, or no socket.
    pub refused_full: u64,
    /// Refused or dropped: a peer that may not be reached.
    pub refused_peer: u64,
    /// Refused: too many peers of one allocation.
    pub refused_peers_max: u64,
    /// Packets dropped: a user is too fast.
    pub dropped_user_rate: u64,
    /// Packets dropped: all together are too fast.
    pub dropped_total_rate: u64,
    /// Packets dropped: no allocation, permission or channel for them.
    pub dropped_unpermitted: u64,
    /// Packets that are not STUN, or not well formed.
    pub malformed: u64,
    /// Data passed on to peers.
    pub packets_to_peers: u64,
    /// See above, without headers.
    pub bytes_to_peers: u64,
    /// Data passed on to clients.
    pub packets_to_clients: u64,
    /// See above, without headers.
    pub bytes_to_clients: u64,
}

impl Stats {
    /// Names and values, in a fixed order.
    pub fn named(&self) -> [(&'static str, u64); 20] {
        [
            ("allocations", self.allocations),
            ("users", self.users),
            ("allocated", self.allocated),
            ("expired", self.expired),
            ("challenged", self.challenged),
            ("unauthorized", self.unauthorized),
            ("unanswered", self.unanswered),
            ("refused_user", self.refused_user),
            ("refused_address", self.refused_address),
            ("refused_full", self.refused_full),
            ("refused_peer", self.refused_peer),
            ("refused_peers_max", self.refused_peers_max),
            ("dropped_user_rate", self.dropped_user_rate),
            ("dropped_total_rate", self.dropped_total_rate),
            ("dropped_unpermitted", self.dropped_unpermitted),
            ("malformed", self.malformed),
            ("packets_to_peers", self.packets_to_peers),
            ("bytes_to_peers", self.bytes_to_peers),
            ("packets_to_clients", self.packets_to_clients),
            ("bytes_to_clients", self.bytes_to_clients),
        ]
    }
}
