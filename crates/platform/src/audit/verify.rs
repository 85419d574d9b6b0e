//! Checks the audit log from its first record to its last: numbers without a gap, hashes that follow from what is written, a head
//! that is the last record's, and signed checkpoints that the chain still agrees with.

use std::collections::HashMap;

use crate::audit::{AuditRecord, Checkpoint, GENESIS, hex};
use crate::error::PlatformError;
use crate::store::Store;

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// At which record.
    pub seq: u64,
    /// What.
    pub what: String,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditReport {
    /// Records that were read.
    pub n_records: u64,
    /// Checkpoints that agree.
    pub n_checkpoints: u64,
    /// The last record's hash, in hexadecimal digits.
    pub head: String,
    /// What is wrong; the first is where it begins.
    pub findings: Vec<Finding>,
}

/// Findings after which nobody needs more.
const N_FINDINGS_MAX: usize = 100;

/// A verification, record by record.
pub struct Verifier {
    report: AuditReport,
    previous: [u8; 32],
    /// Hashes that were signed, by record.
    signed: HashMap<u64, String>,
    last_signed: u64,
}

impl Verifier {
    /// Against these checkpoints, which this key must have signed.
    pub fn new(checkpoints: &[Checkpoint], public_key: &str) -> Self {
        let mut verifier = Self { report: AuditReport::default(), previous: GENESIS, signed: HashMap::new(), last_signed: 0 };
        for checkpoint in checkpoints {
            if !checkpoint.is_signed_by(public_key) {
                verifier.find(checkpoint.seq, "a checkpoint is not signed by this installation's key".into());
                continue;
            }
            verifier.last_signed = verifier.last_signed.max(checkpoint.seq);
            let before = verifier.signed.insert(checkpoint.seq, checkpoint.hash.clone());
            if before.is_some_and(|before| before != checkpoint.hash) {
                verifier.find(checkpoint.seq, "two checkpoints of the same record differ: the log was rewritten".into());
            }
        }
        verifier
    }

    fn find(&mut self, seq: u64, what: String) {
        if self.report.findings.len() < N_FINDINGS_MAX {
            self.report.findings.push(Finding { seq, what });
        }
    }

    /// Takes the next record.
    pub fn record(&mut self, record: &AuditRecord) {
        let expected = self.report.n_records + 1;
        if record.seq != expected {
            self.find(expected, format!("expected record {expected}, got {}: records are missing", record.seq));
            self.report.n_records = record.seq - 1;
        }
        self.report.n_records += 1;
        if record.previous_hash != self.previous {
            self.find(record.seq, "it does not follow the record before it: a record was changed, removed or moved".into());
        }
        if record.expected_hash() != record.hash {
            self.find(record.seq, "its hash is not that of what it says: it was changed".into());
        }
        let hash = hex(&record.hash);
        match self.signed.remove(&record.seq) {
            Some(signed) if signed != hash => {
                self.find(record.seq, "its hash is not the one that was signed: the log was rewritten".into());
            }
            Some(_) => self.report.n_checkpoints += 1,
            None => {}
        }
        (self.previous, self.report.head) = (record.hash, hash);
    }

    /// Ends, with what the database says the last record is.
    pub fn end(mut self, (head_seq, head_hash): (u64, [u8; 32])) -> AuditReport {
        let n_records = self.report.n_records;
        if head_seq != n_records || head_hash != self.previous {
            self.find(n_records + 1, format!("the log ends with record {n_records}, and should with {head_seq}: its end was cut"));
        }
        if self.last_signed > n_records {
            let what = format!("record {} was signed, and the log ends with {n_records}: an older state was put back", self.last_signed);
            self.find(n_records + 1, what);
        }
        self.report.findings.sort_by_key(|finding| finding.seq);
        self.report
    }
}

impl AuditReport {
    /// Whether all is as it was written.
    pub fn is_whole(&self) -> bool {
        self.findings.is_empty()
    }
}

impl Store {
    /// Verifies the whole log, against the database's own checkpoints and copies from elsewhere.
    pub async fn verify_audit(&self, copies: &[Checkpoint], public_key: &str) -> Result<AuditReport, PlatformError> {
        let mut checkpoints = self.checkpoints().await?;
        checkpoints.extend_from_slice(copies);
        let mut verifier = Verifier::new(&checkpoints, public_key);
        // What is written meanwhile is behind this head, and is not looked at.
        let head = self.audit_head().await?;
        let mut after = 0;
        loop {
            let records = self.audit_records(after, None).await?;
            let Some(last) = records.last() else { break };
            after = last.seq;
            records.iter().filter(|record| record.seq <= head.0).for_each(|record| verifier.record(record));
            if after >= head.0 {
                break;
            }
        }
        Ok(verifier.end(head))
    }
}
