//! Text forms.

use super::*;
use crate::{ParseRealmError, Realm, Record, RevocationList, TextError};

#[test]
fn a_realm_reads_as_it_prints() {
    let realm = key().realm();
    assert_eq!(realm.to_string().parse::<Realm>(), Ok(realm.clone()));
    assert!(realm.to_string().starts_with("com.example@"));
    assert!(realm.id().is_guarded());
    assert_eq!("com.example".parse::<Realm>(), Err(ParseRealmError::NoRoot));
    assert!(matches!("a@b".parse::<Realm>(), Err(ParseRealmError::Root(_))));
    for name in ["", "a b", "a/b", "grün", &"x".repeat(129)] {
        let text = realm.to_string().replace("com.example", name);
        assert!(text.parse::<Realm>().is_err(), "{name}");
    }
}

#[test]
fn texts_say_what_they_are() {
    let grant = narrowed();
    let text = grant.to_text();
    for part in [
        "# Grant of a Macula realm.\n",
        "# realm: com.example@",
        &format!("# endpoint: {ME}\n"),
        "# allow: publish:**, subscribe:**, call:**\n",
        "# allow (narrowed 1): publish:site.7.**, call:**\n",
        "# deny (narrowed 2): call:admin.**\n",
        "# expires: 2026-11-23T12:00:00Z\n",
        "# contact: ops@example.com\n",
        "\nmacula-grant:AY",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(issuer().to_text().contains("Keep it secret"));
    assert_eq!(Kind::of_text(&text), Ok(Kind::Grant));
    assert_eq!(Kind::of_text(&issuer().to_text()), Ok(Kind::Issuer));
    assert_eq!(Kind::of_text(&key().to_text()), Ok(Kind::RealmKey));
    assert_eq!(Kind::of_text("# nothing"), Err(TextError::Unknown));
}

#[test]
fn texts_are_read_with_whatever_is_around_them() {
    let grant = narrowed();
    let text = format!("\r\n# mine\n\n{}\nsee you\n", grant.to_text().replace('\n', "\r\n"));
    assert_eq!(Grant::from_text(&text), Ok(grant));
    let issuer = issuer();
    assert_eq!(IssuerToken::from_text(&issuer.to_text()), Ok(issuer));
    let key = RealmKey { epoch: 4, sequence: 9, ..key() };
    let read = RealmKey::from_text(&key.to_text()).unwrap();
    assert_eq!((read.realm(), read.epoch, read.sequence), (key.realm(), 4, 9));
    assert_eq!(read.root.seed(), key.root.seed());
}

#[test]
fn the_wrong_thing_is_named_with_what_to_do() {
    let (key, issuer, grant) = (key().to_text(), issuer().to_text(), grant().to_text());
    let record = Record::sign(&super::key(), &RevocationList::default()).unwrap().to_text();
    for (error, part) in [
        (Grant::from_text(&issuer).unwrap_err(), "this is an issuer token, and a grant is needed"),
        (Grant::from_text(&issuer).unwrap_err(), "macula realm grant --issuer FILE"),
        (Grant::from_text(&key).unwrap_err(), "macula realm grant --root FILE"),
        (Grant::from_text(&record).unwrap_err(), "this is a record of revocations"),
        (Grant::from_text("# only\n").unwrap_err(), "no line that begins with `macula-grant:`"),
        (IssuerToken::from_text(&grant).unwrap_err(), "can be narrowed"),
        (IssuerToken::from_text(&key).unwrap_err(), "with --root"),
        (RealmKey::from_text(&issuer).unwrap_err(), "with --issuer"),
        (Record::from_text(&grant).unwrap_err(), "this is a grant"),
        (Grant::from_text(&grant.repeat(2)).unwrap_err(), "more than one grant"),
        (Grant::from_text(&grant[..grant.len() - 9]).unwrap_err(), "cannot be read"),
        (Grant::from_text(&grant.replace("grant:A", "grant:!")).unwrap_err(), "damaged"),
        (Grant::from_text(&"#\n".repeat(1 << 20)).unwrap_err(), "more than"),
    ] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn a_damaged_key_is_no_other_key() {
    let text = key().to_text();
    let line = text.lines().last().unwrap();
    let at = text.find(line).unwrap() + "macula-realm-key:".len();
    for index in at..at + line.len() - "macula-realm-key:".len() - 22 {
        let mut bytes = text.as_bytes().to_vec();
        bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
        let damaged = String::from_utf8(bytes).unwrap();
        let read = RealmKey::from_text(&damaged);
        let is_same = read.is_ok_and(|read| read.realm() == key().realm());
        assert!(!is_same, "character {index}");
    }
}
