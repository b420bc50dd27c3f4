//! What a block of a grant says.

use biscuit_auth::builder::Fact as NewFact;
use macula_proto::EndpointId;
use macula_proto::auth::{BlockId, Denial, Layer, Rule, UnixTime, Verb};
use macula_proto::pubsub::Pattern;

use crate::envelope::malformed;
use crate::error::MakeError;
use crate::fact::{Fact, Value, fact, once};

/// Signed blocks in a grant: the root's, and up to 15 that narrow it.
pub const BLOCKS_MAX: usize = 16;
/// Rules that a block holds, allowing and denying together.
pub const RULES_PER_BLOCK_MAX: usize = 256;
/// Length of a contact, bytes.
pub const CONTACT_BYTES_MAX: usize = 128;

/// Version of what grants say.
const VERSION: u64 = 1;

/// What a signed block adds to those before it. It can only narrow them.
///
/// Times count in whole seconds: an expiry is rounded down, a beginning up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Only these; `None`: as before. The root's own block must say something here.
    pub allow: Option<Vec<Rule>>,
    /// Never these.
    pub deny: Vec<Rule>,
    /// Does not hold before; `None`: as before.
    pub valid_from: Option<UnixTime>,
    /// Ends to hold; `None`: as before. The root's own block must say something here.
    pub expires: Option<UnixTime>,
    /// Whom to ask for more, 1 to [`CONTACT_BYTES_MAX`] bytes; `None`: as before.
    pub contact: Option<String>,
}

impl Terms {
    /// Their rights, as [`decide`](macula_proto::auth::decide) looks at them.
    pub fn layer(&self) -> Layer {
        Layer { allow: self.allow.clone(), deny: self.deny.clone() }
    }

    /// Checks what can be checked without the blocks before, and writes it down.
    pub(crate) fn write(&self, endpoint: Option<&EndpointId>) -> Result<Vec<NewFact>, MakeError> {
        let rules = self.allow.as_ref().map_or(0, Vec::len) + self.deny.len();
        if rules > RULES_PER_BLOCK_MAX {
            return Err(MakeError::TooManyRules(rules));
        }
        if self.contact.as_deref().is_some_and(|contact| !is_contact(contact)) {
            return Err(MakeError::Contact);
        }
        let mut facts = Vec::with_capacity(rules + 5);
        if let Some(contact) = &self.contact {
            facts.push(fact("contact", &[Value::Text(contact)]));
        }
        if let Some(endpoint) = endpoint {
            facts.push(fact("endpoint", &[Value::Bytes(endpoint.as_bytes())]));
        }
        if let Some(from) = self.valid_from {
            let seconds = from.0.div_ceil(1_000);
            facts.push(fact("valid_from", &[Value::Date(UnixTime::from_secs(seconds))]));
        }
        if let Some(expires) = self.expires {
            facts.push(fact("expires", &[Value::Date(expires)]));
        }
        if self.allow.as_ref().is_some_and(Vec::is_empty) {
            facts.push(fact("allow_nothing", &[Value::Flag(true)]));
        }
        let rules = |name: &'static str, rules: &[Rule]| -> Vec<NewFact> {
            let values = |rule: &Rule| {
                fact(name, &[Value::Text(rule.verb.as_str()), Value::Text(rule.pattern.as_str())])
            };
            rules.iter().map(values).collect()
        };
        facts.extend(rules("allow", self.allow.as_deref().unwrap_or_default()));
        facts.extend(rules("deny", &self.deny));
        Ok(facts)
    }
}

/// What the root's block says in front of its terms.
pub(crate) fn write_head(name: &str, epoch: u64) -> Vec<NewFact> {
    vec![
        fact("macula", &[Value::Number(VERSION)]),
        fact("realm", &[Value::Text(name)]),
        fact("epoch", &[Value::Number(epoch)]),
    ]
}

/// One signed block, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its name, for revocation.
    pub id: BlockId,
    /// To whom it binds the grant.
    pub endpoint: Option<EndpointId>,
    /// What it says.
    pub terms: Terms,
}

/// What only the root's block says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) name: String,
    pub(crate) epoch: u64,
}

/// Reads a block; `None` for the head of one that has none.
pub(crate) fn read(id: BlockId, facts: &[Fact<'_>]) -> Result<(Option<Head>, Block), Denial> {
    let mut block = Block { id, endpoint: None, terms: Terms::default() };
    let (mut version, mut name, mut epoch) = (None, None, None);
    let (mut allow, mut allows_nothing) = (Vec::new(), None);
    for fact in facts {
        let terms = &mut block.terms;
        match (fact.name, &*fact.values) {
            ("macula", [Value::Number(VERSION)]) => once(&mut version, (), fact.name)?,
            ("realm", [Value::Text(text)]) => once(&mut name, (*text).to_owned(), fact.name)?,
            ("epoch", [Value::Number(number)]) => once(&mut epoch, *number, fact.name)?,
            ("contact", [Value::Text(text)]) if is_contact(text) => {
                once(&mut terms.contact, (*text).to_owned(), fact.name)?;
            }
            ("endpoint", [Value::Bytes(bytes)]) => {
                let key: [u8; 32] = (*bytes).try_into().map_err(|_| fact.unknown())?;
                once(&mut block.endpoint, EndpointId::from_bytes(key), fact.name)?;
            }
            ("valid_from", [Value::Date(time)]) => once(&mut terms.valid_from, *time, fact.name)?,
            ("expires", [Value::Date(time)]) => once(&mut terms.expires, *time, fact.name)?,
            ("allow_nothing", [Value::Flag(true)]) => once(&mut allows_nothing, (), fact.name)?,
            ("allow", [Value::Text(verb), Value::Text(pattern)]) => {
                allow.push(rule(verb, pattern)?)
            }
            ("deny", [Value::Text(verb), Value::Text(pattern)]) => {
                terms.deny.push(rule(verb, pattern)?);
            }
            _ => return Err(fact.unknown()),
        }
    }
    if allow.len() + block.terms.deny.len() > RULES_PER_BLOCK_MAX {
        return Err(malformed(format!("a block has more than {RULES_PER_BLOCK_MAX} rules")));
    }
    block.terms.allow = match (allows_nothing, allow.is_empty()) {
        (Some(()), false) => return Err(malformed("a block allows nothing and something")),
        (None, true) => None,
        _ => Some(allow),
    };
    let head = match (version, name, epoch) {
        (Some(()), Some(name), Some(epoch)) => Some(Head { name, epoch }),
        (None, None, None) => None,
        _ => return Err(malformed("the root's block lacks version, realm or epoch")),
    };
    Ok((head, block))
}

fn rule(verb: &str, pattern: &str) -> Result<Rule, Denial> {
    let verb = verb.parse::<Verb>().map_err(|_| malformed("a rule has an unknown verb"))?;
    let pattern = Pattern::parse(pattern);
    let pattern = pattern.map_err(|error| malformed(format!("a rule's pattern: {error}")))?;
    Ok(Rule { verb, pattern })
}

/// Short, and what people see of it is what it says.
fn is_contact(text: &str) -> bool {
    let is_hidden = |character: char| {
        character.is_control()
            || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(character, '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    !text.is_empty() && text.len() <= CONTACT_BYTES_MAX && !text.chars().any(is_hidden)
}
