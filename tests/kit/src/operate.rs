//! An operator's commands for a cluster under test.

use crate::bins::bin;
use crate::command::run;
use crate::surf::{START_LIMIT, Surf};
use crate::wait::until;
use std::process::Command;

impl Surf {
    /// Runs `surf ARGS` as an operator, and returns its output and its exit code.
    ///
    /// # Panics
    /// When it cannot be run, or was ended by a signal.
    #[must_use]
    pub fn operate(&self, args: &[&str]) -> (String, i32) {
        let mut command = Command::new(bin("surf"));
        command.args(args).env("SURF_ADMIN_BUNDLE", self.cluster_dir().join("admin.bundle"));
        let output = run(&mut command, START_LIMIT);
        (output.text, output.status.code().expect("surf exits"))
    }

    /// Returns the answer of `surf status --json`.
    ///
    /// # Panics
    /// When it says nothing.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        until("surf status answers", START_LIMIT, || serde_json::from_str(&self.operate(&["status", "--json"]).0).ok())
    }

    /// Returns the term in which the leader was elected.
    ///
    /// # Panics
    /// When the cluster does not say it.
    #[must_use]
    pub fn term(&self) -> u64 {
        let (text, _) = self.operate(&["cluster", "status", "--json"]);
        let json = serde_json::from_str::<serde_json::Value>(&text).ok();
        json.and_then(|json| json["term"].as_u64()).unwrap_or_else(|| panic!("no status with a term: {text}"))
    }
}
