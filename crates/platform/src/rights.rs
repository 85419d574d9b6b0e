//! What an installation may do under its licence, while it runs. Models are served whatever the licence says, and what was used is
//! always booked; when it has ended and its grace is over, what is managed can be read and not changed. Without a licence file nothing
//! is limited. Time does not go backwards here: a clock that is set back does not make a licence last longer.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::PlatformError;
use crate::licence::{LicenceState, LicenceTerms, check_clock, machine_id};
use crate::limits::LICENCE_EVERY;
use crate::organization::as_server_error;
use crate::platform::Platform;
use crate::time::{Clock, Timestamp};

/// See the module.
#[derive(Clone)]
pub struct Rights(Arc<Inner>);

struct Inner {
    terms: Option<LicenceTerms>,
    machine: Option<String>,
    /// Where the latest time that was seen is kept.
    clock_file: Option<PathBuf>,
    latest: AtomicI64,
}

impl Rights {
    /// Everything.
    pub fn unlimited() -> Self {
        Self(Arc::new(Inner { terms: None, machine: None, clock_file: None, latest: AtomicI64::new(i64::MIN) }))
    }

    /// What a licence says; the latest time that was seen is kept in a file.
    pub fn of(terms: LicenceTerms, clock_file: PathBuf) -> Self {
        let inner = Inner { terms: Some(terms), machine: machine_id(), clock_file: Some(clock_file), latest: AtomicI64::new(i64::MIN) };
        Self(Arc::new(inner))
    }

    /// The time that counts: the clock's, or the latest that was seen.
    fn time(&self, now: Timestamp) -> Timestamp {
        Timestamp(self.0.latest.fetch_max(now.0, Ordering::Relaxed).max(now.0))
    }

    /// What the licence allows now; nothing without a licence.
    pub fn state(&self, now: Timestamp) -> Option<LicenceState> {
        let time = self.time(now);
        self.0.terms.as_ref().map(|terms| terms.state_at(time, self.0.machine.as_deref()))
    }

    /// Whether what is managed may be changed now.
    pub fn check_change(&self, what: &'static str, now: Timestamp) -> Result<(), PlatformError> {
        let reason = match self.state(now) {
            None | Some(LicenceState::Valid | LicenceState::Grace { .. }) => return Ok(()),
            Some(LicenceState::NotYet) => "the licence has not begun",
            Some(LicenceState::ReadOnly) => "the licence has ended",
            Some(LicenceState::OtherMachine) => "the licence is for another machine",
        };
        Err(PlatformError::ReadOnly { what, reason: reason.into() })
    }

    /// Whether the licence opens something; without one, everything is open.
    pub fn entitles_to(&self, entitlement: &str) -> bool {
        self.0.terms.as_ref().is_none_or(|terms| terms.entitles_to(entitlement))
    }

    /// Members that the licence allows; without a number, any.
    pub fn seats(&self) -> Option<u32> {
        self.0.terms.as_ref()?.seats
    }

    /// Compares the clock with the latest time that was seen, and keeps that.
    pub fn look_at_clock(&self, now: Timestamp) {
        let Some(file) = &self.0.clock_file else { return };
        match check_clock(file, now) {
            Ok(check) => {
                self.time(check.time);
                if let Some(set_back) = check.set_back {
                    let minutes = set_back.as_secs() / 60;
                    tracing::warn!(minutes, "the clock was set back: the latest time that was seen counts for the licence");
                }
            }
            Err(error) => tracing::warn!(%error, "the latest time that was seen cannot be kept"),
        }
    }

    /// Looks at the clock for ever.
    pub(crate) async fn run(self, now: Clock) {
        loop {
            let own = self.clone();
            // A file is written.
            let _ = tokio::task::spawn_blocking(move || own.look_at_clock(now())).await;
            tokio::time::sleep(LICENCE_EVERY).await;
        }
    }
}

/// Lets what is managed be read always, and changed if the licence allows it.
pub(crate) async fn guard(State(platform): State<Platform>, request: Request, next: Next) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS)
        && let Err(error) = platform.rights().check_change("this", platform.now())
    {
        return as_server_error(error).into_response();
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000_000;

    #[test]
    fn clock_that_is_set_back_makes_no_licence_last_longer() {
        let folder = tempfile::tempdir().expect("a folder");
        let terms = LicenceTerms {
            customer: "Ann".into(),
            plan: "enterprise".into(),
            entitlements: vec!["sso".into()],
            seats: Some(3),
            valid_from_micros: 0,
            expires_at_micros: 10 * DAY,
            machine: None,
        };
        let rights = Rights::of(terms.clone(), folder.path().join("clock"));
        let may = |rights: &Rights, day: i64| rights.check_change("it", Timestamp(day * DAY)).is_ok();
        rights.look_at_clock(Timestamp(9 * DAY));
        assert!(may(&rights, 9) && may(&rights, 23), "valid, then grace");
        assert!(!may(&rights, 24) && !may(&rights, 5), "ended; a clock that is set back changes nothing");
        rights.look_at_clock(Timestamp(25 * DAY));
        let restarted = Rights::of(terms, folder.path().join("clock"));
        restarted.look_at_clock(Timestamp(5 * DAY));
        assert!(!may(&restarted, 5), "nor does a restart");
        assert!(restarted.entitles_to("sso") && !restarted.entitles_to("audit_export") && restarted.seats() == Some(3));
        let unlimited = Rights::unlimited();
        assert!(may(&unlimited, 1000) && unlimited.entitles_to("anything") && unlimited.state(Timestamp(0)).is_none());
    }
}
