//! `surf client enroll`, `surf node enroll`: the identity of a new machine, by a token and nothing else.
//!
//! The key is made here and stays here. It is written before anything is asked, so that a command that was interrupted
//! can be repeated: the same key gets the same identity, and is counted once.

use super::node::{self, ETC, make_dir};
use super::token::{kind_of, metad_number};
use crate::output::{complain, say};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use wire::bundle::Bundle;
use wire::issuer::NewKey;
use wire::quic::enroll::enroll;
use wire::tls::Role;
use wire::token::JoinToken;

/// Longest text that is read from standard input.
const STDIN_BYTES_MAX: u64 = 64 << 10;

/// The identity of this machine as a client.
#[derive(Args)]
pub struct Client {
    #[command(subcommand)]
    command: ClientCommand,
}

#[derive(Subcommand)]
enum ClientCommand {
    /// Get a bundle by a token, and mount with it. The key is made here, and never leaves this machine.
    Enroll {
        #[command(flatten)]
        newcomer: Newcomer,
        /// The new bundle, readable by its owner alone.
        #[arg(long, value_name = "FILE", default_value = "client.bundle")]
        out: PathBuf,
    },
}

/// The identity of this machine as a node of the cluster.
#[derive(Args)]
pub struct Node {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Subcommand)]
enum NodeCommand {
    /// Get the identity of a block daemon or a metad by a token. The key is made here, and never leaves this machine.
    Enroll {
        #[command(flatten)]
        newcomer: Newcomer,
        /// Directory for the identity, and for the configuration.
        #[arg(long, value_name = "DIR", default_value = ETC)]
        out: PathBuf,
        /// Address on which the node will serve: with it, a configuration is written, unless there is one.
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<SocketAddr>,
    },
}

/// Who comes, and how patiently.
#[derive(Args)]
struct Newcomer {
    /// The token, or `-` to read it from standard input.
    token: String,
    /// Give up after this many seconds.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    wait_s: u64,
}

impl Client {
    /// Carries it out.
    pub async fn run(self) -> Result<ExitCode> {
        let ClientCommand::Enroll { newcomer, out } = self.command;
        let token = newcomer.token(Role::Client)?;
        let bundle = newcomer.enroll(&token, &out, |bundle| bundle.save(&out)).await?;
        let name = &bundle.identity.subject().name;
        say!("{name} is a client of {}: `surfmount --cluster {} MOUNTPOINT`", bundle.cluster, out.display());
        Ok(ExitCode::SUCCESS)
    }
}

impl Node {
    /// Carries it out.
    pub async fn run(self) -> Result<ExitCode> {
        let NodeCommand::Enroll { newcomer, out, listen } = self.command;
        let token = newcomer.token(Role::Blockd)?;
        let role = token.role;
        make_dir(&out)?;
        let path = out.join(format!("{role}.pem"));
        let bundle = newcomer.enroll(&token, &path, |bundle| bundle.identity.save(&path)).await?;
        let name = &bundle.identity.subject().name;
        say!("{name} is a {role} of {}: its identity is {}", bundle.cluster, path.display());
        match listen {
            Some(addr) => configure(&bundle, &out, &path, addr)?,
            None => complain!("write {}, which names it as `identity`", out.join(format!("{role}.toml")).display()),
        }
        if role == Role::Metad {
            complain!("start it, and then add it with `surf cluster add` or `surf metad replace`");
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Newcomer {
    /// Reads the token, which must be for a role of the same kind.
    fn token(&self, role: Role) -> Result<JoinToken> {
        let text = if self.token == "-" {
            let mut text = String::new();
            std::io::stdin().take(STDIN_BYTES_MAX).read_to_string(&mut text).context("standard input")?;
            text
        } else {
            self.token.clone()
        };
        let token: JoinToken = text.parse()?;
        let (wanted, used) = (kind_of(token.role), kind_of(role));
        if wanted != used {
            bail!("the token is for a {}, not for a {used}: use `surf {wanted} enroll`", token.role);
        }
        Ok(token)
    }

    /// Gets an identity, and has it saved in the file `out`, which is not there yet.
    async fn enroll(
        &self,
        token: &JoinToken,
        out: &Path,
        save: impl FnOnce(&Bundle) -> Result<(), wire::Error>,
    ) -> Result<Bundle> {
        if out.exists() {
            bail!("{}: is there already; move it away, or choose another place with --out", out.display());
        }
        let pending = pending(out);
        let key = if pending.exists() {
            NewKey::load(&pending)?
        } else {
            let key = NewKey::generate()?;
            key.save(&pending)?;
            key
        };
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let bundle = enroll(token, &key, host.trim(), Duration::from_secs(self.wait_s)).await?;
        save(&bundle)?;
        // The identity has the key now.
        match fs::remove_file(&pending) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                complain!("{}: cannot be removed ({error}); it holds the key, so remove it", pending.display());
            }
            _ => {}
        }
        Ok(bundle)
    }
}

/// Returns the file that has the key until there is an identity.
fn pending(out: &Path) -> PathBuf {
    let mut name: OsString = out.as_os_str().to_owned();
    name.push(".key");
    name.into()
}

/// Writes the configuration of a node, unless there is one.
fn configure(bundle: &Bundle, home: &Path, identity: &Path, addr: SocketAddr) -> Result<()> {
    let subject = bundle.identity.subject();
    let path = home.join(format!("{}.toml", subject.role));
    if path.exists() {
        complain!("{}: is there already, and stays as it is", path.display());
        return Ok(());
    }
    let mut keys = toml::Table::new();
    let number = if subject.role == Role::Metad {
        keys.insert("cluster".to_owned(), bundle.cluster.clone().into());
        let Some(number) = metad_number(&subject.name) else {
            bail!("{} is not the name of a metad, so it has no number: write {}", subject.name, path.display());
        };
        number
    } else {
        let metads: Vec<String> = bundle.metads.iter().map(SocketAddr::to_string).collect();
        keys.insert("metads".to_owned(), metads.into());
        0
    };
    let identity = fs::canonicalize(identity).unwrap_or_else(|_| identity.to_owned());
    let node = node::Node { role: subject.role, number, addr };
    node.write_config(home, &identity.to_string_lossy(), keys, "")?;
    say!("its configuration is {}", path.display());
    Ok(())
}
