//! How QUIC is set up.

use std::sync::Arc;
use std::time::Duration;

use macula_proto::limits;
use noq::{ConnectionId, ConnectionIdGenerator, InvalidCid, MtuDiscoveryConfig, VarInt};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{hkdf, hmac};

use super::pace;
use crate::anonymous::AnonymousConfig;
use crate::endpoint::EndpointConfig;
use crate::key::SecretKey;

/// What a peer may send on one stream before it is read, bytes: 100 Mbit/s at 100 ms.
const STREAM_WINDOW_BYTES: u32 = 1280 * 1024;
/// What a peer may send on a whole link before it is read, bytes. All lanes, all bulk frames and
/// some thirty streaming calls can stand still without taking the credit of control, which shares
/// it. Less would be safer against a peer that wastes our memory, but let slow consumers of a few
/// calls stop a whole link.
const LINK_WINDOW_BYTES: u32 = 64 * 1024 * 1024;
/// Streams of both sorts that a peer may have open once the link's lanes are. QUIC renews such
/// credit only when more than an eighth of it is used up, hence the surplus.
const BIS_MAX: u32 = with_surplus(limits::STREAMS_PER_LINK_MAX as u32 + 1);
const UNIS_MAX: u32 = with_surplus(limits::BULK_PER_LINK_MAX as u32 + limits::LANE_COUNT as u32);

const fn with_surplus(streams: u32) -> u32 {
    streams + streams / 7 + 1
}

/// What QUIC keeps of a link's sent and unacknowledged data, bytes.
const SEND_WINDOW_BYTES: u64 = 8 * 1024 * 1024;
/// Paths of one link between peers, relayed and direct ones side by side.
const PATHS_MAX: u32 = 8;
/// Addresses that a peer may offer for direct paths: as many as there are candidates of all kinds.
const PEER_ADDRESSES_MAX: u8 = 18;
/// At most one stateless reset in this time. Resets are smaller than what provokes them and only
/// answer connection ids of our making, so that a low bound is safe; after a restart each of
/// thousands of peers needs one.
const RESET_INTERVAL: Duration = Duration::from_micros(100);
/// The only version of QUIC that is spoken.
const QUIC_V1: u32 = 1;
/// Connection attempts that may wait for being looked at. Those beyond it are dropped before anything
/// is decrypted, which is cheap; at the highest rate that is looked at these are 50 ms.
const INCOMING_MAX: usize = 1024;
/// What one such attempt may make us keep, bytes.
const INCOMING_BYTES_MAX: u64 = 64 * 1024;
/// What all of them may make us keep, bytes.
const INCOMING_TOTAL_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Lets the peer open streams of all sorts. Until then it can only open control: what it has to
/// say elsewhere costs no memory here and cannot use up control's share of the link's credit.
pub(super) fn admit(connection: &noq::Connection) {
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(UNIS_MAX));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(BIS_MAX));
}

/// Settings of the socket-wide half of QUIC.
pub(super) fn endpoint(key: &SecretKey, port: u16, mtu_max: u16) -> noq::EndpointConfig {
    // Both keys derive from identity and port: a restarted endpoint answers the packets of links
    // that it has forgotten with resets that the peers accept at once. The port is in it so that
    // two endpoints of one identity cannot be used to reset each other's links.
    let reset_key = key.derive(&format!("quic stateless reset {port}"));
    let cid_key = Arc::new(hmac::Key::new(
        hmac::HMAC_SHA256,
        &key.derive(&format!("quic connection id {port}")),
    ));
    let mut config =
        noq::EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset_key)));
    config
        .cid_generator(Arc::new(move || Box::new(KeyedCids { key: Arc::clone(&cid_key) })))
        .min_reset_interval(RESET_INTERVAL)
        // No drafts: what is offered to packets of other versions is shorter so.
        .supported_versions(vec![QUIC_V1])
        // So that STUN and TURN can share the socket one day (RFC 9443).
        .grease_quic_bit(false);
    if let Err(error) = config.max_udp_payload_size(mtu_max) {
        tracing::debug!(%error, mtu_max, "packet size left at QUIC's default");
    }
    config
}

/// Settings of accepted connections.
pub(super) fn server(
    tls: Arc<rustls::ServerConfig>,
    key: &SecretKey,
    settings: &EndpointConfig,
) -> Result<noq::ServerConfig, noq::crypto::rustls::NoInitialCipherSuite> {
    let tls = noq::crypto::rustls::QuicServerConfig::try_from(tls)?;
    let mut transport = transport(settings, 1);
    with_relay(&mut transport);
    // One direction only: with both, a client that writes address reports into 0-RTT packets
    // would hang on reconnecting.
    transport.send_observed_address_reports(true);
    Ok(server_with(tls, key, transport))
}

/// Settings of connections that peers dialled.
pub(super) fn peer_server(
    tls: Arc<rustls::ServerConfig>,
    key: &SecretKey,
    settings: &EndpointConfig,
) -> Result<noq::ServerConfig, noq::crypto::rustls::NoInitialCipherSuite> {
    let tls = noq::crypto::rustls::QuicServerConfig::try_from(tls)?;
    let mut transport = transport(settings, 1);
    with_paths(&mut transport, settings);
    Ok(server_with(tls, key, transport))
}

fn server_with(
    tls: noq::crypto::rustls::QuicServerConfig,
    key: &SecretKey,
    transport: noq::TransportConfig,
) -> noq::ServerConfig {
    let token_key = TokenKey::new(&key.derive("quic address token"));
    let mut config = noq::ServerConfig::new(Arc::new(tls), Arc::new(token_key));
    config
        .transport_config(Arc::new(transport))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_TOTAL_BYTES_MAX);
    config
}

/// Settings of connections of clients that show no key. They speak a protocol of small messages on a
/// stream or a few, so windows are small: nobody of them is known.
pub(super) fn anonymous(
    tls: Arc<rustls::ServerConfig>,
    seal: &SecretKey,
    settings: &AnonymousConfig,
) -> Result<noq::ServerConfig, noq::crypto::rustls::NoInitialCipherSuite> {
    let tls = noq::crypto::rustls::QuicServerConfig::try_from(tls)?;
    let mut transport = noq::TransportConfig::default();
    let window = VarInt::from_u32(settings.stream_window_bytes);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(settings.streams_max))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(window)
        .receive_window(VarInt::from_u32(settings.stream_window_bytes.saturating_mul(4)))
        .send_window(u64::from(settings.stream_window_bytes))
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(settings.keep_alive))
        .max_idle_timeout(settings.idle_timeout.try_into().ok());
    Ok(server_with(tls, seal, transport))
}

/// Settings of dialled connections.
pub(super) fn client(settings: &EndpointConfig) -> noq::TransportConfig {
    let mut transport = transport(settings, 0);
    with_relay(&mut transport);
    transport.receive_observed_address_reports(true);
    transport
}

/// Settings of connections that come by a tunnel.
pub(super) fn tunnel_server(
    tls: Arc<rustls::ServerConfig>,
    key: &SecretKey,
    settings: &EndpointConfig,
) -> Result<noq::ServerConfig, noq::crypto::rustls::NoInitialCipherSuite> {
    let tls = noq::crypto::rustls::QuicServerConfig::try_from(tls)?;
    let mut transport = transport(settings, 1);
    with_relay(&mut transport);
    in_tunnel(&mut transport, settings);
    Ok(server_with(tls, key, transport))
}

/// Settings of connections that are dialled through a tunnel.
pub(super) fn tunnel_client(settings: &EndpointConfig) -> noq::TransportConfig {
    let mut transport = transport(settings, 0);
    with_relay(&mut transport);
    in_tunnel(&mut transport, settings);
    transport
}

/// A stream carries any packet, so there is no size to find out. Where a peer sees us is not told:
/// there is no UDP.
fn in_tunnel(transport: &mut noq::TransportConfig, settings: &EndpointConfig) {
    let bytes_max = u16::try_from(limits::TUNNEL_PACKET_BYTES_MAX).unwrap_or(1200);
    let bytes = bytes_max.min(settings.mtu_max);
    transport.min_mtu(bytes).initial_mtu(bytes).mtu_discovery_config(None);
}

/// Settings of connections to peers.
pub(super) fn peer_client(settings: &EndpointConfig) -> noq::TransportConfig {
    let mut transport = transport(settings, 0);
    with_paths(&mut transport, settings);
    transport
}

/// Relayed packets travel as datagrams between an endpoint and its gateway.
fn with_relay(transport: &mut noq::TransportConfig) {
    transport
        .datagram_receive_buffer_size(Some(limits::RELAY_QUEUE_BYTES_MAX))
        .datagram_send_buffer_size(limits::RELAY_QUEUE_BYTES_MAX);
}

/// A link between peers has several paths, all of which are kept alive from both ends. Others have
/// one, and save the memory. Its datagrams are the sorts of candidates, signals before port searches, and
/// packets that one member carries for others.
fn with_paths(transport: &mut noq::TransportConfig, settings: &EndpointConfig) {
    with_relay(transport);
    transport
        .max_concurrent_multipath_paths(PATHS_MAX)
        .max_remote_nat_traversal_addresses(PEER_ADDRESSES_MAX)
        .default_path_keep_alive_interval(Some(settings.keep_alive))
        .default_path_max_idle_timeout(Some(settings.idle_timeout));
}

/// What both sides have in common; `bis` is how many bidirectional streams the peer may open
/// before [`admit`].
///
/// The frequency of acknowledgements stays as it is: to ask a peer for another, noq 1.4 writes a frame without
/// looking whether it fits, and panics with the connection's lock held when it does not: tests of calls met it on
/// a busy machine. It also panics when a peer has abandoned the last path then
/// (<https://github.com/n0-computer/noq/issues/807>).
fn transport(settings: &EndpointConfig, bis: u32) -> noq::TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(settings.mtu_max);
    let mut config = noq::TransportConfig::default();
    config
        .congestion_controller_factory(Arc::new(pace::Factory::default()))
        .max_concurrent_bidi_streams(VarInt::from_u32(bis))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(LINK_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(discovery))
        .keep_alive_interval(Some(settings.keep_alive))
        .max_idle_timeout(settings.idle_timeout.try_into().ok());
    config
}

/// Connection ids that prove to be of our making: six random bytes and four of their HMAC.
///
/// Unlike a random key, one that derives from the identity recognises the ids of an earlier run.
struct KeyedCids {
    key: Arc<hmac::Key>,
}

impl KeyedCids {
    const RANDOM_BYTES: usize = 6;
    const BYTES: usize = Self::RANDOM_BYTES + 4;

    fn seal(&self, random: &[u8]) -> ConnectionId {
        let mut id = [0u8; Self::BYTES];
        let tag = hmac::sign(&self.key, random);
        id.iter_mut().zip(random.iter().chain(tag.as_ref())).for_each(|(to, from)| *to = *from);
        ConnectionId::new(&id)
    }
}

impl ConnectionIdGenerator for KeyedCids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut random = [0u8; Self::RANDOM_BYTES];
        SystemRandom::new().fill(&mut random).expect("the system gave random bytes before");
        self.seal(&random)
    }

    fn validate(&self, cid: ConnectionId) -> Result<(), InvalidCid> {
        let random = cid.get(..Self::RANDOM_BYTES).ok_or(InvalidCid)?;
        if self.seal(random) == cid { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        Self::BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Seals address tokens with a key of their own each, derived from the identity: tokens outlive a
/// restart, and no nonce is ever used twice with one key.
struct TokenKey(hkdf::Prk);

impl TokenKey {
    fn new(secret: &[u8]) -> Self {
        Self(hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(secret))
    }

    fn key(&self, nonce: u128) -> Result<ring::aead::LessSafeKey, noq::crypto::CryptoError> {
        let fail = |_| noq::crypto::CryptoError;
        let mut key = [0u8; 32];
        let info = nonce.to_le_bytes();
        let info = [info.as_slice()];
        let okm = self.0.expand(&info, hkdf::HKDF_SHA256).map_err(fail)?;
        okm.fill(&mut key).map_err(fail)?;
        let key = ring::aead::UnboundKey::new(&ring::aead::AES_256_GCM, &key).map_err(fail)?;
        Ok(ring::aead::LessSafeKey::new(key))
    }
}

impl noq::crypto::HandshakeTokenKey for TokenKey {
    fn seal(&self, nonce: u128, data: &mut Vec<u8>) -> Result<(), noq::crypto::CryptoError> {
        let zero = ring::aead::Nonce::assume_unique_for_key([0; 12]);
        self.key(nonce)?
            .seal_in_place_append_tag(zero, ring::aead::Aad::empty(), data)
            .map_err(|_| noq::crypto::CryptoError)
    }

    fn open<'a>(
        &self,
        nonce: u128,
        data: &'a mut [u8],
    ) -> Result<&'a [u8], noq::crypto::CryptoError> {
        let zero = ring::aead::Nonce::assume_unique_for_key([0; 12]);
        self.key(nonce)?
            .open_in_place(zero, ring::aead::Aad::empty(), data)
            .map(|opened| &*opened)
            .map_err(|_| noq::crypto::CryptoError)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

    use noq::crypto::HandshakeTokenKey;
    use noq::{Endpoint, PathId, PathStatus, TokioRuntime};

    use super::super::tls::Tls;
    use super::*;

    /// A QUIC endpoint on loopback, as peers are to each other.
    fn peer(settings: &EndpointConfig) -> (Tls, Endpoint) {
        let tls = Tls::new(&settings.key).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let config = endpoint(&settings.key, 0, settings.mtu_max);
        let server = peer_server(tls.server(), &settings.key, settings).unwrap();
        let runtime = Arc::new(TokioRuntime);
        (tls, Endpoint::new(config, Some(server), socket, runtime).unwrap())
    }

    #[tokio::test]
    async fn a_peer_that_abandons_our_last_path_ends_the_connection_and_nothing_else() {
        let [alice, bob] = [1, 2].map(|seed| EndpointConfig::new(SecretKey::from_seed([seed; 32])));
        let ((tls, dialer), (_, acceptor)) = (peer(&alice), peer(&bob));
        let crypto = tls.client(&tls.server_key(None));
        let crypto = noq::crypto::rustls::QuicClientConfig::try_from(crypto).unwrap();
        let mut client = noq::ClientConfig::new(Arc::new(crypto));
        client.transport_config(Arc::new(peer_client(&alice)));
        let to = acceptor.local_addr().unwrap();
        let dialled = dialer.connect_with(client, to, "peer").unwrap();
        let accepted = async { acceptor.accept().await.unwrap().await.unwrap() };
        let (dialled, accepted) = tokio::join!(dialled, accepted);
        let dialled = dialled.unwrap();
        dialled.handshake_confirmed().await.unwrap();
        // A path that the other side never hears of, so that the one it knows can be abandoned.
        let nobody = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let nobody: SocketAddr = nobody.local_addr().unwrap();
        // It needs connection ids of the peer, which may come behind the end of the handshake.
        while dialled.open_path(nobody, PathStatus::Available).path_id().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        dialled.path(PathId::ZERO).unwrap().close().unwrap();
        let patience = Duration::from_secs(20);
        let ended = tokio::time::timeout(patience, accepted.closed()).await.unwrap();
        assert!(!matches!(ended, noq::ConnectionError::LocallyClosed), "{ended:?}");
    }

    #[test]
    fn connection_ids_of_an_earlier_run_are_recognised() {
        let cids =
            |byte| KeyedCids { key: Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &[byte; 32])) };
        let id = cids(1).generate_cid();
        assert!(cids(1).validate(id).is_ok());
        assert!(cids(2).validate(id).is_err());
        assert!(cids(1).validate(ConnectionId::new(&[0; 3])).is_err());
    }

    #[test]
    fn tokens_open_only_with_their_key_and_nonce() {
        let mut token = b"address".to_vec();
        TokenKey::new(b"secret").seal(7, &mut token).unwrap();
        assert_eq!(TokenKey::new(b"secret").open(7, &mut token.clone()).unwrap(), b"address");
        assert!(TokenKey::new(b"secret").open(8, &mut token.clone()).is_err());
        assert!(TokenKey::new(b"other").open(7, &mut token).is_err());
    }
}
