//! The committed corpus, made from the golden frames and by hand.
//!
//! `MACULA_WRITE_SEEDS=1 cargo test -p macula-fuzz seeds` writes it anew.

use std::collections::BTreeMap;

use biscuit_auth::format::schema;
use prost::Message;
use serde_json::Value;

use crate::replay::{fuzz_dir, inputs};

/// Inputs by target and name.
type Seeds = BTreeMap<(&'static str, String), Vec<u8>>;

#[test]
fn the_corpus_is_what_the_generator_makes() {
    let seeds = seeds();
    if std::env::var_os("MACULA_WRITE_SEEDS").is_some() {
        drop(std::fs::remove_dir_all(fuzz_dir().join("corpus")));
        for ((target, name), data) in &seeds {
            let directory = fuzz_dir().join("corpus").join(target);
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join(name), data).unwrap();
        }
    }
    let mut committed = Seeds::new();
    for (target, _) in macula_fuzz::TARGETS {
        for (path, data) in inputs("corpus", target) {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            committed.insert((target, name), data);
        }
    }
    assert!(committed == seeds, "write the corpus anew: see the head of this file");
}

fn seeds() -> Seeds {
    let mut seeds = Seeds::new();
    golden(&mut seeds);
    grants(&mut seeds);
    overlays(&mut seeds);
    stuns(&mut seeds);
    doors(&mut seeds);
    tunnels(&mut seeds);
    datagrams(&mut seeds);
    for (index, lines) in PATTERNS.iter().enumerate() {
        seeds.insert(("pattern", format!("hand_{index}")), lines.as_bytes().to_vec());
    }
    let deep = ["a"; 32].join(".");
    let lines = format!("+1{deep}\n{deep}\n{deep}.b\n+2{}\n{}", "x".repeat(255), "x".repeat(256));
    seeds.insert(("pattern", "deep".to_owned()), lines.into_bytes());
    for (target, scripts) in [("control", CONTROL), ("node", NODE)] {
        for (name, choice, steps) in scripts {
            let data = [&[*choice][..], &steps.concat()].concat();
            seeds.insert((target, (*name).to_owned()), data);
        }
    }
    seeds
}

/// Seeds of `stun`: steps of action, client, length and extra, each with its packet.
fn stuns(seeds: &mut Seeds) {
    // REQUESTED-TRANSPORT.
    const UDP: [u8; 8] = [0, 0x19, 0, 4, 17, 0, 0, 0];
    let step = |action: u8, client: u8, extra: u8, packet: &[u8]| {
        [&[action, client, packet.len() as u8, extra][..], packet].concat()
    };
    let allocate = step(2, 1, 3, &UDP);
    let refresh = step(2, 1, 4, &[0, 0x0d, 0, 4, 0, 0, 0, 0]);
    let binding = step(1, 1, 1, &[0, 3, 0, 4, 0, 0, 0, 2]);
    let channel = step(0, 1, 0, &[0x40, 0, 0, 4, 1, 2, 3, 4]);
    let scripts = [
        ("binding", vec![binding]),
        ("life", vec![allocate.clone(), channel, step(5, 0, 8, b"data"), refresh]),
        ("two", vec![allocate.clone(), step(2, 0x22, 3, &UDP), step(7, 1, 0, &[])]),
        ("time", vec![allocate, step(6, 0, 200, &[0; 4])]),
    ];
    for (name, steps) in scripts {
        seeds.insert(("stun", name.to_owned()), steps.concat());
    }
}

/// Seeds of `door`: the recorded streams of v0.7 programs in pieces, and scripts of messages.
fn doors(seeds: &mut Seeds) {
    let vectors: Value =
        serde_json::from_str(include_str!("../../../../vectors/v07.json")).unwrap();
    let unhex = |text: &str| -> Vec<u8> {
        let digits = (0..text.len()).step_by(2);
        digits.map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    };
    // The settings, then a step.
    let open = [0, 0, 0, 0, 0];
    let pieces = |bytes: &[u8]| -> Vec<u8> {
        let piece = |piece: &[u8]| [&[1, 0, piece.len() as u8, 0][..], piece].concat();
        bytes.chunks(200).flat_map(piece).collect()
    };
    let mut recorded = open.to_vec();
    for vector in vectors.as_array().unwrap() {
        let bytes = unhex(vector["hex"].as_str().unwrap());
        let name = vector["name"].as_str().unwrap();
        if name.starts_with("captured") && bytes.len() < 200 {
            recorded.extend(pieces(&bytes));
        } else if name.contains("route") || vector["valid"] == false {
            seeds.insert(("door", name.to_owned()), [&open[..], &pieces(&bytes)].concat());
        }
    }
    seeds.insert(("door", "recorded".to_owned()), recorded);
    // Action, connection and stream, what, which.
    let scripts: [(&str, &[[u8; 4]]); 4] = [
        (
            "publish",
            &[
                [0, 0, 0, 0],
                [0, 1, 0, 0],
                [2, 0, 0, 0],
                [2, 1, 0, 1],
                [2, 0, 1, 1],
                [6, 0, 4, 1],
                [8, 0, 1, 0],
                [2, 1, 3, 0],
                [9, 0, 1, 0],
            ],
        ),
        (
            "legacy",
            &[
                [0, 0, 0, 0],
                [0, 1, 0, 0],
                [2, 0, 0, 0],
                [2, 1, 0, 1],
                [2, 0, 1, 0],
                [2, 1, 3, 0],
                [2, 0, 4, 0],
                [6, 0, 4, 1],
            ],
        ),
        (
            "calls",
            &[
                [0, 0, 0, 0],
                [0, 1, 0, 0],
                [2, 0, 0, 0],
                [2, 1, 0, 1],
                [2, 0, 5, 4],
                [2, 1, 7, 4],
                [10, 0, 1, 0],
                [2, 0, 8, 0],
                [11, 0, 4, 0],
                [12, 0, 0, 1],
                [5, 0, 0, 0],
            ],
        ),
        (
            "again",
            &[
                [0, 0, 0, 0],
                [0, 1, 0, 0],
                [2, 0, 0, 0],
                [2, 0, 1, 2],
                [2, 1, 0, 0],
                [4, 0, 0, 0],
                [5, 0, 0, 0],
                [6, 0, 255, 255],
            ],
        ),
    ];
    for (name, steps) in scripts {
        seeds.insert(("door", name.to_owned()), [&[0][..], &steps.concat()].concat());
    }
}

/// Seeds of `tunnel`: a distance between cuts, then frames or a head.
fn tunnels(seeds: &mut Seeds) {
    let scripts: [(&str, u8, &[u8]); 4] = [
        ("frames", 2, &[0, 1, 0x41, 0, 3, 1, 2, 3, 0, 2, 9]),
        ("oversize", 0, &[0, 1, 0x41, 0xff, 0xff, 1]),
        (
            "request",
            9,
            b"GET /macula HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: macula-tunnel\r\n\r\n",
        ),
        ("answer", 9, b"HTTP/1.1 403 Forbidden\r\nServer: proxy\r\n\r\n"),
    ];
    for (name, cut, stream) in scripts {
        seeds.insert(("tunnel", name.to_owned()), [&[cut][..], stream].concat());
    }
}

/// Seeds of `datagram`: one of each.
fn datagrams(seeds: &mut Seeds) {
    let id = [7; 32];
    let offer: &[u8] = &[4, 2, 1, 4, 10, 0, 0, 1, 0x11, 0x51, 3, 4, 192, 0, 2, 1, 0, 1];
    let signal: &[u8] = &[2, 192, 0, 2, 1, 0x11, 0x51];
    let all: [(&str, Vec<u8>); 7] = [
        ("relay", [&[1, 0][..], &id, &[0x41; 60]].concat()),
        ("relayed", [&[2, 2][..], &id, &[1, 2], &[0x41; 30]].concat()),
        ("unreachable", [&[3, 1][..], &id].concat()),
        ("offer", offer.to_vec()),
        ("search", [&[5, 1][..], &[9; 16], signal].concat()),
        ("no_search", [&[5, 3][..], &[9; 16], &[2]].concat()),
        ("via", [&[6][..], &id].concat()),
    ];
    for (name, data) in all {
        seeds.insert(("datagram", name.to_owned()), data);
    }
}

/// Seeds of `frame` and `message` from the golden frames.
fn golden(seeds: &mut Seeds) {
    let vectors = concat!(env!("CARGO_MANIFEST_DIR"), "/../../vectors/frames.json");
    let vectors: Value = serde_json::from_str(&std::fs::read_to_string(vectors).unwrap()).unwrap();
    let mut streams: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    let mut channels: BTreeMap<String, u8> = BTreeMap::new();
    for list in ["valid", "tolerated", "invalid"] {
        for vector in vectors[list].as_array().unwrap() {
            let name = vector["name"].as_str().unwrap().to_owned();
            let bytes = unhex(vector["hex"].as_str().unwrap());
            let channel = match (vector["channel"].as_str(), vector["same_as"].as_str()) {
                (Some(channel), _) => channel_choice(channel),
                (None, Some(same)) => channels[same],
                (None, None) => panic!("{name}: no channel"),
            };
            channels.insert(name.clone(), channel);
            streams.entry(channel).or_default().extend(&bytes);
            let [kind, _, _, _, payload @ ..] = &bytes[..] else { continue };
            let message = [&[channel, *kind][..], payload].concat();
            seeds.insert(("message", name), message);
        }
    }
    for (channel, stream) in streams {
        // cut every 8 bytes, and in larger pieces
        for (name, cuts) in [("small", [7; 4]), ("large", [0, 255, 3, 90])] {
            let data = [&[channel][..], &cuts, &stream].concat();
            seeds.insert(("frame", format!("{name}_{channel}")), data);
        }
    }
    for (name, channel, stream) in [
        ("over_the_limit", 0, &[4, 1, 0, 1][..]),
        ("announced_giant", 7, &[0x43, 0x80, 0, 0, 1, 2, 3]),
        ("cut_header", 1, &[0x40, 0, 0]),
        ("empty_frames", 0, &[0x7f, 0, 0, 0, 0x7f, 0, 0, 0, 4, 0, 0, 0]),
    ] {
        let data = [&[channel, 0, 1, 2, 3][..], stream].concat();
        seeds.insert(("frame", name.to_owned()), data);
    }
}

/// Seeds of `grant`: the tokens of the golden grants and records, what the root signed in them, and
/// changes and terms by hand.
fn grants(seeds: &mut Seeds) {
    let vectors = concat!(env!("CARGO_MANIFEST_DIR"), "/../../vectors/grants.json");
    let vectors: Value = serde_json::from_str(&std::fs::read_to_string(vectors).unwrap()).unwrap();
    for (list, kind) in [("grants", 0), ("records", 1), ("refused", 0)] {
        for (index, vector) in vectors[list].as_array().unwrap().iter().enumerate() {
            let bytes = unhex(vector["hex"].as_str().unwrap());
            // kind, root, length of the name, name
            let token = &bytes[34 + usize::from(bytes[33])..];
            let name = format!("{list}_{index}");
            seeds.insert(("grant", name), [&[0, kind][..], token].concat());
            let Ok(container) = schema::Biscuit::decode(token) else { continue };
            let block = container.authority.block;
            let name = format!("{list}_{index}_block");
            seeds.insert(("grant", name), [&[2, kind][..], &block].concat());
        }
    }
    for (name, steps) in [
        ("unchanged", &[][..]),
        ("a_bit", &[1, 0, 1, 200, 1][..]),
        ("cut", &[1, 3, 1, 0, 0]),
        ("longer", &[1, 1, 0, 99, 7, 2, 0, 34, 0]),
    ] {
        let data = if steps.is_empty() { vec![1] } else { steps.to_vec() };
        seeds.insert(("grant", name.to_owned()), data);
    }
    let terms = [&[3, 0, 4][..], &[2, 0, 3, 0], &[8, 0, 2, 9], &[18, 0, 2, 1], &[1, 0, 0, 0]];
    seeds.insert(("grant", "terms".to_owned()), terms.concat());
}

/// The choice that the bodies take for a channel of the vectors.
fn channel_choice(name: &str) -> u8 {
    match name {
        "control" => 0,
        "bulk" => 7,
        "stream" => 9,
        lane => 1 + lane.strip_prefix("lane ").expect("a lane").parse::<u8>().unwrap(),
    }
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

const PATTERNS: &[&str] = &[
    "+1a.*\n+2a.b\n+3**\n+1a.**\na.b\na\nb.c\n-1a.*\na.b\n-3**\n-2a.b\na.b",
    "+1*.*.c\n+2*.b.*\n+3a.*.*\na.b.c\n-2*.b.*\na.b.c",
    "+1**.a\n+1a*\n+1***\n+1a..b\n+1.a\n+1a.\n+1\n+1a b\n+1a\u{a0}b\n+1\u{85}\n+1ü.ß\nü.ß\n*",
    "+1x\n+1x\n+2x\n-1x\nx\n-1x\n-2x\nx",
];

type Scripts = &'static [(&'static str, u8, &'static [[u8; 4]])];

/// Of the control body: the choice of the node, then steps (see its `step`). `0` says a message of
/// a kind by its place in `KINDS`, 12 is a wish.
const CONTROL: Scripts = &[
    // choice 8: a router with two peers that said hello
    ("router_publish", 8, &[[0, 0, 0, 1], [32, 1, 2, 4], [10, 0, 1, 9], [0, 16, 1, 16]]),
    ("router_retained", 8, &[[32, 1, 2, 12], [0, 0, 0, 0x81], [10, 0, 4, 9], [9, 12, 0, 0]]),
    ("router_bulk", 8, &[[0, 0, 0x10, 4], [32, 24, 2, 0xf4], [10, 0, 7, 0], [0, 17, 0, 0x10]]),
    ("router_call", 8, &[[0, 3, 0, 0x41], [32, 2, 0, 0x1c], [0, 4, 0, 0x18], [9, 14, 0, 0]]),
    ("router_stream", 8, &[[0, 3, 0, 0x41], [32, 2, 64, 0x11], [0, 5, 9, 0], [11, 0, 32, 0]]),
    ("router_joins", 8, &[[0, 6, 2, 1], [0, 0, 2, 1], [0, 12, 2, 1], [0, 8, 0, 0], [7, 0, 0, 0]]),
    ("router_expects", 8, &[[8, 0, 8, 0], [0, 19, 0, 2], [32, 1, 2, 4], [9, 15, 0, 0]]),
    ("router_serves", 8, &[[12, 7, 0, 1], [0, 2, 0, 0x1c], [12, 12, 0, 0], [12, 8, 0, 0]]),
    ("garbage", 8, &[[5, 0, 1, 4], [0, 0, 0, 0], [5, 32, 0x40, 8], [1, 2, 3, 4], [5, 6, 7, 8]]),
    ("second_hello", 8, &[[8, 0, 0, 0], [6, 0, 0, 0], [8, 64, 2, 0], [9, 15, 0, 0]]),
    ("silence", 0, &[[6, 0, 0, 0], [6, 1, 0, 0], [9, 15, 0, 0], [9, 15, 0, 0]]),
    // choice 5: a leaf with one router
    ("leaf_publish", 5, &[[12, 17, 0, 0], [12, 1, 0, 240], [10, 0, 4, 9], [0, 14, 0, 0x11]]),
    ("leaf_subscribe", 5, &[[12, 4, 0, 2], [0, 11, 0, 2], [0, 1, 130, 4], [12, 6, 0, 0]]),
    ("leaf_retained", 5, &[[12, 4, 0, 2], [0, 22, 2, 2], [0, 13, 0, 0x30], [11, 2, 0, 0]]),
    ("leaf_call", 5, &[[12, 9, 0, 10], [0, 4, 0, 0x18], [12, 25, 0, 12], [12, 11, 0, 0]]),
    ("leaf_stream", 5, &[[12, 25, 0, 12], [12, 13, 0, 9], [12, 14, 0, 0], [0, 5, 8, 0x10]]),
    ("leaf_serves", 5, &[[12, 7, 0, 1], [0, 20, 0, 2], [0, 2, 0, 0x1c], [12, 12, 0, 0]]),
    ("leaf_moves", 5, &[[12, 17, 0, 0], [7, 0, 0, 0], [6, 0, 0, 1], [8, 0, 2, 0], [0, 7, 1, 0]]),
    ("leaf_flush", 5, &[[12, 1, 0, 9], [12, 15, 1, 0], [0, 18, 0, 0x10], [12, 15, 0, 255]]),
];

/// Of the node body: draining, then steps (see its `step`).
const NODE: Scripts = &[
    ("publish", 0, &[[4, 1, 0, 0], [0, 0, 0, 3], [16, 0, 0, 3], [15, 0, 0, 20], [5, 0, 0, 0]]),
    ("batches", 1, &[[4, 1, 1, 1], [4, 2, 2, 0], [0, 0, 0, 0x33], [0, 1, 0, 7], [11, 9, 0, 0]]),
    ("large", 0, &[[4, 1, 0, 0], [0, 0, 0, 250], [0, 0, 0, 1], [16, 0, 0, 255], [11, 13, 0, 0]]),
    ("retained", 0, &[[96, 0, 0, 0], [15, 0, 0, 20], [4, 1, 0, 0], [96, 0, 0, 250], [4, 2, 1, 0]]),
    ("realms", 0, &[[4, 1, 0, 0], [4, 5, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0], [15, 0, 0, 20]]),
    ("cut", 0, &[[4, 1, 0, 0], [0, 0, 0, 3], [13, 1, 0, 9], [0, 0, 0, 3], [11, 6, 0, 0]]),
    (
        "restart_router",
        0,
        &[[4, 1, 0, 0], [0, 0, 0, 3], [15, 3, 0, 0], [0, 0, 0, 3], [11, 13, 0, 0]],
    ),
    ("restart_leaf", 0, &[[4, 1, 0, 0], [0, 0, 0, 3], [15, 1, 0, 0], [4, 1, 0, 0], [15, 0, 0, 0]]),
    ("deaf", 0, &[[4, 1, 0, 1], [0, 0, 0, 250], [13, 1, 2, 200], [0, 0, 0, 250], [11, 13, 0, 0]]),
    ("echo", 0, &[[6, 1, 0, 0], [11, 5, 0, 0], [8, 0, 224, 9], [8, 2, 224, 250], [15, 0, 0, 20]]),
    ("slow", 0, &[[6, 1, 1, 0], [11, 5, 0, 0], [8, 0, 225, 9], [11, 5, 0, 0], [10, 0, 0, 3]]),
    ("stream", 0, &[[6, 1, 1, 0], [11, 5, 0, 0], [8, 0, 241, 9], [10, 3, 0, 1], [10, 2, 0, 1]]),
    ("cancel", 0, &[[6, 1, 1, 0], [11, 5, 0, 0], [8, 0, 225, 9], [14, 0, 3, 0], [7, 0, 0, 0]]),
    ("shut_down", 0, &[[4, 1, 0, 0], [8, 0, 0, 0], [15, 0, 0, 16], [15, 3, 1, 16], [11, 13, 0, 0]]),
    ("handles", 0, &[[4, 1, 0, 1], [14, 0, 2, 0], [0, 0, 0, 255], [14, 0, 6, 0], [11, 9, 0, 0]]),
];

/// Scripts of the overlay target: neighbours come up, and each says something.
fn overlays(seeds: &mut Seeds) {
    use macula_proto::overlay::{
        Body, Contact, Coordinate, Cursor, Load, Message, Need, Route, TreeAct, TreeId,
        TreeMessage, wire,
    };
    use macula_proto::wire::message::Publish;
    use macula_proto::{Distance, EndpointId, Key, KeyKind, RealmId};

    let realm = RealmId::of_name("fuzz");
    let at = Coordinate { x: 40, y: -80, height: 4 };
    let contact = |byte: u8| Contact::new(&realm, EndpointId::from_bytes([byte; 32]), at);
    let me = contact(7).key;
    let topic = bytes::Bytes::from_static(b"a.b");
    let route = |target: Key, body: Body| {
        let (ttl, hops, floor) = (20, 0, Distance::MAX);
        Message::Route(Box::new(Route { id: 9, target, ttl, hops, floor, salt: 0, body }))
    };
    let join = TreeAct::Join { hops: 1, have: Cursor::default(), redirected: false };
    let tree = TreeId::of(topic.clone());
    let source = contact(4).id;
    let source_tree = TreeId { source: Some(source), ..tree.clone() };
    let prune = TreeAct::Prune { source };
    let batch = Publish {
        realm: realm.tag(),
        publisher: source,
        epoch: 1,
        first: 1,
        count: 1,
        ttl: 20,
        qos1: true,
        retain: false,
        start: true,
        topic: topic.clone(),
        body: bytes::Bytes::new(),
    };
    let cursor = Cursor { stream: 1, offset: 1 };
    let head = TreeAct::Data { at: cursor, replay: false, load: Load::Head(batch) };
    let far = Key::derive(&realm, KeyKind::Topic, &topic);
    let messages = [
        ("keep", Message::Keep { need: Need::Sibling, at, ready: true }),
        ("siblings", Message::Siblings { at, ask: true, contacts: vec![contact(3), contact(4)] }),
        ("find", route(me, Body::Find { except: None, early: false })),
        ("connect", route(me, Body::Connect { from: contact(5), need: Need::Sibling })),
        ("fetch", route(far, Body::Fetch { kind: 3 })),
        ("audit", route(far, Body::Audit { topic })),
        ("join", Message::Tree(Box::new(TreeMessage { tree: tree.clone(), act: join.clone() }))),
        ("join-source", Message::Tree(Box::new(TreeMessage { tree: source_tree, act: join }))),
        ("prune", Message::Tree(Box::new(TreeMessage { tree: tree.clone(), act: prune }))),
        ("head", Message::Tree(Box::new(TreeMessage { tree, act: head }))),
    ];
    for (name, message) in messages {
        let encoded = wire::encode(&message);
        seeds.insert(("overlay", format!("plain-{name}")), encoded.clone());
        // three neighbours, this node joins, each neighbour is ready, then the message, then time
        let mut script = vec![0x00, 0x10, 0x20, 0x05, 0];
        let ready = wire::encode(&Message::Keep { need: Need::Bucket, at, ready: true });
        for (link, bytes) in [(0x06, &ready), (0x16, &ready), (0x26, &ready), (0x16, &encoded)] {
            script.push(link);
            script.extend((bytes.len() as u16).to_be_bytes());
            script.extend(bytes);
        }
        script.extend([0x35, 0, 0x65, 0, 0x24]);
        seeds.insert(("overlay", format!("script-{name}")), script);
    }
}
