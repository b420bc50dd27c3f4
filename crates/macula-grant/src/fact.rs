//! What a signed block may contain: facts with plain values, nothing else.

use std::collections::BTreeSet;

use biscuit_auth::builder::{self, Term};
use biscuit_auth::datalog::SymbolTable;
use biscuit_auth::format::schema;
use macula_proto::auth::{Denial, UnixTime};

use crate::envelope::malformed;

/// Characters of a foreign name that an error repeats.
const SHOWN_CHARS: usize = 32;

/// A statement: `name(value, …)`.
#[derive(Debug)]
pub(crate) struct Fact<'a> {
    pub(crate) name: &'a str,
    pub(crate) values: Vec<Value<'a>>,
}

/// A value that a fact may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Number(u64),
    Text(&'a str),
    Date(UnixTime),
    Bytes(&'a [u8]),
    Flag(bool),
}

impl<'a> Fact<'a> {
    /// Reads it from its wire form; never from text, in which strings are not escaped.
    pub(crate) fn read(fact: &'a schema::Fact, symbols: &'a Symbols) -> Result<Self, Denial> {
        let predicate = &fact.predicate;
        let values = predicate.terms.iter().map(|term| Value::read(term, symbols));
        Ok(Self { name: symbols.find(predicate.name)?, values: values.collect::<Result<_, _>>()? })
    }

    /// It is not one that belongs here.
    pub(crate) fn unknown(&self) -> Denial {
        let name: String = self.name.chars().take(SHOWN_CHARS).collect();
        malformed(format!("it says {name:?}, which this version does not know or not so"))
    }
}

impl<'a> Value<'a> {
    fn read(term: &'a schema::Term, symbols: &'a Symbols) -> Result<Self, Denial> {
        use schema::term::Content;
        Ok(match &term.content {
            Some(Content::Integer(number)) => {
                Self::Number(u64::try_from(*number).map_err(|_| malformed("a number is negative"))?)
            }
            Some(Content::String(index)) => Self::Text(symbols.find(*index)?),
            Some(Content::Date(seconds)) => Self::Date(UnixTime::from_secs(*seconds)),
            Some(Content::Bytes(bytes)) => Self::Bytes(bytes),
            Some(Content::Bool(flag)) => Self::Flag(*flag),
            _ => return Err(malformed("a value is not of a plain type")),
        })
    }
}

/// The strings of a token: some that all tokens have, then those of each block. The library's own
/// table looks at all of them again for each block.
#[derive(Debug)]
pub(crate) struct Symbols {
    common: SymbolTable,
    own: Vec<String>,
    known: BTreeSet<String>,
}

/// Here the numbers of a token's own strings begin.
const OWN_SYMBOLS_FROM: u64 = 1024;

impl Symbols {
    pub(crate) fn new() -> Self {
        Self { common: SymbolTable::new(), own: Vec::new(), known: BTreeSet::new() }
    }

    /// Adds those of a block.
    pub(crate) fn extend(&mut self, block: &[String]) -> Result<(), Denial> {
        for symbol in block {
            if self.common.get(symbol).is_some() || !self.known.insert(symbol.clone()) {
                return Err(malformed("a string is there twice"));
            }
            self.own.push(symbol.clone());
        }
        Ok(())
    }

    fn find(&self, index: u64) -> Result<&str, Denial> {
        let symbol = match index.checked_sub(OWN_SYMBOLS_FROM) {
            None => self.common.get_symbol(index),
            Some(own) => {
                usize::try_from(own).ok().and_then(|own| self.own.get(own)).map(String::as_str)
            }
        };
        symbol.ok_or_else(|| malformed("a string is missing"))
    }
}

/// Makes one.
pub(crate) fn fact(name: &str, values: &[Value<'_>]) -> builder::Fact {
    let term = |value: &Value<'_>| match *value {
        // A signed number on the wire; what is beyond it never comes up.
        Value::Number(number) => builder::int(i64::try_from(number).unwrap_or(i64::MAX)),
        Value::Text(text) => builder::string(text),
        Value::Date(time) => Term::Date(time.as_secs()),
        Value::Bytes(bytes) => builder::bytes(bytes),
        Value::Flag(flag) => builder::boolean(flag),
    };
    builder::fact(name, &values.iter().map(term).collect::<Vec<_>>())
}

/// Puts `value` where nothing was yet.
pub(crate) fn once<T>(slot: &mut Option<T>, value: T, name: &str) -> Result<(), Denial> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(malformed(format!("a block says `{name}` twice"))),
    }
}
