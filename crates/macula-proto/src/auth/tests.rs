use proptest::prelude::*;

use super::*;

const ME: EndpointId = EndpointId::from_bytes([1; 32]);
const NOON: UnixTime = UnixTime::from_secs(1_795_348_800);

fn rule(verb: Verb, pattern: &str) -> Rule {
    Rule { verb, pattern: Pattern::parse(pattern).unwrap() }
}

fn permit(layers: Vec<Layer>) -> Permit {
    Permit {
        endpoint: ME,
        contact: String::new(),
        epoch: 1,
        not_before: NOON,
        expires: UnixTime(NOON.0 + 1_000),
        layers,
        blocks: vec![BlockId::from_bytes([1; 16]), BlockId::from_bytes([2; 16])],
    }
}

fn allow(rules: &[(Verb, &str)]) -> Layer {
    let rules = rules.iter().map(|(verb, pattern)| rule(*verb, pattern)).collect();
    Layer { allow: Some(rules), deny: Vec::new() }
}

fn judge(permit: &Permit, request: Request<'_>) -> Result<(), Denial> {
    decide(permit, &Revocations::default(), &ME, NOON, request)
}

#[test]
fn a_permit_allows_what_every_layer_allows() {
    let wide = allow(&[(Verb::Publish, "site.**"), (Verb::Call, "**")]);
    let narrow = allow(&[(Verb::Publish, "site.7.*"), (Verb::Subscribe, "**")]);
    let permit = permit(vec![wide, Layer::default(), narrow]);
    assert_eq!(judge(&permit, Request::Join), Ok(()));
    assert_eq!(judge(&permit, Request::Use(Verb::Publish, "site.7.t")), Ok(()));
    for (verb, name) in [
        (Verb::Publish, "site.8.t"),
        (Verb::Publish, "other"),
        (Verb::Subscribe, "site.7.t"),
        (Verb::Call, "x"),
        (Verb::Store, "site.7.t"),
    ] {
        assert!(judge(&permit, Request::Use(verb, name)).is_err(), "{verb} {name}");
    }
}

#[test]
fn without_layers_nothing_is_allowed() {
    assert!(judge(&permit(Vec::new()), Request::Use(Verb::Publish, "a")).is_err());
}

#[test]
fn deny_wins_in_whichever_layer_it_is() {
    for place in 0..2 {
        let mut layers = vec![allow(&[(Verb::Subscribe, "**")]), Layer::default()];
        layers[place].deny.push(rule(Verb::Subscribe, "secret.**"));
        let permit = permit(layers);
        assert_eq!(judge(&permit, Request::Use(Verb::Subscribe, "open.a")), Ok(()));
        let error = judge(&permit, Request::Use(Verb::Subscribe, "secret.a")).unwrap_err();
        assert!(error.to_string().contains("denies subscribe on `secret.**`"), "{error}");
        // a wider pattern is granted; what is denied in it is left out at delivery
        let everything = Pattern::parse("**").unwrap();
        assert_eq!(judge(&permit, Request::Cover(Verb::Subscribe, &everything)), Ok(()));
        let secrets = Pattern::parse("secret.*").unwrap();
        assert!(judge(&permit, Request::Cover(Verb::Subscribe, &secrets)).is_err());
    }
}

#[test]
fn a_pattern_must_be_covered_and_not_only_touched() {
    let permit = permit(vec![allow(&[(Verb::Subscribe, "site.**")])]);
    for (wanted, expected) in [("site.7.*", true), ("site.**", true), ("*.7", false), ("**", false)]
    {
        let wanted = Pattern::parse(wanted).unwrap();
        let verdict = judge(&permit, Request::Cover(Verb::Subscribe, &wanted));
        assert_eq!(verdict.is_ok(), expected, "{wanted}");
    }
}

#[test]
fn time_is_checked_with_skew_before_and_none_after() {
    let permit = permit(vec![allow(&[(Verb::Call, "**")])]);
    let skew = crate::limits::GRANT_CLOCK_SKEW.as_millis() as u64;
    let at = |now: u64| decide(&permit, &Revocations::default(), &ME, UnixTime(now), Request::Join);
    assert_eq!(at(NOON.0 - skew), Ok(()));
    assert!(matches!(at(NOON.0 - skew - 1), Err(Denial::NotYet { .. })));
    assert_eq!(at(NOON.0 + 999), Ok(()));
    assert!(matches!(at(NOON.0 + 1_000), Err(Denial::Expired { .. })));
}

#[test]
fn another_endpoint_cannot_use_it() {
    let permit = permit(vec![allow(&[(Verb::Call, "**")])]);
    let thief = EndpointId::from_bytes([2; 32]);
    let verdict = decide(&permit, &Revocations::default(), &thief, NOON, Request::Join);
    assert_eq!(verdict, Err(Denial::OtherEndpoint { bound: ME }));
}

#[test]
fn revocations_win_over_everything() {
    let permit = permit(vec![allow(&[(Verb::Call, "**")])]);
    let verdict = |revocations: &Revocations| {
        decide(&permit, revocations, &ME, NOON, Request::Use(Verb::Call, "x"))
    };
    let mut revocations = Revocations { sequence: 1, epoch_min: 1, ..Revocations::default() };
    assert_eq!(verdict(&revocations), Ok(()));
    revocations.epoch_min = 2;
    assert_eq!(verdict(&revocations), Err(Denial::OldEpoch { epoch: 1, epoch_min: 2 }));
    let block = BlockId::from_bytes([2; 16]);
    revocations.blocks.insert(block);
    assert_eq!(verdict(&revocations), Err(Denial::GrantRevoked { block }));
    revocations.endpoints.insert(ME);
    assert_eq!(verdict(&revocations), Err(Denial::EndpointRevoked));
}

#[test]
fn denials_say_what_is_missing_and_who_can_give_it() {
    let mut permit = permit(vec![allow(&[(Verb::Publish, "a.*"), (Verb::Publish, "b")])]);
    permit.contact = "ops@example.com".to_owned();
    let error = judge(&permit, Request::Use(Verb::Publish, "c")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the grant does not allow publish on `c`: it allows publish on `a.*`, `b`; \
         ask ops@example.com for a grant that does"
    );
    let error = judge(&permit, Request::Use(Verb::Call, "c")).unwrap_err();
    assert!(error.to_string().contains("it allows no call at all"), "{error}");
    let late = UnixTime::from_secs(1_795_348_800 + 7);
    let error = decide(&permit, &Revocations::default(), &ME, late, Request::Join).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the grant expired at 2026-11-22T12:00:01Z; renew it with ops@example.com"
    );
}

#[test]
fn moments_read_as_dates() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (1_795_310_400, "2026-11-22T01:20:00Z"),
        (4_102_444_799, "2099-12-31T23:59:59Z"),
    ] {
        assert_eq!(UnixTime::from_secs(seconds).to_rfc3339(), text);
    }
}

#[test]
fn block_ids_read_as_they_print() {
    let id = BlockId::from_bytes([0x0f; 16]);
    assert_eq!(BlockId::from_hex(&id.to_string()), Some(id));
    for wrong in ["", "0f", "+f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f", "zz0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f"]
    {
        assert_eq!(BlockId::from_hex(wrong), None, "{wrong}");
    }
}

proptest! {
    /// Whatever is appended, a permit never allows more than before.
    #[test]
    fn another_layer_never_widens(
        first in layer(),
        second in layer(),
        name in "[ab](\\.[ab]){0,2}",
        pattern in "[ab*](\\.[ab*]){0,2}(\\.\\*\\*)?",
    ) {
        let (before, after) = (permit(vec![first.clone()]), permit(vec![first, second]));
        let pattern = Pattern::parse(&pattern).unwrap();
        for verb in Verb::ALL {
            for request in [Request::Use(verb, &name), Request::Cover(verb, &pattern)] {
                prop_assert!(judge(&after, request).is_err() || judge(&before, request).is_ok());
            }
        }
    }
}

fn layer() -> impl Strategy<Value = Layer> {
    let rules = || {
        let pattern = "[ab*](\\.[ab*]){0,2}(\\.\\*\\*)?";
        let rule = (prop::sample::select(&Verb::ALL[..]), pattern)
            .prop_map(|(verb, pattern)| Rule { verb, pattern: Pattern::parse(&pattern).unwrap() });
        prop::collection::vec(rule, 0..4)
    };
    (prop::option::of(rules()), rules()).prop_map(|(allow, deny)| Layer { allow, deny })
}
