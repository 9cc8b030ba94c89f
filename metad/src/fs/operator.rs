//! Changes that operators ask for.
//!
//! A request of an operator may wait for long before its change is proposed: for room for its answer, for other metads, for
//! sessions. Whoever was revoked meanwhile changes nothing any more. Only the order of the log tells which came first, so
//! this is looked at when the change is applied.

use super::repair::Repairing;
use super::view::View;
use super::{Command, CommandReply, Stamped, cert};
use serde::{Deserialize, Serialize};
use wire::ids::{SessionId, TokenId};
use wire::layout::Layout;
use wire::token::NewToken;
use wire::trust::SignedTrust;

/// What an operator may have changed. Those that name their asker themselves are not among them. Variants are only ever
/// appended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// As [`Command::CreateToken`].
    CreateToken(NewToken),
    /// As [`Command::RevokeToken`].
    RevokeToken(TokenId),
    /// As [`Command::PinBlocks`].
    PinBlocks {
        /// Name of the pin.
        name: String,
        /// For how many milliseconds.
        keep_ms: u64,
    },
    /// As [`Command::ReleasePin`].
    ReleasePin {
        /// Name of the pin.
        name: String,
    },
    /// As [`Command::ResumeDeletion`].
    ResumeDeletion,
    /// As [`Command::CloseSessions`].
    CloseSessions(Vec<SessionId>),
    /// As [`Command::SetLayout`].
    SetLayout(Layout),
    /// As [`Command::Repair`].
    Repair(Repairing),
    /// As [`Command::SetTrust`].
    SetTrust(SignedTrust),
}

impl From<Change> for Command {
    fn from(change: Change) -> Self {
        match change {
            Change::CreateToken(new) => Self::CreateToken(new),
            Change::RevokeToken(id) => Self::RevokeToken(id),
            Change::PinBlocks { name, keep_ms } => Self::PinBlocks { name, keep_ms },
            Change::ReleasePin { name } => Self::ReleasePin { name },
            Change::ResumeDeletion => Self::ResumeDeletion,
            Change::CloseSessions(sessions) => Self::CloseSessions(sessions),
            Change::SetLayout(layout) => Self::SetLayout(layout),
            Change::Repair(repairing) => Self::Repair(repairing),
            Change::SetTrust(step) => Self::SetTrust(step),
        }
    }
}

/// Applies `Command::ByOperator`.
pub(super) fn apply(view: &mut View, stamped: &Stamped, asker: &cert::Asker, change: &Change) -> CommandReply {
    if cert::asker_is_revoked(view, asker) {
        return CommandReply::Revoked(cert::Outcome::AskerRevoked);
    }
    super::apply(view, &Stamped { now: stamped.now, command: change.clone().into() })
}
