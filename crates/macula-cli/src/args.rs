//! The command line: every form, flag and default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use macula::{StunUri, TurnUri};

use crate::address::GatewayAddress;
use crate::bench::Garbage;
use crate::cmd::lab::LabCommand;
use crate::cmd::realm::args::RealmCommand;
#[cfg(feature = "sim")]
use crate::cmd::sim::SimCommand;

/// What `macula --help` shows below the commands.
const AFTER_HELP: &str = "\
GATEWAY is HOST[:PORT] or ENDPOINTID@HOST[:PORT]; the port is 4433 unless given.
The key of a HOST:PORT gateway is pinned at first use, in the file known-gateways.

Exit codes: 0 ok, 1 failure, 2 usage, 3 unreachable, 4 denied, 5 timeout, 6 no subscriber or
provider, 7 refused by the handler, 8 back-pressure, 9 this machine or user cannot run it.

Start with: macula demo";

/// Help of `--gateway`; not a doc comment, as its brackets would be links.
const GATEWAY_HELP: &str =
    "Gateway: HOST[:PORT] (key pinned at first use) or ENDPOINTID@HOST[:PORT]";

/// A QUIC mesh for messages and calls.
#[derive(Debug, Parser)]
#[command(name = "macula", version, about, after_help = AFTER_HELP, propagate_version = true)]
pub(crate) struct Cli {
    /// Log filter for stderr, for example info or macula=debug
    #[arg(long, global = true, env = "MACULA_LOG", value_name = "LEVEL", hide_env_values = true)]
    pub(crate) log: Option<String>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a gateway that others connect to
    Gateway(GatewayArgs),
    /// Publish a message, or every line of the input
    Pub(PubArgs),
    /// Print the messages of topics
    Sub(SubArgs),
    /// Call a procedure and print its result
    Call(CallArgs),
    /// Offer a procedure
    Serve(ServeArgs),
    /// Show what a gateway is connected to
    Status(StatusArgs),
    /// Measure the round trip to a gateway or a peer
    Ping(PingArgs),
    /// Find out what NATs and firewalls do with UDP here, and how this machine can be reached
    Netcheck(NetcheckArgs),
    /// Print credentials of a gateway's TURN server, for any TURN client
    TurnCredentials(TurnCredentialsArgs),
    /// Guarded realms: root keys, issuer tokens, grants, revocations
    #[command(subcommand)]
    Realm(RealmCommand),
    /// Create a key file, or show the id of one
    Keygen(KeygenArgs),
    /// Measure throughput and latency
    #[command(subcommand)]
    Bench(BenchCommand),
    /// See a working mesh: gateway and four peers on this machine
    Demo(DemoArgs),
    /// Run thousands of nodes in virtual time, with faults and checks
    #[cfg(feature = "sim")]
    #[command(subcommand)]
    Sim(SimCommand),
    /// Laboratories: two ends of a measured link between peers, and NATs of all kinds between them
    #[command(subcommand)]
    Lab(LabCommand),
    /// Print a completion script for a shell
    Completion(CompletionArgs),
    /// Work with gateway configuration files
    #[command(subcommand)]
    Config(ConfigCommand),
    /// One peer of the demo, driven over stdin
    #[command(hide = true)]
    DemoPeer(DemoPeerArgs),
    /// One process of a benchmark, driven over stdin
    #[command(hide = true)]
    BenchWorker(BenchWorkerArgs),
}

/// How to reach a gateway.
#[derive(Clone, Debug, Args)]
pub(crate) struct GatewayArg {
    /// Which gateway
    #[arg(short, long, env = "MACULA_GATEWAY", value_name = "GATEWAY", help = GATEWAY_HELP)]
    pub(crate) gateway: GatewayAddress,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// How to reach a gateway that has a default.
#[derive(Clone, Debug, Args)]
pub(crate) struct GatewayOrLocalArg {
    /// Which gateway
    #[arg(
        short,
        long,
        env = "MACULA_GATEWAY",
        value_name = "GATEWAY",
        help = GATEWAY_HELP,
        default_value = "127.0.0.1:4433"
    )]
    pub(crate) gateway: GatewayAddress,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// Settings of a connection that have sensible defaults.
#[derive(Clone, Debug, Args)]
pub(crate) struct ConnectArgs {
    /// Key file that gives this program a lasting identity; a new one each run without it
    #[arg(short, long, env = "MACULA_KEY", value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Give up connecting after this
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub(crate) connect_timeout: Duration,
    /// How to reach the gateway: by UDP, by TLS over TCP, or by whichever works, UDP first
    #[arg(long, env = "MACULA_VIA", value_name = "VIA", default_value = "auto")]
    pub(crate) via: ViaArg,
    #[command(flatten)]
    pub(crate) nat: NatArgs,
}

impl ConnectArgs {
    /// With no key, by UDP, and with no servers but the gateway.
    pub(crate) fn within(connect_timeout: Duration) -> Self {
        Self { key: None, connect_timeout, via: ViaArg::Udp, nat: NatArgs::default() }
    }
}

/// What links to peers may use against NATs, beside the gateway.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Links to peers")]
pub(crate) struct NatArgs {
    /// STUN server to ask for own addresses, stun:HOST[:PORT]; may be repeated
    #[arg(
        long = "stun-server",
        env = "MACULA_STUN_SERVERS",
        value_name = "URI",
        value_delimiter = ',',
        hide_short_help = true
    )]
    pub(crate) stun_servers: Vec<StunUri>,
    /// TURN server to be relayed by where no direct path is: turn:HOST[:PORT][?transport=udp|tcp],
    /// turns:HOST[:PORT], or `gateway` for the gateway's own; may be repeated
    #[arg(
        long = "turn-server",
        env = "MACULA_TURN_SERVERS",
        value_name = "URI",
        value_delimiter = ',',
        value_parser = turn_server,
        hide_short_help = true
    )]
    pub(crate) turn_servers: Vec<TurnServerArg>,
    /// Username at the TURN servers
    #[arg(long, env = "MACULA_TURN_USER", value_name = "NAME", hide_short_help = true)]
    pub(crate) turn_user: Option<String>,
    /// Password at the TURN servers; better in the environment, as others can read command lines
    #[arg(
        long,
        env = "MACULA_TURN_PASSWORD",
        value_name = "PASSWORD",
        hide_env_values = true,
        hide_short_help = true
    )]
    pub(crate) turn_password: Option<String>,
    /// Ask TURN servers with the first link to a peer, not when it has stayed without a direct path
    #[arg(long, hide_short_help = true)]
    pub(crate) turn_at_once: bool,
    /// Look for no direct path to peers by many sockets or ports, where NATs need that; spares
    /// small home routers
    #[arg(
        long,
        env = "MACULA_NO_PORT_SEARCH",
        value_parser = clap::builder::FalseyValueParser::new(),
        hide_short_help = true
    )]
    pub(crate) no_port_search: bool,
    /// Do not ask the router to map a port
    #[arg(
        long,
        env = "MACULA_NO_PORT_MAPPING",
        value_parser = clap::builder::FalseyValueParser::new(),
        hide_short_help = true
    )]
    pub(crate) no_port_mapping: bool,
    /// Carry packets, which cannot be read here, between members that have no direct path to each other: at
    /// most 1 MiB/s for one and 4 MiB/s in all. Their links then outlive the gateway
    #[arg(
        long,
        env = "MACULA_CARRY",
        value_parser = clap::builder::FalseyValueParser::new(),
        hide_short_help = true
    )]
    pub(crate) carry: bool,
    /// Address and port of the UDP socket, such as [::]:4500, which takes IPv4 too; default: a free port
    #[arg(long, env = "MACULA_BIND", value_name = "ADDRESS:PORT", hide_short_help = true)]
    pub(crate) bind: Option<SocketAddr>,
}

/// A value of `--turn-server`.
#[derive(Clone, Debug)]
pub(crate) enum TurnServerArg {
    Gateway,
    Uri(TurnUri),
}

fn turn_server(text: &str) -> Result<TurnServerArg, String> {
    if text == "gateway" {
        return Ok(TurnServerArg::Gateway);
    }
    text.parse().map(TurnServerArg::Uri).map_err(|error: macula::UriError| error.to_string())
}

/// How to reach a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ViaArg {
    Auto,
    Udp,
    Tls,
}

impl From<ViaArg> for macula::Via {
    fn from(via: ViaArg) -> Self {
        match via {
            ViaArg::Auto => Self::Auto,
            ViaArg::Udp => Self::Udp,
            ViaArg::Tls => Self::Tls,
        }
    }
}

/// The realm to work in.
#[derive(Clone, Debug, Args)]
pub(crate) struct RealmArg {
    /// Realm, for example com.example.energy; with --grant, the one that the grant is for
    #[arg(
        short,
        long,
        env = "MACULA_REALM",
        value_name = "REALM",
        value_parser = realm,
        required_unless_present = "grant"
    )]
    pub(crate) realm: Option<String>,
    #[command(flatten)]
    pub(crate) grant: GrantArg,
}

/// What to show in a guarded realm.
#[derive(Clone, Debug, Args)]
pub(crate) struct GrantArg {
    /// Grant for a guarded realm, made for the key in --key; a renewed one in its place is noticed
    #[arg(long, env = "MACULA_GRANT", value_name = "FILE", requires = "key")]
    pub(crate) grant: Option<PathBuf>,
}

impl RealmArg {
    /// The realm by name, and the grant, as far as they are given.
    pub(crate) fn membership(&self) -> (Option<&str>, Option<&Path>) {
        (self.realm.as_deref(), self.grant.grant.as_deref())
    }
}

#[derive(Debug, Args)]
pub(crate) struct GatewayArgs {
    /// UDP address to listen on; port 0 takes a free one (default `[::]:4433`)
    #[arg(long, env = "MACULA_LISTEN", value_name = "ADDR:PORT")]
    pub(crate) listen: Option<String>,
    /// Admit this open realm, or this guarded one (NAME@ROOTKEY); may be repeated. Without it, any
    /// open realm is admitted, and any guarded one that a peer has a grant for
    #[arg(
        short,
        long,
        env = "MACULA_REALM",
        value_name = "REALM",
        value_delimiter = ',',
        value_parser = hosted_realm
    )]
    pub(crate) realm: Vec<String>,
    /// Configuration file (TOML); flags and environment win over it
    #[arg(long, env = "MACULA_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Key file, created when it does not exist (default: gateway.key in the Macula directory)
    #[arg(short, long, env = "MACULA_KEY", value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Run no STUN and TURN server
    #[arg(long)]
    pub(crate) no_turn: bool,
    /// Address of the STUN and TURN server, UDP and TCP; port 0 takes a free one (default: the
    /// gateway's IP address, port 3478)
    #[arg(long, env = "MACULA_TURN_LISTEN", value_name = "ADDR:PORT", conflicts_with = "no_turn")]
    pub(crate) turn_listen: Option<SocketAddr>,
    /// Let clients of Macula v0.7 in at this UDP address; they mostly dial port 9443. They have no
    /// authentication: open realms only, unless the configuration names a guarded one for them
    #[arg(long, env = "MACULA_V07_LISTEN", value_name = "ADDR:PORT")]
    pub(crate) v07_listen: Option<SocketAddr>,
    /// Take no peers over TLS and TCP
    #[arg(long)]
    pub(crate) no_tunnel: bool,
    /// TCP address for peers whose networks let no UDP pass; may be repeated. They try port 443 and
    /// the gateway's own (default: the gateway's address and port)
    #[arg(
        long,
        env = "MACULA_TUNNEL_LISTEN",
        value_name = "ADDR:PORT",
        value_delimiter = ',',
        conflicts_with = "no_tunnel"
    )]
    pub(crate) tunnel_listen: Vec<SocketAddr>,
    /// Print the commented default configuration and exit
    #[arg(long)]
    pub(crate) print_config: bool,
    /// Tell what happens as JSON, one object per line on stdout
    #[arg(long)]
    pub(crate) json: bool,
    /// End when stdin is closed, for a program that starts gateways
    #[arg(long, hide = true)]
    pub(crate) until_stdin_closes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PubArgs {
    #[command(flatten)]
    pub(crate) gateway: GatewayArg,
    #[command(flatten)]
    pub(crate) realm: RealmArg,
    /// Topic, segments separated by dots
    pub(crate) topic: String,
    /// Payload; `-` or nothing reads it from stdin
    #[arg(allow_hyphen_values = true)]
    pub(crate) payload: Option<String>,
    /// Publish every line of stdin (or of PAYLOAD) as a message of its own
    #[arg(short, long)]
    pub(crate) lines: bool,
    /// 0: send and forget. 1: stay until every message is confirmed delivered
    #[arg(short, long, default_value = "0", value_parser = ["0", "1"])]
    pub(crate) qos: String,
    /// Keep the (last) message for later subscribers
    #[arg(long)]
    pub(crate) retain: bool,
    /// Give up when nothing moves for this long
    #[arg(short, long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Do not wait when the gateway asks to slow down: fail with exit code 8
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SubArgs {
    #[command(flatten)]
    pub(crate) gateway: GatewayArg,
    #[command(flatten)]
    pub(crate) realm: RealmArg,
    /// Patterns: `*` stands for one segment, a trailing `**` for all the rest
    #[arg(required = true, value_name = "PATTERN")]
    pub(crate) patterns: Vec<String>,
    /// End with success after this many messages
    #[arg(short = 'C', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// End after this many seconds; exit code 5 when COUNT was asked for and not reached, else 0
    #[arg(short = 'W', long, value_name = "SECONDS", value_parser = duration)]
    pub(crate) wait: Option<Duration>,
    /// Print the topic before each payload (JSON has it anyway)
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Print one JSON object per message
    #[arg(long)]
    pub(crate) json: bool,
    /// What happens when this program does not keep up
    #[arg(long, value_enum, default_value_t = PolicyArg::DropOldest)]
    pub(crate) policy: PolicyArg,
    /// In which order messages are handed out
    #[arg(long, value_enum, default_value_t = ModeArg::Ordered)]
    pub(crate) mode: ModeArg,
    /// Leave out retained messages
    #[arg(long)]
    pub(crate) no_retained: bool,
}

/// What happens when a subscriber does not keep up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PolicyArg {
    /// QoS 0 messages are dropped, oldest first, and counted
    DropOldest,
    /// The publishers wait
    Block,
    /// The gateway closes the connection
    Disconnect,
}

/// In which order messages are handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeArg {
    /// As published, per publisher and topic
    Ordered,
    /// As they come
    AsArrives,
    /// Nothing older than what was handed out already
    LatestOnly,
}

#[derive(Debug, Args)]
pub(crate) struct CallArgs {
    #[command(flatten)]
    pub(crate) gateway: GatewayArg,
    #[command(flatten)]
    pub(crate) realm: RealmArg,
    /// Procedure name
    pub(crate) procedure: String,
    /// Argument; `-` reads it from stdin
    #[arg(allow_hyphen_values = true)]
    pub(crate) argument: Option<String>,
    /// Give up after this
    #[arg(short, long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// The call may run twice, so it moves to another provider when one is lost
    #[arg(long)]
    pub(crate) idempotent: bool,
    /// How to choose among several providers
    #[arg(long, value_enum, default_value_t = ChoiceArg::Nearest)]
    pub(crate) choose: ChoiceArg,
    /// Print result or error as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// How one of several providers is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ChoiceArg {
    /// Lowest round-trip time
    Nearest,
    /// Each in turn
    RoundRobin,
    /// Any
    Random,
    /// The one that registered first
    First,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) gateway: GatewayArg,
    #[command(flatten)]
    pub(crate) realm: RealmArg,
    /// Procedure name
    pub(crate) procedure: String,
    #[command(flatten)]
    pub(crate) answer: AnswerArgs,
    /// Requests worked on at once; as many again may wait, beyond that callers hear `busy`
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) concurrency: u32,
}

/// How requests are answered: exactly one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct AnswerArgs {
    /// Answer with the argument
    #[arg(long)]
    pub(crate) echo: bool,
    /// Run `sh -c CMD`: the argument on stdin, the answer is its stdout
    #[arg(long, value_name = "CMD")]
    pub(crate) command: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) gateway: GatewayOrLocalArg,
    /// Take part in this realm and show it too: gateways show realms only to their members
    #[arg(short, long, value_name = "REALM", value_parser = realm)]
    pub(crate) realm: Option<String>,
    #[command(flatten)]
    pub(crate) grant: GrantArg,
    /// Link to this peer of the realm, and show the link too; may be repeated
    #[arg(short, long, value_name = "ENDPOINTID")]
    pub(crate) peer: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Give up after this; a link to a peer has as long to become direct
    #[arg(short, long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct NetcheckArgs {
    /// Gateways whose STUN servers to ask; may be repeated
    #[arg(short, long, env = "MACULA_GATEWAY", value_name = "GATEWAY", value_delimiter = ',')]
    pub(crate) gateway: Vec<GatewayAddress>,
    /// Another STUN server to ask; may be repeated. Two tell more than one
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) stun: Vec<String>,
    /// Also find out how long a mapping lasts that nothing goes over, which takes that long: up to
    /// this, at most 120s
    #[arg(long, value_name = "DURATION", value_parser = duration, num_args = 0..=1,
          default_missing_value = "120s")]
    pub(crate) lifetime: Option<Duration>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Give up connecting to a gateway after this
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub(crate) connect_timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct TurnCredentialsArgs {
    #[command(flatten)]
    pub(crate) gateway: GatewayArg,
    #[command(flatten)]
    pub(crate) realm: RealmArg,
    /// Print one JSON object, as WebRTC takes it
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PingArgs {
    #[command(flatten)]
    pub(crate) gateway: GatewayOrLocalArg,
    /// Endpoint id of a peer behind the gateway; without it the gateway itself
    pub(crate) peer: Option<String>,
    /// Realm that the peer is in
    #[arg(short, long, env = "MACULA_REALM", value_name = "REALM", value_parser = realm)]
    pub(crate) realm: Option<String>,
    #[command(flatten)]
    pub(crate) grant: GrantArg,
    /// How many times
    #[arg(short = 'n', short_alias = 'c', long, default_value_t = 4,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: u32,
    /// Time between two
    #[arg(short, long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub(crate) interval: Duration,
    /// Give one up after this
    #[arg(short, long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Link to the peer, show the path of each answer, and end when it is direct; exit code 5 when
    /// it is not after COUNT
    #[arg(long, requires = "peer")]
    pub(crate) until_direct: bool,
    /// Print one JSON object per answer
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LabArgs {
    #[command(flatten)]
    pub(crate) gateway: GatewayArg,
    #[command(flatten)]
    pub(crate) realm: RealmArg,
    /// Initiator: the responder (default: any of the realm). Responder: answer this one only
    #[arg(long, value_name = "ENDPOINTID")]
    pub(crate) peer: Option<String>,
    /// Size of a beat
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..=60_000))]
    pub(crate) bytes: u32,
    /// Time between two beats
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = duration)]
    pub(crate) interval: Duration,
    /// Beats at a time, of those that the link takes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) batch: u32,
    /// Tell of no beats, only of paths and at the end
    #[arg(long)]
    pub(crate) quiet: bool,
    /// End after so many beats
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// End after so many seconds
    #[arg(long = "for", value_name = "SECONDS", value_parser = duration)]
    pub(crate) lasts: Option<Duration>,
    /// Which paths may be used
    #[arg(long, value_enum, default_value_t = StrategyArg::Opportunistic)]
    pub(crate) strategy: StrategyArg,
    /// Print one JSON object per event
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which paths a link to a peer may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum StrategyArg {
    /// Only the gateway's relay
    AlwaysRelay,
    /// The relay at once, a direct path as soon as there is one
    Opportunistic,
    /// Only a direct path
    DirectOnly,
}

#[derive(Debug, Args)]
pub(crate) struct KeygenArgs {
    /// Where to write (default: client.key in the Macula directory)
    #[arg(short, long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Replace a file that exists: its identity is lost
    #[arg(long)]
    pub(crate) force: bool,
    /// Print the endpoint id of a key file instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["out", "force"])]
    pub(crate) show: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Leave the gateway running afterwards, until Ctrl-C, and print commands to try
    #[arg(long)]
    pub(crate) keep: bool,
    /// Print one JSON object per event and a last one with the summary
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Messages from a publisher through the gateway to subscribers
    Pubsub(BenchPubsubArgs),
    /// Calls through the gateway to a provider
    Rpc(BenchRpcArgs),
    /// Random load and trouble for minutes, checked against what must hold
    Soak(BenchSoakArgs),
    /// Calls and messages of many clients, without and with garbage sent to the gateway
    Hostile(BenchHostileArgs),
}

/// What both benchmarks take.
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchCommonArgs {
    /// Measure against this gateway instead of one started on loopback
    #[arg(short, long, env = "MACULA_GATEWAY", value_name = "GATEWAY")]
    pub(crate) gateway: Option<GatewayAddress>,
    /// Realm to use
    #[arg(short, long, value_name = "REALM", default_value = "bench", value_parser = realm)]
    pub(crate) realm: String,
    /// How long to measure, after half a second of warming up
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = duration)]
    pub(crate) seconds: Duration,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchPubsubArgs {
    #[command(flatten)]
    pub(crate) common: BenchCommonArgs,
    /// Payload, bytes
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(16..=8_388_608))]
    pub(crate) size: u32,
    /// Subscribers, each a process of its own up to 8, then shared
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) subscribers: u32,
    /// 0: send and forget. 1: acknowledged
    #[arg(short, long, default_value = "0", value_parser = ["0", "1"], num_args = 0..=1,
          default_missing_value = "1")]
    pub(crate) qos: String,
    /// Latency mode: this many messages per second instead of as many as possible
    #[arg(long, value_name = "MESSAGES", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) rate: Option<u32>,
    /// What the gateway does when a subscriber does not keep up
    #[arg(long, value_enum, default_value_t = PolicyArg::Block)]
    pub(crate) policy: PolicyArg,
}

#[derive(Debug, Args)]
pub(crate) struct BenchRpcArgs {
    #[command(flatten)]
    pub(crate) common: BenchCommonArgs,
    /// Argument and result, bytes
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=8_388_608))]
    pub(crate) size: u32,
    /// Calls open at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub(crate) in_flight: u32,
}

#[derive(Debug, Args)]
pub(crate) struct BenchSoakArgs {
    /// How long, minutes; settling and looking for leaks come on top, about half a minute
    #[arg(long, default_value_t = 3.0, value_parser = minutes)]
    pub(crate) minutes: f64,
    /// Seed of all choices (default: a new one, which is printed)
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Nodes, each a connection of its own
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(4..=64))]
    pub(crate) nodes: u8,
    /// Print one JSON object at the end
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchHostileArgs {
    /// Good clients; each calls and publishes five times a second
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    pub(crate) clients: u32,
    /// Packets of garbage per second
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) rate: u32,
    /// What garbage
    #[arg(long, value_enum, default_value_t = Garbage::Mix)]
    pub(crate) garbage: Garbage,
    /// How long to measure, without garbage and again with it
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = duration)]
    pub(crate) seconds: Duration,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// Which shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check a gateway configuration and print what is in force
    Check {
        /// The file (TOML)
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DemoPeerArgs {
    /// Name in reports
    #[arg(long)]
    pub(crate) name: String,
    /// Gateway
    #[arg(short, long)]
    pub(crate) gateway: GatewayAddress,
}

#[derive(Debug, Args)]
pub(crate) struct BenchWorkerArgs {
    /// Gateway
    #[arg(short, long)]
    pub(crate) gateway: GatewayAddress,
    /// Realm
    #[arg(short, long)]
    pub(crate) realm: String,
    /// What to do, as JSON
    #[arg(long)]
    pub(crate) job: String,
}

/// Parses a realm that a gateway shall admit.
fn hosted_realm(text: &str) -> Result<String, String> {
    macula_gateway::config::check_realm(text).map_err(|e| e.to_string())?;
    Ok(text.to_owned())
}

/// Parses a duration; a bare number means seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    macula_gateway::human::parse_duration(text).map_err(|e| e.to_string())
}

/// Parses minutes, a day at most.
fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| "write a number, for example 0.5".to_owned())?;
    let is_good = (0.01..=1440.0).contains(&minutes);
    if is_good { Ok(minutes) } else { Err("between 0.01 and 1440".to_owned()) }
}

/// Parses a realm's name.
fn realm(text: &str) -> Result<String, String> {
    macula_gateway::config::check_realm_name(text).map_err(|e| e.to_string())?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_documented_form_parses() {
        for line in [
            "macula gateway",
            "macula gateway --listen 127.0.0.1:0 --realm a --realm b --config gateway.toml",
            "macula pub -g localhost -r lab topic.a hello",
            "macula pub -g localhost -r lab topic.a -",
            "macula pub -g localhost -r lab topic.a --lines --qos 1 --retain",
            "macula sub -g [::1]:4433 -r lab a.* b.** -C 3 -W 2.5 -v",
            "macula sub -g localhost -r lab a --json --policy block --mode as-arrives",
            "macula call -g localhost -r lab add 1 --timeout 5s",
            "macula call -g localhost -r lab add -",
            "macula serve -g localhost -r lab add --echo --concurrency 4",
            "macula serve -g localhost -r lab add --command cat",
            "macula status --json",
            "macula ping -c 2",
            "macula ping -n 2",
            "macula ping -r lab PEER --until-direct",
            "macula lab responder -g localhost -r lab --json",
            "macula lab initiator -g localhost -r lab --peer ID --bytes 100 --for 3 --count 5",
            "macula lab initiator -g localhost -r lab --interval 50ms --strategy always_relay",
            "macula realm new com.example --out root",
            "macula realm issuer --root root --allow publish:a.** --deny call:b --valid 30d",
            "macula realm issuer --issuer token --contact ops@example.com --out token2",
            "macula realm grant --issuer token --for key --valid 1h --out grant",
            "macula realm grant --root root --for key -a call:x",
            "macula realm grant --from grant --allow call:x",
            "macula realm renew --issuer token grant --valid 2h",
            "macula realm revoke --root root --revocations record --grant grant -g localhost",
            "macula realm rotate --root root --revocations record",
            "macula realm show a b --json",
            "macula keygen --out key --force",
            "macula keygen --show key",
            "macula bench pubsub --size 1024 --subscribers 3 --seconds 1 --qos 1 --rate 100 --json",
            "macula bench pubsub --qos",
            "macula bench rpc --in-flight 64",
            "macula bench hostile --clients 100 --rate 10000 --garbage openings --seconds 1 --json",
            "macula demo --keep --json",
            "macula completion bash",
            "macula config check gateway.toml",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn wrong_forms_are_usage_errors() {
        for line in [
            "macula",
            "macula pub -g localhost -r lab",
            "macula pub -g localhost -r lab t --qos 2",
            "macula sub -g localhost -r lab",
            "macula sub -g localhost -r lab a -C 0",
            "macula serve -g localhost -r lab p",
            "macula serve -g localhost -r lab p --echo --command cat",
            "macula call -g localhost -r lab p --timeout soon",
            "macula realm new two/names",
            "macula realm issuer",
            "macula realm issuer --root a --issuer b",
            "macula realm issuer --root a --allow everything:x",
            "macula realm issuer --root a --allow publish",
            "macula realm grant --root a",
            "macula realm grant --for key",
            "macula realm grant --root a --from b --for key",
            "macula realm grant --from b --for key",
            "macula realm revoke --root a --revocations b --block 12",
            "macula realm revoke --root a ybn",
            "macula keygen --show a --out b",
            "macula gateway --realm two\u{1}words",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn a_payload_may_start_with_a_dash() {
        let Command::Pub(args) = parse("macula pub -g h -r lab t -42").unwrap().command else {
            panic!("not pub");
        };
        assert_eq!(args.payload.as_deref(), Some("-42"));
    }
}
