//! What a grant says, once its signatures are checked.

use std::fmt;
use std::str::FromStr;

use super::{BlockId, Denial, UnixTime};
use crate::id::EndpointId;
use crate::limits::GRANT_CLOCK_SKEW;
use crate::pubsub::Pattern;

/// What can be allowed or denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Verb {
    /// Publish on a topic.
    Publish,
    /// Receive what is published on a topic.
    Subscribe,
    /// Call a procedure.
    Call,
    /// Offer a procedure.
    Serve,
    /// Leave something behind under a name: retained messages, records.
    Store,
    /// Have packets relayed to a member, whose id is the name.
    Relay,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Publish, Self::Subscribe, Self::Call, Self::Serve, Self::Store, Self::Relay];

    /// Its name in grants and commands.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::Call => "call",
            Self::Serve => "serve",
            Self::Store => "store",
            Self::Relay => "relay",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Verb {
    type Err = UnknownVerb;

    fn from_str(text: &str) -> Result<Self, UnknownVerb> {
        Self::ALL.into_iter().find(|verb| verb.as_str() == text).ok_or(UnknownVerb)
    }
}

/// The text names no [`Verb`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a verb; the verbs are publish, subscribe, call, serve, store and relay")]
pub struct UnknownVerb;

/// A verb on all names that match a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// To do what.
    pub verb: Verb,
    /// With which topics or procedures.
    pub pattern: Pattern,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on `{}`", self.verb, self.pattern)
    }
}

/// What one signed block says of rights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    /// Only these; `None`: this layer does not narrow the one before it.
    pub allow: Option<Vec<Rule>>,
    /// Never these.
    pub deny: Vec<Rule>,
}

impl Layer {
    fn allows(&self, verb: Verb, matches: impl Fn(&Pattern) -> bool) -> bool {
        let fits = |rule: &Rule| rule.verb == verb && matches(&rule.pattern);
        self.allow.as_ref().is_none_or(|rules| rules.iter().any(fits))
    }
}

/// A grant whose signatures hold. Made by a [`Verifier`](super::Verifier); judged by
/// [`decide`](super::decide).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    /// To whom it was given: nobody else can use it.
    pub endpoint: EndpointId,
    /// Whom to ask for another one; empty: not said.
    pub contact: String,
    /// The realm's epoch when its issuer was made.
    pub epoch: u64,
    /// Begins to hold.
    pub not_before: UnixTime,
    /// Ends to hold.
    pub expires: UnixTime,
    /// Rights: the first layer comes from the realm's root and must have an `allow`.
    pub layers: Vec<Layer>,
    /// The signed blocks that it consists of.
    pub blocks: Vec<BlockId>,
}

impl Permit {
    pub(super) fn check_time(&self, now: UnixTime) -> Result<(), Denial> {
        if now >= self.expires {
            return Err(Denial::Expired { at: self.expires, contact: self.contact.clone() });
        }
        if now.0.saturating_add(GRANT_CLOCK_SKEW.as_millis() as u64) < self.not_before.0 {
            return Err(Denial::NotYet { from: self.not_before, now });
        }
        Ok(())
    }

    pub(super) fn check_use(&self, verb: Verb, name: &str) -> Result<(), Denial> {
        let mut denies = self.layers.iter().flat_map(|layer| &layer.deny);
        if let Some(rule) = denies.find(|rule| rule.verb == verb && rule.pattern.matches_name(name))
        {
            return Err(self.not_allowed(verb, name, Some(rule)));
        }
        let is_allowed = |layer: &Layer| layer.allows(verb, |pattern| pattern.matches_name(name));
        if !self.layers.is_empty() && self.layers.iter().all(is_allowed) {
            return Ok(());
        }
        Err(self.not_allowed(verb, name, None))
    }

    pub(super) fn check_cover(&self, verb: Verb, wanted: &Pattern) -> Result<(), Denial> {
        let mut denies = self.layers.iter().flat_map(|layer| &layer.deny);
        if let Some(rule) = denies.find(|rule| rule.verb == verb && rule.pattern.covers(wanted)) {
            return Err(self.not_allowed(verb, wanted.as_str(), Some(rule)));
        }
        let is_allowed = |layer: &Layer| layer.allows(verb, |pattern| pattern.covers(wanted));
        if !self.layers.is_empty() && self.layers.iter().all(is_allowed) {
            return Ok(());
        }
        Err(self.not_allowed(verb, wanted.as_str(), None))
    }

    fn not_allowed(&self, verb: Verb, target: &str, denied_by: Option<&Rule>) -> Denial {
        Denial::NotAllowed {
            verb,
            target: target.to_owned(),
            denied_by: denied_by.map(|rule| rule.pattern.as_str().to_owned()),
            allowed: self.patterns(verb),
            contact: self.contact.clone(),
        }
    }

    /// Patterns that the narrowest layer allows for `verb`, for people.
    fn patterns(&self, verb: Verb) -> Vec<String> {
        let narrowest = self.layers.iter().rev().find_map(|layer| layer.allow.as_ref());
        let rules = narrowest.into_iter().flatten();
        rules.filter(|rule| rule.verb == verb).map(|rule| rule.pattern.to_string()).collect()
    }
}
