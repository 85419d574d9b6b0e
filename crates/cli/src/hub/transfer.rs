//! One file from the hub to the disk: continued where an earlier try stopped, checked against the announced length and hash,
//! and only then given its name.
//!
//! Why not `hf-hub`'s own download: version 0.5 appends whatever the server sends to what it has, so a server that ignores
//! `Range` corrupts the file silently; a `.part` file that is complete but was not renamed asks for an empty range and fails for
//! ever; neither length nor hash is looked at (its own test shows a corrupted resume passing); and the server's `ETag` becomes a
//! path unread.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use indicatif::ProgressBar;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use ureq::Body;
use ureq::http::{Response, StatusCode};

use super::name::{Digest, RemotePath};
use super::remote::{Remote, text};
use super::{HubError, HubName};

/// A file whose length is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AnnouncedFile {
    /// Name within the repository.
    pub(crate) path: RemotePath,
    /// Bytes.
    pub(crate) size_bytes: u64,
    /// Hash of the bytes, unless the hub keeps it to itself.
    pub(crate) digest: Option<Digest>,
}

/// How often a broken connection is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retries {
    /// Tries in a row that may yield no byte.
    pub(crate) n_fruitless_max: u32,
    /// Wait before the second fruitless try; doubles with each.
    pub(crate) first_wait: Duration,
}

/// A transfer of one file.
pub(crate) struct Transfer<'a> {
    pub(crate) remote: &'a Remote,
    pub(crate) name: &'a HubName,
    pub(crate) file: &'a AnnouncedFile,
    pub(crate) url: String,
    pub(crate) retries: Retries,
    pub(crate) bar: &'a ProgressBar,
}

/// Why one try ended early.
enum Broken {
    /// Another try may do better.
    Transient(Box<dyn std::error::Error + Send + Sync>),
    /// It will not.
    Fatal(HubError),
}

impl Transfer<'_> {
    /// Brings `part` (opened for reading and writing, maybe with an earlier try's bytes) to the announced length and hash.
    pub(crate) fn complete(&self, part: &mut File, part_path: &Path) -> Result<(), HubError> {
        let mut earlier_bytes = self.length(part, part_path)?;
        loop {
            self.fill(part, part_path)?;
            match self.verify(part, part_path) {
                Err(HubError::Damaged { .. }) if earlier_bytes > 0 => earlier_bytes = 0,
                verdict => return verdict,
            }
        }
    }

    /// Appends until the length is right.
    fn fill(&self, part: &mut File, part_path: &Path) -> Result<(), HubError> {
        let mut n_fruitless = 0;
        loop {
            let before = self.length(part, part_path)?;
            if before == self.file.size_bytes {
                return Ok(());
            }
            let source = match self.append(part, before, part_path) {
                Ok(()) => "the server ended the transfer early".into(),
                Err(Broken::Fatal(error)) => return Err(error),
                Err(Broken::Transient(source)) => source,
            };
            let got = self.length(part, part_path)?;
            n_fruitless = if got > before { 0 } else { n_fruitless + 1 };
            if n_fruitless > self.retries.n_fruitless_max {
                return Err(HubError::Interrupted { file: self.file.path.to_string(), expected: self.file.size_bytes, got, source });
            }
            if n_fruitless > 1 {
                std::thread::sleep(self.retries.first_wait * 2u32.saturating_pow(n_fruitless - 2));
            }
        }
    }

    /// One request: appends what it yields to the `first` bytes there are.
    fn append(&self, part: &mut File, first: u64, part_path: &Path) -> Result<(), Broken> {
        let response = self.remote.get(&self.url, first).map_err(|error| Broken::Transient(Box::new(error)))?;
        let first = self.first_byte(&response, first)?;
        let disk = |error| Broken::Fatal(HubError::disk(part_path)(error));
        part.set_len(first).and_then(|()| part.seek(SeekFrom::Start(first))).map_err(disk)?;
        self.bar.set_position(first);
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0u8; 1 << 16];
        let mut got = first;
        loop {
            let n_bytes = body.read(&mut buffer).map_err(|error| Broken::Transient(Box::new(error)))?;
            if n_bytes == 0 {
                return Ok(());
            }
            got += n_bytes as u64;
            if got > self.file.size_bytes {
                part.set_len(0).map_err(disk)?;
                return Err(Broken::Fatal(self.wrong_length(got)));
            }
            part.write_all(&buffer[..n_bytes]).map_err(disk)?;
            self.bar.set_position(got);
        }
    }

    /// Where the bytes of `response` belong: after the `first` we have, or at the start if the server does not continue.
    fn first_byte(&self, response: &Response<Body>, first: u64) -> Result<u64, Broken> {
        let (first, announced) = match response.status() {
            StatusCode::OK => (0, text(response.headers(), "content-length").and_then(|length| length.parse().ok())),
            StatusCode::PARTIAL_CONTENT => match text(response.headers(), "content-range").and_then(content_range) {
                Some((start, total)) if start == first => (first, Some(total)),
                _ => return Err(Broken::Transient("the server answered with another range than asked for".into())),
            },
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => return Err(self.busy(response)),
            status if status.is_server_error() => return Err(self.busy(response)),
            // Our bytes are not a beginning of what the server has: its file is shorter than it announced.
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(Broken::Fatal(self.wrong_length(first))),
            _ => return Err(Broken::Fatal(self.remote.refusal(self.name, Some(&self.file.path), &self.url, response))),
        };
        match announced {
            Some(total) if total != self.file.size_bytes => Err(Broken::Fatal(self.wrong_length(total))),
            _ => Ok(first),
        }
    }

    /// Compares the hash; on a difference the file is emptied, so that the next try starts afresh.
    fn verify(&self, part: &mut File, part_path: &Path) -> Result<(), HubError> {
        let Some(expected) = self.file.digest else { return Ok(()) };
        let got = hash(part, self.file.size_bytes, expected).map_err(HubError::disk(part_path))?;
        if got == expected {
            return Ok(());
        }
        part.set_len(0).map_err(HubError::disk(part_path))?;
        Err(HubError::Damaged { file: self.file.path.to_string(), expected: expected.to_string(), got: got.to_string() })
    }

    fn busy(&self, response: &Response<Body>) -> Broken {
        Broken::Transient(Box::new(HubError::Status { url: self.url.clone(), status: response.status().as_u16() }))
    }

    fn wrong_length(&self, got: u64) -> HubError {
        HubError::Length { file: self.file.path.to_string(), expected: self.file.size_bytes, got }
    }

    /// Bytes in `part`; more than announced cannot be a beginning of the file and count as none.
    fn length(&self, part: &File, part_path: &Path) -> Result<u64, HubError> {
        let length = part.metadata().map_err(HubError::disk(part_path))?.len();
        if length <= self.file.size_bytes {
            return Ok(length);
        }
        part.set_len(0).map_err(HubError::disk(part_path))?;
        Ok(0)
    }
}

/// `bytes 5-9/10` → (5, 10).
fn content_range(text: &str) -> Option<(u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()?))
}

/// The hash of all of `file`, of the kind of `like`.
fn hash(file: &mut File, size_bytes: u64, like: Digest) -> std::io::Result<Digest> {
    file.seek(SeekFrom::Start(0))?;
    Ok(match like {
        Digest::Sha256(_) => Digest::Sha256(absorb(file, Sha256::new())?.into()),
        Digest::GitSha1(_) => {
            let mut hasher = Sha1::new();
            sha1::Digest::update(&mut hasher, format!("blob {size_bytes}\0"));
            Digest::GitSha1(absorb(file, hasher)?.into())
        }
    })
}

fn absorb<H: sha2::Digest>(file: &mut File, mut hasher: H) -> std::io::Result<sha2::digest::Output<H>> {
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            n_bytes => hasher.update(&buffer[..n_bytes]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_of_known_bytes_is_the_published_one() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(b"hello\n").expect("written");
        let git = Digest::GitSha1([0; 20]);
        let hashed = hash(&mut file, 6, git).expect("hashed");
        assert_eq!(hashed.to_string(), "ce013625030ba8dba906f756967f9e9ca394464a", "git hash-object of `hello`");
        let sha256 = hash(&mut file, 6, Digest::Sha256([0; 32])).expect("hashed");
        assert_eq!(sha256.to_string(), "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03", "sha256sum of `hello`");
    }

    #[test]
    fn content_range_of_other_units_is_nothing() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, 10)));
        for text in ["bytes */10", "items 5-9/10", "bytes 5-9/*", "bytes 5", ""] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }
}
