//! Grants of guarded realms: who may do what, signed.
//!
//! A guarded realm belongs to an Ed25519 key, its *root*; [`Realm`] names both. The root key signs
//! [`IssuerToken`]s, issuers make [`Grant`]s for endpoints from them, and everybody may narrow what
//! they hold, offline. What was given too much is taken back with a [`Record`] of revocations.
//! Grants are Biscuit tokens that contain data only: no rule of anybody is ever evaluated. Each
//! signed block becomes a [`Layer`](macula_proto::auth::Layer), and
//! [`decide`](macula_proto::auth::decide) is the judge. Spec: docs/protocol §7.
//!
//! ```
//! use macula_grant::{EndpointId, Grant, IssuerToken, Pattern, RealmKey};
//! use macula_grant::{Rule, Terms, UnixTime, Verb};
//!
//! let key = RealmKey::generate("com.example.energy".parse()?);
//! let all = Rule { verb: Verb::Publish, pattern: Pattern::parse("**")? };
//! let year = Terms {
//!     allow: Some(vec![all]),
//!     expires: Some(UnixTime::from_secs(1_826_884_800)),
//!     ..Terms::default()
//! };
//! let issuer = IssuerToken::new(&key, &year)?;
//!
//! let site = Rule { verb: Verb::Publish, pattern: Pattern::parse("site.7.**")? };
//! let day = Terms {
//!     allow: Some(vec![site]),
//!     expires: Some(UnixTime::from_secs(1_795_435_200)),
//!     ..Terms::default()
//! };
//! let grant = issuer.grant(EndpointId::from_bytes([7; 32]), &day)?;
//! assert_eq!(Grant::from_bytes(grant.as_bytes())?, grant);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What this crate does *not* do: read files or clocks, keep revocations, or decide anything.
//! Randomness comes from the operating system, for new keys and for the key pair inside each new
//! signed block; reading uses none.

mod chain;
mod envelope;
mod error;
mod fact;
mod grant;
mod key;
mod realm;
mod record;
mod terms;
mod text;
mod token;
mod verifier;

pub use error::{MakeError, TextError};
pub use grant::{Grant, IssuerToken};
pub use key::{RealmKey, RootKey};
pub use macula_proto::EndpointId;
pub use macula_proto::auth::{BlockId, Denial, Permit, Rule, UnixTime, Verb};
pub use macula_proto::pubsub::Pattern;
pub use realm::{ParseRealmError, Realm, RealmName};
pub use record::{Record, RevocationList};
pub use terms::{BLOCKS_MAX, Block, CONTACT_BYTES_MAX, RULES_PER_BLOCK_MAX, Terms};
pub use text::{Kind, TEXT_BYTES_MAX};
pub use verifier::{CACHED_BYTES_MAX, CACHED_GRANTS_MAX, GrantVerifier};

#[cfg(test)]
mod tests;
