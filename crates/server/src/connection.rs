//! A connection that cannot be held for nothing: what hyper leaves without a timer gets one here. A client that says nothing before
//! the protocol is known (hyperium/hyper#3962: sniffing has no timer), and one that takes nothing of what is written to it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How HTTP/2 begins; hyper reads until it knows whether these bytes come.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// See the module.
pub(crate) struct Guarded<S> {
    stream: S,
    /// Bytes that agreed with the preface so far; `None` once the protocol is known.
    n_preface: Option<usize>,
    first_bytes: Pin<Box<Sleep>>,
    write_timeout: Duration,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Guarded<S> {
    /// Around a connection that was just accepted.
    pub(crate) fn new(stream: S, first_bytes: Duration, write_timeout: Duration) -> Self {
        Self { stream, n_preface: Some(0), first_bytes: Box::pin(sleep(first_bytes)), write_timeout, stalled: None }
    }

    fn note_read(&mut self, bytes: &[u8]) {
        let Some(n_before) = self.n_preface else { return };
        let expected = &HTTP2_PREFACE[n_before..];
        let n_same = bytes.iter().zip(expected).take_while(|(got, wanted)| got == wanted).count();
        let is_decided = n_same < bytes.len() || n_same == expected.len();
        self.n_preface = (!is_decided).then_some(n_before + n_same);
    }

    fn note_write<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = None;
            return outcome;
        }
        let write_timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(write_timeout)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let n_before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Pending if self.n_preface.is_some() => {
                ready!(self.first_bytes.as_mut().poll(cx));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client says nothing")))
            }
            Poll::Ready(Ok(())) => {
                self.note_read(&buffer.filled()[n_before..]);
                Poll::Ready(Ok(()))
            }
            other => other,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note_write(cx, outcome)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, parts: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.note_write(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.note_write(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.note_write(cx, outcome)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(40);

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(test);
    }

    #[test]
    fn silent_client_is_dropped_in_time() {
        run(async {
            for said in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n"] {
                let (mut client, server) = duplex(1024);
                client.write_all(said).await.expect("room");
                let mut guarded = Guarded::new(server, PATIENCE, PATIENCE);
                let mut all = Vec::new();
                let error = guarded.read_to_end(&mut all).await.expect_err("given up");
                assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            }
        });
    }

    #[test]
    fn client_whose_protocol_is_known_is_hypers_to_time() {
        run(async {
            for said in [&b"GET"[..], b"PO", HTTP2_PREFACE] {
                let (mut client, server) = duplex(1024);
                client.write_all(said).await.expect("room");
                let mut guarded = Guarded::new(server, PATIENCE, PATIENCE);
                let mut buffer = vec![0; said.len()];
                guarded.read_exact(&mut buffer).await.expect("it is there");
                let waited = tokio::time::timeout(3 * PATIENCE, guarded.read_u8()).await;
                assert!(waited.is_err(), "no timer of ours is left");
            }
        });
    }

    #[test]
    fn client_that_takes_nothing_is_dropped_in_time() {
        run(async {
            let (_client, server) = duplex(8);
            let mut guarded = Guarded::new(server, PATIENCE, PATIENCE);
            let error = guarded.write_all(&[0; 64]).await.expect_err("given up");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        });
    }
}
