//! Supervision of the layout while this node leads: daemons that are silent for too long are taken out, and a layout
//! becomes final once every owner has reported that its ranges are done (I11).
//!
//! Every change goes through [`change`], one at a time: the layout is read, changed and proposed under
//! `Shared::layout_change`, and a proposal made on an older layout is refused when it is applied.

use crate::Shared;
use crate::error::ProposeError;
use crate::fs::cert::Asker;
use crate::fs::operator::Change;
use crate::fs::{Command, CommandReply, settings};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use wire::ids::SessionId;
use wire::layout::Layout;
use wire::message::event::MetaEvent;

/// Pause between two looks: below any sensible `down_after`.
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// A leader that cannot reach a majority for this long does not count silence.
const BARRIER_LIMIT: Duration = Duration::from_secs(2);

/// Supervises the layout until cancelled.
pub async fn run(shared: Arc<Shared>) {
    let mut looked = Instant::now();
    loop {
        tokio::time::sleep(LOOK_PAUSE).await;
        let asked = Instant::now();
        let leads = matches!(timeout(BARRIER_LIMIT, shared.consensus.read_barrier()).await, Ok(Ok(())));
        // Silence counts only while this node could have heard the daemons: while it led, and was not paused itself.
        let was_paused = looked.elapsed() > LOOK_PAUSE * 2 + BARRIER_LIMIT;
        looked = Instant::now();
        if !leads || was_paused {
            shared.liveness.forget_blockds(asked);
            continue;
        }
        if let Err(error) = look(&shared).await {
            tracing::debug!(%error, "the layout will be changed later");
        }
    }
}

async fn look(shared: &Shared) -> Result<(), ProposeError> {
    let layout = settings::layout(&**shared.consensus.state());
    for id in shared.liveness.silent_blockds(&layout) {
        let name = layout.member(&id).map_or_else(String::new, |member| member.name.clone());
        let step = |now: &Layout| now.may_take_out(&id).then(|| now.taken_out(&id));
        if let Some(changed) = change(shared, step).await? {
            tracing::warn!(name, epoch = %changed.epoch, "a block daemon is silent for too long: others take over what it owned");
        }
    }
    let layout = settings::layout(&**shared.consensus.state());
    for id in shared.liveness.emptied(&layout) {
        if change(shared, |now: &Layout| now.emptied(&id)).await?.is_some() {
            let name = layout.member(&id).map_or("", |member| &member.name);
            tracing::info!(name, "a block daemon is drained: it can be switched off");
        }
    }
    let layout = settings::layout(&**shared.consensus.state());
    if !layout.is_final() && shared.liveness.all_done(&layout) {
        let placement = layout.placement;
        let step = |now: &Layout| (now.placement == placement && !now.is_final()).then(|| now.finished());
        if let Some(changed) = change(shared, step).await? {
            tracing::info!(epoch = %changed.epoch, %placement, "every block lies where the layout says");
        }
    }
    Ok(())
}

/// Changes the layout by `step`, which returns `None` when there is nothing to change or it may not be done now.
/// Returns the new layout.
pub(crate) async fn change(
    shared: &Shared,
    step: impl FnOnce(&Layout) -> Option<Layout>,
) -> Result<Option<Layout>, ProposeError> {
    change_by(shared, None, step).await
}

/// Like [`change`], for an operator who asks for it.
pub(crate) async fn change_by(
    shared: &Shared,
    asker: Option<&Asker>,
    step: impl FnOnce(&Layout) -> Option<Layout>,
) -> Result<Option<Layout>, ProposeError> {
    let _one_at_a_time = shared.layout_change.lock().await;
    let layout = settings::layout(&**shared.consensus.state());
    // Placing the points of a newcomer takes a while.
    let Some(changed) = tokio::task::block_in_place(|| step(&layout)) else { return Ok(None) };
    let reply = match asker {
        Some(asker) => shared.propose_by(None, asker, Change::SetLayout(changed.clone())).await?,
        None => shared.propose(Command::SetLayout(changed.clone())).await?,
    };
    match reply {
        CommandReply::Done => {
            shared.events.send_to_others(SessionId::default(), &MetaEvent::LayoutChanged(changed.epoch));
            Ok(Some(changed))
        }
        _ => Err(ProposeError::Unknown),
    }
}
