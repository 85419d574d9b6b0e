//! Names of things on a model hub, checked before they become a URL or a path: `owner/name[@revision][:file.gguf]`, and the
//! file names and hashes that a hub answers with. A name that could leave its folder is refused here and nowhere else.

use std::fmt;
use std::str::FromStr;

use super::HubError;

/// Longest part of a name, in bytes; longer ones fit no file system.
const PART_BYTES_MAX: usize = 255;

/// `owner/name[@revision][:file]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubName {
    /// `owner/name`.
    pub(crate) repository: String,
    /// Branch, tag or commit; `main` if not said.
    pub(crate) revision: Option<String>,
    /// One file of the repository, instead of what [`super::select`] picks.
    pub(crate) file: Option<RemotePath>,
}

impl HubName {
    /// The revision asked for.
    pub(crate) fn revision_or_main(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl FromStr for HubName {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let refused = |reason: &str| HubError::Name { name: text.to_string(), reason: reason.to_string() };
        let (repository_and_revision, file) = match text.split_once(':') {
            Some((before, file)) => (before, Some(file.parse().map_err(|_| refused("the file name would leave its folder"))?)),
            None => (text, None),
        };
        let (repository, revision) = match repository_and_revision.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (repository_and_revision, None),
        };
        let parts: Vec<&str> = repository.split('/').collect();
        if parts.len() != 2 || !parts.iter().all(|part| is_plain(part)) {
            return Err(refused("a repository is `owner/name`, of letters, digits, `-`, `_` and `.`"));
        }
        if revision.is_some_and(|revision| !revision.split('/').all(is_plain)) {
            return Err(refused("a revision is a branch, a tag or a commit, of letters, digits, `-`, `_`, `.` and `/`"));
        }
        Ok(Self { repository: repository.to_string(), revision: revision.map(str::to_string), file })
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "hf:{}", self.repository)?;
        if let Some(revision) = &self.revision {
            write!(formatter, "@{revision}")?;
        }
        if let Some(file) = &self.file {
            write!(formatter, ":{file}")?;
        }
        Ok(())
    }
}

/// Letters, digits, `-`, `_`, `.`; not starting with `.` or `-`, so neither `..` nor an option.
fn is_plain(part: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    part.len() <= PART_BYTES_MAX && part.bytes().all(plain) && !part.is_empty() && !part.starts_with(['.', '-'])
}

/// A file's name within a repository: relative, `/`-separated, no part of it special to any file system.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RemotePath(String);

/// The name would leave its folder, or means something else on some system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EscapingPath;

impl RemotePath {
    /// As the hub spells it.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Folders between the repository's root and the file.
    pub(crate) fn n_folders(&self) -> usize {
        self.0.matches('/').count()
    }

    /// Percent-encoded for the path of a URL.
    pub(crate) fn url_encoded(&self) -> String {
        let keep = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'/');
        self.0.bytes().map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
    }
}

impl FromStr for RemotePath {
    type Err = EscapingPath;

    fn from_str(text: &str) -> Result<Self, EscapingPath> {
        let safe = |part: &str| {
            let special = |letter: char| letter.is_control() || matches!(letter, '\\' | ':' | '<' | '>' | '"' | '|' | '?' | '*');
            let dots_only = part.bytes().all(|byte| byte == b'.' || byte == b' ');
            !dots_only && part.len() <= PART_BYTES_MAX && !part.contains(special) && !part.ends_with(['.', ' '])
        };
        if text.split('/').all(safe) { Ok(Self(text.to_string())) } else { Err(EscapingPath) }
    }
}

impl fmt::Display for RemotePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What the bytes of a file must hash to. Parsed to bytes and printed again wherever it names a file, so no text from the
/// network becomes a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Digest {
    /// Large files: SHA-256 of the bytes.
    Sha256([u8; 32]),
    /// Small files: SHA-1 of `blob <size>\0` and the bytes, as git names them.
    GitSha1([u8; 20]),
}

impl Digest {
    /// 64 or 40 lower-case hexadecimal digits.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.len() {
            64 => parse_hex(text).map(Self::Sha256),
            40 => parse_hex(text).map(Self::GitSha1),
            _ => None,
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: &[u8] = match self {
            Self::Sha256(bytes) => bytes,
            Self::GitSha1(bytes) => bytes,
        };
        bytes.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0u8; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |letter: u8| match letter {
            b'0'..=b'9' => Some(letter - b'0'),
            b'a'..=b'f' => Some(letter - b'a' + 10),
            _ => None,
        };
        *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
    }
    Some(bytes)
}

/// A commit as the hub names it; it becomes a folder name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commit(String);

impl Commit {
    /// Letters, digits, `-`, `_`, `.`, not starting with `.` or `-`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        is_plain(text).then(|| Self(text.to_string()))
    }

    /// As the hub spells it.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_name_with_every_part_reads_and_prints() {
        for text in ["a/b", "a/b@main", "a/b@refs/pr/5", "a-1/b_2.3:sub/m odel.gguf", "a/b@v1.0:m.gguf"] {
            let name: HubName = text.parse().expect(text);
            assert_eq!(name.to_string(), format!("hf:{text}"));
        }
        let name: HubName = "a/b@refs/pr/5:x.gguf".parse().expect("valid");
        assert_eq!(name.revision_or_main(), "refs/pr/5");
        assert_eq!(name.file.map(|file| file.to_string()), Some("x.gguf".into()));
    }

    #[test]
    fn hub_name_that_escapes_is_refused() {
        for text in [
            "",
            "a",
            "a/",
            "/b",
            "a/b/c",
            "../b",
            "a/..",
            "a/b@",
            "a/b@../x",
            "a/b@x//y",
            "a/b:",
            "a/b:../x",
            "a/b:/etc/passwd",
            "a /b",
            "-a/b",
        ] {
            assert!(text.parse::<HubName>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn remote_path_special_to_some_system_is_refused() {
        for text in ["", "/a", "a/", "a//b", ".", "..", "a/../b", "a\\..\\b", "c:x", "a\0", "a\n", "a/. ", "a/b.", "x*"] {
            assert!(text.parse::<RemotePath>().is_err(), "{text:?} was accepted");
        }
        assert!(format!("{}.gguf", "x".repeat(255)).parse::<RemotePath>().is_err());
        let path: RemotePath = "sub/ä b#.gguf".parse().expect("valid");
        assert_eq!((path.url_encoded().as_str(), path.n_folders()), ("sub/%C3%A4%20b%23.gguf", 1));
    }

    #[test]
    fn digest_that_is_not_hexadecimal_is_refused() {
        let sha256 = "a0".repeat(32);
        assert_eq!(Digest::parse(&sha256).map(|digest| digest.to_string()), Some(sha256.clone()));
        assert!(matches!(Digest::parse(&"01".repeat(20)), Some(Digest::GitSha1(_))));
        for text in ["../../../etc/passwd", &sha256.to_uppercase(), &sha256[1..], &format!("{}/", &sha256[1..]), "", &"é".repeat(20)] {
            assert_eq!(Digest::parse(text), None, "{text:?} was accepted");
        }
        assert_eq!(Commit::parse("../x"), None);
        assert_eq!(Commit::parse(""), None);
    }
}
