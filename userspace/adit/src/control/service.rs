//! What the service manager is told while the daemon runs.

use std::time::Duration;

use adit_protocol::Instant;

use super::Control;
use crate::dataplane::pulse::Pulses;
use crate::instant;
use crate::service::ServiceManager;

/// How often the status is told to a manager that has no watchdog.
const STATUS_INTERVAL: Duration = Duration::from_secs(30);

/// The manager, and what it was told.
#[derive(Debug)]
pub(super) struct Reports {
    manager: ServiceManager,
    interval: Duration,
    next: Instant,
    pulses: Pulses,
    alive: bool,
    status: String,
}

impl Reports {
    pub(super) fn manager(&self) -> &ServiceManager {
        &self.manager
    }
}

impl Control {
    /// Keeps the manager informed from now on. That all is well it is told from the control thread's loop, and only as long
    /// as the data threads go round, too; due times are looked at once a second, so a watchdog of less than three seconds
    /// cannot be satisfied.
    pub fn report_to(&mut self, manager: ServiceManager) {
        let watchdog = manager.watchdog().map(|limit| limit / 2);
        let interval = watchdog.unwrap_or(STATUS_INTERVAL);
        self.reports = Some(Reports {
            manager,
            interval,
            // Not at once: `adit up` names this process to the manager when everything else is in place.
            next: instant() + interval,
            pulses: Pulses::default(),
            alive: true,
            status: String::new(),
        });
    }

    /// Tells the manager that the daemon is ready. Somebody else does if it was started by somebody else.
    pub fn report_ready(&self) {
        if let Some(reports) = &self.reports {
            reports.manager.ready(&self.status());
        }
    }

    /// Tells the manager that the daemon is about to end.
    pub fn report_stopping(&self) {
        if let Some(reports) = &self.reports {
            reports.manager.stopping();
        }
    }

    /// Called once a second.
    pub(super) fn report(&mut self, now: Instant) {
        let due = |reports: &Reports| reports.next <= now;
        if !self.reports.as_ref().is_some_and(due) {
            return;
        }
        let status = self.status();
        let Some(reports) = &mut self.reports else {
            return;
        };
        reports.next = now + reports.interval;
        let alive = reports.pulses.all_beat(&self.shared);
        if alive && reports.manager.watchdog().is_some() {
            reports.manager.alive();
        }
        if alive != reports.alive && !alive {
            tracing::error!("a data thread hangs");
        }
        reports.alive = alive;
        if status != reports.status {
            reports.manager.status(&status);
            reports.status = status;
        }
    }

    fn status(&self) -> String {
        if !self.up {
            return "interface down".to_owned();
        }
        let sessions = self.device.peers().filter(|peer| peer.session.is_some());
        format!(
            "port {}, {} peers, {} with a session",
            self.port,
            self.device.peer_count(),
            sessions.count()
        )
    }
}
