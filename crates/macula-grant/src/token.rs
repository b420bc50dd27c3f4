//! Signed bytes: a Biscuit, of which the container and the signatures are used, and no logic.

use biscuit_auth::builder::{BiscuitBuilder, BlockBuilder, Fact as NewFact};
use biscuit_auth::error;
use biscuit_auth::format::schema::proof::Content;
use biscuit_auth::format::{SerializedBiscuit, schema};
use biscuit_auth::{Algorithm, Biscuit, PublicKey};
use macula_proto::auth::{BlockId, Denial};
use prost::Message;
use sha2::{Digest, Sha256};

use crate::envelope::malformed;
use crate::error::MakeError;
use crate::fact::{Fact, Symbols};
use crate::key::RootKey;

/// Versions of a block's content that have the same facts.
const CONTENT_VERSIONS: std::ops::RangeInclusive<u32> = 3..=6;
/// Bytes of an Ed25519 signature.
const SIGNATURE_BYTES: usize = 64;
/// Bytes of an Ed25519 secret.
const SECRET_BYTES: usize = 32;

/// The outermost fields of a token, as the bytes that they begin with.
const AUTHORITY_FIELD: u8 = 2 << 3 | 2;
const BLOCK_FIELD: u8 = 3 << 3 | 2;
const PROOF_FIELD: u8 = 4 << 3 | 2;

/// Checks `token`, which `root` must have signed, and hands the facts of each block to `each`,
/// in order.
///
/// There is exactly one way to write a token, so that no two byte strings are the same grant:
/// whatever the signatures do not cover is compared with what this crate would write. What costs
/// little is checked first.
pub(crate) fn read(
    token: &[u8],
    root: &[u8; 32],
    blocks_max: usize,
    mut each: impl FnMut(BlockId, &[Fact<'_>]) -> Result<(), Denial>,
) -> Result<(), Denial> {
    let count = count_blocks(token)?;
    if count > blocks_max {
        return Err(malformed(format!("it has {count} blocks, and {blocks_max} are allowed")));
    }
    let container = schema::Biscuit::decode(token).map_err(|_| no_token())?;
    if container.encode_to_vec() != token {
        return Err(malformed("it is not written in the one way that is allowed"));
    }
    let signed = || std::iter::once(&container.authority).chain(&container.blocks);
    signed().try_for_each(check_form)?;
    let is_open = |proof: &Content| match proof {
        Content::NextSecret(secret) => secret.len() == SECRET_BYTES,
        Content::FinalSignature(_) => false,
    };
    if !container.proof.content.as_ref().is_some_and(is_open) {
        return Err(malformed("it is sealed or has no proof"));
    }
    check_signatures(token, root)?;

    let mut symbols = Symbols::new();
    for block in signed() {
        let content = schema::Block::decode(&*block.block).map_err(|_| no_token())?;
        if content.encode_to_vec() != block.block {
            return Err(malformed("a block is not written in the one way that is allowed"));
        }
        check_content(&content)?;
        symbols.extend(&content.symbols)?;
        let facts = content.facts.iter().map(|fact| Fact::read(fact, &symbols));
        each(block_id(&block.signature), &facts.collect::<Result<Vec<_>, _>>()?)?;
    }
    Ok(())
}

/// Signs the first block.
pub(crate) fn sign(root: &RootKey, facts: Vec<NewFact>) -> Result<Vec<u8>, MakeError> {
    let content = BlockBuilder { facts, ..BlockBuilder::default() };
    let token = BiscuitBuilder::new().merge(content).build(root.pair()).map_err(cannot_sign)?;
    token.to_vec().map_err(cannot_sign)
}

/// Signs a further block.
pub(crate) fn append(
    token: &[u8],
    root: &[u8; 32],
    facts: Vec<NewFact>,
) -> Result<Vec<u8>, MakeError> {
    let root = PublicKey::from_bytes(root, Algorithm::Ed25519).map_err(cannot_sign)?;
    let token = Biscuit::from(token, root).map_err(cannot_sign)?;
    let content = BlockBuilder { facts, ..BlockBuilder::default() };
    token.append(content).and_then(|token| token.to_vec()).map_err(cannot_sign)
}

/// Walks over the outermost fields without taking memory: one authority block, further blocks, one
/// proof, in this order and nothing else.
fn count_blocks(token: &[u8]) -> Result<usize, Denial> {
    let (mut rest, mut blocks, mut is_over) = (token, 0, false);
    while let Some((&field, after)) = rest.split_first() {
        match (field, blocks, is_over) {
            (AUTHORITY_FIELD, 0, false) | (BLOCK_FIELD, 1.., false) => blocks += 1,
            (PROOF_FIELD, 1.., false) => is_over = true,
            _ => return Err(no_token()),
        }
        let (length, after) = length(after).ok_or_else(no_token)?;
        rest = after.get(length..).ok_or_else(no_token)?;
    }
    if is_over { Ok(blocks) } else { Err(no_token()) }
}

/// Reads a length of at most 28 bits.
fn length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut length = 0;
    for (index, byte) in bytes.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((length, bytes.get(index + 1..)?));
        }
    }
    None
}

/// Ed25519 throughout, since the signatures of the other algorithm have two forms each and so two
/// names for revocation; nobody's signature beside the chain's.
fn check_form(block: &schema::SignedBlock) -> Result<(), Denial> {
    if block.external_signature.is_some() {
        return Err(malformed("a block is signed by a third party"));
    }
    if block.next_key.algorithm != schema::public_key::Algorithm::Ed25519 as i32 {
        return Err(malformed("a key is not an Ed25519 key"));
    }
    if block.signature.len() != SIGNATURE_BYTES || !matches!(block.version, None | Some(1)) {
        return Err(malformed("a signature is of an unknown kind"));
    }
    Ok(())
}

fn check_signatures(token: &[u8], root: &[u8; 32]) -> Result<(), Denial> {
    let root = PublicKey::from_bytes(root, Algorithm::Ed25519)
        .map_err(|_| malformed("the root key is not an Ed25519 key"))?;
    match SerializedBiscuit::from_slice(token, root) {
        Ok(_) => Ok(()),
        Err(error::Format::Signature(_)) => {
            Err(Denial::Forged("a signature does not hold".to_owned()))
        }
        Err(_) => Err(no_token()),
    }
}

/// Facts only.
fn check_content(content: &schema::Block) -> Result<(), Denial> {
    let is_plain = content.rules.is_empty()
        && content.checks.is_empty()
        && content.scope.is_empty()
        && content.public_keys.is_empty()
        && content.context.is_none();
    if !is_plain {
        return Err(malformed("a block has more than facts in it"));
    }
    if !content.version.is_some_and(|version| CONTENT_VERSIONS.contains(&version)) {
        return Err(malformed("a block is of an unknown version"));
    }
    Ok(())
}

/// Names a signed block.
fn block_id(signature: &[u8]) -> BlockId {
    let digest: [u8; 32] = Sha256::digest(signature).into();
    let (id, _) = digest.split_first_chunk::<16>().expect("a digest has 32 bytes");
    BlockId::from_bytes(*id)
}

fn no_token() -> Denial {
    malformed("it is no token, or damaged")
}

fn cannot_sign(error: impl std::fmt::Display) -> MakeError {
    MakeError::Sign(error.to_string())
}
