//! Links between peers through a third, which carries: as it should, or not.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use macula_proto::EndpointId;
use macula_proto::id::LinkId;
use macula_proto::wire::relay::{Datagram, Part, Unreachable};
use macula_transport::{CarrierWanted, Link, LinkEvent, LinkEventKind, PathKind};
use tokio::sync::mpsc;

use crate::peers::{Hub, exchange, hub_with, id, until};
use crate::support::{Side, soon};

const CARRIES: u8 = 0;
const SWALLOWS: u8 = 1;
const REFUSES: u8 = 2;

/// What carol does with packets, and how many she was given.
#[derive(Debug, Default)]
struct Manners {
    mode: AtomicU8,
    given: AtomicU64,
    links: Mutex<HashMap<EndpointId, Link>>,
}

impl Manners {
    fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::Relaxed);
    }

    fn given(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }

    fn link(&self, to: EndpointId) -> Link {
        self.links.lock().unwrap().get(&to).unwrap().clone()
    }
}

/// What a core does for members, with manners.
async fn carry(mut events: mpsc::Receiver<LinkEvent>, manners: Arc<Manners>) {
    while let Some(LinkEvent { link, kind }) = events.recv().await {
        let LinkEventKind::Datagrams(datagrams) = kind else { continue };
        let from = id(link.0 as u8);
        for bytes in datagrams {
            let Some(Datagram::Relay { to, part, packet }) = Datagram::decode(&bytes) else {
                panic!("peers send packets only");
            };
            manners.given.fetch_add(1, Ordering::Relaxed);
            match manners.mode.load(Ordering::Relaxed) {
                CARRIES => {
                    manners.link(to).send_datagram(Datagram::Relayed { from, part, packet });
                }
                REFUSES => {
                    let reason = Unreachable::NotHere;
                    manners.link(from).send_datagram(Datagram::Unreachable { to, reason });
                }
                _ => {}
            }
        }
    }
}

/// Alice has only IPv6, bob only IPv4, and carol, to whom both have direct links, both.
struct Trio {
    hub: Hub,
    manners: Arc<Manners>,
    alice: Side,
    bob: Side,
    to_carol: [Side; 2],
}

async fn trio() -> Trio {
    let hub = hub_with(|seed, config| {
        let listen = match seed {
            2 => "[::1]:0",
            3 => "127.0.0.1:0",
            _ => "[::]:0",
        };
        config.listen = Some(listen.parse().unwrap());
        config.carries = seed == 4;
    })
    .await;
    let manners = Arc::new(Manners::default());
    let (sender, events) = mpsc::channel(1024);
    tokio::spawn(carry(events, Arc::clone(&manners)));
    let mut to_carol = Vec::new();
    for (seed, from) in [(2, &hub.alice), (3, &hub.bob)] {
        let both = async { tokio::join!(from.dial_peer(id(4)), hub.carol.accept()) };
        let (dialled, accepted) = soon("a link to carol", both).await;
        let at_carol = accepted.unwrap().start(LinkId(seed), sender.clone());
        at_carol.open_lanes();
        manners.links.lock().unwrap().insert(id(seed as u8), at_carol);
        let side = Side::start(dialled.unwrap());
        side.link.open_lanes();
        until(&side, PathKind::Direct).await;
        to_carol.push(side);
    }
    let (alice, bob) = hub.link().await;
    let to_carol = to_carol.try_into().ok().unwrap();
    Trio { hub, manners, alice, bob, to_carol }
}

impl Trio {
    /// Both say that carol could carry.
    fn offer(&self) {
        self.alice.link.offer_carrier(&self.to_carol[0].link);
        self.bob.link.offer_carrier(&self.to_carol[1].link);
    }

    async fn carried(&self) {
        self.offer();
        until(&self.alice, PathKind::Member).await;
        until(&self.bob, PathKind::Member).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_third_carries_both_ways_and_the_gateway_nothing() {
    let mut trio = trio().await;
    trio.carried().await;
    let info = trio.alice.link.path().unwrap();
    assert_eq!((info.carrier, info.remote, info.server), (Some(id(4)), None, None));
    let before = trio.hub.passed();
    exchange(&mut trio.alice, &mut trio.bob, 500, 2_000).await;
    exchange(&mut trio.bob, &mut trio.alice, 500, 2_000).await;
    let relayed = trio.hub.passed() - before;
    assert!(relayed < 100, "{relayed} packets were relayed");
    let info = trio.bob.link.path().unwrap();
    assert!(info.member.sent > 1_000_000 && info.member.received > 1_000_000, "{info:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_side_alone_does_not_make_a_third_carry() {
    let mut trio = trio().await;
    trio.bob.link.offer_carrier(&trio.to_carol[1].link);
    exchange(&mut trio.alice, &mut trio.bob, 50, 100).await;
    // Who dialled asks for one by itself, and is not told by the other side which.
    let wanted = soon("a wish", trio.hub.alice.carrier_wanted()).await;
    assert_eq!(wanted, CarrierWanted { peer: id(3), proposed: None });
    assert_eq!(trio.manners.given(), 0);
    // The side that was dialled hears what the other one proposes.
    trio.alice.link.offer_carrier(&trio.to_carol[0].link);
    until(&trio.alice, PathKind::Member).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_dialled_hears_whom_the_other_side_proposes() {
    let trio = trio().await;
    trio.alice.link.offer_carrier(&trio.to_carol[0].link);
    let wanted = soon("a wish", trio.hub.bob.carrier_wanted()).await;
    assert_eq!(wanted, CarrierWanted { peer: id(2), proposed: Some(id(4)) });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_who_carries_swallows_all_and_it_is_tried_ever_more_rarely() {
    let mut trio = trio().await;
    trio.carried().await;
    trio.manners.set(SWALLOWS);
    exchange(&mut trio.alice, &mut trio.bob, 300, 1_000).await;
    assert_eq!(trio.alice.link.path().unwrap().kind, PathKind::Relayed);
    trio.manners.set(CARRIES);
    // 2 s after the first loss
    until(&trio.alice, PathKind::Member).await;
    exchange(&mut trio.bob, &mut trio.alice, 300, 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_carries_may_refuse_at_any_time_and_nothing_is_lost() {
    let mut trio = trio().await;
    trio.carried().await;
    trio.manners.set(REFUSES);
    exchange(&mut trio.alice, &mut trio.bob, 300, 1_000).await;
    until(&trio.alice, PathKind::Relayed).await;
    exchange(&mut trio.bob, &mut trio.alice, 300, 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_link_to_who_carries_ends_that_and_nothing_else() {
    let mut trio = trio().await;
    trio.carried().await;
    trio.to_carol[0].link.close(0, "");
    exchange(&mut trio.alice, &mut trio.bob, 300, 1_000).await;
    until(&trio.alice, PathKind::Relayed).await;
    until(&trio.bob, PathKind::Relayed).await;
    exchange(&mut trio.bob, &mut trio.alice, 300, 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_that_nobody_agreed_on_are_dropped_and_counted() {
    let mut trio = trio().await;
    let to_alice = trio.manners.link(id(2));
    let packet = Bytes::from(vec![0x41; 1_000]);
    let part = Part::Whole;
    for number in 0..100_u32 {
        // In the name of bob, of carol, of alice, and of people whom nobody knows.
        let from = match number % 4 {
            0 => id(3),
            1 => id(4),
            2 => id(2),
            _ => EndpointId::from_bytes([number as u8; 32]),
        };
        let datagram = Datagram::Relayed { from, part, packet: packet.clone() };
        to_alice.send_datagram(datagram);
        to_alice.send_datagram(Datagram::Relay { to: from, part, packet: packet.clone() });
        let reason = Unreachable::NotHere;
        to_alice.send_datagram(Datagram::Unreachable { to: from, reason });
    }
    let dropped = async {
        while trio.hub.alice.relay_drops().0 < 150 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon("drops", dropped).await;
    exchange(&mut trio.alice, &mut trio.bob, 50, 100).await;
    exchange(&mut trio.bob, &mut trio.alice, 50, 100).await;
}
