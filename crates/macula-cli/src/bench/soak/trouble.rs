//! What a gateway has to bear: garbage, peers that say nothing, being killed.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use macula::{EndpointId, SecretKey};
use macula_transport::{Endpoint, EndpointConfig, Target};
use tokio::net::UdpSocket;

use super::dice::Dice;
use crate::children::Usage;

/// Pause between two packets of garbage.
const SPRAY_INTERVAL: Duration = Duration::from_millis(5);
/// Pause between two connections that say nothing, and how long each lasts. The gateway gives
/// them 5 s to say hello.
const SILENT_INTERVAL: Duration = Duration::from_secs(3);
const SILENT_FOR: Duration = Duration::from_secs(7);

/// Sends packets of any bytes for ever; half of them look like QUIC at their first byte.
pub(super) async fn spray(gateway: SocketAddr, mut dice: Dice) -> Result<()> {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).await?;
    loop {
        let mut packet: Vec<u8> = (0..1 + dice.below(1400)).map(|_| dice.number() as u8).collect();
        if let (true, Some(first)) = (dice.once_in(2), packet.first_mut()) {
            *first |= 0xc0;
        }
        // Nobody may listen just then.
        socket.send_to(&packet, gateway).await.ok();
        tokio::time::sleep(SPRAY_INTERVAL).await;
    }
}

/// Connects again and again, and says nothing.
pub(super) async fn keep_silent(gateway: SocketAddr, id: EndpointId) -> Result<()> {
    loop {
        let endpoint = Endpoint::bind(&EndpointConfig::new(SecretKey::generate()?))?;
        let target = Target { expect: Some(id), addrs: vec![gateway] };
        let connecting = tokio::time::timeout(SILENT_INTERVAL, endpoint.dial(&target));
        let connected = connecting.await;
        let silence = if connected.is_ok_and(|dialled| dialled.is_ok()) {
            SILENT_FOR
        } else {
            SILENT_INTERVAL
        };
        tokio::time::sleep(silence).await;
        endpoint.close(0, "").await;
        tokio::time::sleep(SILENT_INTERVAL).await;
    }
}

/// Memory and open files of the gateway over time.
#[derive(Debug, Default)]
pub(super) struct Samples {
    /// In one run without a disturbance.
    undisturbed: Vec<Sample>,
    pub(super) resident_bytes_max: u64,
    pub(super) resident_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    resident_bytes: u64,
    files: usize,
}

/// Memory of a gateway never exceeds this: three realms with rings of 64 MiB and as much retained,
/// and what waits for a dozen links.
pub(super) const RESIDENT_BYTES_MAX: u64 = 768 << 20;
/// A quarter of the undisturbed samples is compared with another one.
const SAMPLES_MIN: usize = 40;
/// What may be between the least memory early and late: the tables of peers that are gone, which
/// are bounded, and fragmentation.
const GROWTH_BYTES_MAX: u64 = 48 << 20;
/// Open files that may be more late than early.
const FILES_GROWTH_MAX: usize = 4;

impl Samples {
    /// Takes a sample; `restarted` begins anew.
    pub(super) fn take(&mut self, pid: Option<u32>, keep: bool) {
        let Some(usage) = pid.and_then(Usage::of_process) else { return };
        self.resident_bytes = usage.resident_bytes;
        self.resident_bytes_max = self.resident_bytes_max.max(usage.resident_bytes);
        if keep {
            let files = pid
                .map(|pid| format!("/proc/{pid}/fd"))
                .and_then(|path| Some(std::fs::read_dir(path).ok()?.count()));
            let files = files.unwrap_or_default();
            self.undisturbed.push(Sample { resident_bytes: usage.resident_bytes, files });
        }
    }

    /// What is wrong with the samples.
    pub(super) fn complaint(&self) -> Option<String> {
        if self.resident_bytes_max > RESIDENT_BYTES_MAX {
            return Some(format!("the gateway took {} bytes of memory", self.resident_bytes_max));
        }
        if self.undisturbed.len() < SAMPLES_MIN {
            return None;
        }
        // The least of a span, because load comes and goes. The first quarter warms up.
        let quarter = self.undisturbed.len() / 4;
        let early = self.undisturbed.get(quarter..2 * quarter)?;
        let late = self.undisturbed.get(3 * quarter..)?;
        let bytes = |span: &[Sample]| span.iter().map(|sample| sample.resident_bytes).min();
        let files = |span: &[Sample]| span.iter().map(|sample| sample.files).min();
        let (before, after) = (bytes(early)?, bytes(late)?);
        if after > before + before / 4 + GROWTH_BYTES_MAX {
            return Some(format!("the gateway's memory grew from {before} to {after} bytes"));
        }
        let (before, after) = (files(early)?, files(late)?);
        (after > before + FILES_GROWTH_MAX)
            .then(|| format!("the gateway's open files grew from {before} to {after}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(bytes: impl Iterator<Item = u64>) -> Samples {
        let undisturbed = bytes.map(|resident_bytes| Sample { resident_bytes, files: 10 });
        Samples { undisturbed: undisturbed.collect(), ..Samples::default() }
    }

    #[test]
    fn memory_that_grows_steadily_is_noticed_and_load_is_not() {
        assert!(samples((0..100).map(|at| (50 + 2 * at) << 20)).complaint().is_some());
        assert!(samples((0..100).map(|at| (50 + at % 20) << 20)).complaint().is_none());
        assert!(samples((0..10).map(|at| (50 + 20 * at) << 20)).complaint().is_none());
    }

    #[test]
    fn a_gateway_over_its_bound_is_noticed() {
        let samples = Samples { resident_bytes_max: RESIDENT_BYTES_MAX + 1, ..Samples::default() };
        assert!(samples.complaint().is_some());
    }
}
