//! Whether the laboratory is what it says: every NAT by its behaviour, every delay by a clock.

use std::time::Duration;

use crate::error::LabError;
use crate::kind::{Behaviour, NatKind, Shared};
use crate::lab::{Access, Lab, Stop};
use crate::netns;
use crate::probe::{Prober, Seen, punches};

/// A measured round trip may be longer than it should by this and a tenth.
const DELAY_SLACK: Duration = Duration::from_millis(10);

/// What was found of one kind.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Name of the kind or of the shared access.
    pub name: &'static str,
    /// In words, what should be.
    pub wanted: String,
    /// In words, what was seen.
    pub seen: String,
    /// Round trip to the observers, measured.
    pub round_trip: Option<Duration>,
    /// Whether both are the same.
    pub is_right: bool,
}

/// Builds a site of each kind, probes it from inside, and tells `progress` how many are done.
///
/// # Errors
/// When the laboratory does not work, or was stopped. A NAT that is not what it should be is no error
/// but a finding.
pub fn run(
    lab: &mut Lab,
    kinds: &[NatKind],
    shared: &[Shared],
    stop: &Stop,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<Finding>, LabError> {
    let mut findings = Vec::new();
    for kind in kinds {
        stop.check()?;
        progress(kind.name());
        let site = lab.add_site(Access::Single(*kind))?;
        findings.push(check_kind(lab, site, *kind)?);
    }
    for shared in shared {
        stop.check()?;
        progress(shared.name());
        let site = lab.add_site(Access::Shared(*shared))?;
        findings.push(check_shared(lab, site, *shared)?);
    }
    Ok(findings)
}

fn check_kind(lab: &Lab, site: usize, kind: NatKind) -> Result<Finding, LabError> {
    let wanted_trip = 2 * lab.delay();
    let host = &lab.sites[site].hosts[0].netns;
    let prober = Prober::new(host, !kind.has_v4(), wanted_trip);
    let round_trip = prober.round_trip(kind.has_udp())?;
    let seen = prober.behaviour()?;
    let wanted = kind.behaviour();
    let is_as_wanted = match (&seen, wanted) {
        (None, None) => true,
        (Some(seen), Some(wanted)) => matches(seen.behaviour, wanted),
        _ => false,
    };
    Ok(Finding {
        name: kind.name(),
        wanted: wanted
            .map_or_else(no_udp, |behaviour| Seen { ports: Vec::new(), behaviour }.to_string()),
        seen: seen.map_or_else(no_udp, |seen| seen.to_string()),
        round_trip: Some(round_trip),
        is_right: is_as_wanted && is_delay_right(round_trip, wanted_trip),
    })
}

fn no_udp() -> String {
    "no UDP".to_owned()
}

fn matches(seen: Behaviour, wanted: Behaviour) -> bool {
    seen.mapping == wanted.mapping
        && seen.filtering == wanted.filtering
        && seen.sequential == wanted.sequential
        && wanted.preserves_ports.is_none_or(|preserved| seen.preserves_ports == Some(preserved))
}

fn check_shared(lab: &Lab, site: usize, shared: Shared) -> Result<Finding, LabError> {
    let [one, other] = lab.sites[site].hosts.as_slice() else {
        return Err(LabError::new(shared, "has not two hosts"));
    };
    let trip = 2 * lab.delay();
    let (one, other) =
        (Prober::new(&one.netns, false, trip), Prober::new(&other.netns, false, trip));
    let through = punches(&one, &other)?;
    // Two hosts on one LAN know each other's local address; the home router does not hairpin.
    let wanted = shared.hairpins();
    let say = |through: bool| if through { "hairpins" } else { "does not hairpin" }.to_owned();
    Ok(Finding {
        name: shared.name(),
        wanted: say(wanted),
        seen: say(through == (true, true)),
        round_trip: None,
        is_right: through == (wanted, wanted),
    })
}

fn is_delay_right(measured: Duration, wanted: Duration) -> bool {
    measured >= wanted && measured <= wanted + wanted / 10 + DELAY_SLACK
}

/// Round trips that the laboratory believes to have, measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delays {
    /// From a host to where gateways are.
    pub host_relay: Duration,
    /// From a host to the router of another; `None` without two hosts that have IPv4 and UDP.
    pub host_host: Option<Duration>,
}

/// Measures the delays of the sites that there are.
///
/// # Errors
/// When one is not what it should be: a laboratory that lies about its delays is of no use.
pub(crate) fn measure_delays(lab: &Lab, jitter: Duration) -> Result<Delays, LabError> {
    let wanted = 2 * lab.delay();
    let mut host_relay = Duration::ZERO;
    let mut able = Vec::new();
    for site in &lab.sites {
        let (udp, v4) = match site.access {
            Access::Single(kind) => (kind.has_udp(), kind.has_v4()),
            Access::Shared(_) => (true, true),
        };
        let prober = Prober::new(&site.hosts[0].netns, !v4, wanted + 2 * jitter);
        let measured = prober.round_trip(udp)?;
        demand(&format!("{} to gateway", site.access), measured, wanted, jitter)?;
        host_relay = host_relay.max(measured);
        if udp && v4 {
            able.push((site, prober));
        }
    }
    let mut host_host = None;
    if let [(_, prober), (other, _), ..] = able.as_slice() {
        let _echo = other.echo()?;
        let measured = prober.echo_round_trip(other.outer_address().into())?;
        demand("host to host", measured, 2 * wanted, jitter)?;
        host_host = Some(measured);
    }
    Ok(Delays { host_relay, host_host })
}

fn demand(
    what: &str,
    measured: Duration,
    wanted: Duration,
    jitter: Duration,
) -> Result<(), LabError> {
    // A machine that is busy makes it longer; that is worth knowing but no lie.
    let most = wanted * 3 / 2 + 4 * jitter + 2 * DELAY_SLACK;
    if measured >= wanted && measured <= most {
        return Ok(());
    }
    let found =
        format!("round trip {measured:.1?} instead of {wanted:?}; is the machine overloaded?");
    Err(LabError::new(what, found))
}

/// What Debian's coturn says of the host of each kind, by `turnutils_natdiscovery`; `None` where it is not
/// installed. Each answer is the two lines that name mapping and filtering.
///
/// # Errors
/// When its server does not start.
pub fn coturn(lab: &Lab, kinds: &[NatKind]) -> Result<Option<Vec<(NatKind, String)>>, LabError> {
    let programs = ["turnserver", "turnutils_natdiscovery"].map(netns::find_program);
    let [Some(server), Some(client)] = programs else { return Ok(None) };
    let [one, other] = crate::lab::RELAYS_V4.map(|address| address.to_string());
    let mut child = lab
        .gateway
        .spawner(&server)
        .args(["-n", "-S", "--no-cli", "--log-file", "stdout", "--pidfile", ""])
        .args(["-L", &one, "-L", &other, "-p", "13478", "--alt-listening-port", "13479"])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .map_err(|error| LabError::new("turnserver", error))?;
    std::thread::sleep(Duration::from_secs(1));
    let mut told = Vec::new();
    for (kind, site) in kinds.iter().zip(&lab.sites).filter(|(kind, _)| kind.has_v4()) {
        let client = client.to_string_lossy();
        let arguments = [&*client, "-m", "-f", "-p", "13478", &one];
        let mut limited = vec!["20"];
        limited.extend(arguments);
        let text = site.hosts[0].netns.command("timeout", &limited).unwrap_or_default();
        let lines =
            text.lines().filter(|line| line.contains("NAT with") || line.contains("No NAT"));
        let verdict: Vec<&str> = lines.map(str::trim).collect();
        told.push((*kind, if verdict.is_empty() { no_udp() } else { verdict.join("; ") }));
    }
    child.kill().and_then(|()| child.wait()).map_err(|error| LabError::new("turnserver", error))?;
    Ok(Some(told))
}
