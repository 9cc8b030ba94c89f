//! `surf token`: what new machines get their identities with.

use super::access::Access;
use super::lengths;
use crate::output::{self, complain, say};
use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use wire::attr::Timestamp;
use wire::ids::TokenId;
use wire::limits::TOKEN_METADS_MAX;
use wire::message::admin::{AdminReply, AdminRequest};
use wire::tls::{ClientGrant, Role, Squash};
use wire::token::{JoinToken, NewToken, Secret, TokenInfo, TokenState};

/// The user and the group without rights, as Linux has them.
const NOBODY: u32 = 65_534;

/// Tokens by which new machines get their identities: make them, list them, revoke them.
#[derive(Args)]
pub struct Token {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make one, and print it on standard output. Anybody who has it gets an identity: pass it on like a password.
    Create(Create),
    /// All that are valid or were lately, with the names of those that have used them.
    List {
        #[command(flatten)]
        access: Access,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Let nobody use one any more. Identities that were made with it stay valid.
    Revoke {
        #[command(flatten)]
        access: Access,
        /// Its number, 16 hexadecimal digits, as `surf token list` shows it; not the token itself.
        #[arg(value_name = "ID")]
        token: String,
    },
}

/// Make a token.
#[derive(Args)]
struct Create {
    #[command(flatten)]
    access: Access,
    /// What the new machine is to be: client, blockd or metad.
    #[arg(long, value_parser = issuable)]
    role: Role,
    /// Name in the certificate, such as blockd-4; for a metad, it is metad- and its number. Without a name, each machine
    /// gets one of its host's name and its key.
    #[arg(long)]
    name: Option<String>,
    /// The directory that is to be the client's root: it sees nothing else of the filesystem.
    #[arg(long, visible_alias = "path", value_name = "PATH")]
    confine: Option<String>,
    /// The client only reads.
    #[arg(long)]
    read_only: bool,
    /// Whose rights the client's users have: with `root`, its root is nobody, 65534; with all:UID:GID, everybody is that user
    /// and that group.
    #[arg(long, value_name = "root|all:UID:GID", value_parser = squash)]
    squash: Option<Squash>,
    /// For how many machines it is.
    #[arg(long, default_value_t = 1)]
    uses: u32,
    /// How long it is valid: a number with s, m, h or d, up to a week.
    #[arg(long, visible_alias = "ttl", value_name = "TIME", default_value = "1h", value_parser = lengths::duration)]
    valid: Duration,
}

/// Reads a role of which there are tokens.
pub fn issuable(text: &str) -> Result<Role, String> {
    match text {
        "client" => Ok(Role::Client),
        "blockd" => Ok(Role::Blockd),
        "metad" => Ok(Role::Metad),
        "admin" => Err("operators' identities are signed by the CA itself, never by a metad".to_owned()),
        other => Err(format!("{other:?} is not one of client, blockd and metad")),
    }
}

/// Reads whose rights a client's users have.
fn squash(text: &str) -> Result<Squash, String> {
    let id = |text: &str| text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
    match text.split(':').collect::<Vec<_>>().as_slice() {
        ["root"] => Ok(Squash::Root { uid: NOBODY, gid: NOBODY }),
        ["all", uid, gid] => match (id(uid), id(gid)) {
            (Some(uid), Some(gid)) => Ok(Squash::All { uid, gid }),
            _ => Err(format!("{uid:?} and {gid:?} are not both numbers of a user and a group")),
        },
        _ => Err(format!("{text:?} is neither root nor all:UID:GID")),
    }
}

/// Shows what a client may not do.
fn restrictions(grant: &ClientGrant) -> Vec<String> {
    let squash = match grant.squash {
        Squash::None => None,
        Squash::Root { uid, gid } => Some(format!("root is {uid}:{gid}")),
        Squash::All { uid, gid } => Some(format!("all are {uid}:{gid}")),
    };
    let read_only = grant.read_only.then(|| "read-only".to_owned());
    grant.subtree.clone().into_iter().chain(read_only).chain(squash).collect()
}

impl Token {
    /// Carries it out.
    pub async fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Create(create) => create.run().await?,
            Command::List { access, json } => match access.ask(AdminRequest::Tokens).await? {
                AdminReply::Tokens(tokens) => show(&tokens, json)?,
                other => bail!("metad answered {other:?} when asked for its tokens"),
            },
            Command::Revoke { access, token } => {
                let Ok(id) = u64::from_str_radix(&token, 16) else {
                    bail!("{token:?} is no number of a token, such as 00c0ffee00c0ffee: `surf token list` shows them");
                };
                access.ask(AdminRequest::RevokeToken { id: TokenId(id) }).await?;
                say!("token {token} is revoked; identities that were made with it stay valid");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Create {
    async fn run(self) -> Result<()> {
        if self.role == Role::Metad && self.name.as_deref().and_then(metad_number).is_none() {
            bail!("a metad has a number that no other ever had: name it with --name, such as metad-4");
        }
        let (admin, limit) = self.access.enter()?;
        let (secret, id) = (Secret::random(), TokenId(rand::random()));
        let squash = self.squash.unwrap_or_default();
        let grant = ClientGrant { read_only: self.read_only, subtree: self.confine, squash };
        let valid_ms = u64::try_from(self.valid.as_millis())?;
        let new =
            NewToken { id, hash: secret.hash(), role: self.role, name: self.name, grant, uses: self.uses, valid_ms };
        let made = async {
            let status = admin.status(limit).await?;
            admin.ask_admin(AdminRequest::CreateToken(new), limit).await?;
            anyhow::Ok(status)
        };
        let (status, ca) = (made.await, admin.ca_hash());
        admin.close().await;
        let status = status?;
        let metads: Vec<SocketAddr> = status.metads.iter().map(|(_, addr, ..)| *addr).take(TOKEN_METADS_MAX).collect();
        let token = JoinToken { cluster: status.cluster, metads, ca, role: self.role, id, secret };
        say!("{}", token.to_text());
        let (kind, uses, valid) = (kind_of(self.role), self.uses, output::duration(self.valid));
        // Without an address, a node gets no configuration.
        let listen = if self.role == Role::Client { "" } else { " --listen ADDRESS" };
        complain!(
            "token {} for {uses} x {}, valid for {valid}. On the new machine: `surf {kind} enroll TOKEN{listen}`",
            shown(id),
            self.role
        );
        Ok(())
    }
}

/// Returns the number in the name of a metad.
#[must_use]
pub fn metad_number(name: &str) -> Option<u64> {
    name.strip_prefix("metad-")?.parse().ok().filter(|number| *number > 0)
}

/// Returns the command by which a machine of this role enrolls.
#[must_use]
pub fn kind_of(role: Role) -> &'static str {
    if role == Role::Client { "client" } else { "node" }
}

fn shown(id: TokenId) -> String {
    format!("{:016x}", id.0)
}

fn word(state: TokenState) -> &'static str {
    match state {
        TokenState::Valid => "valid",
        TokenState::Expired => "expired",
        TokenState::UsedUp => "used up",
        TokenState::Revoked => "revoked",
    }
}

fn show(tokens: &[TokenInfo], as_json: bool) -> Result<()> {
    if as_json {
        let one = |token: &TokenInfo| {
            json!({
                "id": shown(token.id), "role": token.role.to_string(), "name": token.name, "state": word(token.state),
                "read_only": token.grant.read_only, "confined_to": token.grant.subtree,
                "restrictions": restrictions(&token.grant), "uses": token.uses,
                "used_by": token.used_by, "made": output::time(token.made), "until": output::time(token.until),
            })
        };
        return output::json(&tokens.iter().map(one).collect::<Vec<_>>().into());
    }
    let row = |token: &TokenInfo| {
        let left = u64::try_from(token.until.nanos_since(Timestamp::now())).unwrap_or(0);
        let left = if token.state == TokenState::Valid {
            output::duration(Duration::from_secs(left / 1_000_000_000))
        } else {
            String::new()
        };
        let restricted = restrictions(&token.grant).join(", ");
        let used = format!("{} of {}", token.used_by.len(), token.uses);
        let by = token.used_by.join(" ");
        vec![shown(token.id), token.role.to_string(), word(token.state).to_owned(), left, used, restricted, by]
    };
    output::table(
        &["TOKEN", "ROLE", "STATE", "LEFT", "USED", "RESTRICTED", "BY"],
        &tokens.iter().map(row).collect::<Vec<_>>(),
    );
    Ok(())
}
