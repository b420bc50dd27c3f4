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

/// Share of pairs of a mix that are direct.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MixShare {
    /// Over IPv4 alone, 0 to 1.
    pub v4: f64,
    /// Where hosts have IPv6 with the mix's share and two that have it are direct over it.
    pub with_v6: f64,
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
        for (initiator, one) in self.weights {
            for (responder, other) in self.weights {
                if let Some(share) = direct(initiator, responder) {
                    covered += one * other;
                    sum += one * other * share;
                }
            }
        }
        if covered <= 0.0 {
            return None;
        }
        let v4 = sum / covered;
        let with_v6 = v4 + (1.0 - v4) * self.ipv6 * self.ipv6 * v6;
        Some(MixShare { v4, with_v6, covered })
    }
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
    fn what_was_not_measured_does_not_count() {
        let only = |one, other| (one == NatKind::Linux && other == NatKind::Linux).then_some(1.0);
        let share = MIXES[0].share(only, 1.0).unwrap();
        assert!((share.v4 - 1.0).abs() < 1e-9 && (share.covered - 0.36 * 0.36).abs() < 1e-9);
        assert_eq!(MIXES[0].share(|_, _| None, 1.0), None);
    }
}
