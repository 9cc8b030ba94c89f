//! `surf client enroll`, `surf node enroll`: the identity of a new machine, by a token and nothing else.
//!
//! The key is made here and stays here. It is written before anything is asked, and removed when everything is done, so
//! that a command that was interrupted can be repeated: the same key gets the same identity, and is counted once.

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
use wire::tls::{Identity, Role};
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

/// The token, and how long to ask.
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
        let pending = Pending::beside(&out);
        let bundle = match pending.earlier(&token, || Bundle::load(&out))? {
            Some(bundle) => bundle,
            None => {
                let bundle = newcomer.enroll(&token, &pending).await?;
                bundle.save(&out)?;
                bundle
            }
        };
        pending.remove();
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
        let pending = Pending::beside(&path);
        let load = || {
            let (cluster, metads) = (token.cluster.clone(), token.metads.clone());
            Ok(Bundle { cluster, metads, identity: Identity::load(&path)? })
        };
        let bundle = match pending.earlier(&token, load)? {
            Some(bundle) => bundle,
            None => {
                let bundle = newcomer.enroll(&token, &pending).await?;
                bundle.identity.save(&path)?;
                bundle
            }
        };
        let name = &bundle.identity.subject().name;
        say!("{name} is a {role} of {}: its identity is {}", bundle.cluster, path.display());
        match listen {
            Some(addr) => configure(&bundle, &out, &path, addr)?,
            None => complain!("write {}, which names it as `identity`", out.join(format!("{role}.toml")).display()),
        }
        if role == Role::Metad {
            complain!("start it, and then add it with `surf cluster add` or `surf metad replace`");
        }
        pending.remove();
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

    /// Gets an identity for the pending key, which is made if there is none.
    async fn enroll(&self, token: &JoinToken, pending: &Pending<'_>) -> Result<Bundle> {
        let key = match NewKey::load(&pending.key)? {
            Some(key) => key,
            None => {
                let key = NewKey::generate()?;
                key.save(&pending.key)?;
                key
            }
        };
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Ok(enroll(token, &key, host.trim(), Duration::from_secs(self.wait_s)).await?)
    }
}

/// An enrolment that is not complete.
struct Pending<'a> {
    out: &'a Path,
    /// The file that has the key until everything is done.
    key: PathBuf,
}

impl<'a> Pending<'a> {
    fn beside(out: &'a Path) -> Self {
        let mut name: OsString = out.as_os_str().to_owned();
        name.push(".key");
        Self { out, key: name.into() }
    }

    /// Returns what an earlier run of this command has made and not gone on from. Fails when something else is there.
    fn earlier(&self, token: &JoinToken, load: impl FnOnce() -> Result<Bundle, wire::Error>) -> Result<Option<Bundle>> {
        let (out, key) = (self.out.display(), self.key.display());
        match fs::symlink_metadata(self.out) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            found => found.with_context(|| out.to_string())?,
        };
        let Some(pending) = NewKey::load(&self.key)? else {
            bail!("{out}: is there already; move it away, or choose another place with --out");
        };
        let bundle = load()?;
        if !pending.is_of(&bundle.identity) || !bundle.identity.authorities().iter().any(|ca| token.is_of(ca)) {
            bail!(
                "{out}: is there already, and was not made with {key} and this token; move both away, or choose another place with --out"
            );
        }
        complain!("{out}: was made by an earlier run of this command, which goes on from there");
        Ok(Some(bundle))
    }

    /// Removes the key, which the identity has now.
    fn remove(&self) {
        match fs::remove_file(&self.key) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                complain!("{}: cannot be removed ({error}); it holds the key, so remove it", self.key.display());
            }
            _ => {}
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use wire::cert::Term;
    use wire::ids::TokenId;
    use wire::issuer::{IssuerKey, SigningRequest};
    use wire::tls::{ClusterCa, Subject};
    use wire::token::{Secret, hash_of};

    /// What a run has left that was interrupted before its end.
    struct Left {
        dir: tempfile::TempDir,
        token: JoinToken,
    }

    impl Left {
        fn made() -> Self {
            let (dir, ca) = (tempfile::tempdir().unwrap(), ClusterCa::create("t").unwrap());
            let issuer = IssuerKey::create(&ca, "i", &[Role::Blockd]).unwrap();
            let key = NewKey::generate().unwrap();
            let signing = SigningRequest::decode(&key.request().unwrap()).unwrap();
            let cert = issuer.sign(&signing, &Subject::new(Role::Blockd, "blockd-4"), &Term::lasting()).unwrap();
            let ca = ca.issue(&Subject::new(Role::Client, "any")).unwrap().ca().to_vec();
            let left = Self {
                token: JoinToken {
                    cluster: "t".to_owned(),
                    // Nobody answers there: what is left must be enough.
                    metads: vec!["127.0.0.1:1".parse().unwrap()],
                    ca: hash_of(&ca),
                    role: Role::Blockd,
                    id: TokenId(1),
                    secret: Secret::random(),
                },
                dir,
            };
            key.save(&left.at("blockd.pem.key")).unwrap();
            key.identity(&ca, &cert, issuer.cert()).unwrap().save(&left.at("blockd.pem")).unwrap();
            left
        }

        fn at(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        async fn enroll(&self) -> Result<ExitCode> {
            let newcomer = Newcomer { token: self.token.to_text(), wait_s: 0 };
            let (out, listen) = (self.dir.path().to_owned(), "127.0.0.1:7999".parse().ok());
            Node { command: NodeCommand::Enroll { newcomer, out, listen } }.run().await
        }
    }

    #[tokio::test]
    async fn an_enrolment_that_was_interrupted_goes_on_where_it_was() {
        let left = Left::made();
        left.enroll().await.unwrap();
        let config = fs::read_to_string(left.at("blockd.toml")).unwrap();
        assert!(config.contains("127.0.0.1:7999") && config.contains("blockd.pem"), "{config}");
        assert!(!left.at("blockd.pem.key").exists() && !left.at("blockd.toml.partial").exists());
        let error = left.enroll().await.unwrap_err().to_string();
        assert!(error.contains("is there already") && error.contains("--out"), "{error}");
    }

    #[tokio::test]
    async fn an_identity_of_another_key_is_not_taken_for_an_earlier_one() {
        let left = Left::made();
        NewKey::generate().unwrap().save(&left.at("blockd.pem.key")).unwrap();
        let error = left.enroll().await.unwrap_err().to_string();
        assert!(error.contains("was not made with") && error.contains("move both away"), "{error}");
        assert!(left.at("blockd.pem").exists() && !left.at("blockd.toml").exists());
    }
}
