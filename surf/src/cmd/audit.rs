//! `surf audit`: what has happened to identities, and who was refused.

use super::access::Access;
use super::lengths;
use crate::output::{self, complain};
use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;
use std::process::ExitCode;
use std::time::Duration;
use wire::attr::Timestamp;
use wire::message::admin::{AdminReply, AdminRequest};
use wire::message::cert::AuditRecord;

/// How long a metad may take to say whom it has refused.
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// Who enrolled, joined, was renewed, refused, revoked or evicted, and who did it: the last few thousand of each.
#[derive(Args)]
pub struct Audit {
    #[command(flatten)]
    access: Access,
    /// Only the last so long: a number with s, m, h or d.
    #[arg(long, value_name = "TIME", value_parser = lengths::duration)]
    since: Option<Duration>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// A record, and the metad that alone has it.
struct Line {
    record: AuditRecord,
    metad: Option<String>,
}

impl Audit {
    /// Carries it out.
    pub async fn run(self) -> Result<ExitCode> {
        let back = self.since.map(|since| i128::try_from(since.as_nanos()).unwrap_or(i128::MAX));
        let since = back.map_or_else(Timestamp::default, |back| Timestamp::now().shifted(-back));
        let (admin, limit) = self.access.enter()?;
        let mut lines = Vec::new();
        let asked = async {
            let AdminReply::Audit(audit) = admin.ask_admin(AdminRequest::Audit { since }, limit).await? else {
                bail!("metad answered something else when asked for its audit");
            };
            lines.extend(audit.records.into_iter().map(|record| Line { record, metad: None }));
            // Refusals are known to those alone who have refused.
            for (id, addr, ..) in admin.status(limit).await?.metads {
                match admin.ask_once(addr, AdminRequest::Refusals { since }, ASK_LIMIT).await {
                    Ok(AdminReply::Audit(refusals)) => {
                        let line = |record| Line { record, metad: Some(format!("metad-{id}")) };
                        lines.extend(refusals.records.into_iter().map(line));
                    }
                    Ok(_) => complain!("metad-{id} answered something else when asked whom it has refused"),
                    Err(error) => complain!("whom metad-{id} has refused is not among this: {error:#}"),
                }
            }
            Ok(())
        };
        let asked = asked.await;
        admin.close().await;
        asked?;
        lines.sort_by_key(|line| line.record.at);
        show(&lines, self.json)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn show(lines: &[Line], as_json: bool) -> Result<()> {
    if as_json {
        let one = |Line { record, metad }: &Line| {
            json!({
                "at": output::time(record.at), "event": record.event.name(), "who": record.who,
                "address": record.addr, "detail": record.detail, "metad": metad,
            })
        };
        return output::json(&lines.iter().map(one).collect::<Vec<_>>().into());
    }
    let row = |Line { record, metad }: &Line| {
        let detail = match metad {
            Some(metad) => format!("{} (at {metad})", record.detail),
            None => record.detail.clone(),
        };
        let addr = record.addr.map_or_else(String::new, |addr| addr.to_string());
        vec![output::time(record.at), record.event.name().to_owned(), record.who.clone(), addr, detail]
    };
    output::table(&["AT", "EVENT", "WHO", "FROM", "DETAIL"], &lines.iter().map(row).collect::<Vec<_>>());
    Ok(())
}
