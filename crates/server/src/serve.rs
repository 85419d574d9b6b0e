//! The server as a process: listens, hands connections to hyper with every timer and bound set, and ends in order. Asked to end, it
//! is not ready at once, refuses what is new, finishes what it has, and at the end of the window cancels the rest, whose streams
//! get an error and whose usage is settled.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use crate::app::{App, PeerAddress};
use crate::connection::Guarded;
use crate::limits;
use crate::router::router_with;
use crate::tls;
use crate::traces::Traces;

/// How long a connection may take to close once nothing is left to say.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// How long streams may take to say that the server has ended them.
const CANCEL_GRACE: Duration = Duration::from_secs(2);
/// Pause after an error of accepting, such as too many open files: trying at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What a connection too many hears.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// A server that listens.
pub struct Server {
    app: App,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    mounted: Router<App>,
}

impl Server {
    /// Takes the address, and reads the certificate if there is one. Runs inside a Tokio runtime.
    pub async fn bind(app: App) -> io::Result<Self> {
        let tls = app.config().tls.as_ref().map(tls::acceptor).transpose()?;
        app.start_traces().map_err(io::Error::other)?;
        let listener = TcpListener::bind(app.config().listen).await?;
        Ok(Self { app, listener, tls, mounted: Router::new() })
    }

    /// Routes that somebody else answers, beside the server's own.
    #[must_use]
    pub fn mount(mut self, routes: Router<App>) -> Self {
        self.mounted = self.mounted.merge(routes);
        self
    }

    /// Where it listens, which is news if the configuration left the port open.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `end` is there, drains, and returns when the last connection is closed.
    pub async fn run(self, end: impl Future<Output = ()>) {
        let Self { app, listener, tls, mounted } = self;
        let service = router_with(app.clone(), mounted);
        let (closing, closed) = watch::channel(false);
        let connections = Connections { app: app.clone(), service, tls, closed };
        let accepting = tokio::spawn(accept(listener, Arc::new(connections)));
        end.await;
        drain(&app).await;
        // From here on every connection closes as soon as its last response is out.
        let _ = closing.send(true);
        let _ = timeout(CLOSE_GRACE, closing.closed()).await;
        accepting.abort();
        // Not on the runtime, which carries the spans.
        let _ = spawn_blocking(move || app.traces().map(Traces::end)).await;
    }
}

async fn drain(app: &App) {
    let window = app.config().drain;
    app.lifecycle().drain();
    tracing::info!(in_flight = app.lifecycle().n_in_flight(), window_s = window.as_secs(), "draining");
    if timeout(window, app.lifecycle().idle()).await.is_ok() {
        tracing::info!("drained");
        return;
    }
    tracing::warn!(in_flight = app.lifecycle().n_in_flight(), "the drain window is over: cancelling what is left");
    // All at once, since each waits for its engine's thread, which has a step to finish.
    let mut cancelled = JoinSet::new();
    for model in app.models().all() {
        cancelled.spawn_blocking(move || model.engine.shutdown());
    }
    let _ = timeout(CANCEL_GRACE, async { while cancelled.join_next().await.is_some() {} }).await;
    let _ = timeout(CANCEL_GRACE, app.lifecycle().idle()).await;
}

/// What every connection needs.
struct Connections {
    app: App,
    service: Router,
    tls: Option<TlsAcceptor>,
    closed: watch::Receiver<bool>,
}

async fn accept(listener: TcpListener, connections: Arc<Connections>) {
    let mut closed = connections.closed.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = is_true(&mut closed) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                tokio::spawn(connections.clone().serve(stream, PeerAddress(peer)));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Waits for the flag, or for whoever holds it to go.
async fn is_true(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|&flag| flag).await;
}

/// Counts a connection while it is open.
struct Open(App);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.metrics().disconnected();
    }
}

impl Connections {
    async fn serve(self: Arc<Self>, mut stream: TcpStream, peer: PeerAddress) {
        let config = self.app.config();
        if self.app.metrics().n_connections() >= config.n_connections_max {
            self.app.metrics().connection_refused();
            let _ = timeout(ACCEPT_PAUSE, stream.write_all(FULL)).await;
            return;
        }
        self.app.metrics().connected();
        let _open = Open(self.app.clone());
        // Tokens are small and urgent.
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => self.serve_http(stream, peer).await,
            Some(tls) => match timeout(config.header_timeout, tls.accept(stream)).await {
                Ok(Ok(stream)) => self.serve_http(stream, peer).await,
                Ok(Err(error)) => tracing::debug!(%error, "no TLS"),
                Err(_) => tracing::debug!("TLS took too long"),
            },
        }
    }

    async fn serve_http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, stream: S, peer: PeerAddress) {
        let config = self.app.config();
        let guarded = Guarded::new(stream, config.header_timeout, config.write_timeout);
        let service = self.service.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            let service = service.clone();
            async move { Ok::<_, Infallible>(service.oneshot(request).await.unwrap_or_else(|never| match never {})) }
        });
        let builder = builder(config.header_timeout);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(guarded), service));
        let mut closed = self.closed.clone();
        let finished = tokio::select! {
            outcome = connection.as_mut() => Some(outcome),
            () = is_true(&mut closed) => None,
        };
        let outcome = match finished {
            Some(outcome) => outcome,
            None => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, "a connection broke");
        }
    }
}

/// HTTP/1.1 and HTTP/2 with prior knowledge, every timer installed (hyper's header timeout is silently off without one).
fn builder(header_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(limits::HEADER_BYTES_MAX)
        .max_headers(limits::N_HEADERS_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::N_HTTP2_STREAMS_MAX)
        .max_header_list_size(limits::HEADER_BYTES_MAX as u32)
        .max_send_buf_size(limits::HTTP2_SEND_BUFFER_BYTES_MAX)
        .keep_alive_interval(header_timeout)
        .keep_alive_timeout(header_timeout);
    builder
}
