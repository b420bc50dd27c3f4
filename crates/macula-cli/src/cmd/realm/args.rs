//! The command line of `macula realm`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use macula_grant::{BlockId, EndpointId, Pattern, RealmName, Rule};

use crate::address::GatewayAddress;
use crate::args::{ConnectArgs, duration};

#[derive(Debug, Subcommand)]
pub(crate) enum RealmCommand {
    /// Found a guarded realm: create its root key
    New(NewArgs),
    /// Let somebody make grants: create an issuer token
    Issuer(IssuerArgs),
    /// Let an endpoint in: make a grant for it, or narrow one
    Grant(GrantArgs),
    /// Make a grant anew, for the same endpoint with the same rights
    Renew(RenewArgs),
    /// Take grants back, or exclude endpoints
    Revoke(RevokeArgs),
    /// Void all issuer tokens and grants made so far: begin a new epoch
    Rotate(RotateArgs),
    /// Show what files of a realm say
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct NewArgs {
    /// Name of the realm, for example com.example.energy
    pub(crate) name: RealmName,
    /// Where to write the root key (default: NAME.realm-key in the Macula directory)
    #[arg(short, long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

/// What a new token says.
#[derive(Debug, Args)]
pub(crate) struct RightsArgs {
    /// Allow this; may be repeated. VERB is publish, subscribe, call, serve, store or relay.
    /// Without it: whatever the signer may, with a root key all
    #[arg(short, long, value_name = "VERB:PATTERN", value_parser = rule)]
    pub(crate) allow: Vec<Rule>,
    /// Never allow this, whatever else is allowed; may be repeated
    #[arg(short, long, value_name = "VERB:PATTERN", value_parser = rule)]
    pub(crate) deny: Vec<Rule>,
    /// Whom its holders ask for more, for example an address
    #[arg(long, value_name = "TEXT")]
    pub(crate) contact: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct IssuerArgs {
    #[command(flatten)]
    pub(crate) signer: SignerArgs,
    #[command(flatten)]
    pub(crate) rights: RightsArgs,
    /// How long it is good for, and with it all that is made from it (default: 365d; with --issuer
    /// as long as that one)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) valid: Option<Duration>,
    /// Where to write it, for its owner's eyes only (default: stdout)
    #[arg(short, long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

/// With whose authority: exactly one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct SignerArgs {
    /// Root key of the realm
    #[arg(long, value_name = "FILE")]
    pub(crate) root: Option<PathBuf>,
    /// Issuer token
    #[arg(long, value_name = "FILE")]
    pub(crate) issuer: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("source").required(true).args(["root", "issuer", "from"]))]
pub(crate) struct GrantArgs {
    /// Root key of the realm
    #[arg(long, value_name = "FILE")]
    pub(crate) root: Option<PathBuf>,
    /// Issuer token
    #[arg(long, value_name = "FILE")]
    pub(crate) issuer: Option<PathBuf>,
    /// Grant to narrow, for the same endpoint; needs nobody's leave
    #[arg(long, value_name = "FILE", conflicts_with = "whom")]
    pub(crate) from: Option<PathBuf>,
    /// For whom: an endpoint id, or the endpoint's key file
    #[arg(long = "for", value_name = "ENDPOINTID|KEYFILE", required_unless_present = "from")]
    pub(crate) whom: Option<String>,
    #[command(flatten)]
    pub(crate) rights: RightsArgs,
    /// How long it is good for (default: 24h; with --from as long as that one)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) valid: Option<Duration>,
    /// Where to write it (default: stdout)
    #[arg(short, long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct RenewArgs {
    #[command(flatten)]
    pub(crate) signer: SignerArgs,
    /// The grant; replaced by the new one
    pub(crate) file: PathBuf,
    /// How long the new one is good for
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    pub(crate) valid: Duration,
}

/// The signed list of revocations.
#[derive(Debug, Args)]
pub(crate) struct RecordArgs {
    /// Root key of the realm; it is rewritten, as it counts epochs and records
    #[arg(long, value_name = "FILE")]
    pub(crate) root: PathBuf,
    /// The realm's record of revocations; created for the first one, then kept up to date
    #[arg(long, value_name = "FILE")]
    pub(crate) revocations: PathBuf,
    /// Begin an empty record when the latest one is lost: all that it revoked counts again
    #[arg(long)]
    pub(crate) begin_anew: bool,
    /// Gateway to hand the record to; without it only the file is written
    #[arg(short, long, value_name = "GATEWAY")]
    pub(crate) gateway: Option<GatewayAddress>,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    #[command(flatten)]
    pub(crate) record: RecordArgs,
    /// Endpoints to exclude, whatever grants they have
    #[arg(value_name = "ENDPOINTID")]
    pub(crate) endpoints: Vec<EndpointId>,
    /// Grant, or issuer token with all that was made from it; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) grant: Vec<PathBuf>,
    /// Block id as `macula realm show` prints it; may be repeated
    #[arg(long, value_name = "HEX", value_parser = block)]
    pub(crate) block: Vec<BlockId>,
}

#[derive(Debug, Args)]
pub(crate) struct RotateArgs {
    #[command(flatten)]
    pub(crate) record: RecordArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Grants, issuer tokens, root keys, records of revocations
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Print one JSON object per file
    #[arg(long)]
    pub(crate) json: bool,
}

/// Parses `VERB:PATTERN`.
fn rule(text: &str) -> Result<Rule, String> {
    let (verb, pattern) =
        text.split_once(':').ok_or("write VERB:PATTERN, for example publish:site.7.**")?;
    let verb = verb.parse().map_err(|error| format!("`{verb}` is {error}"))?;
    let pattern = Pattern::parse(pattern).map_err(|error| error.to_string())?;
    Ok(Rule { verb, pattern })
}

fn block(text: &str) -> Result<BlockId, String> {
    BlockId::from_hex(text).ok_or_else(|| "a block id has 32 hexadecimal digits".to_owned())
}
