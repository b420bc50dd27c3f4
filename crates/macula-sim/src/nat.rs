//! Who can link with whom directly.
//!
//! What this module does *not* do: send probes or model port prediction; a pair either gets through
//! or is relayed.

use serde::Deserialize;

use crate::dice::Dice;

/// How a node is connected to the internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Nat {
    /// Reachable by anybody.
    Public,
    /// Behind a NAT with endpoint-independent mapping: can be punched.
    Cone,
    /// Behind a NAT that maps each remote address to another port.
    Symmetric,
    /// No UDP: everything goes through a relay.
    Blocked,
}

/// Shares of the classes; they need not add up to 1.
///
/// The default follows Ford, Srisuresh and Kegel (USENIX 2005), who found that hole punching works
/// through 82 % of NATs.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatMix {
    /// [`Nat::Public`].
    pub public: f64,
    /// [`Nat::Cone`].
    pub cone: f64,
    /// [`Nat::Symmetric`].
    pub symmetric: f64,
    /// [`Nat::Blocked`].
    pub blocked: f64,
}

impl Default for NatMix {
    fn default() -> Self {
        Self { public: 0.15, cone: 0.68, symmetric: 0.14, blocked: 0.03 }
    }
}

impl NatMix {
    pub(crate) fn draw(&self, dice: &mut Dice) -> Nat {
        let total = self.public + self.cone + self.symmetric + self.blocked;
        let mut draw = dice.unit() * total;
        for (share, class) in
            [(self.public, Nat::Public), (self.cone, Nat::Cone), (self.symmetric, Nat::Symmetric)]
        {
            draw -= share;
            if draw < 0.0 {
                return class;
            }
        }
        if total > 0.0 { Nat::Blocked } else { Nat::Public }
    }
}

/// How a link between two nodes comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The dialler just dials.
    Direct,
    /// Both must send at once, which a third tells them: one more round trip.
    Punched,
    /// A third carries everything.
    Relayed,
}

pub(crate) const fn way(dialler: Nat, other: Nat) -> Way {
    match (dialler, other) {
        (Nat::Blocked, _) | (_, Nat::Blocked) => Way::Relayed,
        (_, Nat::Public) => Way::Direct,
        (Nat::Public, _) | (Nat::Cone, Nat::Cone) => Way::Punched,
        (Nat::Symmetric, _) | (_, Nat::Symmetric) => Way::Relayed,
    }
}
