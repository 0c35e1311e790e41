//! One thing looked at.

use std::io;

use serde::Serialize;

/// How it stands with a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// There, and as it should be.
    Ok,
    /// Not there, or not known: a tunnel works without it, but slower, or with less to see.
    Missing,
    /// In the way of any tunnel at all.
    Blocking,
}

impl Status {
    /// Two columns wide.
    pub(super) const fn mark(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Missing => "--",
            Self::Blocking => "!!",
        }
    }
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    /// For programs: does not change between versions.
    pub(super) id: &'static str,
    pub(super) status: Status,
    /// For people: what.
    pub(super) subject: &'static str,
    /// What was found, with the errno or setting that says so.
    pub(super) found: String,
    /// What to do about it, as exact as can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) change: Option<String>,
}

impl Check {
    pub(super) fn ok(id: &'static str, subject: &'static str, found: impl Into<String>) -> Self {
        Self {
            id,
            status: Status::Ok,
            subject,
            found: found.into(),
            change: None,
        }
    }

    pub(super) fn missing(
        id: &'static str,
        subject: &'static str,
        found: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Missing,
            ..Self::ok(id, subject, found)
        }
    }

    pub(super) fn blocking(
        id: &'static str,
        subject: &'static str,
        found: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Blocking,
            ..Self::ok(id, subject, found)
        }
    }

    /// Says what to do.
    pub(super) fn change(self, change: impl Into<String>) -> Self {
        Self {
            change: Some(change.into()),
            ..self
        }
    }
}

/// Checks that belong together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Section {
    pub(super) title: String,
    pub(super) checks: Vec<Check>,
}

/// Whether something is `EPERM` or `EACCES`.
pub(super) fn forbidden(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// What gives a program the rights it lacks.
pub(super) const GIVE_RIGHTS: &str = "run adit as root, or: setcap cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon+ep \"$(command -v adit)\"";
