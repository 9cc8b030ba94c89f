//! The metadata: metad checks it, and mends it.

use super::Cluster;
use super::report::{Line, Outcome, Report};
use anyhow::{Result, bail};
use wire::message::check::{CheckId, CheckReply, CheckRequest, Finding, FindingKind, REPAIRS_MAX, Repair};

/// Takes the state of the cluster.
pub(super) async fn begin(cluster: &Cluster, report: &mut Report) -> Result<CheckId> {
    report.begin_round();
    report.progress("taking the state of the metadata");
    match cluster.step(CheckRequest::Begin).await? {
        CheckReply::Begun { check, applied, pairs } => {
            report.progress(&format!("checking {pairs} keys as of log entry {applied}"));
            Ok(check)
        }
        other => bail!("metad answered {other:?} when asked to begin a check"),
    }
}

/// Reads the findings, and mends them if asked to. Returns true when something was mended.
pub(super) async fn check(cluster: &Cluster, check: CheckId, report: &mut Report, repair: bool) -> Result<bool> {
    let (mut mended, mut seq) = (false, 0);
    loop {
        let CheckReply::Findings { findings, looked, ended } = cluster.step(CheckRequest::Findings(check)).await?
        else {
            bail!("metad answered something else when asked for findings");
        };
        report.progress(&format!("checking the metadata: {looked} keys looked at"));
        for some in findings.chunks(REPAIRS_MAX) {
            let outcomes = if repair {
                seq += 1;
                carry_out(cluster, check, seq, some).await?
            } else {
                some.iter().map(|finding| outcome(finding, None)).collect()
            };
            for (finding, outcome) in some.iter().zip(outcomes) {
                mended |= outcome == Outcome::Repaired;
                let advice = advice(finding);
                let Finding { kind, place, what, .. } = finding;
                report.find(&Line { kind: kind.word(), place, what, outcome, advice });
            }
        }
        if ended {
            return Ok(mended);
        }
    }
}

async fn carry_out(cluster: &Cluster, check: CheckId, seq: u64, findings: &[Finding]) -> Result<Vec<Outcome>> {
    let repairs: Vec<Repair> = findings.iter().filter_map(|finding| finding.repair.clone()).collect();
    if repairs.is_empty() {
        return Ok(findings.iter().map(|finding| outcome(finding, None)).collect());
    }
    let count = repairs.len();
    let made = match cluster.step(CheckRequest::Repair { check, seq, repairs }).await? {
        CheckReply::Repaired(made) if made.len() == count => made,
        other => bail!("metad answered {other:?} to repairs"),
    };
    let mut made = made.into_iter();
    let of = |finding: &Finding| outcome(finding, finding.repair.as_ref().and_then(|_| made.next()));
    Ok(findings.iter().map(of).collect())
}

fn outcome(finding: &Finding, made: Option<bool>) -> Outcome {
    match (&finding.repair, made) {
        (None, _) => Outcome::ByHand,
        (Some(_), None) => Outcome::Repairable,
        (Some(_), Some(true)) => Outcome::Repaired,
        (Some(_), Some(false)) => Outcome::Failed,
    }
}

/// Advice for a finding, or the effect of its repair.
fn advice(finding: &Finding) -> &'static str {
    match finding.kind {
        FindingKind::Undecodable => "restore this metad's state from another one or from a backup",
        FindingKind::DanglingEntry | FindingKind::EntryWithoutDirectory => "the entry is removed",
        FindingKind::WrongKind | FindingKind::MisplacedEntry => "the entry is written anew",
        FindingKind::WrongParent => "the superfluous entry is removed, or the directory records its real place",
        FindingKind::Circle | FindingKind::Nameless => "it gets a name in /lost+found",
        FindingKind::LinkCount | FindingKind::DirectoryCount | FindingKind::AllocatedCount => "it is counted anew",
        FindingKind::ReferenceCount | FindingKind::WrongCounter => "it is counted anew",
        FindingKind::BadExtent => "copy what can be read of the file, and remove it",
        FindingKind::Leftover if matches!(finding.repair, Some(Repair::Content(_))) => {
            "the content gets a name in /lost+found, or a mark for its removal is taken off"
        }
        FindingKind::Leftover => "it is removed",
        FindingKind::WrongAttributes if finding.repair.is_none() => "remove it, and make it again",
        FindingKind::WrongAttributes => "it is set right",
        FindingKind::StaleOrphan | FindingKind::StaleLock => "it is let go",
        FindingKind::WrongIndex if finding.repair.is_none() => {
            "end that mount, or let it be: what its journal still has is refused"
        }
        FindingKind::WrongIndex => "the index is set right",
        FindingKind::WrongSession if finding.repair.is_none() => "unmount and mount again what is mounted",
        FindingKind::WrongSession => "it is forgotten",
    }
}
