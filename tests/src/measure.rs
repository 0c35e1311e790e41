//! Throughput, and what it costs in processor time.

use std::time::Duration;

use anyhow::Result;

use crate::iperf::{Report, Run};
use crate::process::{cpu_time, host_cpu_time};

/// One iperf3 run, and what it cost.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// What iperf3 reported.
    pub report: Report,
    /// Processor time of the whole machine, kernel and iperf3 included.
    pub host: Duration,
    /// Processor time of each process that was watched, in the order given.
    pub processes: Vec<Duration>,
}

impl Measurement {
    /// Makes a run and watches the processes with these ids, and the machine, meanwhile.
    ///
    /// # Errors
    /// The run failed, or a process ended.
    pub fn of(run: &Run<'_>, pids: &[u32]) -> Result<Self> {
        let times = || {
            pids.iter()
                .map(|&pid| cpu_time(pid))
                .collect::<Result<Vec<_>>>()
        };
        let server = run.start_server()?;
        let (processes, host) = (times()?, host_cpu_time()?);
        let report = run.finish(run.start_client()?)?;
        let (host_after, after) = (host_cpu_time()?, times()?);
        drop(server);
        Ok(Self {
            report,
            host: host_after.saturating_sub(host),
            processes: after
                .iter()
                .zip(&processes)
                .map(|(after, before)| after.saturating_sub(*before))
                .collect(),
        })
    }

    /// Throughput in 10^9 bits per second of payload.
    #[must_use]
    pub fn gigabits_per_second(&self) -> f64 {
        self.report.bits_per_second / 1e9
    }

    /// Processor seconds for 10^9 bytes of payload, infinite if none arrived.
    #[must_use]
    pub fn per_gigabyte(&self, time: Duration) -> f64 {
        // Precise up to 2^53 bytes.
        #[expect(
            clippy::cast_precision_loss,
            reason = "nine petabytes do not fit a measurement"
        )]
        let gigabytes = self.report.bytes as f64 / 1e9;
        time.as_secs_f64() / gigabytes
    }
}
