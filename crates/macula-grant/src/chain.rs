//! The blocks of a grant or of an issuer token, from the root on.

use std::fmt;

use macula_proto::auth::{Denial, Permit, UnixTime};
use macula_proto::limits::GRANT_BYTES_MAX;
use macula_proto::{EndpointId, RealmId};

use crate::envelope::{Envelope, malformed};
use crate::error::MakeError;
use crate::key::RealmKey;
use crate::realm::Realm;
use crate::terms::{self, BLOCKS_MAX, Block, Terms};
use crate::text::Kind;
use crate::token;

/// A chain whose signatures hold, of a realm that it proves to belong to.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    bytes: Vec<u8>,
    /// Where the token begins in them.
    token_at: usize,
    pub(crate) realm: Realm,
    pub(crate) epoch: u64,
    pub(crate) expires: UnixTime,
    pub(crate) blocks: Vec<Block>,
}

impl Chain {
    /// Reads one of `kind`; `realm` is where it must belong, when that is known.
    pub(crate) fn read(kind: Kind, bytes: &[u8], realm: Option<&RealmId>) -> Result<Self, Denial> {
        let envelope = Envelope::read(kind, bytes, GRANT_BYTES_MAX)?;
        if realm.is_some_and(|wanted| envelope.realm.id() != *wanted) {
            return Err(Denial::Forged(format!("it is of realm {}", envelope.realm)));
        }
        let (mut head, mut blocks) = (None, Vec::new());
        token::read(envelope.body, &envelope.realm.root, BLOCKS_MAX, |id, facts| {
            let (found, block) = terms::read(id, facts)?;
            if blocks.is_empty() {
                head = found;
            } else if found.is_some() {
                return Err(malformed("a block that is not the root's speaks for it"));
            }
            blocks.push(block);
            Ok(())
        })?;
        let head = head.ok_or_else(|| malformed("the root's block says no realm"))?;
        if head.name != envelope.realm.name.as_str() {
            return Err(Denial::Forged(
                "the root signed it for a realm of another name".to_owned(),
            ));
        }
        let first = blocks.first().map(|block| &block.terms);
        if first.is_none_or(|terms| terms.allow.is_none() || terms.expires.is_none()) {
            return Err(malformed("the root's block does not say what it allows and until when"));
        }
        let expiries = blocks.iter().filter_map(|block| block.terms.expires);
        let expires = expiries.min().unwrap_or_default();
        Ok(Self {
            bytes: bytes.to_vec(),
            token_at: bytes.len() - envelope.body.len(),
            realm: envelope.realm,
            epoch: head.epoch,
            expires,
            blocks,
        })
    }

    /// Makes one of a single block.
    pub(crate) fn make(
        kind: Kind,
        key: &RealmKey,
        endpoint: Option<&EndpointId>,
        terms: &Terms,
    ) -> Result<Self, MakeError> {
        if terms.allow.is_none() {
            return Err(MakeError::NoAllow);
        }
        if terms.expires.is_none() {
            return Err(MakeError::NoExpiry);
        }
        let mut facts = terms::write_head(key.name.as_str(), key.epoch);
        facts.extend(terms.write(endpoint)?);
        let token = token::sign(&key.root, facts)?;
        Self::made(kind, &key.realm(), &token)
    }

    /// Adds a block.
    pub(crate) fn append(
        &self,
        kind: Kind,
        endpoint: Option<&EndpointId>,
        terms: &Terms,
    ) -> Result<Self, MakeError> {
        if self.blocks.len() >= BLOCKS_MAX {
            return Err(MakeError::TooManyBlocks);
        }
        let token = self.bytes.get(self.token_at..).unwrap_or_default();
        let token = token::append(token, &self.realm.root, terms.write(endpoint)?)?;
        Self::made(kind, &self.realm, &token)
    }

    /// What was made is read like anybody's, so that nothing is handed out that would be refused.
    fn made(kind: Kind, realm: &Realm, token: &[u8]) -> Result<Self, MakeError> {
        let bytes = Envelope::write(kind, realm, token);
        if bytes.len() > GRANT_BYTES_MAX {
            return Err(MakeError::TooLarge(bytes.len()));
        }
        let made = Self::read(kind, &bytes, None);
        let made = made.map_err(|denial| MakeError::Sign(denial.to_string()))?;
        if made.expires <= made.valid_from() {
            return Err(MakeError::NeverValid);
        }
        Ok(made)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn valid_from(&self) -> UnixTime {
        self.blocks.iter().filter_map(|block| block.terms.valid_from).max().unwrap_or_default()
    }

    pub(crate) fn contact(&self) -> &str {
        let mut contacts =
            self.blocks.iter().rev().filter_map(|block| block.terms.contact.as_deref());
        contacts.next().unwrap_or_default()
    }

    /// Whom it is bound to, all of them.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = EndpointId> {
        self.blocks.iter().filter_map(|block| block.endpoint)
    }

    pub(crate) fn permit(&self, endpoint: EndpointId) -> Permit {
        Permit {
            endpoint,
            contact: self.contact().to_owned(),
            epoch: self.epoch,
            not_before: self.valid_from(),
            expires: self.expires,
            layers: self.blocks.iter().map(|block| block.terms.layer()).collect(),
            blocks: self.blocks.iter().map(|block| block.id).collect(),
        }
    }

    /// What it says, for people.
    pub(crate) fn comments(&self) -> Vec<String> {
        let mut lines = vec![format!("realm: {}", self.realm)];
        lines.extend(self.endpoints().map(|endpoint| format!("endpoint: {endpoint}")));
        for (index, block) in self.blocks.iter().enumerate() {
            let of = if index == 0 { String::new() } else { format!(" (narrowed {index})") };
            let terms = &block.terms;
            if let Some(rules) = &terms.allow {
                lines.push(format!("allow{of}: {}", list(rules)));
            }
            if !terms.deny.is_empty() {
                lines.push(format!("deny{of}: {}", list(&terms.deny)));
            }
        }
        if self.valid_from() > UnixTime::default() {
            lines.push(format!("valid from: {}", self.valid_from().to_rfc3339()));
        }
        lines.push(format!("expires: {}", self.expires.to_rfc3339()));
        if !self.contact().is_empty() {
            lines.push(format!("contact: {}", self.contact()));
        }
        lines
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain")
            .field("realm", &self.realm)
            .field("epoch", &self.epoch)
            .field("expires", &self.expires)
            .field("blocks", &self.blocks)
            .finish_non_exhaustive()
    }
}

/// Rules on one line; those that are too many for people are counted.
fn list(rules: &[macula_proto::auth::Rule]) -> String {
    const SHOWN_MAX: usize = 12;
    let shown = rules.iter().take(SHOWN_MAX).map(|rule| format!("{}:{}", rule.verb, rule.pattern));
    let mut parts: Vec<String> = shown.collect();
    match rules.len().saturating_sub(SHOWN_MAX) {
        0 if rules.is_empty() => parts.push("nothing".to_owned()),
        0 => {}
        more => parts.push(format!("and {more} more")),
    }
    parts.join(", ")
}
