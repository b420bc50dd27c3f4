//! The tests of a check against a simulated NAT and the real STUN server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use macula_proto::Time;

use super::*;
use crate::stun::{Binding, Listener};

const SERVERS: [&str; 4] =
    ["198.51.100.1:3478", "198.51.100.1:3479", "198.51.100.2:3478", "198.51.100.2:3479"];

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A NAT with one outer address.
#[derive(Default)]
struct Nat {
    mapping: Option<Mapping>,
    filtering: Option<Filtering>,
    hairpins: bool,
    /// Local address and what the mapping depends on; outer port.
    ports: BTreeMap<(SocketAddr, String), u16>,
    /// Outer port, where it has sent to.
    sent: Vec<(u16, SocketAddr)>,
}

impl Nat {
    fn out(&mut self, from: SocketAddr, to: SocketAddr) -> SocketAddr {
        let key = match self.mapping.unwrap() {
            Mapping::None => return from,
            Mapping::EndpointIndependent => String::new(),
            Mapping::AddressDependent => to.ip().to_string(),
            Mapping::AddressAndPortDependent => to.to_string(),
        };
        let next = 40_000 + self.ports.len() as u16;
        let port = *self.ports.entry((from, key)).or_insert(next);
        self.sent.push((port, to));
        SocketAddr::new(addr("203.0.113.5:0").ip(), port)
    }

    /// The local address that a packet gets to.
    fn back(&self, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        if self.mapping == Some(Mapping::None) {
            return Some(to);
        }
        let ((local, _), _) = self.ports.iter().find(|(_, port)| **port == to.port())?;
        let is_known = self.sent.iter().any(|(port, sent)| {
            *port == to.port()
                && match self.filtering.unwrap() {
                    Filtering::EndpointIndependent | Filtering::NotPortDependent => true,
                    Filtering::AddressDependent => sent.ip() == from.ip(),
                    Filtering::AddressAndPortDependent => *sent == from,
                }
        });
        is_known.then_some(*local)
    }
}

fn config(has_second_ip: bool) -> (CheckConfig, Binding) {
    let mut binding = Binding::default();
    let listeners = if has_second_ip { 4 } else { 2 };
    for (index, text) in SERVERS.iter().enumerate().take(listeners) {
        binding.addresses[index] = Some(addr(text));
    }
    let server =
        StunServer { name: "a".to_owned(), address: addr(SERVERS[0]), other_port: Some(3479) };
    let config = CheckConfig {
        servers: vec![server],
        main: Some(addr("192.168.1.2:5000")),
        quiet: Some(addr("192.168.1.2:5001")),
        v6: None,
        patience: Patience::default(),
        seed: [9; 32],
    };
    (config, binding)
}

fn socket_of(local: SocketAddr) -> Socket {
    if local.port() == 5000 { Socket::Main } else { Socket::Quiet }
}

/// Runs a check to its end; returns the report and how long it took.
fn run(nat: &mut Nat, has_second_ip: bool) -> (Report, Duration) {
    let (config, binding) = config(has_second_ip);
    let mut now = Time::START;
    let mut check = Check::new(now, config);
    loop {
        while let Some(packet) = check.poll_transmit() {
            now = now + Duration::from_millis(10);
            let local = match packet.socket {
                Socket::Main => addr("192.168.1.2:5000"),
                _ => addr("192.168.1.2:5001"),
            };
            let outer = nat.out(local, packet.to);
            if packet.to.ip() == outer.ip() {
                if nat.hairpins
                    && let Some(to) = nat.back(outer, packet.to)
                {
                    check.handle_packet(now, socket_of(to), outer, &packet.data);
                }
                continue;
            }
            let at = SERVERS.iter().position(|server| addr(server) == packet.to).unwrap();
            let answer = binding.answer(&packet.data, outer, Listener::ALL[at]).unwrap();
            let from = binding.addresses[answer.from.index()].unwrap();
            if let Some(to) = nat.back(from, answer.to) {
                check.handle_packet(now, socket_of(to), from, &answer.data);
            }
        }
        let Some(due) = check.poll_timeout() else { break };
        now = now.max(due);
        check.handle_timeout(now);
    }
    (check.report(), now - Time::START)
}

#[test]
fn every_kind_of_nat_is_recognised_with_two_addresses() {
    use {Filtering as F, Mapping as M};
    for mapping in [M::EndpointIndependent, M::AddressDependent, M::AddressAndPortDependent] {
        for filtering in [F::EndpointIndependent, F::AddressDependent, F::AddressAndPortDependent] {
            let mut nat =
                Nat { mapping: Some(mapping), filtering: Some(filtering), ..Nat::default() };
            let (report, _) = run(&mut nat, true);
            assert_eq!((report.mapping, report.filtering), (Some(mapping), Some(filtering)));
            assert_eq!(report.hairpin, Some(false));
            assert_eq!(report.preserves_port, Some(false));
        }
    }
}

#[test]
fn with_two_ports_at_one_address_what_depends_on_ports_is_recognised() {
    use {Filtering as F, Mapping as M};
    let kinds = [
        (M::EndpointIndependent, F::AddressAndPortDependent, F::AddressAndPortDependent),
        (M::AddressAndPortDependent, F::AddressDependent, F::NotPortDependent),
    ];
    for (mapping, filtering, seen) in kinds {
        let mut nat = Nat {
            mapping: Some(mapping),
            filtering: Some(filtering),
            hairpins: true,
            ..Nat::default()
        };
        let (report, _) = run(&mut nat, false);
        assert_eq!((report.mapping, report.filtering), (Some(mapping), Some(seen)));
    }
}

#[test]
fn no_nat_and_hairpinning_are_seen() {
    let mut nat = Nat {
        mapping: Some(Mapping::None),
        filtering: Some(Filtering::EndpointIndependent),
        ..Nat::default()
    };
    let (report, _) = run(&mut nat, true);
    assert_eq!((report.mapping, report.hairpin), (Some(Mapping::None), None));
    assert_eq!(report.verdict(), "no NAT: you can be reached directly");
    let mut nat = Nat {
        mapping: Some(Mapping::EndpointIndependent),
        filtering: Some(Filtering::EndpointIndependent),
        hairpins: true,
        ..Nat::default()
    };
    let (report, took) = run(&mut nat, true);
    assert_eq!(report.hairpin, Some(true));
    assert!(took < Duration::from_secs(1), "nothing was waited for: {took:?}");
    assert_eq!(report.verdict(), "you can be reached directly by your mapped address");
}

#[test]
fn requests_are_repeated_at_the_times_of_the_rfc_and_then_given_up() {
    let (config, _) = config(false);
    let mut now = Time::START;
    let mut check = Check::new(now, config);
    let mut times = Vec::new();
    loop {
        while let Some(packet) = check.poll_transmit() {
            if packet.socket == Socket::Main {
                times.push((now - Time::START).as_millis());
            }
        }
        let Some(due) = check.poll_timeout() else { break };
        now = due;
        check.handle_timeout(now);
    }
    assert_eq!(times, [0, 500, 1_500, 3_500, 7_500, 15_500, 31_500]);
    assert_eq!((now - Time::START).as_millis(), 39_500);
    let report = check.report();
    assert_eq!(report.udp_blocked, Some(true));
    let by_tls = Report { tls_works: Some(true), ..report.clone() };
    assert!(by_tls.verdict().starts_with("UDP is blocked; TLS over TCP works"));
    assert!(report.verdict().contains("relay"));
}

#[test]
fn forged_and_foreign_answers_are_ignored() {
    let (config, binding) = config(false);
    let now = Time::START;
    let mut check = Check::new(now, config);
    let packet = check.poll_transmit().unwrap();
    assert_eq!(packet.socket, Socket::Main);
    let outer = addr("203.0.113.5:40000");
    let good = binding.answer(&packet.data, outer, Listener::PRIMARY).unwrap().data;
    let server = addr(SERVERS[0]);
    check.handle_packet(now, Socket::Main, addr("198.51.100.9:3478"), &good);
    check.handle_packet(now, Socket::Main, addr(SERVERS[1]), &good);
    check.handle_packet(now, Socket::Quiet, server, &good);
    let mut forged = good.clone();
    forged[19] ^= 1;
    check.handle_packet(now, Socket::Main, server, &forged);
    check.handle_packet(now, Socket::Main, server, &packet.data);
    check.handle_packet(now, Socket::Main, server, b"nonsense");
    assert_eq!((check.ignored(), check.report().mapped), (6, None));
    check.handle_packet(now, Socket::Main, server, &good);
    assert_eq!(check.report().mapped, Some(outer));
    let later = addr("203.0.113.6:1");
    let second = binding.answer(&packet.data, later, Listener::PRIMARY).unwrap().data;
    check.handle_packet(now, Socket::Main, server, &second);
    assert_eq!((check.ignored(), check.report().mapped), (7, Some(outer)), "only the first counts");
}

#[test]
fn a_carriers_nat_is_suspected_from_shared_addresses() {
    let (mut config, _) = config(false);
    config.main = Some(addr("100.64.3.4:5000"));
    assert!(Check::new(Time::START, config.clone()).report().cgnat_suspected);
    config.main = Some(addr("100.128.3.4:5000"));
    assert!(!Check::new(Time::START, config).report().cgnat_suspected);
}
