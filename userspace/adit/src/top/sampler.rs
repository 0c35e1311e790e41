//! The thread that asks the daemon, so that keys are answered while it waits.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use adit_kernel::clock;

use super::News;
use super::model::Reading;
use super::state::Request;
use crate::inspect::client;
use crate::inspect::tunnel::Tunnel;

/// Of the time, at most one part in so many goes into waiting for the daemon: what it takes to answer for many peers, it
/// takes from its own work.
const SHARE: u32 = 10;

/// Reads tunnel `name` at a pace until it is told to quit or nobody listens any more.
pub(super) fn run(
    mut name: String,
    mut pace: Duration,
    requests: &Receiver<Request>,
    news: &SyncSender<News>,
) {
    let mut paused = false;
    let mut due = Instant::now();
    loop {
        let waited = if paused {
            requests.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            requests.recv_timeout(due.saturating_duration_since(Instant::now()))
        };
        match waited {
            Ok(Request::Quit) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(Request::Pause(pause)) => {
                paused = pause;
                continue;
            }
            Ok(Request::Pace(wanted)) => {
                due = due.min(Instant::now() + wanted);
                pace = wanted;
                continue;
            }
            Ok(Request::NextTunnel) => {
                // Where the names cannot be read, the tunnel of now is the only one known.
                name = next(&client::tunnels().unwrap_or_default(), &name);
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let started = Instant::now();
        let told = read(&name);
        let took = started.elapsed();
        due = started + pace.max(took * SHARE);
        if news.send(told).is_err() {
            return;
        }
    }
}

fn read(name: &str) -> News {
    match Tunnel::read(name) {
        Ok(tunnel) => News::Reading(Box::new(Reading {
            at: Instant::now(),
            unix: clock::unix_time().as_secs(),
            tunnel,
        })),
        Err(error) if client::is_there(name) => News::Trouble(format!("{error:#}")),
        Err(error) => News::Gone(format!("{error:#}")),
    }
}

/// The name after `name` in the sorted `names`, the first one after the last.
fn next(names: &[String], name: &str) -> String {
    names
        .iter()
        .find(|other| other.as_str() > name)
        .or_else(|| names.first())
        .map_or_else(|| name.to_owned(), Clone::clone)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn tunnels_go_round() {
        let names = ["wg0", "wg1", "wg3"].map(str::to_owned);
        for (name, after) in [("wg0", "wg1"), ("wg2", "wg3"), ("wg3", "wg0")] {
            assert_eq!(next(&names, name), after);
        }
        assert_eq!(next(&[], "wg0"), "wg0");
    }

    #[test]
    fn a_tunnel_that_is_not_there_is_news_and_the_thread_ends_when_told() {
        let (request, requests) = mpsc::channel();
        let (news, told) = mpsc::sync_channel(1);
        let thread = thread::spawn(move || {
            run(
                "adit-not-there".to_owned(),
                Duration::from_millis(1),
                &requests,
                &news,
            );
        });
        for _ in 0..3 {
            let Ok(News::Gone(line)) = told.recv() else {
                panic!();
            };
            assert!(line.starts_with("no tunnel adit-not-there: "), "{line}");
        }
        request.send(Request::Quit).unwrap();
        // It may be about to tell once more.
        drop(told);
        thread.join().unwrap();
    }
}
