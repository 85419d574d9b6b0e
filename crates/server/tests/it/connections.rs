//! Real sockets: HTTP/1.1 and h2c, clients that say too much or nothing, and a server that is asked to end.

use std::time::Duration;

use bitnet_engine::{EngineOptions, SimulatedPace};
use bitnet_server::Config;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::sockets::{config, request, start, talk};
use crate::world::{Book, Bookkeeper, World};

#[test]
fn clients_that_say_too_much_or_nothing_are_dropped() {
    let world = World::new(Config { header_timeout: Duration::from_millis(100), ..config() });
    world.block_on(async {
        let running = start(&world).await;
        let giant = format!("GET /health HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
        assert!(talk(running.address, giant.as_bytes()).await.starts_with("HTTP/1.1 431"), "431 for a giant header");
        let many: String = (0..500).map(|index| format!("x{index}: y\r\n")).collect();
        assert!(
            talk(running.address, format!("GET /health HTTP/1.1\r\nhost: a\r\n{many}\r\n").as_bytes()).await.starts_with("HTTP/1.1 431")
        );
        for slow in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n", b"GET /hea", b"GET /health HTTP/1.1\r\nhost:"] {
            let said = talk(running.address, slow).await;
            assert!(!said.contains("200"), "{said}");
        }
        assert!(talk(running.address, b"\x16\x03\x01 no TLS here\r\n\r\n").await.starts_with("HTTP/1.1 400"));
        let fine = talk(running.address, b"GET /health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert!(fine.starts_with("HTTP/1.1 200") && fine.contains("{\"live\":true}"), "{fine}");
    });
}

#[test]
fn http2_with_prior_knowledge_is_spoken() {
    let world = World::new(config());
    world.block_on(async {
        let running = start(&world).await;
        let stream = TcpStream::connect(running.address).await.expect("it listens");
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), hyper_util::rt::TokioIo::new(stream))
                .await
                .expect("h2c");
        tokio::spawn(connection);
        let request = hyper::Request::get("http://a/health/live").body(String::new()).expect("a request");
        let response = sender.send_request(request).await.expect("answered");
        assert_eq!((response.status().as_u16(), response.version()), (200, hyper::Version::HTTP_2));
    });
}

#[test]
fn drain_finishes_streams_and_refuses_new_ones() {
    let book = Book::default();
    let pace = SimulatedPace { per_step: Duration::from_millis(1), ..SimulatedPace::default() };
    let world = World::with(config(), Box::new(Bookkeeper(book.clone(), None)), pace, EngineOptions::default());
    world.block_on(async {
        let running = start(&world).await;
        let body = json!({ "model": "sim", "prompt": "a", "max_tokens": 200, "stream": true, "ignore_eos": true });
        let mut streams = Vec::new();
        for _ in 0..50 {
            let mut stream = TcpStream::connect(running.address).await.expect("it listens");
            stream.write_all(request(&body).as_bytes()).await.expect("sent");
            let mut head = [0; 12];
            stream.read_exact(&mut head).await.expect("answered");
            assert_eq!(&head, b"HTTP/1.1 200");
            streams.push(stream);
        }
        running.end.send(()).expect("it runs");
        while !world.app.lifecycle().is_draining() {
            tokio::task::yield_now().await;
        }
        let refused =
            talk(running.address, format!("{}\r\n", request(&body)).replace("host: a", "host: a\r\nconnection: close").as_bytes()).await;
        assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after: 5"), "{refused}");
        for mut stream in streams {
            let mut rest = String::new();
            stream.read_to_string(&mut rest).await.expect("not cut");
            assert!(rest.contains("data: [DONE]") && rest.contains("\"finish_reason\":\"length\""), "cut: {rest}");
        }
        running.server.await.expect("it ends");
    });
    let book = book.0.lock().unwrap();
    assert_eq!(book.values().filter(|outcomes| matches!(outcomes[..], [Some(_)])).count(), 50, "each is settled once");
}

#[test]
fn streams_beyond_the_drain_window_end_with_an_error() {
    let book = Book::default();
    let pace = SimulatedPace { per_step: Duration::from_millis(20), ..SimulatedPace::default() };
    let config = Config { drain: Duration::from_millis(50), ..config() };
    let world = World::with(config, Box::new(Bookkeeper(book.clone(), None)), pace, EngineOptions::default());
    world.block_on(async {
        let running = start(&world).await;
        let body = json!({ "model": "sim", "prompt": "a", "max_tokens": 2000, "stream": true, "ignore_eos": true });
        let mut stream = TcpStream::connect(running.address).await.expect("it listens");
        stream.write_all(request(&body).as_bytes()).await.expect("sent");
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.expect("answered");
        running.end.send(()).expect("it runs");
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.expect("closed in order");
        assert!(rest.contains("\"code\":\"server_is_overloaded\"") && rest.contains("[DONE]"), "{rest}");
        running.server.await.expect("it ends");
    });
    let book = book.0.lock().unwrap();
    assert!(matches!(book.values().next().map(Vec::as_slice), Some([Some(_)])), "what was written is settled: {book:?}");
}

#[test]
fn connection_above_the_limit_is_told_so() {
    let world = World::new(Config { n_connections_max: 1, ..config() });
    world.block_on(async {
        let running = start(&world).await;
        let mut first = TcpStream::connect(running.address).await.expect("it listens");
        first.write_all(b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("sent");
        let mut head = [0; 12];
        first.read_exact(&mut head).await.expect("answered");
        let second = talk(running.address, b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(second.starts_with("HTTP/1.1 503"), "{second}");
    });
}
