//! A model hub on 127.0.0.1: the routes and headers of the real one, and the ways in which networks and servers fail.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

/// The commit that every revision of the test repository names.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How a file misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The first answers with a body break off after so many bytes each; later ones are whole.
    Cut {
        n_times: usize,
        after_bytes: usize,
    },
    /// Every answer breaks off at once.
    Dead,
    /// `Range` is ignored: always 200 and everything.
    NoRanges,
    /// The listing announces this length.
    Announces(u64),
    /// One byte of what is sent is not that of the listing's hash.
    FlipsAByte,
}

/// A file of the test repository.
#[derive(Debug, Clone)]
pub(crate) struct ServedFile {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) fault: Fault,
    /// Large files redirect to a store under another path.
    pub(crate) in_store: bool,
}

impl ServedFile {
    pub(crate) fn new(name: &'static str, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name, bytes: bytes.into(), fault: Fault::None, in_store: false }
    }

    fn sha256(&self) -> String {
        Sha256::digest(&self.bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What the hub serves and how.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hub {
    pub(crate) files: Vec<ServedFile>,
    /// The listing names files only, as small mirrors do.
    pub(crate) bare_listing: bool,
    /// Every request is answered with this status and error code.
    pub(crate) refuses: Option<(u16, &'static str)>,
    /// The `Authorization` that is needed.
    pub(crate) needs_token: Option<&'static str>,
}

/// A running hub; its thread ends with the test process.
pub(crate) struct HubServer {
    pub(crate) endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl HubServer {
    pub(crate) fn start(hub: Hub) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            let mut cuts: HashMap<&'static str, usize> = HashMap::new();
            for stream in listener.incoming().flatten() {
                // A client that hangs up is part of the tests.
                let _ = serve(&hub, stream, &log, &mut cuts);
            }
        });
        Self { endpoint, requests }
    }

    /// `METHOD path range` of every request so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no server thread panicked").clone()
    }
}

struct Request {
    method: String,
    path: String,
    first_byte: Option<usize>,
    authorization: Option<String>,
}

fn read_request(stream: &TcpStream) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first_line = lines.next().unwrap_or(Ok(String::new()))?;
    let mut words = first_line.split(' ').map(str::to_string);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = Request { method, path, first_byte: None, authorization: None };
    for line in lines {
        let line = line?;
        match line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value)) {
            Some((name, value)) if name == "range" => {
                let range = value.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
                request.first_byte = range.and_then(|(first, _)| first.parse().ok());
            }
            Some((name, value)) if name == "authorization" => request.authorization = Some(value.to_string()),
            Some(_) => {}
            None => break,
        }
    }
    Ok(request)
}

fn serve(hub: &Hub, mut stream: TcpStream, log: &Mutex<Vec<String>>, cuts: &mut HashMap<&'static str, usize>) -> std::io::Result<()> {
    let request = read_request(&stream)?;
    let range = request.first_byte.map(|first| format!(" from {first}")).unwrap_or_default();
    log.lock().expect("no test thread panicked").push(format!("{} {}{range}", request.method, request.path));
    if let Some((status, code)) = hub.refuses {
        return answer(&mut stream, status, &[("x-error-code", code)], b"{\"error\":\"no\"}");
    }
    if hub.needs_token.is_some_and(|token| request.authorization.as_deref() != Some(token)) {
        return answer(&mut stream, 401, &[("x-error-code", "RepoNotFound")], b"");
    }
    if request.path.starts_with("/api/models/owner/model/revision/") {
        return answer(&mut stream, 200, &[("content-type", "application/json")], listing(hub).as_bytes());
    }
    let resolve = format!("/owner/model/resolve/{COMMIT}/");
    let in_store = request.path.strip_prefix("/store/");
    let name = in_store.or(request.path.strip_prefix(&resolve)).unwrap_or_default();
    let Some(file) = hub.files.iter().find(|file| file.name == name) else {
        return answer(&mut stream, 404, &[("x-error-code", "EntryNotFound")], b"");
    };
    let (etag, size) = (format!("\"{}\"", file.sha256()), file.bytes.len().to_string());
    if file.in_store && in_store.is_none() {
        let location = format!("/store/{name}");
        let linked = [("location", location.as_str()), ("x-linked-etag", &etag), ("x-linked-size", &size), ("x-repo-commit", COMMIT)];
        return answer(&mut stream, 302, &linked, b"");
    }
    if request.method == "HEAD" {
        let head =
            format!("HTTP/1.1 200 OK\r\nx-repo-commit: {COMMIT}\r\netag: {etag}\r\ncontent-length: {size}\r\nconnection: close\r\n\r\n");
        return stream.write_all(head.as_bytes());
    }
    send_file(&mut stream, file, request.first_byte, cuts.entry(file.name).or_default())
}

fn listing(hub: &Hub) -> String {
    let sibling = |file: &ServedFile| {
        if hub.bare_listing {
            return format!("{{\"rfilename\":\"{}\"}}", file.name);
        }
        let size = if let Fault::Announces(size) = file.fault { size } else { file.bytes.len() as u64 };
        format!("{{\"rfilename\":\"{}\",\"size\":{size},\"lfs\":{{\"sha256\":\"{}\",\"size\":{size}}}}}", file.name, file.sha256())
    };
    let siblings: Vec<String> = hub.files.iter().map(sibling).collect();
    format!("{{\"id\":\"owner/model\",\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}", siblings.join(","))
}

fn send_file(stream: &mut TcpStream, file: &ServedFile, first_byte: Option<usize>, n_cuts: &mut usize) -> std::io::Result<()> {
    let mut bytes = file.bytes.clone();
    if file.fault == Fault::FlipsAByte {
        bytes[0] ^= 1;
    }
    let first_byte = if file.fault == Fault::NoRanges { None } else { first_byte };
    let first = first_byte.unwrap_or(0);
    if first_byte.is_some() && first >= bytes.len() {
        let range = format!("bytes */{}", bytes.len());
        return answer(stream, 416, &[("content-range", &range)], b"");
    }
    let body = &bytes[first..];
    let status = if first_byte.is_some() { "206 Partial Content" } else { "200 OK" };
    let range = format!("content-range: bytes {first}-{}/{}\r\n", bytes.len() - 1, bytes.len());
    let range = if first_byte.is_some() { range } else { String::new() };
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{range}connection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    let n_sent = match file.fault {
        Fault::Cut { n_times, after_bytes } if *n_cuts < n_times => after_bytes.min(body.len()),
        Fault::Dead => 0,
        _ => body.len(),
    };
    *n_cuts += 1;
    stream.write_all(&body[..n_sent])
}

fn answer(stream: &mut TcpStream, status: u16, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} -\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(body)
}
