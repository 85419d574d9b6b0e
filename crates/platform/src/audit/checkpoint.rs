//! Signed statements of how far the audit log's chain was. They stand in the database for convenience; what they are worth comes
//! from their copies elsewhere, in a file that is only ever appended to, or wherever an operator sends it.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;

use crate::audit::{get_hash, hex};
use crate::error::PlatformError;
use crate::secret_file::InstallationSecret;
use crate::store::{Store, as_i64, get, get_count, get_time};
use crate::time::Timestamp;

/// See the module. Hashes, keys and signatures are in hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// The last record.
    pub seq: u64,
    /// When it was signed, in microseconds since 1970.
    pub at_micros: i64,
    /// The last record's hash.
    pub hash: String,
    /// Whose signature it is.
    pub public_key: String,
    /// Over the three.
    pub signature: String,
}

/// Signs checkpoints.
pub struct CheckpointKey(SigningKey);

impl InstallationSecret {
    /// The key that this installation signs checkpoints with.
    pub fn checkpoint_key(&self) -> CheckpointKey {
        CheckpointKey(SigningKey::from_bytes(&self.derive("bitnet platform 2026 checkpoints of the audit log")))
    }
}

impl CheckpointKey {
    /// What a verifier has to know, in hexadecimal digits.
    pub fn public_key(&self) -> String {
        hex(self.0.verifying_key().as_bytes())
    }

    /// Says that the chain had this hash at this record.
    pub fn sign(&self, (seq, hash): (u64, [u8; 32]), at: Timestamp) -> Checkpoint {
        let hash = hex(&hash);
        let signature = self.0.sign(&message(seq, at.0, &hash));
        Checkpoint { seq, at_micros: at.0, hash, public_key: self.public_key(), signature: signature.to_string().to_lowercase() }
    }
}

fn message(seq: u64, at_micros: i64, hash: &str) -> Vec<u8> {
    format!("bitnet audit checkpoint 1\n{seq}\n{at_micros}\n{hash}\n").into_bytes()
}

impl Checkpoint {
    /// Whether it is signed by this key.
    pub fn is_signed_by(&self, public_key: &str) -> bool {
        let key = blake3::Hash::from_hex(public_key).ok().and_then(|bytes| VerifyingKey::from_bytes(bytes.as_bytes()).ok());
        let signature = self.signature.parse::<Signature>().ok();
        match (key, signature) {
            (Some(key), Some(signature)) if self.public_key == public_key => {
                key.verify_strict(&message(self.seq, self.at_micros, &self.hash), &signature).is_ok()
            }
            _ => false,
        }
    }
}

/// A file of checkpoints, one JSON object a line, that is only appended to.
#[derive(Debug, Clone)]
pub struct CheckpointFile(PathBuf);

impl CheckpointFile {
    /// One that may or may not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// All of them.
    pub fn read(&self) -> Result<Vec<Checkpoint>, PlatformError> {
        let text = match std::fs::read_to_string(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(&self.0, &error)),
        };
        let parse = |line| {
            serde_json::from_str(line)
                .map_err(|error| PlatformError::Corrupt { what: "the file of checkpoints", reason: error.to_string() })
        };
        text.lines().map(parse).collect()
    }

    fn append(&self, checkpoint: &Checkpoint) -> Result<(), PlatformError> {
        let open = std::fs::OpenOptions::new().create(true).append(true).open(&self.0);
        let line = serde_json::to_string(checkpoint).map_err(|error| failed(&self.0, &std::io::Error::from(error)))?;
        let written = open.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()).and_then(|()| file.sync_all()));
        written.map_err(|error| failed(&self.0, &error))
    }
}

fn failed(path: &Path, error: &std::io::Error) -> PlatformError {
    PlatformError::File { path: path.display().to_string(), reason: error.to_string() }
}

impl Store {
    /// Signs how far the chain is, unless that was signed already, and puts it here and into the file.
    pub async fn checkpoint(&self, key: &CheckpointKey, file: &CheckpointFile, now: Timestamp) -> Result<(), PlatformError> {
        let head = self.audit_head().await?;
        if head.0 == 0 || self.checkpoints().await?.last().is_some_and(|last| last.seq >= head.0) {
            return Ok(());
        }
        let checkpoint = key.sign(head, now);
        // The file first: a copy too many is harmless, one too few is not.
        file.append(&checkpoint)?;
        let mut write = self.begin().await?;
        let doing = "signing the audit log";
        let insert = sqlx::query(
            "INSERT INTO audit_checkpoint (seq, at, hash, public_key, signature) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (seq) DO NOTHING",
        );
        let insert = insert.bind(as_i64(checkpoint.seq)).bind(checkpoint.at_micros).bind(head.1.to_vec());
        let insert = insert.bind(checkpoint.public_key).bind(checkpoint.signature);
        insert.execute(&mut *write.transaction).await.map_err(PlatformError::database(doing))?;
        write.commit(doing).await
    }

    /// Those that stand in the database.
    pub(crate) async fn checkpoints(&self) -> Result<Vec<Checkpoint>, PlatformError> {
        let query = sqlx::query("SELECT * FROM audit_checkpoint ORDER BY seq");
        let rows = query.fetch_all(self.pool()).await.map_err(PlatformError::database("reading checkpoints"))?;
        let read = |row: &AnyRow| {
            Ok(Checkpoint {
                seq: get_count(row, "seq")?,
                at_micros: get_time(row, "at")?.0,
                hash: hex(&get_hash(row, "hash")?),
                public_key: get(row, "public_key")?,
                signature: get(row, "signature")?,
            })
        };
        rows.iter().map(read).collect()
    }
}
