//! Requests to others: webhooks and payment. One request a connection, with a bound on time and answer, no redirects, no proxy. Where a
//! customer names the destination it must be public and speak TLS: its name is resolved here, every address is looked at, and the
//! connection goes to the address that was looked at, so that a name that changes its mind meanwhile reaches nothing (SSRF,
//! reliability A31).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::limits::{OUTBOUND_ANSWER_BYTES_MAX, OUTBOUND_TIME_MAX};

/// Whom requests may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destinations {
    /// Addresses of the internet, by TLS.
    Public,
    /// Any, also on this machine and without TLS: for destinations that the operator names, or allows.
    Any,
}

/// Why a request came to nothing.
#[derive(Debug, Error)]
pub enum OutboundError {
    /// It is no address of the web.
    #[error("expected a URL such as https://example.com/path: {reason}")]
    Url { reason: &'static str },
    /// The destination is not public.
    #[error("{host} is not an address that requests may go to")]
    Forbidden { host: String },
    /// Nobody knows the name.
    #[error("{host} cannot be resolved: {source}")]
    Name { host: String, source: std::io::Error },
    /// Nobody answers there, or the connection broke.
    #[error("{host} cannot be reached: {reason}")]
    Unreachable { host: String, reason: String },
    /// It took too long.
    #[error("{host} did not answer in {} s", limit.as_secs())]
    Slow { host: String, limit: Duration },
    /// Its answer is too long, or breaks off.
    #[error("the answer of {host} cannot be read: {reason}")]
    Answer { host: String, reason: String },
}

/// A request to be sent.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// How.
    pub method: Method,
    /// Where to.
    pub url: Uri,
    /// Besides host and length.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What.
    pub body: Vec<u8>,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answered {
    /// How it went.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

/// Sends requests.
#[derive(Clone)]
pub struct Outbound {
    destinations: Destinations,
    tls: Arc<ClientConfig>,
}

/// Where a URL points.
struct Target {
    is_tls: bool,
    host: String,
    port: u16,
    path: String,
}

impl Target {
    fn of(url: &Uri) -> Result<Self, OutboundError> {
        let wrong = |reason| OutboundError::Url { reason };
        let is_tls = match url.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("it begins with neither https:// nor http://")),
        };
        let authority = url.authority().ok_or(wrong("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("it holds a user's name"));
        }
        let host = authority.host().to_string();
        let path = url.path_and_query().map_or_else(|| "/".to_string(), ToString::to_string);
        Ok(Self { is_tls, host, port: authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 }), path })
    }

    /// Its name without the brackets of an address.
    fn name(&self) -> &str {
        self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&self.host)
    }
}

impl Outbound {
    /// That may go there.
    pub fn new(destinations: Destinations) -> Self {
        let mut roots = RootCertStore::empty();
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().expect("ring speaks the versions that are the default");
        Self { destinations, tls: Arc::new(builder.with_root_certificates(roots).with_no_client_auth()) }
    }

    /// Whether requests may be sent to a URL, as far as it can be told without resolving its name.
    pub fn check(&self, url: &Uri) -> Result<(), OutboundError> {
        let target = Target::of(url)?;
        if self.destinations == Destinations::Any {
            return Ok(());
        }
        let forbidden = || OutboundError::Forbidden { host: target.host.clone() };
        if !target.is_tls {
            return Err(OutboundError::Url { reason: "it begins with http://" });
        }
        match target.name().parse::<IpAddr>() {
            Ok(address) if !is_public(address) => Err(forbidden()),
            Ok(_) => Ok(()),
            // Names without a dot are of somebody's own network.
            Err(_) if !target.host.contains('.') => Err(forbidden()),
            Err(_) => Ok(()),
        }
    }

    /// Sends a request and reads the answer.
    pub async fn send(&self, outgoing: Outgoing) -> Result<Answered, OutboundError> {
        self.check(&outgoing.url)?;
        let target = Target::of(&outgoing.url)?;
        let slow = || OutboundError::Slow { host: target.host.clone(), limit: OUTBOUND_TIME_MAX };
        match tokio::time::timeout(OUTBOUND_TIME_MAX, self.exchange(&target, outgoing)).await {
            Ok(answered) => answered,
            Err(_) => Err(slow()),
        }
    }

    async fn exchange(&self, target: &Target, outgoing: Outgoing) -> Result<Answered, OutboundError> {
        let unreachable = |reason: String| OutboundError::Unreachable { host: target.host.clone(), reason };
        let address = self.resolve(target).await?;
        let stream = TcpStream::connect(address).await.map_err(|error| unreachable(error.to_string()))?;
        if !target.is_tls {
            return exchange_over(stream, target, outgoing).await;
        }
        let name = ServerName::try_from(target.name().to_string()).map_err(|_| OutboundError::Url { reason: "its host has no name" })?;
        let connector = TlsConnector::from(self.tls.clone());
        let stream = connector.connect(name, stream).await.map_err(|error| unreachable(error.to_string()))?;
        exchange_over(stream, target, outgoing).await
    }

    /// The address that a name has now, if all that it has are allowed.
    async fn resolve(&self, target: &Target) -> Result<SocketAddr, OutboundError> {
        let host = || target.host.clone();
        let found = tokio::net::lookup_host((target.name(), target.port)).await;
        let found: Vec<SocketAddr> = found.map_err(|source| OutboundError::Name { host: host(), source })?.collect();
        if self.destinations == Destinations::Public && !found.iter().all(|address| is_public(address.ip())) {
            return Err(OutboundError::Forbidden { host: host() });
        }
        let nothing = || OutboundError::Unreachable { host: host(), reason: "its name has no address".into() };
        found.first().copied().ok_or_else(nothing)
    }
}

async fn exchange_over<S>(stream: S, target: &Target, outgoing: Outgoing) -> Result<Answered, OutboundError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let unreachable = |error: hyper::Error| OutboundError::Unreachable { host: target.host.clone(), reason: error.to_string() };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
    // Ends when the sender does, or when the connection breaks, which the sender learns.
    let driver = tokio::spawn(connection);
    let mut request = Request::new(Full::new(Bytes::from(outgoing.body)));
    *request.method_mut() = outgoing.method;
    *request.uri_mut() = target.path.parse().map_err(|_| OutboundError::Url { reason: "its path cannot be read" })?;
    let headers = request.headers_mut();
    let authority = outgoing.url.authority().map_or("", |authority| authority.as_str());
    let host = HeaderValue::from_str(authority).map_err(|_| OutboundError::Url { reason: "its host cannot be sent" })?;
    headers.insert(header::HOST, host);
    headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("bitnet/", env!("CARGO_PKG_VERSION"))));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.extend(outgoing.headers);
    let response = sender.send_request(request).await.map_err(unreachable)?;
    let (parts, body) = response.into_parts();
    let answer = |reason: String| OutboundError::Answer { host: target.host.clone(), reason };
    let body = Limited::new(body, OUTBOUND_ANSWER_BYTES_MAX).collect().await.map_err(|error| answer(error.to_string()))?;
    driver.abort();
    Ok(Answered { status: parts.status, headers: parts.headers, body: body.to_bytes().to_vec() })
}

/// Whether an address is one of the internet's, and nobody's own or special.
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// All but what IANA's registry of special addresses has.
fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = match (a, b, c) {
        (0 | 10 | 127, ..) | (169, 254, _) | (192, 168, _) | (192, 0, 0) | (198, 18 | 19, _) | (192, 88, 99) => true,
        (100, 64..=127, _) | (172, 16..=31, _) | (192, 0, 2) | (198, 51, 100) | (203, 0, 113) => true,
        _ => a >= 224,
    };
    !is_special
}

/// Global unicast, and where an address of version 4 is within, that one, too.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let inner = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match segments {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            is_public_v4(inner(high, low))
        }
        // Teredo and others of the registry, documentation.
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => false,
        [0x3fff, second, ..] if second < 0x1000 => false,
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_of_an_own_network_is_not_public() {
        for own in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "192.0.2.1",
            "198.18.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "2001:db8::1",
            "2001::1",
            "::7f00:1",
        ] {
            assert!(!is_public(own.parse().expect("an address")), "{own}");
        }
        for public in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "2a00:1450::1"] {
            assert!(is_public(public.parse().expect("an address")), "{public}");
        }
    }

    #[test]
    fn destination_that_a_customer_names_is_public_and_speaks_tls() {
        let check = |url: &str| Outbound::new(Destinations::Public).check(&url.parse().expect("a URL"));
        assert!(check("https://example.com/hook?x=1").is_ok() && check("https://1.1.1.1:8443/").is_ok());
        for wrong in [
            "http://example.com/",
            "https://localhost/",
            "https://127.0.0.1/",
            "https://[::1]:443/",
            "https://[fd00::1]/",
            "/relative",
            "https://user:pass@example.com/",
            "ftp://example.com/",
        ] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
        let anywhere = Outbound::new(Destinations::Any);
        assert!(anywhere.check(&"http://127.0.0.1:1234/".parse().expect("a URL")).is_ok());
    }
}
