//! Signed lists of what a realm's root took back.

use std::collections::{BTreeMap, BTreeSet};

use macula_proto::auth::{BlockId, Denial, Revocations, UnixTime};
use macula_proto::limits::REVOCATIONS_BYTES_MAX;
use macula_proto::{EndpointId, RealmId};

use crate::envelope::{Envelope, malformed};
use crate::error::{MakeError, TextError};
use crate::fact::{Fact, Value, fact, once};
use crate::key::RealmKey;
use crate::realm::Realm;
use crate::text::{self, Kind};
use crate::token;

/// Version of what records say.
const VERSION: u64 = 1;
/// How much longer than its grant lives a revoked block is listed, for clocks that are late, ms.
const KEPT_MILLIS: u64 = 24 * 60 * 60 * 1_000;

/// What is taken back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevocationList {
    /// Grows with every change.
    pub sequence: u64,
    /// Grants of earlier epochs are void.
    pub epoch_min: u64,
    /// Endpoints that no grant helps.
    pub endpoints: BTreeSet<EndpointId>,
    /// Blocks that void every grant that contains them, with the time at which those have expired
    /// anyway (whole seconds).
    pub blocks: BTreeMap<BlockId, UnixTime>,
}

impl RevocationList {
    /// Forgets blocks whose grants have expired for a day. Returns how many.
    pub fn prune(&mut self, now: UnixTime) -> usize {
        let before = self.blocks.len();
        self.blocks.retain(|_, expires| expires.0.saturating_add(KEPT_MILLIS) > now.0);
        before - self.blocks.len()
    }

    /// As [`decide`](macula_proto::auth::decide) wants it.
    pub fn revocations(&self) -> Revocations {
        Revocations {
            sequence: self.sequence,
            epoch_min: self.epoch_min,
            endpoints: self.endpoints.clone(),
            blocks: self.blocks.keys().copied().collect(),
        }
    }
}

/// A list that the root has signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    bytes: Vec<u8>,
    realm: Realm,
    list: RevocationList,
}

impl Record {
    /// Signs `list`.
    ///
    /// # Errors
    /// When it is longer than a record may be.
    pub fn sign(key: &RealmKey, list: &RevocationList) -> Result<Self, MakeError> {
        let mut facts = vec![
            fact("macula_revocations", &[Value::Number(VERSION)]),
            fact("realm", &[Value::Text(key.name.as_str())]),
            fact("sequence", &[Value::Number(list.sequence)]),
            fact("epoch_min", &[Value::Number(list.epoch_min)]),
        ];
        let endpoint = |id: &EndpointId| fact("revoked_endpoint", &[Value::Bytes(id.as_bytes())]);
        facts.extend(list.endpoints.iter().map(endpoint));
        let block = |(id, expires): (&BlockId, &UnixTime)| {
            fact("revoked_block", &[Value::Bytes(id.as_bytes()), Value::Date(*expires)])
        };
        facts.extend(list.blocks.iter().map(block));
        let token = token::sign(&key.root, facts)?;
        let bytes = Envelope::write(Kind::Revocations, &key.realm(), &token);
        if bytes.len() > REVOCATIONS_BYTES_MAX {
            return Err(MakeError::RecordTooLarge(bytes.len()));
        }
        Self::from_bytes(&bytes).map_err(|denial| MakeError::Sign(denial.to_string()))
    }

    /// Reads what [`Record::as_bytes`] gives, of whichever realm, and checks the signature.
    ///
    /// # Errors
    /// [`Denial::Malformed`] or [`Denial::Forged`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Denial> {
        Self::read(bytes, None)
    }

    pub(crate) fn read(bytes: &[u8], realm: Option<&RealmId>) -> Result<Self, Denial> {
        let envelope = Envelope::read(Kind::Revocations, bytes, REVOCATIONS_BYTES_MAX)?;
        if realm.is_some_and(|wanted| envelope.realm.id() != *wanted) {
            return Err(Denial::Forged(format!("it is of realm {}", envelope.realm)));
        }
        let mut read = None;
        token::read(envelope.body, &envelope.realm.root, 1, |_, facts| {
            once(&mut read, read_list(facts)?, "record")
        })?;
        let (name, list) = read.ok_or_else(|| malformed("it has no block"))?;
        if name != envelope.realm.name.as_str() {
            return Err(Denial::Forged(
                "the root signed it for a realm of another name".to_owned(),
            ));
        }
        Ok(Self { bytes: bytes.to_vec(), realm: envelope.realm, list })
    }

    /// The bytes for the wire, at most
    /// [`REVOCATIONS_BYTES_MAX`](macula_proto::limits::REVOCATIONS_BYTES_MAX).
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where it counts.
    pub fn realm(&self) -> &Realm {
        &self.realm
    }

    /// What it says.
    pub fn list(&self) -> &RevocationList {
        &self.list
    }

    /// As text: comments for people, then a line for programs.
    pub fn to_text(&self) -> String {
        let list = &self.list;
        let comments = [
            "Revocations of a Macula realm. Gateways need the latest one.".to_owned(),
            format!("realm: {}", self.realm),
            format!("sequence: {}", list.sequence),
            format!("epoch: {} or later", list.epoch_min),
            format!("revoked endpoints: {}", list.endpoints.len()),
            format!("revoked blocks: {}", list.blocks.len()),
        ];
        text::write(Kind::Revocations, &comments, &self.bytes)
    }

    /// Reads what [`Record::to_text`] wrote.
    ///
    /// # Errors
    /// What is wrong with the text, or with the record in it.
    pub fn from_text(text: &str) -> Result<Self, TextError> {
        let bytes = text::read(Kind::Revocations, text)?;
        Self::from_bytes(&bytes).map_err(TextError::Content)
    }
}

fn read_list(facts: &[Fact<'_>]) -> Result<(String, RevocationList), Denial> {
    let (mut version, mut name, mut sequence, mut epoch_min) = (None, None, None, None);
    let mut list = RevocationList::default();
    for fact in facts {
        match (fact.name, &*fact.values) {
            ("macula_revocations", [Value::Number(VERSION)]) => once(&mut version, (), fact.name)?,
            ("realm", [Value::Text(text)]) => once(&mut name, (*text).to_owned(), fact.name)?,
            ("sequence", [Value::Number(number)]) => once(&mut sequence, *number, fact.name)?,
            ("epoch_min", [Value::Number(number)]) => once(&mut epoch_min, *number, fact.name)?,
            ("revoked_endpoint", [Value::Bytes(bytes)]) => {
                let key: [u8; 32] = (*bytes).try_into().map_err(|_| fact.unknown())?;
                list.endpoints.insert(EndpointId::from_bytes(key));
            }
            ("revoked_block", [Value::Bytes(bytes), Value::Date(expires)]) => {
                let id: [u8; 16] = (*bytes).try_into().map_err(|_| fact.unknown())?;
                list.blocks.insert(BlockId::from_bytes(id), *expires);
            }
            _ => return Err(fact.unknown()),
        }
    }
    let (Some(()), Some(name), Some(sequence), Some(epoch_min)) =
        (version, name, sequence, epoch_min)
    else {
        return Err(malformed("it lacks version, realm, sequence or epoch"));
    };
    Ok((name, RevocationList { sequence, epoch_min, ..list }))
}
