//! The gateway and the four peers, and how the director speaks with them.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::protocol::{Order, Outcome, Received, Task, Told};
use super::show::Show;
use crate::children::{GatewayProcess, Process};

/// The peers' names.
pub(crate) const NAMES: [&str; 4] = ["ada", "ben", "cleo", "dan"];
/// An order takes at most this long.
const ORDER_TIMEOUT: Duration = Duration::from_secs(20);
/// What peers told and the director has not looked at; beyond that peers wait.
const TOLD_MAX: usize = 1024;

/// Everybody who takes part.
#[derive(Debug)]
pub(crate) struct Stage {
    gateway: GatewayProcess,
    peers: Vec<Process>,
    told: mpsc::Receiver<(usize, Result<Told>)>,
    teller: mpsc::Sender<(usize, Result<Told>)>,
    next_order: u64,
    home: TempDir,
}

/// An order that is not done yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    peer: usize,
    id: u64,
}

impl Stage {
    /// Starts the gateway and the peers.
    pub(crate) async fn set(show: &Show) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("macula-demo-").tempdir()?;
        let gateway = GatewayProcess::start(home.path()).await?;
        let (pid, address) = (gateway.pid().unwrap_or(0), gateway.address().clone());
        let at = address.host_port();
        show.event("gateway", &format!("listens on {at} as process {pid}"))?;
        let (teller, told) = mpsc::channel(TOLD_MAX);
        let mut stage = Self { gateway, peers: Vec::new(), told, teller, next_order: 1, home };
        for (index, name) in NAMES.into_iter().enumerate() {
            let peer = stage.start_peer(index)?;
            stage.peers.push(peer);
            let pid = stage.peers.last().and_then(Process::pid).unwrap_or(0);
            show.event(name, &format!("is process {pid}"))?;
        }
        Ok(stage)
    }

    /// The gateway.
    pub(crate) fn gateway(&mut self) -> &mut GatewayProcess {
        &mut self.gateway
    }

    /// Gives an order to a peer.
    pub(crate) async fn order(&mut self, peer: usize, task: Task) -> Result<Pending> {
        let id = self.next_order;
        self.next_order += 1;
        let process = self.peers.get_mut(peer).context("no such peer")?;
        process.tell(&Order { id, task }).await?;
        Ok(Pending { peer, id })
    }

    /// Gives an order and waits until it is done.
    pub(crate) async fn ask(&mut self, show: &Show, peer: usize, task: Task) -> Result<Outcome> {
        let pending = self.order(peer, task).await?;
        let mut outcomes = self.finish(show, &[pending]).await?;
        outcomes.pop().context("an order has one outcome")
    }

    /// Waits until all are done; outcomes in the order of `pending`. Shows what happens meanwhile.
    pub(crate) async fn finish(
        &mut self,
        show: &Show,
        pending: &[Pending],
    ) -> Result<Vec<Outcome>> {
        let mut outcomes: Vec<Option<Outcome>> = vec![None; pending.len()];
        let deadline = Instant::now() + ORDER_TIMEOUT;
        while outcomes.iter().any(Option::is_none) {
            let (peer, told) = self.next_told(deadline).await?;
            if let Told::Done { id, outcome } = told {
                if let Outcome::Failed(what) = &outcome {
                    bail!("{}: {what}", NAMES[peer]);
                }
                let slot = pending.iter().position(|p| *p == Pending { peer, id });
                if let Some(slot) = slot.and_then(|index| outcomes.get_mut(index)) {
                    *slot = Some(outcome);
                }
            } else {
                show_told(show, peer, &told)?;
            }
        }
        Ok(outcomes.into_iter().flatten().collect())
    }

    /// Waits until a third of an order is done.
    pub(crate) async fn third(&mut self, show: &Show, pending: Pending) -> Result<()> {
        let deadline = Instant::now() + ORDER_TIMEOUT;
        loop {
            let (peer, told) = self.next_told(deadline).await?;
            match told {
                Told::Third { id } if pending == (Pending { peer, id }) => return Ok(()),
                Told::Done { outcome: Outcome::Failed(what), .. } => {
                    bail!("{}: {what}", NAMES[peer])
                }
                told => show_told(show, peer, &told)?,
            }
        }
    }

    /// Lets peers count what they received, each the number given with it.
    pub(crate) async fn count(
        &mut self,
        show: &Show,
        expected: &[(usize, u64)],
        within: Duration,
    ) -> Result<Vec<Received>> {
        let within_ms = within.as_millis() as u64;
        let mut pending = Vec::new();
        for (peer, expected) in expected {
            let task = Task::Count { expected: *expected, within_ms };
            pending.push(self.order(*peer, task).await?);
        }
        let outcomes = self.finish(show, &pending).await?;
        outcomes
            .into_iter()
            .map(|outcome| match outcome {
                Outcome::Received(received) => Ok(received),
                other => bail!("counting ended with {other:?}"),
            })
            .collect()
    }

    /// Kills a peer (SIGKILL).
    pub(crate) async fn kill_peer(&mut self, peer: usize) -> Result<()> {
        self.peers.get_mut(peer).context("no such peer")?.kill().await
    }

    /// Starts a killed peer again.
    pub(crate) fn restart_peer(&mut self, peer: usize) -> Result<()> {
        let process = self.start_peer(peer)?;
        *self.peers.get_mut(peer).context("no such peer")? = process;
        Ok(())
    }

    /// Ends the peers, and keeps the gateway and its files.
    pub(crate) async fn dismiss_peers(&mut self) -> Result<()> {
        for peer in self.peers.drain(..) {
            peer.end().await?;
        }
        Ok(())
    }

    /// Ends everybody.
    pub(crate) async fn clear(mut self) -> Result<()> {
        self.dismiss_peers().await?;
        self.gateway.end().await?;
        self.home.close().context("cannot remove the demo's files")
    }

    fn start_peer(&self, index: usize) -> Result<Process> {
        let name = NAMES[index];
        let gateway = self.gateway.address().to_string();
        let arguments = ["demo-peer", "--name", name, "--gateway", &gateway].map(str::to_owned);
        let mut process = Process::start(name, &arguments, self.home.path())?;
        let mut lines = process.take_lines();
        let teller = self.teller.clone();
        tokio::spawn(async move {
            while let Some(line) = lines.recv().await {
                let told = serde_json::from_str(&line)
                    .with_context(|| format!("{name} says what nobody understands: {line}"));
                if teller.send((index, told)).await.is_err() {
                    break;
                }
            }
        });
        Ok(process)
    }

    async fn next_told(&mut self, deadline: Instant) -> Result<(usize, Told)> {
        match timeout_at(deadline, self.told.recv()).await {
            Ok(Some((peer, told))) => Ok((peer, told?)),
            Ok(None) => bail!("all peers are gone"),
            Err(_) => {
                for (peer, name) in self.peers.iter_mut().zip(NAMES) {
                    if let Some(why) = peer.has_ended().await {
                        bail!("{name} {why}");
                    }
                }
                bail!("nothing happened for {ORDER_TIMEOUT:?}")
            }
        }
    }
}

fn show_told(show: &Show, peer: usize, told: &Told) -> Result<()> {
    match told {
        Told::Heard { text, latency_us, .. } => {
            let latency = crate::out::human_duration(Duration::from_micros(*latency_us));
            show.event(NAMES[peer], &format!("hears “{text}” after {latency}"))?;
        }
        Told::Link { what } => show.event(NAMES[peer], what)?,
        Told::Third { .. } | Told::Done { .. } => {}
    }
    Ok(())
}
