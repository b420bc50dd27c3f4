//! The door for clients of Macula v0.7: they take part in realms beside native peers.
//!
//! [`core`] is all of it that does no I/O: the codec, the state of connections and realms, and what is
//! to be done. [`V07`] joins it with a socket of its own and with nodes of the gateway's router.
//! Native peers see clients as the gateway: what they publish bears its id, and so do their calls.
//!
//! v0.7 has no authentication. Whoever reaches the socket may say that it is any node, in every realm
//! that the door leads into; so it is closed unless an address for it is configured, and leads into a
//! guarded realm only if that is named for it.

mod bridge;
mod config;
pub mod core;
mod queue;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use macula::Router;
use macula_proto::node::{Asker, Extension};
use macula_transport::{AnonymousConfig, AnonymousListener, BindError, HandshakeLimits};

pub use self::bridge::REFUSED_BY_V07;
use self::bridge::Shared;
pub use self::config::{DEFAULT_PORT, LegacyDelivery, V07Config};
use self::core::door::Door;

/// The protocol, as TLS names it.
pub const ALPN: &[u8] = b"macula";
/// What clients hear when the gateway ends.
const GOODBYE: &str = "the gateway closes";

/// The door does not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum V07Error {
    /// The address cannot be had.
    #[error("no v0.7 door: {0}")]
    Bind(#[from] BindError),
    /// A certificate could not be made.
    #[error("no v0.7 door: a certificate cannot be made: {0}")]
    Certificate(String),
}

/// The door, listening. Dropping it closes it at once.
#[derive(Debug)]
pub struct V07 {
    shared: Arc<Shared>,
    realms: Vec<String>,
}

impl V07 {
    /// Takes the address, if one is configured; clients wait until [`V07::run`]. `gateway` are the realms
    /// that the gateway names.
    ///
    /// # Errors
    /// See [`V07Error`].
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time.
    pub fn bind(config: &V07Config, gateway: &[String]) -> Result<Option<Self>, V07Error> {
        let Some(listen) = config.listen else { return Ok(None) };
        let (certificate, key) = certificate()?;
        let mut quic = AnonymousConfig::new(listen, ALPN, certificate, key);
        quic.connections_max = config.connections_max;
        quic.connections_per_address_max = config.connections_per_address_max;
        let mut handshakes = HandshakeLimits::default();
        handshakes.per_second_max = config.handshakes_per_second_max;
        handshakes.per_source_max = config.handshakes_per_source_max;
        quic.handshakes = handshakes;
        let listener = AnonymousListener::bind(&quic)?;
        let realms = config.door_realms(gateway);
        let names = realms.iter().map(|realm| realm.name().to_owned()).collect();
        let door = Door::new(config.door(gateway));
        Ok(Some(Self {
            shared: Arc::new(Shared::new(listener, door, realms, config)),
            realms: names,
        }))
    }

    /// Lets clients in, whom `router` serves.
    pub fn run(&self, router: &Router) {
        self.shared.run(router.clone());
    }

    /// Where it listens: the real port, also when port 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.listener.local_addr()
    }

    /// Names of the realms that it leads into; none: any open one that a client asks for.
    pub fn realms(&self) -> &[String] {
        &self.realms
    }

    /// What happened so far, by name.
    pub fn counters(&self) -> Vec<(String, u64)> {
        counters(&self.shared)
    }

    /// What the gateway's node tells for it.
    pub fn extension(&self) -> Arc<dyn Extension> {
        // Weak: the node holds it, and the door holds the node.
        Arc::new(Desk(Arc::downgrade(&self.shared)))
    }

    /// Tells clients that it closes, and closes.
    ///
    /// # Cancel safety
    /// Everything is closed at the first poll; only the waiting is lost.
    pub async fn close(self) {
        self.shared.listener.close(0, GOODBYE).await;
    }
}

impl Drop for V07 {
    fn drop(&mut self) {
        self.shared.end();
    }
}

#[derive(Debug)]
struct Desk(Weak<Shared>);

impl Extension for Desk {
    fn answer(&self, _procedure: &str, _asker: Asker) -> Option<Bytes> {
        None
    }

    fn counters(&self) -> Vec<(String, u64)> {
        self.0.upgrade().map(|shared| counters(&shared)).unwrap_or_default()
    }
}

fn counters(shared: &Shared) -> Vec<(String, u64)> {
    let handshakes = shared.listener.handshakes();
    let own = [
        ("queued_bytes", shared.queued.used() as u64),
        ("dropped_slow", shared.dropped_slow.load(Ordering::Relaxed)),
        ("slowed", shared.slowed.load(Ordering::Relaxed)),
        ("turned_away", shared.listener.turned_away()),
        ("handshakes", handshakes.completed),
        ("handshakes_failed", handshakes.failed + handshakes.timed_out + handshakes.displaced),
        ("handshakes_refused", handshakes.refused_full + handshakes.refused_rate),
        ("handshakes_ignored", handshakes.ignored_source),
    ];
    let stats = shared.door_stats().named().into_iter().chain(own);
    stats.map(|(name, value)| (format!("v07_{name}"), value)).collect()
}

/// A certificate of nobody, made anew at each start: v0.7 clients want one and check nothing in it.
fn certificate() -> Result<(Vec<u8>, Vec<u8>), V07Error> {
    let fault = |error: rcgen::Error| V07Error::Certificate(error.to_string());
    let key = rcgen::KeyPair::generate().map_err(fault)?;
    let params = rcgen::CertificateParams::new(vec!["macula".to_owned()]).map_err(fault)?;
    let certificate = params.self_signed(&key).map_err(fault)?;
    Ok((certificate.der().to_vec(), key.serialize_der()))
}
