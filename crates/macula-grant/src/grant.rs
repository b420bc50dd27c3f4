//! Grants of members, and the tokens that they are made from.

use std::fmt;

use macula_proto::EndpointId;
use macula_proto::auth::{Denial, Permit, UnixTime};
use zeroize::Zeroizing;

use crate::chain::Chain;
use crate::envelope::malformed;
use crate::error::{MakeError, TextError};
use crate::key::RealmKey;
use crate::realm::Realm;
use crate::terms::{Block, Terms};
use crate::text::{self, Kind};

/// What a member shows: rights of one endpoint in one realm, until a moment.
///
/// Its signatures hold; whether it holds now and here is for
/// [`decide`](macula_proto::auth::decide) to say. It is of no use to other endpoints, and so no
/// secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    chain: Chain,
    endpoint: EndpointId,
}

impl Grant {
    /// Makes one with the root key itself.
    ///
    /// # Errors
    /// When `terms` do not say what is allowed and until when, or break a limit.
    pub fn new(key: &RealmKey, endpoint: EndpointId, terms: &Terms) -> Result<Self, MakeError> {
        Ok(Self { chain: Chain::make(Kind::Grant, key, Some(&endpoint), terms)?, endpoint })
    }

    /// Reads what [`Grant::as_bytes`] gives, of whichever realm, and checks its signatures.
    ///
    /// # Errors
    /// [`Denial::Malformed`] or [`Denial::Forged`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Denial> {
        Chain::read(Kind::Grant, bytes, None).and_then(Self::from_chain)
    }

    pub(crate) fn from_chain(chain: Chain) -> Result<Self, Denial> {
        let mut endpoints = chain.endpoints();
        let endpoint = match (endpoints.next(), endpoints.next()) {
            (Some(endpoint), None) => endpoint,
            (None, _) => return Err(malformed("it is bound to no endpoint: an issuer token")),
            (Some(_), Some(_)) => return Err(malformed("it is bound to an endpoint twice")),
        };
        drop(endpoints);
        Ok(Self { chain, endpoint })
    }

    /// The bytes for the handshake, at most
    /// [`GRANT_BYTES_MAX`](macula_proto::limits::GRANT_BYTES_MAX).
    pub fn as_bytes(&self) -> &[u8] {
        self.chain.bytes()
    }

    /// The same grant with narrower rights; needs no key and nobody's leave.
    ///
    /// # Errors
    /// When `terms` break a limit, or it was narrowed too often.
    pub fn attenuate(&self, terms: &Terms) -> Result<Self, MakeError> {
        let chain = self.chain.append(Kind::Grant, None, terms)?;
        Ok(Self { chain, endpoint: self.endpoint })
    }

    /// What it says.
    pub fn permit(&self) -> Permit {
        self.chain.permit(self.endpoint)
    }

    /// Where it counts.
    pub fn realm(&self) -> &Realm {
        &self.chain.realm
    }

    /// Who can use it.
    pub fn endpoint(&self) -> EndpointId {
        self.endpoint
    }

    /// When it ends.
    pub fn expires(&self) -> UnixTime {
        self.chain.expires
    }

    /// The realm's epoch when its issuer was made.
    pub fn epoch(&self) -> u64 {
        self.chain.epoch
    }

    /// Its signed blocks, the root's first.
    pub fn blocks(&self) -> &[Block] {
        &self.chain.blocks
    }

    /// As text: comments for people, then a line for programs.
    pub fn to_text(&self) -> String {
        let mut comments = vec!["Grant of a Macula realm.".to_owned()];
        comments.extend(self.chain.comments());
        text::write(Kind::Grant, &comments, self.as_bytes())
    }

    /// Reads what [`Grant::to_text`] wrote.
    ///
    /// # Errors
    /// What is wrong with the text, or with the grant in it.
    pub fn from_text(text: &str) -> Result<Self, TextError> {
        let bytes = text::read(Kind::Grant, text)?;
        Self::from_bytes(&bytes).map_err(TextError::Content)
    }
}

/// What an issuer makes grants from: rights that are bound to no endpoint.
///
/// Whoever has it can make grants for any endpoint, so it is a secret like a key.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuerToken {
    chain: Chain,
}

impl IssuerToken {
    /// Makes one with the root key.
    ///
    /// # Errors
    /// When `terms` do not say what is allowed and until when, or break a limit.
    pub fn new(key: &RealmKey, terms: &Terms) -> Result<Self, MakeError> {
        Ok(Self { chain: Chain::make(Kind::Issuer, key, None, terms)? })
    }

    /// Makes one for a sub-issuer, with narrower rights.
    ///
    /// # Errors
    /// When `terms` break a limit, or it was narrowed too often.
    pub fn attenuate(&self, terms: &Terms) -> Result<Self, MakeError> {
        Ok(Self { chain: self.chain.append(Kind::Issuer, None, terms)? })
    }

    /// Makes a grant for `endpoint`. What `terms` leave open is as in this token; what they say
    /// beyond it counts for nothing.
    ///
    /// # Errors
    /// When `terms` break a limit, or the token was narrowed too often.
    pub fn grant(&self, endpoint: EndpointId, terms: &Terms) -> Result<Grant, MakeError> {
        let chain = self.chain.append(Kind::Grant, Some(&endpoint), terms)?;
        Ok(Grant { chain, endpoint })
    }

    /// Where it counts.
    pub fn realm(&self) -> &Realm {
        &self.chain.realm
    }

    /// When it ends, and with it all that was made from it.
    pub fn expires(&self) -> UnixTime {
        self.chain.expires
    }

    /// When it begins to hold.
    pub fn valid_from(&self) -> UnixTime {
        self.chain.valid_from()
    }

    /// Whom to ask for more; empty: not said.
    pub fn contact(&self) -> &str {
        self.chain.contact()
    }

    /// The realm's epoch when it was made.
    pub fn epoch(&self) -> u64 {
        self.chain.epoch
    }

    /// Its signed blocks, the root's first.
    pub fn blocks(&self) -> &[Block] {
        &self.chain.blocks
    }

    /// As text, for a file that only its owner may read.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut comments = vec![
            "Issuer token of a Macula realm. Keep it secret: whoever has it can let others in."
                .to_owned(),
        ];
        comments.extend(self.chain.comments());
        Zeroizing::new(text::write(Kind::Issuer, &comments, self.chain.bytes()))
    }

    /// Reads what [`IssuerToken::to_text`] wrote.
    ///
    /// # Errors
    /// What is wrong with the text, or with the token in it.
    pub fn from_text(text: &str) -> Result<Self, TextError> {
        let bytes = Zeroizing::new(text::read(Kind::Issuer, text)?);
        Self::from_bytes(&bytes).map_err(TextError::Content)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Denial> {
        let chain = Chain::read(Kind::Issuer, bytes, None)?;
        if let Some(endpoint) = chain.endpoints().next() {
            return Err(malformed(format!("it is bound to endpoint {endpoint}: a grant")));
        }
        Ok(Self { chain })
    }
}

impl fmt::Debug for IssuerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuerToken").field("chain", &self.chain).finish()
    }
}
