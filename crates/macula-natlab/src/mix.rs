//! Mixes of hosts: what a matrix of pairs means for a population.
//!
//! The weights are **assumptions**, anchored so that plain hole punching lands where published
//! measurements do (`docs/nat.md`). Pairs are ordered and weigh the product of their hosts' weights.

use serde::Serialize;

use crate::kind::NatKind;

/// A population of hosts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    /// As in summaries.
    pub name: &'static str,
    /// Shares of IPv4 access kinds; they add up to 1.
    pub weights: [(NatKind, f64); 12],
    /// Share of hosts that have IPv6 too.
    pub ipv6: f64,
}

/// Homes, people on the move, offices.
pub const MIXES: [Mix; 3] = [
    mix("consumer", [0.03, 0.03, 0.10, 0.04, 0.18, 0.36, 0.02, 0.06, 0.03, 0.07, 0.06, 0.02], 0.45),
    mix("mobile", [0.01, 0.02, 0.05, 0.03, 0.12, 0.20, 0.01, 0.05, 0.03, 0.25, 0.20, 0.03], 0.50),
    mix("office", [0.04, 0.12, 0.03, 0.02, 0.17, 0.20, 0.03, 0.24, 0.03, 0.02, 0.02, 0.08], 0.20),
];

const fn mix(name: &'static str, shares: [f64; 12], ipv6: f64) -> Mix {
    let mut weights = [(NatKind::Public, 0.0); 12];
    let mut index = 0;
    while index < weights.len() {
        weights[index] = (NatKind::ALL[index], shares[index]);
        index += 1;
    }
    Mix { name, weights, ipv6 }
}

/// Share of single home NATs whose router maps a port when asked (PCP, NAT-PMP, UPnP): an assumption,
/// too.
pub const MAPPED_HOMES: f64 = 0.3;

/// Whether it is a home's own NAT.
const fn is_home(kind: NatKind) -> bool {
    use NatKind::{AddrRestricted, FullCone, Linux, LinuxOpen, PortRestricted, SymSeq, Symmetric};
    matches!(
        kind,
        FullCone | AddrRestricted | PortRestricted | Linux | LinuxOpen | Symmetric | SymSeq
    )
}

/// Share of pairs of a mix that are direct.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MixShare {
    /// Over IPv4 alone, 0 to 1.
    pub v4: f64,
    /// Where hosts have IPv6 with the mix's share and two that have it are direct over it.
    pub with_v6: f64,
    /// Where, besides, [`MAPPED_HOMES`] of the hosts behind a single home NAT have a router that maps
    /// ports when asked. `None` where no pair with such a router was measured.
    pub with_mapping: Option<f64>,
    /// Weight of the pairs that were measured, 0 to 1; the shares are among these only.
    pub covered: f64,
}

impl Mix {
    /// The share of direct pairs, by `direct`: for initiator and responder 1 or 0 (or between, for several
    /// runs), `None` where not measured. `v6` is the same for two IPv6 hosts. `None` when nothing
    /// that the mix has was measured.
    pub fn share(
        &self,
        direct: impl Fn(NatKind, NatKind) -> Option<f64>,
        v6: f64,
    ) -> Option<MixShare> {
        let (mut covered, mut sum) = (0.0, 0.0);
        let (mut mapped, mut is_mapped) = (0.0, false);
        for (initiator, one) in self.weights {
            for (responder, other) in self.weights {
                if let Some(share) = direct(initiator, responder) {
                    covered += one * other;
                    sum += one * other * share;
                    let with_mapping = with_mapping(&direct, (initiator, responder), share);
                    is_mapped |= with_mapping.is_some();
                    mapped += one * other * with_mapping.unwrap_or(share);
                }
            }
        }
        if covered <= 0.0 {
            return None;
        }
        let with_v6 = |v4: f64| v4 + (1.0 - v4) * self.ipv6 * self.ipv6 * v6;
        let v4 = sum / covered;
        let with_mapping = is_mapped.then(|| with_v6(mapped / covered));
        Some(MixShare { v4, with_v6: with_v6(v4), with_mapping, covered })
    }
}

/// The same of a pair whose home routers map ports as often as [`MAPPED_HOMES`] says; `None` if that was
/// measured for neither of them, or neither has such a router.
fn with_mapping(
    direct: impl Fn(NatKind, NatKind) -> Option<f64>,
    (initiator, responder): (NatKind, NatKind),
    share: f64,
) -> Option<f64> {
    let chance = |kind| if is_home(kind) { MAPPED_HOMES } else { 0.0 };
    let (one, other) = (chance(initiator), chance(responder));
    let cells = [
        (one * (1.0 - other), direct(NatKind::PortMap, responder)),
        ((1.0 - one) * other, direct(initiator, NatKind::PortMap)),
        (one * other, direct(NatKind::PortMap, NatKind::PortMap)),
    ];
    let asked = cells.into_iter().filter(|(chance, _)| *chance > 0.0);
    let measured: Vec<(f64, f64)> =
        asked.filter_map(|(chance, cell)| Some((chance, cell?))).collect();
    // A mapping takes nothing away.
    let gained: f64 = measured.iter().map(|(chance, cell)| chance * (cell - share).max(0.0)).sum();
    (!measured.is_empty()).then_some(share + gained)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_add_up() {
        for mix in MIXES {
            let sum: f64 = mix.weights.iter().map(|(_, weight)| weight).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{} has {sum}", mix.name);
        }
    }

    /// Who is direct by plain, synchronised hole punching, from the definitions.
    fn punching(one: NatKind, other: NatKind) -> Option<f64> {
        use crate::kind::{Filtering as F, Mapping as M};
        let (Some(a), Some(b)) = (one.behaviour(), other.behaviour()) else { return Some(0.0) };
        let gets_in = |from: M, filter: F| {
            from == M::EndpointIndependent || filter != F::AddressAndPortDependent
        };
        Some(f64::from(gets_in(a.mapping, b.filtering) && gets_in(b.mapping, a.filtering)))
    }

    #[test]
    fn plain_punching_gives_the_published_ceiling() {
        // Ceilings of hole punching alone, v4: consumer 74.0, mobile 52.7, office 44.9 %.
        for (mix, wanted) in MIXES.iter().zip([0.740, 0.527, 0.449]) {
            let share = mix.share(punching, 1.0).unwrap();
            assert!((share.v4 - wanted).abs() < 0.006, "{}: {share:?}", mix.name);
            assert!((share.covered - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn ipv6_helps_pairs_that_both_have_it() {
        let consumer = MIXES[0].share(|_, _| Some(0.0), 1.0).unwrap();
        assert!((consumer.with_v6 - 0.45 * 0.45).abs() < 1e-9);
        let unmeasured = MIXES[0].share(|_, _| Some(0.0), 0.0).unwrap();
        assert!(unmeasured.with_v6.abs() < 1e-9);
    }

    #[test]
    fn port_mapping_helps_homes_alone() {
        // Nobody is direct but by a mapping.
        let by_mapping =
            |one, other| Some(f64::from(one == NatKind::PortMap || other == NatKind::PortMap));
        let share = MIXES[0].share(by_mapping, 0.0).unwrap();
        // Homes are .79 of the hosts; .3 of them have it.
        let lacks = 1.0 - 0.79 * 0.3;
        let with_mapping = share.with_mapping.unwrap();
        assert!((with_mapping - (1.0 - lacks * lacks)).abs() < 1e-9, "{share:?}");
        assert!(share.v4.abs() < 1e-9);
        let unmeasured = MIXES[0].share(punching, 1.0).unwrap();
        let homes = |kind: NatKind| (kind != NatKind::PortMap).then_some(0.0);
        let without = MIXES[0].share(|one, other| homes(one).and(homes(other)), 1.0).unwrap();
        assert_eq!(without.with_mapping, None);
        assert!(unmeasured.with_mapping.is_some_and(|it| it >= unmeasured.with_v6));
    }

    #[test]
    fn what_was_not_measured_does_not_count() {
        let only = |one, other| (one == NatKind::Linux && other == NatKind::Linux).then_some(1.0);
        let share = MIXES[0].share(only, 1.0).unwrap();
        assert!((share.v4 - 1.0).abs() < 1e-9 && (share.covered - 0.36 * 0.36).abs() < 1e-9);
        assert_eq!(MIXES[0].share(|_, _| None, 1.0), None);
    }
}
