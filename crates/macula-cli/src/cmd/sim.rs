//! `macula sim`: worlds of nodes in virtual time.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use indicatif::ProgressBar;
use macula_sim::{BUILT_IN, Progress, Run, Scenario, Summary};

use crate::failure::{Exit, Failure};
use crate::out::{self, Paint};

#[derive(Debug, Subcommand)]
pub(crate) enum SimCommand {
    /// Run a scenario and compare what comes out with what should
    Run(SimRunArgs),
    /// Print a scenario's file
    Show {
        /// One of those that `macula sim list` names
        scenario: String,
    },
    /// Name the scenarios that come with the program
    List,
    /// Run worlds of several sizes: hops and links against the number of nodes
    Sweep(SimSweepArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SimRunArgs {
    /// Name of a scenario, or a file (TOML)
    pub(crate) scenario: String,
    /// Nodes [default: as the scenario says]
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    pub(crate) nodes: Option<u32>,
    #[command(flatten)]
    pub(crate) common: SimCommonArgs,
    /// Draw pictures (SVG) into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) plots: Option<PathBuf>,
    /// A missed target is a failure too
    #[arg(long)]
    pub(crate) strict: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SimSweepArgs {
    /// Name of a scenario, or a file (TOML)
    #[arg(default_value = "converged")]
    pub(crate) scenario: String,
    /// Sizes
    #[arg(short, long, value_delimiter = ',', default_value = "100,300,1000,3000,10000",
          value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    pub(crate) nodes: Vec<u32>,
    #[command(flatten)]
    pub(crate) common: SimCommonArgs,
    /// Draw pictures (SVG) into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) plots: Option<PathBuf>,
}

/// What all runs take.
#[derive(Debug, Args)]
pub(crate) struct SimCommonArgs {
    /// Everything random comes from it; the same seed gives the same run
    #[arg(short, long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Threads; the run is the same with any number [default: 2 for large worlds]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) threads: Option<u8>,
    /// Lookups in each step that does not say how many [default: one per node, 1000 to 100,000]
    #[arg(long)]
    pub(crate) lookups: Option<u32>,
    /// Whether nodes prefer near ones
    #[arg(long, value_enum)]
    pub(crate) proximity: Option<OnOff>,
    /// Change a setting of the scenario, for example overlay.links_max=40
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) changes: Vec<String>,
    /// Print one JSON object on the last line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnOff {
    On,
    Off,
}

/// Worlds from this size on get a second thread.
const LARGE_NODES: u32 = 5_000;

/// Runs the command.
pub(crate) fn run(command: &SimCommand) -> Result<(), Failure> {
    match command {
        SimCommand::Run(args) => run_one(args),
        SimCommand::Show { scenario } => show(scenario),
        SimCommand::List => list(),
        SimCommand::Sweep(args) => sweep(args),
    }
}

fn list() -> Result<(), Failure> {
    let paint = Paint::stdout();
    for (name, _) in BUILT_IN {
        let about = Scenario::built_in(name).map(|scenario| scenario.about).unwrap_or_default();
        out::line(format_args!("{}  {about}", paint.cyan(format_args!("{name:<14}"))))?;
    }
    Ok(())
}

fn show(name: &str) -> Result<(), Failure> {
    let found = BUILT_IN.iter().find(|(known, _)| *known == name);
    let (_, text) = found.ok_or_else(|| no_scenario(name, "no scenario has this name"))?;
    out::line(text.trim_end())
}

fn load(name: &str, changes: &[String]) -> Result<Scenario, Failure> {
    let found = BUILT_IN.iter().find(|(known, _)| *known == name);
    let text = match found {
        Some((_, text)) => (*text).to_owned(),
        None => std::fs::read_to_string(name).map_err(|error| no_scenario(name, error))?,
    };
    Scenario::parse_with(&text, changes).map_err(|error| {
        let advice = "docs/simulation.md describes the format; `macula sim show converged` is one";
        Failure::new(Exit::Usage, error.to_string(), advice).context(name)
    })
}

fn no_scenario(name: &str, error: impl std::fmt::Display) -> Failure {
    let advice = "name one that `macula sim list` shows, or a file";
    Failure::new(Exit::Usage, error.to_string(), advice).context(name)
}

fn run_one(args: &SimRunArgs) -> Result<(), Failure> {
    let scenario = load(&args.scenario, &args.common.changes)?;
    let summary = simulate(&scenario, args.nodes.unwrap_or(scenario.nodes), &args.common);
    if let Some(directory) = &args.plots {
        make_directory(directory)?;
        let drawn = macula_sim::plot(&summary, directory).map_err(anyhow::Error::from)?;
        tell_drawn(directory, &drawn);
    }
    if args.common.json {
        out::json(&summary.to_json())?;
    } else {
        print(&summary)?;
    }
    judge(&summary, args.strict)
}

fn sweep(args: &SimSweepArgs) -> Result<(), Failure> {
    let scenario = load(&args.scenario, &args.common.changes)?;
    let mut sizes = args.nodes.clone();
    sizes.sort_unstable();
    sizes.dedup();
    let mut summaries = Vec::new();
    if !args.common.json {
        out::line("  nodes  links mean  p99  hops mean  p99  lookups right  KiB/node   wall")?;
    }
    for nodes in sizes {
        let summary = simulate(&scenario, nodes, &args.common);
        let (all, right) = summary.lookups_total();
        let hops = summary.hops();
        if args.common.json {
            out::json(&summary.to_json())?;
        } else {
            out::line(format_args!(
                "{nodes:>7}  {:>10.1}  {:>3}  {:>9.2}  {:>3}  {:>12.2} %  {:>8.1}  {:>4.0} s",
                summary.links.mean(),
                summary.links.quantile(0.99),
                hops.mean(),
                hops.quantile(0.99),
                100.0 * right as f64 / all.max(1) as f64,
                summary.bytes_per_node.unwrap_or(0) as f64 / 1024.0,
                summary.wall_seconds,
            ))?;
        }
        summaries.push(summary);
    }
    if let Some(directory) = &args.plots {
        make_directory(directory)?;
        let drawn = macula_sim::plot_sweep(&summaries, directory).map_err(anyhow::Error::from)?;
        tell_drawn(directory, &drawn);
    }
    summaries.iter().try_for_each(|summary| judge(summary, false))
}

fn make_directory(directory: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(directory)
        .map_err(|error| Failure::from(error).context(directory.display()))
}

fn tell_drawn(directory: &Path, files: &[String]) {
    files.iter().for_each(|file| out::note(directory.join(file).display()));
}

fn simulate(scenario: &Scenario, nodes: u32, args: &SimCommonArgs) -> Summary {
    let threads = args.threads.map_or_else(
        || {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            if nodes >= LARGE_NODES { cores.min(2) } else { 1 }
        },
        usize::from,
    );
    let options = Run {
        nodes: Some(nodes),
        seed: args.seed,
        threads,
        lookups: args.lookups,
        proximity: args.proximity.map(|choice| choice == OnOff::On),
        ..Run::default()
    };
    let bar = out::progress(Some(u64::from(nodes)), "{bar:30} {msg}");
    let summary = macula_sim::run(scenario, &options, &mut |progress| tell(&bar, progress));
    bar.finish_and_clear();
    summary
}

/// The bar fills while nodes join; afterwards the steps are counted.
fn tell(bar: &ProgressBar, progress: &Progress) {
    bar.set_position(progress.joined as u64);
    let (step, steps) = progress.step;
    bar.set_message(format!(
        "{} ({}/{steps}): {} nodes, {:.0} s of virtual time, {} events",
        progress.doing,
        step + 1,
        out::human_count(progress.joined as u64),
        progress.seconds,
        out::human_count(progress.events),
    ));
}

fn judge(summary: &Summary, strict: bool) -> Result<(), Failure> {
    if !summary.is_clean() {
        let first = summary.violations_spelt.first().cloned().unwrap_or_default();
        let what = format!("{} checks did not hold; the first: {first}", summary.violations);
        return Err(Failure::new(Exit::Failure, what, "run it again with the same seed to see it"));
    }
    let missed = summary.targets().iter().filter(|target| !target.is_met()).count();
    if strict && missed > 0 {
        return Err(Failure::new(Exit::Failure, format!("{missed} targets were missed"), ""));
    }
    Ok(())
}

fn print(summary: &Summary) -> Result<(), Failure> {
    let paint = Paint::stdout();
    out::line(paint.bold(format_args!(
        "{}: {} nodes, seed {}",
        summary.scenario,
        out::human_count(summary.nodes.into()),
        summary.seed
    )))?;
    out::line(format_args!("{:<44} {:>12} {:>12}", "", "measured", "target"))?;
    for target in summary.targets() {
        let sign = if target.at_least { ">=" } else { "<=" };
        let verdict = if target.is_met() { paint.green("met") } else { paint.yellow("missed") };
        out::line(format_args!(
            "{:<44} {:>12} {:>12}  {verdict}",
            target.name,
            number(target.measured),
            format!("{sign} {}", number(target.wanted)),
        ))?;
    }
    for (name, value) in figures(summary) {
        out::line(format_args!("{name:<44} {value:>12}"))?;
    }
    for (name, value) in &summary.extra {
        out::line(format_args!("{:<44} {:>12}", name.replace('_', " "), number(*value)))?;
    }
    for phase in summary.traffic.iter().filter(|phase| phase.published > 0) {
        out::line(format_args!(
            "{}: {} published, {} accepted; arrival p50 {} ms, p99 {} ms, 99 % of all after {} ms",
            phase.phase,
            phase.published,
            phase.accepted,
            phase.millis.quantile(0.5),
            phase.millis.quantile(0.99),
            phase.t99_millis,
        ))?;
    }
    for seconds in &summary.converged_after {
        out::line(format_args!("all right again after {seconds:.1} s"))?;
    }
    out::line(format_args!("digest {}", summary.digest))?;
    let violations = &summary.violations_spelt;
    violations.iter().try_for_each(|what| out::line(format_args!("{} {what}", paint.red("!"))))
}

/// What has no target.
fn figures(summary: &Summary) -> Vec<(&'static str, String)> {
    let millis = summary.lookup_millis();
    let made = (summary.direct + summary.relayed).max(1) as f64;
    let seconds = summary.wall_seconds.max(1e-9);
    let mut figures = vec![
        ("links per node, max", summary.links.max().to_string()),
        ("links made directly, %", number(100.0 * summary.direct as f64 / made)),
        ("hops within a region, %", number(100.0 * summary.intra_region_share)),
        ("messages given twice", summary.duplicated.to_string()),
        ("events", out::human_count(summary.events)),
        ("messages per node", number(summary.messages as f64 / f64::from(summary.nodes))),
        ("virtual time, s", number(summary.virtual_seconds)),
        ("wall time, s", number(summary.wall_seconds)),
        ("events per second", out::human_count((summary.events as f64 / seconds) as u64)),
    ];
    if millis.total() > 0 {
        figures.insert(0, ("lookup p50, ms", millis.quantile(0.5).to_string()));
        figures.insert(1, ("lookup p99, ms", millis.quantile(0.99).to_string()));
    }
    figures
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
