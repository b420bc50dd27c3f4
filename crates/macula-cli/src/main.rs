//! `macula`: a QUIC mesh for messages and calls, in one program.
//!
//! [`args`] is the command line, `cmd` has a module per command, `demo` and `bench` are the
//! laboratory; `failure` holds the exit codes. Results go to stdout, everything else to stderr.
//!
//! What this crate does *not* do: anything that a second program could need. That is in crates
//! `macula` (the library) and `macula-gateway` (running a gateway).

mod address;
mod args;
mod bench;
mod children;
mod cmd;
mod connect;
mod demo;
mod failure;
mod input;
mod known;
mod out;
mod printer;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use tracing_subscriber::EnvFilter;

use args::{Cli, Command};
use failure::{Exit, Failure};

/// When a command has ended, what still runs is given so long.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(100);
/// What a gateway logs unless told otherwise.
///
/// The STUN parser would warn of every malformed packet that anybody sends.
const DEFAULT_GATEWAY_LOG: &str = "warn,stun_types=off";
/// What other commands log: they say what happens in their own words.
const DEFAULT_LOG: &str = "off";

fn main() -> ExitCode {
    cmd::lab::start_clock();
    let cli = Cli::parse();
    match prepare_and_run(cli) {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => {
            out::failure(&failure);
            failure.exit.into()
        }
    }
}

fn prepare_and_run(cli: Cli) -> Result<(), Failure> {
    let default_log = match cli.command {
        Command::Gateway(_) => DEFAULT_GATEWAY_LOG,
        _ => DEFAULT_LOG,
    };
    log_to_stderr(cli.log.as_deref().filter(|filter| !filter.is_empty()).unwrap_or(default_log))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_threads(&cli.command))
        .enable_all()
        .build()
        .map_err(|e| Failure::from(e).context("cannot start the runtime"))?;
    // On a worker and not on this thread, so that a blocking write hands its other work over.
    let command = runtime.spawn(run(cli.command));
    let result = runtime.block_on(command);
    // A thread may still be blocked in a read of stdin.
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    result.map_err(|e| Failure::new(Exit::Failure, format!("bug: {e}"), "please report it"))?
}

/// A gateway encrypts for many links at once and gets all cores. A client has one link, and moving
/// its work from thread to thread costs more than a second thread gains (with one, half as many
/// calls a second again); what blocks hands its thread's other work over.
fn worker_threads(command: &Command) -> usize {
    match command {
        Command::Gateway(_) => std::thread::available_parallelism().map_or(1, usize::from),
        _ => 1,
    }
}

async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Gateway(args) => cmd::gateway::run(args).await,
        Command::Pub(args) => cmd::publish::run(args).await,
        Command::Sub(args) => cmd::subscribe::run(args).await,
        Command::Call(args) => cmd::call::run(args).await,
        Command::Serve(args) => cmd::serve::run(args).await,
        Command::Status(args) => cmd::status::run(args).await,
        Command::Ping(args) => cmd::ping::run(args).await,
        Command::Netcheck(args) => cmd::netcheck::run(args).await,
        Command::TurnCredentials(args) => cmd::turn::run(args).await,
        Command::Realm(command) => cmd::realm::run(command).await,
        Command::Keygen(args) => cmd::keygen::run(&args),
        Command::Bench(command) => bench::run(command).await,
        Command::Demo(args) => demo::run(args).await,
        #[cfg(feature = "sim")]
        Command::Sim(command) => tokio::task::block_in_place(|| cmd::sim::run(&command)),
        Command::Lab(command) => cmd::lab::run(command).await,
        Command::Completion(args) => completion(&args),
        Command::Config(command) => cmd::config::run(&command),
        Command::DemoPeer(args) => demo::run_peer(args).await,
        Command::BenchWorker(args) => bench::run_worker(args).await,
    }
}

fn completion(args: &args::CompletionArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "macula", &mut script);
    out::line(String::from_utf8_lossy(&script).trim_end())
}

fn log_to_stderr(filter: &str) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter).map_err(|e| {
        Failure::new(
            Exit::Usage,
            format!("`{filter}` is not a log filter: {e}"),
            "use error, warn, info, debug or trace, or for example macula=debug",
        )
    })?;
    let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours && std::io::stderr().is_terminal())
        .init();
    Ok(())
}
