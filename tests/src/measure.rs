//! Throughput, and what it costs in processor time.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::iperf::{Report, Run};
use crate::process::{cpu_time, host_cpu_time, host_processors};

/// Watches the processor time of the machine and of some processes.
#[derive(Debug)]
pub struct Meter {
    start: Instant,
    host: Duration,
    processes: Vec<(u32, Duration)>,
}

/// Processor time used between two moments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Time that passed.
    pub elapsed: Duration,
    /// Processor time of the whole machine.
    pub host: Duration,
    /// Processors of the whole machine.
    pub processors: u32,
    /// Processor time of each process that was watched, in the order given.
    pub processes: Vec<Duration>,
}

impl Meter {
    /// Starts to watch the machine and the processes with these ids.
    ///
    /// # Errors
    /// No such process.
    pub fn start(pids: &[u32]) -> Result<Self> {
        let times = pids.iter().map(|&pid| Ok((pid, cpu_time(pid)?)));
        Ok(Self {
            processes: times.collect::<Result<_>>()?,
            host: host_cpu_time()?,
            start: Instant::now(),
        })
    }

    /// Ends watching.
    ///
    /// # Errors
    /// A process has ended.
    pub fn stop(self) -> Result<Usage> {
        let (elapsed, host) = (self.start.elapsed(), host_cpu_time()?);
        let used = |&(pid, before): &(u32, Duration)| Ok(cpu_time(pid)?.saturating_sub(before));
        Ok(Usage {
            elapsed,
            host: host.saturating_sub(self.host),
            processors: host_processors()?,
            processes: self.processes.iter().map(used).collect::<Result<_>>()?,
        })
    }
}

impl Usage {
    /// Share of the machine's processors that was busy, 0 to 1.
    #[must_use]
    pub fn busy(&self) -> f64 {
        let available = self.elapsed.as_secs_f64() * f64::from(self.processors);
        self.host.as_secs_f64() / available
    }

    /// Processor time of all processes that were watched.
    #[must_use]
    pub fn watched(&self) -> Duration {
        self.processes.iter().sum()
    }
}

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
        let server = run.start_server()?;
        let meter = Meter::start(pids)?;
        let report = run.finish(run.start_client()?)?;
        let usage = meter.stop()?;
        drop(server);
        Ok(Self {
            report,
            host: usage.host,
            processes: usage.processes,
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
