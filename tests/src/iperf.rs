//! iperf3, the server for one run and the client with its JSON report read.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::Namespace;
use crate::command::Running;
use crate::process::listens_on_tcp;
use crate::wait::wait_until;

/// Port of the server. Each runs in a namespace of its own, one at a time.
const PORT: u16 = 5201;

/// One run of iperf3.
#[derive(Debug, Clone)]
pub struct Run<'a> {
    /// Where the client is.
    pub client: &'a Namespace,
    /// Where the server is.
    pub server: &'a Namespace,
    /// The server's address.
    pub to: IpAddr,
    /// How long to send, or how much.
    pub amount: Amount,
    /// Further options of the client, such as `-u`, `-R` or `-P 4`.
    pub options: &'a [&'a str],
}

/// When an iperf3 run ends.
#[derive(Debug, Clone, Copy)]
pub enum Amount {
    /// After so many bytes.
    Bytes(u64),
    /// After so many seconds.
    Seconds(u32),
}

/// What iperf3 reported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Bytes of payload that arrived; with `--bidir` in both directions together, as are the two values below.
    pub bytes: u64,
    /// Payload bits per second, measured at the receiver.
    pub bits_per_second: f64,
    /// TCP segments sent again (0 for UDP).
    pub retransmits: u64,
    /// Datagrams sent (0 for TCP).
    pub datagrams: u64,
    /// Datagrams lost (0 for TCP).
    pub lost: u64,
    /// Datagrams that arrived after a later one (0 for TCP).
    pub out_of_order: u64,
}

impl Run<'_> {
    /// Starts the server, runs the client to its end, and returns the report.
    ///
    /// # Errors
    /// iperf3 is missing or failed, or its report is not what it should be.
    pub fn run(&self) -> Result<Report> {
        let server = self.start_server()?;
        let report = self.run_client()?;
        drop(server);
        Ok(report)
    }

    /// Starts a server that ends after one run, and waits until it listens.
    ///
    /// # Errors
    /// iperf3 is missing or does not start.
    pub fn start_server(&self) -> Result<Running> {
        let mut command = self.server.command("iperf3");
        command.args(["--server", "--one-off", "--port", &PORT.to_string()]);
        let server = Running::start(&mut command)?;
        let pid = server.pid();
        wait_until("iperf3 server listens", Duration::from_secs(20), || {
            listens_on_tcp(pid, PORT)
        })?;
        Ok(server)
    }

    /// Starts the client only; for programs that watch the tunnel during the run.
    ///
    /// # Errors
    /// iperf3 is missing.
    pub fn start_client(&self) -> Result<Running> {
        let mut command = self.client.command("iperf3");
        command.args([
            "--json",
            "--port",
            &PORT.to_string(),
            "--client",
            &self.to.to_string(),
        ]);
        match self.amount {
            Amount::Bytes(bytes) => command.args(["--bytes", &bytes.to_string()]),
            Amount::Seconds(seconds) => command.args(["--time", &seconds.to_string()]),
        };
        Running::start(command.args(self.options))
    }

    fn run_client(&self) -> Result<Report> {
        self.finish(self.start_client()?)
    }

    /// Waits for a client and reads its report.
    ///
    /// # Errors
    /// The run failed.
    pub fn finish(&self, client: Running) -> Result<Report> {
        let output = client.finish(Duration::from_secs(120))?;
        let value: Value = serde_json::from_str(&output.stdout)
            .with_context(|| format!("iperf3 report: {}{}", output.stdout, output.stderr))?;
        if let Some(error) = value.get("error") {
            bail!("iperf3 to {}: {error}", self.to);
        }
        Report::from_json(&value).with_context(|| format!("iperf3 report: {}", output.stdout))
    }
}

impl Report {
    fn from_json(value: &Value) -> Option<Self> {
        let end = value.get("end")?;
        let udp = end.get("sum").unwrap_or(&Value::Null);
        let received = end.get("sum_received").unwrap_or(udp);
        let number = |value: &Value, key: &str| value.get(key).and_then(Value::as_u64).unwrap_or(0);
        let streams = end.get("streams").and_then(Value::as_array);
        let out_of_order = streams
            .into_iter()
            .flatten()
            .filter_map(|stream| stream.get("udp"))
            .map(|stream| number(stream, "out_of_order"))
            .sum();
        // What `--bidir` moved the other way.
        let back = |key: &str| end.get(key).unwrap_or(&Value::Null);
        let (back_sent, back_received) = (
            back("sum_sent_bidir_reverse"),
            back("sum_received_bidir_reverse"),
        );
        let rate = |value: &Value| value.get("bits_per_second").and_then(Value::as_f64);
        Some(Self {
            bytes: number(received, "bytes") + number(back_received, "bytes"),
            bits_per_second: rate(received)? + rate(back_received).unwrap_or(0.0),
            retransmits: end
                .get("sum_sent")
                .map_or(0, |sent| number(sent, "retransmits"))
                + number(back_sent, "retransmits"),
            datagrams: number(udp, "packets"),
            lost: number(udp, "lost_packets"),
            out_of_order,
        })
    }
}
