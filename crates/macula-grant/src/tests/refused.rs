//! What is no grant.

use biscuit_auth::format::schema;
use biscuit_auth::{Algorithm, Biscuit, KeyPair};
use macula_proto::auth::Verifier;
use macula_proto::limits::GRANT_BYTES_MAX;
use prost::Message;

use super::*;
use crate::{GrantVerifier, Record, RevocationList, token};

/// The container inside a grant.
fn container(grant: &Grant) -> schema::Biscuit {
    schema::Biscuit::decode(body(grant)).unwrap()
}

fn body(grant: &Grant) -> &[u8] {
    Envelope::read(Kind::Grant, grant.as_bytes(), GRANT_BYTES_MAX).unwrap().body
}

fn from_container(container: &schema::Biscuit) -> Result<Grant, Denial> {
    let bytes = Envelope::write(Kind::Grant, &key().realm(), &container.encode_to_vec());
    Grant::from_bytes(&bytes)
}

#[test]
fn what_other_implementations_write_is_read() {
    let grant = read(&signed(HEAD)).unwrap();
    assert_eq!(grant.endpoint(), ME);
    assert_eq!(grant.permit().layers[0].allow, Some(rules("call:**")));
    let token = signed(HEAD).append(block("deny(\"call\", \"a\"); allow_nothing(true)")).unwrap();
    assert_eq!(read(&token).unwrap().permit().layers[1].allow, Some(Vec::new()));
}

#[test]
fn every_single_flipped_bit_is_noticed() {
    let grant = narrowed();
    let mut bytes = grant.as_bytes().to_vec();
    for index in 0..bytes.len() {
        for bit in 0..8 {
            bytes[index] ^= 1 << bit;
            assert!(Grant::from_bytes(&bytes).is_err(), "byte {index}, bit {bit}");
            bytes[index] ^= 1 << bit;
        }
    }
    assert_eq!(Grant::from_bytes(&bytes), Ok(grant));
}

#[test]
fn truncated_and_longer_ones_are_refused() {
    let grant = grant();
    let bytes = grant.as_bytes();
    for length in 0..bytes.len() {
        assert!(Grant::from_bytes(&bytes[..length]).is_err(), "{length}");
    }
    for byte in [0, 1, 0x08, 0x1a, 0x22] {
        let longer = [bytes, &[byte]].concat();
        assert!(Grant::from_bytes(&longer).is_err());
        let longer = [bytes, &[byte, 0]].concat();
        assert!(Grant::from_bytes(&longer).is_err());
    }
}

#[test]
fn other_roots_and_names_are_refused() {
    let verifier = GrantVerifier::new();
    let (grant, here) = (grant(), key().realm().id());
    verifier.permit(&here, grant.as_bytes()).unwrap();
    for other in [key_from(2, "com.example"), key_from(1, "com.example2")] {
        // another realm's grant, honestly
        let theirs = Grant::new(&other, ME, &terms("call:**", TOMORROW)).unwrap();
        let denial = verifier.permit(&here, theirs.as_bytes()).unwrap_err();
        assert!(matches!(&denial, Denial::Forged(why) if why.contains("of realm com.example")));
        // and in the wrong envelope
        let bytes = Envelope::write(Kind::Grant, &key().realm(), body(&theirs));
        assert!(matches!(verifier.permit(&here, &bytes), Err(Denial::Forged(_))));
    }
}

#[test]
fn blocks_cannot_be_removed_swapped_or_spliced() {
    let (grant, other) = (narrowed(), narrowed());
    for index in 0..2 {
        let mut less = container(&grant);
        less.blocks.remove(index);
        assert!(matches!(from_container(&less), Err(Denial::Forged(_))), "without {index}");
    }
    let mut swapped = container(&grant);
    swapped.blocks.swap(0, 1);
    assert!(from_container(&swapped).is_err());
    let mut doubled = container(&grant);
    doubled.blocks.push(container(&grant).blocks[1].clone());
    assert!(from_container(&doubled).is_err());
    for index in 0..2 {
        let mut spliced = container(&grant);
        spliced.blocks[index] = container(&other).blocks[index].clone();
        assert!(matches!(from_container(&spliced), Err(Denial::Forged(_))), "with {index}");
    }
    let mut spliced = container(&grant);
    spliced.authority = container(&other).authority;
    assert!(from_container(&spliced).is_err());
    let mut proof = container(&grant);
    proof.proof = container(&other).proof;
    assert!(matches!(from_container(&proof), Err(Denial::Forged(_))));
}

#[test]
fn a_binding_is_there_once() {
    let unbound = HEAD.split("endpoint").next().unwrap();
    assert!(why(read(&signed(unbound))).contains("bound to no endpoint"));
    for id in ["07", "08"] {
        let again = format!("endpoint(hex:{})", id.repeat(32));
        let token = signed(HEAD).append(block(&again)).unwrap();
        assert!(why(read(&token)).contains("bound to an endpoint twice"), "{id}");
    }
    let twice = format!("{HEAD} endpoint(hex:{});", "08".repeat(32));
    assert!(why(read(&signed(&twice))).contains("says `endpoint` twice"));
}

#[test]
fn an_issuer_token_is_no_grant() {
    let issuer = issuer();
    let text = issuer.to_text();
    let bytes = crate::text::read(Kind::Issuer, &text).unwrap();
    assert!(why(Grant::from_bytes(&bytes)).contains("it is an issuer token"));
    let mut relabelled = bytes.clone();
    relabelled[0] = Kind::Grant as u8;
    assert!(why(Grant::from_bytes(&relabelled)).contains("bound to no endpoint"));
}

#[test]
fn a_record_is_no_grant_and_a_grant_no_record() {
    let list = RevocationList { sequence: 1, epoch_min: 1, ..RevocationList::default() };
    let record = Record::sign(&key(), &list).unwrap();
    assert!(why(Grant::from_bytes(record.as_bytes())).contains("a record of revocations"));
    let mut relabelled = record.as_bytes().to_vec();
    relabelled[0] = Kind::Grant as u8;
    assert!(why(Grant::from_bytes(&relabelled)).contains("macula_revocations"));

    let root_only = Grant::new(&key(), ME, &terms("call:**", TOMORROW)).unwrap();
    assert!(Record::from_bytes(root_only.as_bytes()).unwrap_err().to_string().contains("a grant"));
    let mut relabelled = root_only.as_bytes().to_vec();
    relabelled[0] = Kind::Revocations as u8;
    let why = Record::from_bytes(&relabelled).unwrap_err().to_string();
    assert!(why.contains("\"macula\""), "{why}");
}

#[test]
fn logic_is_refused_wherever_it_is() {
    for code in [
        "right($x) <- epoch($x)",
        "check if epoch($x), $x > 2",
        "check if epoch($x) trusting previous",
        "check all epoch($x), $x > 2",
        "reject if epoch($x), $x > 9",
    ] {
        assert!(
            why(read(&signed(&format!("{HEAD}{code};")))).contains("more than facts"),
            "{code}"
        );
        let later = signed(HEAD).append(block(code)).unwrap();
        assert!(why(read(&later)).contains("more than facts"), "{code}");
    }
    let scope = block("contact(\"a\")").scope(biscuit_auth::builder::Scope::Previous);
    assert!(why(read(&signed(HEAD).append(scope).unwrap())).contains("more than facts"));
    let context = block("contact(\"a\")").context("free text".to_owned());
    assert!(why(read(&signed(HEAD).append(context).unwrap())).contains("more than facts"));
}

#[test]
fn facts_that_are_not_known_are_refused() {
    for code in [
        "right(\"a\")",
        "macula(2)",
        "contact(1)",
        "contact(\"a\", \"b\")",
        "contact(\"\")",
        "contact(\"a\u{7}\")",
        "contact([\"a\"])",
        "contact({\"a\"})",
        "contact(null)",
        "expires(5)",
        "expires(\"2027-11-22T12:00:00Z\")",
        "valid_from(true)",
        "allow(\"call\")",
        "allow(\"call\", \"a\", \"b\")",
        "allow(\"everything\", \"a\")",
        "allow(\"call\", \"a**\")",
        "allow(\"call\", \"\")",
        "allow(\"call\", true)",
        "deny(\"Call\", \"a\")",
        "allow_nothing(false)",
        "endpoint(hex:0707)",
        "endpoint(\"a\")",
        "realm(\"com.example\")",
        "epoch(9)",
        "macula(1)",
        "macula(1); realm(\"com.example\"); epoch(9)",
        "sequence(1)",
        "expires(2027-11-22T12:00:00Z); expires(2028-11-22T12:00:00Z)",
        "contact(\"a\"); contact(\"a\")",
        "allow_nothing(true); allow(\"call\", \"a\")",
    ] {
        let denial = read(&signed(HEAD).append(block(code)).unwrap()).unwrap_err();
        assert!(matches!(denial, Denial::Malformed(_)), "{code}: {denial}");
    }
    for missing in ["macula(1);", "realm(\"com.example\");", "epoch(3);"] {
        let why = why(read(&signed(&HEAD.replace(missing, ""))));
        assert!(why.contains("lacks version"), "{why}");
    }
    for missing in ["expires(2027-11-22T12:00:00Z);", "allow(\"call\", \"**\");"] {
        let why = why(read(&signed(&HEAD.replace(missing, ""))));
        assert!(why.contains("does not say what it allows"), "{why}");
    }
    assert!(matches!(
        read(&signed(&HEAD.replace("epoch(3)", "epoch(-3)"))),
        Err(Denial::Malformed(_))
    ));
}

#[test]
fn third_parties_have_no_say() {
    let token = signed(HEAD);
    let stranger = KeyPair::new();
    let request = token.third_party_request().unwrap();
    let said = request.create_block(&stranger.private(), block("contact(\"a\")")).unwrap();
    let token = token.append_third_party(stranger.public(), said).unwrap();
    assert!(why(read(&token)).contains("third party"));
}

#[test]
fn there_is_one_way_to_write_a_grant() {
    let token = signed(HEAD);
    assert!(read(&token.seal().unwrap()).is_err(), "sealed");
    let hint = BiscuitBuilder::new().root_key_id(1).code(HEAD).unwrap();
    assert!(read(&hint.build(key().root.pair()).unwrap()).is_err(), "with a hint at the key");
    // its signatures have two forms each
    let p256 = KeyPair::new_with_algorithm(Algorithm::Secp256r1);
    let token = token.append_with_keypair(&p256, block("contact(\"a\")")).unwrap();
    assert!(why(read(&token)).contains("not an Ed25519 key"));
    Biscuit::from(token.to_vec().unwrap(), key().root.pair().public()).unwrap();

    let mut plain = container(&grant());
    plain.authority.version = Some(0);
    assert!(why(from_container(&plain)).contains("unknown kind"));
    // an unknown field, a field twice, a length with a superfluous byte
    let good = body(&grant()).to_vec();
    let (head, rest) = good.split_at(3);
    let length = usize::from(good[1] & 0x7f) | usize::from(good[2]) << 7;
    assert!(good[1] & 0x80 != 0 && good[2] & 0x80 == 0, "a length of two bytes");
    let longer = (length + 2).to_le_bytes()[0] & 0x7f | 0x80;
    assert_eq!(length >> 7, (length + 2) >> 7);
    let mut unknown = vec![head[0], longer, head[2]];
    unknown.extend_from_slice(&rest[..length]);
    unknown.extend_from_slice(&[0x30, 1]);
    unknown.extend_from_slice(&rest[length..]);
    let overlong = [&[head[0], head[1], head[2] | 0x80, 0], rest].concat();
    for token in [unknown, overlong] {
        Biscuit::from(&token, key().root.pair().public()).unwrap();
        let bytes = Envelope::write(Kind::Grant, &key().realm(), &token);
        assert!(why(Grant::from_bytes(&bytes)).contains("one way"));
    }
}

/// A token of the realm's root with a single block that has these symbols and facts.
fn with_symbols(symbols: &[&str], facts: &[(u64, schema::term::Content)]) -> Result<Grant, Denial> {
    let mut content = schema::Block::decode(&*container(&root_only()).authority.block).unwrap();
    content.symbols.extend(symbols.iter().map(|symbol| (*symbol).to_owned()));
    content.facts.extend(facts.iter().map(|(name, content)| schema::Fact {
        predicate: schema::Predicate {
            name: *name,
            terms: vec![schema::Term { content: Some(content.clone()) }],
        },
    }));
    from_container(&resigned(container(&root_only()), &content))
}

/// `container` with another block of the root, properly signed.
fn resigned(mut container: schema::Biscuit, content: &schema::Block) -> schema::Biscuit {
    let content = content.encode_to_vec();
    let algorithm = container.authority.next_key.algorithm.to_le_bytes();
    let payload = [&*content, &algorithm, &container.authority.next_key.key].concat();
    let signature = key().root.pair().sign(&payload).unwrap();
    container.authority.signature = signature.to_bytes().to_vec();
    container.authority.block = content;
    container
}

fn root_only() -> Grant {
    Grant::new(&key(), ME, &terms("call:**", TOMORROW)).unwrap()
}

#[test]
fn strings_are_what_their_numbers_say() {
    use schema::term::Content;
    with_symbols(&[], &[]).unwrap();
    with_symbols(&["unused"], &[]).unwrap();
    // a string of the token, one that is there already, one that all tokens have
    for twice in [["a", "a"], ["b", "realm"], ["c", "read"]] {
        assert!(why(with_symbols(&twice, &[])).contains("a string is there twice"), "{twice:?}");
    }
    let symbols = schema::Block::decode(&*container(&root_only()).authority.block).unwrap().symbols;
    let contact = 1024 + symbols.len() as u64;
    let grant = with_symbols(&["contact"], &[(contact, Content::String(0))]).unwrap();
    assert_eq!(grant.permit().contact, "read");
    for wrong in [28, 1023, contact + 1, u64::MAX] {
        let by_value = with_symbols(&["contact"], &[(contact, Content::String(wrong))]);
        assert!(why(by_value).contains("a string is missing"), "{wrong}");
        let by_name = with_symbols(&["contact"], &[(wrong, Content::String(0))]);
        assert!(why(by_name).contains("a string is missing"), "{wrong}");
    }
    assert!(why(with_symbols(&["contact"], &[(contact, Content::Variable(0))])).contains("plain"));
}

/// Printed as Datalog these would say more than they do: printing does not escape.
#[test]
fn text_smuggles_nothing_in() {
    let contact = "x\"); allow(\"relay\", \"**\"); contact(\"y";
    let pattern = "a\");allow(\"relay\",\"b";
    let terms =
        Terms { contact: Some(contact.to_owned()), ..terms(&format!("call:{pattern}"), TOMORROW) };
    let grant = Grant::new(&key(), ME, &terms).unwrap();
    let permit = Grant::from_bytes(grant.as_bytes()).unwrap().permit();
    assert_eq!(permit.contact, contact);
    let layers = [macula_proto::auth::Layer { allow: terms.allow, deny: Vec::new() }];
    assert_eq!(permit.layers, layers);

    let token = Biscuit::from(body(&grant), key().root.pair().public()).unwrap();
    assert!(token.print_block_source(0).unwrap().contains("allow(\"relay\", \"**\");"));
    assert!(token.print_block_source(0).unwrap().contains("allow(\"relay\",\"b\");"));
}

#[test]
fn limits_hold_before_signatures_are_looked_at() {
    let mut token = body(&grant()).to_vec();
    for _ in 2..16 {
        token = token::append(&token, &key().realm().root, Vec::new()).unwrap();
    }
    let wrap = |token: &[u8]| Envelope::write(Kind::Grant, &key().realm(), token);
    Grant::from_bytes(&wrap(&token)).unwrap();
    let token = token::append(&token, &key().realm().root, Vec::new()).unwrap();
    assert!(why(Grant::from_bytes(&wrap(&token))).contains("17 blocks, and 16 are allowed"));

    let many: String = (0..257).map(|i| format!("allow(\"call\", \"{i}\");")).collect();
    assert!(why(read(&signed(HEAD).append(block(&many)).unwrap())).contains("256 rules"));

    let long = format!("contact(\"{}\")", "x".repeat(GRANT_BYTES_MAX));
    let bytes = wrapped(&signed(HEAD).append(block(&long)).unwrap());
    assert!(why(Grant::from_bytes(&bytes)).contains("and 8192 are allowed"));
    let denial = GrantVerifier::new().permit(&key().realm().id(), &bytes).unwrap_err();
    assert!(denial.to_string().contains("and 8192 are allowed"));
}
