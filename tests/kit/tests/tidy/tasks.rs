//! Every task that runs beside its caller is awaited, and every queue has a bound.

use crate::graph::tokens;
use crate::sources::{Source, only, sources};
use std::collections::BTreeSet;

/// Files with a task that nobody awaits, on purpose.
const TASK_EXCEPTIONS: &[&str] = &[
    // quinn asks for tasks through a trait, and ends them with its endpoint.
    "wire/src/quic/driver.rs",
    // The task is counted by a tracker, and its end is awaited there.
    "wire/src/quic/serve.rs",
];

/// Files with a queue that nothing bounds.
const QUEUE_EXCEPTIONS: &[&str] = &[];

fn files_where(breaks: impl Fn(&[String]) -> bool) -> BTreeSet<String> {
    let sources = sources();
    let broken = sources.iter().filter(|source| source.is_shipped() && breaks(&tokens(&source.code)));
    broken.map(Source::name).collect()
}

/// Returns whether a task is begun outside of a set (`JoinSet`, `TaskTracker`), and its handle is neither stored nor
/// passed on.
fn leaves_a_task(tokens: &[String]) -> bool {
    let begins = |at: usize| -> Option<usize> {
        let before = |count: usize| at.checked_sub(count).map_or("", |at| tokens[at].as_str());
        match (before(2), before(1)) {
            ("tokio", "::") => Some(2),
            ("task", "::") if before(4) == "tokio" => Some(4),
            ("task", "::") => Some(2),
            ("runtime" | "handle", ".") if before(3) == "." => Some(4),
            ("runtime" | "handle", ".") => Some(2),
            _ => None,
        }
    };
    let spawns = (0..tokens.len().saturating_sub(1)).filter(|at| tokens[*at] == "spawn" && tokens[at + 1] == "(");
    spawns.filter_map(|at| Some(at - begins(at)?)).any(|start| {
        let is_kept = start > 0 && matches!(tokens[start - 1].as_str(), "=" | "(");
        let is_dropped = start > 1 && tokens[start - 2] == "_";
        !is_kept || is_dropped
    })
}

/// Finds unbounded queues: tokio's say so in their name, the standard library's take no size.
fn has_unbounded_queue(tokens: &[String]) -> bool {
    let word = |at: usize| tokens.get(at).map_or("", String::as_str);
    (0..tokens.len()).any(|at| match word(at) {
        "unbounded_channel" | "UnboundedSender" | "UnboundedReceiver" => true,
        "mpsc" if word(at + 1) == "::" && word(at + 2) == "channel" => {
            let call = tokens[at + 3..].iter().position(|token| token == "(").map_or(at, |open| at + 3 + open);
            word(call + 1) == ")"
        }
        _ => false,
    })
}

#[test]
fn every_task_is_awaited_by_somebody() {
    only(&files_where(leaves_a_task), TASK_EXCEPTIONS, "a task is begun that nobody awaits");
}

#[test]
fn every_queue_has_a_bound() {
    only(&files_where(has_unbounded_queue), QUEUE_EXCEPTIONS, "a queue has no bound");
}

#[test]
fn tasks_and_queues_are_found_in_text() {
    let leaves = |code: &str| leaves_a_task(&tokens(code));
    assert!(
        leaves("tokio::spawn(run());") && leaves("tokio::spawn(run()).await;") && leaves("{ self.handle.spawn(x); }")
    );
    assert!(leaves("let _ = tokio::spawn(run());") && leaves("; tokio::task::spawn(x);"));
    assert!(!leaves("let task = tokio::spawn(run());") && !leaves("joined(runtime.spawn(x)).await"));
    assert!(!leaves("tasks.spawn(run()); command.spawn()?;"));
    let unbounded = |code: &str| has_unbounded_queue(&tokens(code));
    assert!(unbounded("mpsc::channel()") && unbounded("mpsc::channel::<()>()") && unbounded("unbounded_channel()"));
    assert!(!unbounded("mpsc::channel(QUEUE)") && !unbounded("use std::sync::mpsc::channel;"));
}
