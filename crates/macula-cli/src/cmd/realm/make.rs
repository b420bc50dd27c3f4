//! `macula realm new`, `issuer`, `grant` and `renew`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use macula_grant::{
    EndpointId, Grant, IssuerToken, MakeError, Pattern, RealmKey, RealmName, Rule, Terms, UnixTime,
    Verb,
};

use super::args::{GrantArgs, IssuerArgs, NewArgs, RenewArgs, RightsArgs, SignerArgs};
use super::file::{self, Readers};
use super::{now, words};
use crate::failure::{Exit, Failure};
use crate::{connect, out};

/// How long an issuer token of the root is good for unless told otherwise.
const ISSUER_VALID: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How long a grant is good for unless told otherwise.
const GRANT_VALID: Duration = Duration::from_secs(24 * 60 * 60);

/// Founds a realm.
pub(super) fn new(args: NewArgs) -> Result<(), Failure> {
    let path = match args.out {
        Some(path) => path,
        None => default_path(&args.name)?,
    };
    let key = RealmKey::generate(args.name);
    file::create(&path, &key.to_text(), Readers::Owner)?;
    let shown = path.display();
    out::note(format_args!("wrote the root key of a new realm to {shown}"));
    out::note("keep it secret, offline, and keep a copy: who has it owns the realm");
    out::note(format_args!("next: macula realm issuer --root {shown} --out issuer.token"));
    out::note("      macula realm grant --issuer issuer.token --for ENDPOINTID --out my.grant");
    out::line(key.realm())
}

fn default_path(name: &RealmName) -> Result<PathBuf, Failure> {
    let directory = macula_gateway::home::directory().ok_or_else(|| {
        Failure::new(
            Exit::Failure,
            "there is no directory for keys: MACULA_HOME and HOME are not set",
            "name a file with --out",
        )
    })?;
    macula_gateway::home::create(&directory)
        .map_err(|e| Failure::from(e).context(format_args!("create {}", directory.display())))?;
    Ok(directory.join(format!("{name}.realm-key")))
}

/// Makes an issuer token.
pub(super) fn issuer(args: IssuerArgs) -> Result<(), Failure> {
    let signer = Signer::load(&args.signer)?;
    let mut terms = terms(args.rights);
    let token = match &signer {
        Signer::Root(key) => {
            terms.expires = Some(after(args.valid.unwrap_or(ISSUER_VALID))?);
            terms.allow.get_or_insert_with(all_allowed);
            IssuerToken::new(key, &terms)
        }
        Signer::Issuer(issuer) => {
            terms.expires = Source::issuer(issuer).expiry(args.valid)?;
            issuer.attenuate(&terms)
        }
    };
    let token = token.map_err(cannot_make)?;
    write(args.out.as_deref(), &token.to_text(), Readers::Owner)?;
    out::note("it is a secret: whoever has it can let others into the realm");
    tell_expiry(token.expires());
    Ok(())
}

/// Makes a grant, or narrows one.
pub(super) fn grant(args: GrantArgs) -> Result<(), Failure> {
    let mut terms = terms(args.rights);
    let grant = if let Some(path) = &args.from {
        let from = file::grant(path)?;
        let source =
            Source { name: "grant", expires: from.expires(), contact: &from.permit().contact };
        terms.expires = source.expiry(args.valid)?;
        from.attenuate(&terms).map_err(cannot_make)?
    } else {
        let signer = Signer::load(&SignerArgs { root: args.root, issuer: args.issuer })?;
        let endpoint = endpoint(args.whom.as_deref().unwrap_or_default())?;
        terms.expires = Some(signer.expiry(args.valid.unwrap_or(GRANT_VALID))?);
        if matches!(signer, Signer::Root(_)) {
            terms.allow.get_or_insert_with(all_allowed);
        }
        signer.grant(endpoint, &terms)?
    };
    write(args.out.as_deref(), &grant.to_text(), Readers::Others)?;
    tell_expiry(grant.expires());
    Ok(())
}

/// Makes a grant anew.
pub(super) fn renew(args: &RenewArgs) -> Result<(), Failure> {
    let old = file::grant(&args.file)?;
    let signer = Signer::load(&args.signer)?;
    if signer.realm() != *old.realm() {
        return Err(Failure::new(
            Exit::Denied,
            format!("the grant is of realm {}, and the signer of {}", old.realm(), signer.realm()),
            "ask an issuer of the grant's realm",
        ));
    }
    let expires = signer.expiry(args.valid)?;
    // What the signer says by itself need not be said again; all else that narrowed the old grant
    // narrows the new one.
    let known: Vec<_> = signer.blocks().iter().map(|block| block.terms.layer()).collect();
    let same = old.blocks().iter().filter(|block| !known.contains(&block.terms.layer()));
    let mut rights = same.map(|block| Terms {
        allow: block.terms.allow.clone(),
        deny: block.terms.deny.clone(),
        ..Terms::default()
    });
    let mut first = rights.next().unwrap_or_default();
    first.expires = Some(expires);
    let mut grant = signer.grant(old.endpoint(), &first)?;
    for terms in rights {
        if terms != Terms::default() {
            grant = grant.attenuate(&terms).map_err(cannot_make)?;
        }
    }
    file::replace(&args.file, &grant.to_text(), Readers::Others)?;
    out::note(format_args!("renewed {} for endpoint {}", args.file.display(), grant.endpoint()));
    tell_expiry(grant.expires());
    Ok(())
}

/// With whose authority something is made.
enum Signer {
    Root(RealmKey),
    Issuer(IssuerToken),
}

impl Signer {
    fn load(args: &SignerArgs) -> Result<Self, Failure> {
        match (&args.root, &args.issuer) {
            (Some(path), None) => file::root(path).map(Self::Root),
            (None, Some(path)) => file::issuer(path).map(Self::Issuer),
            _ => Err(Failure::new(Exit::Usage, "name one of --root and --issuer", "")),
        }
    }

    fn realm(&self) -> macula_grant::Realm {
        match self {
            Self::Root(key) => key.realm(),
            Self::Issuer(issuer) => issuer.realm().clone(),
        }
    }

    fn blocks(&self) -> &[macula_grant::Block] {
        match self {
            Self::Root(_) => &[],
            Self::Issuer(issuer) => issuer.blocks(),
        }
    }

    /// When a grant expires that is made now and good for so long.
    fn expiry(&self, valid: Duration) -> Result<UnixTime, Failure> {
        match self {
            Self::Root(_) => after(valid),
            Self::Issuer(issuer) => {
                let source = Source::issuer(issuer);
                Ok(source.expiry(Some(valid))?.unwrap_or(issuer.expires()))
            }
        }
    }

    fn grant(&self, endpoint: EndpointId, terms: &Terms) -> Result<Grant, Failure> {
        let grant = match self {
            Self::Root(key) => Grant::new(key, endpoint, terms),
            Self::Issuer(issuer) => issuer.grant(endpoint, terms),
        };
        grant.map_err(cannot_make)
    }
}

/// A time so long from now, whole seconds.
fn after(valid: Duration) -> Result<UnixTime, Failure> {
    if valid < Duration::from_secs(1) {
        return Err(Failure::new(
            Exit::Usage,
            "it would expire at once",
            "give --valid at least 1s, for example 24h",
        ));
    }
    let millis = u64::try_from(valid.as_millis()).unwrap_or(u64::MAX);
    Ok(UnixTime::from_secs(now().0.saturating_add(millis) / 1_000))
}

/// What something is made from that cannot outlive it.
struct Source<'a> {
    name: &'a str,
    expires: UnixTime,
    contact: &'a str,
}

impl<'a> Source<'a> {
    fn issuer(issuer: &'a IssuerToken) -> Self {
        Self { name: "issuer token", expires: issuer.expires(), contact: issuer.contact() }
    }

    /// When something expires that is made now; `None`: when this does. Says so when that is sooner
    /// than asked for.
    fn expiry(&self, valid: Option<Duration>) -> Result<Option<UnixTime>, Failure> {
        let ends = words::moment(self.expires, now());
        if self.expires <= now() {
            let contact = if self.contact.is_empty() { "the realm's owner" } else { self.contact };
            return Err(Failure::new(
                Exit::Denied,
                format!("the {} expired {ends}", self.name),
                format!("ask {contact} for a new one"),
            ));
        }
        let Some(valid) = valid else { return Ok(None) };
        let wanted = after(valid)?;
        if wanted > self.expires {
            out::note(format_args!(
                "warning: the {} ends earlier than asked for, {ends}",
                self.name
            ));
        }
        Ok(Some(wanted.min(self.expires)))
    }
}

fn terms(rights: RightsArgs) -> Terms {
    Terms {
        allow: (!rights.allow.is_empty()).then_some(rights.allow),
        deny: rights.deny,
        valid_from: None,
        expires: None,
        contact: rights.contact,
    }
}

fn all_allowed() -> Vec<Rule> {
    Verb::ALL.into_iter().map(everything).collect()
}

fn everything(verb: Verb) -> Rule {
    Rule { verb, pattern: Pattern::parse("**").expect("`**` is a pattern") }
}

/// An endpoint, by its id or by its key file.
fn endpoint(text: &str) -> Result<EndpointId, Failure> {
    let error = match text.parse() {
        Ok(id) => return Ok(id),
        Err(error) => error,
    };
    let path = Path::new(text);
    if !path.exists() {
        return Err(Failure::new(
            Exit::Usage,
            format!("`{text}` is neither an endpoint id ({error}) nor a file"),
            "`macula keygen --show KEYFILE` prints the id of an endpoint",
        ));
    }
    Ok(connect::client_key(path)?.id())
}

fn write(path: Option<&Path>, text: &str, readers: Readers) -> Result<(), Failure> {
    let Some(path) = path else {
        return out::line(text.trim_end());
    };
    file::create(path, text, readers)?;
    out::note(format_args!("wrote {}", path.display()));
    Ok(())
}

fn tell_expiry(expires: UnixTime) {
    out::note(format_args!("expires {}", words::moment(expires, now())));
}

/// What was asked for cannot be signed.
pub(super) fn cannot_make(error: MakeError) -> Failure {
    let exit = match error {
        MakeError::Sign(_) => Exit::Failure,
        _ => Exit::Usage,
    };
    Failure::new(exit, error.to_string(), "")
}
