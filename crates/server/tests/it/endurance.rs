//! What a server must bear: ten times the load that it can carry, clients that leave at every moment, neighbours that poison, readers
//! that do not read, half-open connections by the hundred. `cargo xtask endure` runs the same for longer and with tighter bounds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bitnet_engine::{EngineOptions, SimulatedPace};
use bitnet_server::Config;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::sockets::{Running, config, request, start, talk};
use crate::world::{Book, Bookkeeper, POISON, World, poisoned_model, post};

/// Whether there is time: set by `cargo xtask endure`.
fn is_long() -> bool {
    std::env::var_os("BITNET_ENDURE").is_some()
}

/// The first of two where tests must be short.
fn short_or_long<T>(short: T, long: T) -> T {
    if is_long() { long } else { short }
}

fn world(config: Config, book: &Book, per_step: Duration, options: EngineOptions) -> World {
    let pace = SimulatedPace { per_step, ..SimulatedPace::default() };
    World::with(config, Box::new(Bookkeeper(book.clone(), None)), pace, options)
}

/// Each reservation was settled or voided, once.
fn assert_settled_once(book: &Book) {
    let book = book.0.lock().unwrap();
    assert!(book.values().all(|outcomes| outcomes.len() == 1), "{:?}", book.iter().find(|(_, outcomes)| outcomes.len() != 1));
}

/// A request of ten tokens on a connection that stays open. The status, and how long it took.
async fn ask(stream: &mut TcpStream, bytes: &[u8]) -> (u16, Duration) {
    let start = Instant::now();
    stream.write_all(bytes).await.expect("sent");
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    // An answer ends with its object.
    while !answer.ends_with(b"}") {
        let n = stream.read(&mut buffer).await.expect("answered");
        assert!(n > 0, "closed");
        answer.extend_from_slice(&buffer[..n]);
    }
    let status = std::str::from_utf8(&answer[9..12]).expect("a status line").parse().expect("a number");
    (status, start.elapsed())
}

/// What `n_clients` that ask without a pause get in `time`: answers, and how long refusals took.
async fn offer(running: &Running, n_clients: usize, time: Duration) -> (usize, Vec<Duration>) {
    let bytes: Arc<str> = request(&json!({ "model": "sim", "prompt": "a", "max_tokens": 10, "ignore_eos": true })).into();
    let end = Instant::now() + time;
    let client = |address, bytes: Arc<str>| async move {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let (mut n_answered, mut refusals) = (0, Vec::new());
        while Instant::now() < end {
            match ask(&mut stream, bytes.as_bytes()).await {
                (200, _) => n_answered += 1,
                (503, after) => {
                    refusals.push(after);
                    // A client that is told to wait a second waits ten milliseconds.
                    let _ = tokio::time::timeout(Duration::from_millis(10), std::future::pending::<()>()).await;
                }
                (status, _) => panic!("status {status}"),
            }
        }
        (n_answered, refusals)
    };
    let clients: Vec<_> = (0..n_clients).map(|_| tokio::spawn(client(running.address, bytes.clone()))).collect();
    let (mut n_answered, mut refusals) = (0, Vec::new());
    for client in clients {
        let (n, refused) = client.await.expect("it does not panic");
        n_answered += n;
        refusals.extend(refused);
    }
    refusals.sort_unstable();
    (n_answered, refusals)
}

#[test]
fn overload_keeps_goodput_and_is_refused_at_once() {
    let book = Book::default();
    let options = EngineOptions { n_running_max: 8, n_waiting_max: 16, ..EngineOptions::default() };
    let world = world(config(), &book, Duration::from_millis(4), options);
    world.block_on(async {
        let running = start(&world).await;
        let time = short_or_long(Duration::from_millis(800), Duration::from_secs(20));
        // All of them may wait for the same step.
        let (peak, refused) = offer(&running, 16, time).await;
        assert!(refused.is_empty(), "sixteen may wait");
        // Ten times as many.
        let (n_answered, refusals) = offer(&running, 160, time).await;
        let late = refusals[refusals.len() * 99 / 100];
        println!("peak {peak}, under overload {n_answered}, refusals {}, 99 of 100 within {late:?}", refusals.len());
        assert!(refusals.len() > 10 * n_answered / 16, "it was overload");
        // Other tests run beside a short one: it has no say about time.
        if is_long() {
            assert!(n_answered >= peak * 9 / 10, "{n_answered} answers, {peak} without overload");
            assert!(late <= Duration::from_millis(5), "a refusal took {late:?}");
        }
    });
    world.settle();
    assert_settled_once(&book);
}

/// Reads as many bytes, or all of the answer where that is less: a connection that stays open has no end to wait for.
async fn read_some(connection: &mut TcpStream, n_bytes: usize) {
    let mut some = vec![0; n_bytes];
    let mut n_read = 0;
    while n_read < n_bytes {
        match connection.read(&mut some[n_read..]).await {
            Ok(0) | Err(_) => return,
            Ok(n) => n_read += n,
        }
        let read = &some[..n_read];
        if read.ends_with(b"\n0\r\n\r\n") || read.ends_with(b"}") {
            return;
        }
    }
}

/// Connects, sends a request or a part of it, reads a part of the answer, and leaves; the number says how far it goes.
async fn drop_by(running: &Running, number: usize) {
    let stream = !number.is_multiple_of(3);
    let body = json!({ "model": "sim", "prompt": "x".repeat(1 + number % 700), "max_tokens": 1 + number % 50, "stream": stream });
    let bytes = request(&body);
    let Ok(mut connection) = TcpStream::connect(running.address).await else { return };
    let n_sent = if number.is_multiple_of(5) { number % bytes.len() } else { bytes.len() };
    if connection.write_all(&bytes.as_bytes()[..n_sent]).await.is_err() {
        return;
    }
    if n_sent == bytes.len() && number.is_multiple_of(2) {
        read_some(&mut connection, 1 + number % 2000).await;
    }
    if number.is_multiple_of(4) {
        // A reset instead of an orderly end.
        let _ = connection.set_zero_linger();
    }
}

#[test]
fn clients_that_leave_at_every_phase_leave_nothing_behind() {
    let book = Book::default();
    let world = world(config(), &book, Duration::from_micros(500), EngineOptions::default());
    let n_drops = short_or_long(1_000, 100_000);
    world.block_on(async {
        let running = Arc::new(start(&world).await);
        let next = Arc::new(AtomicUsize::new(0));
        let visitors: Vec<_> = (0..64)
            .map(|_| {
                let (running, next) = (running.clone(), next.clone());
                tokio::spawn(async move {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= n_drops {
                            return;
                        }
                        drop_by(&running, number).await;
                    }
                })
            })
            .collect();
        for visitor in visitors {
            visitor.await.expect("it does not panic");
        }
        let last = request(&json!({ "model": "sim", "prompt": "a", "max_tokens": 1 }));
        let mut stream = TcpStream::connect(running.address).await.expect("it listens");
        assert_eq!(ask(&mut stream, last.as_bytes()).await.0, 200);
    });
    world.settle();
    assert_settled_once(&book);
    let n_admitted = book.0.lock().unwrap().len();
    println!("{n_drops} clients left, {n_admitted} of them with a request under way");
    assert!(n_admitted > n_drops / 2);
    let page = world.get("/metrics").body;
    for line in ["vllm:num_requests_running{model_name=\"sim\"} 0", "vllm:num_requests_waiting{model_name=\"sim\"} 0"] {
        assert!(page.lines().any(|got| got == line), "{line} is not in\n{page}");
    }
}

#[test]
fn client_that_leaves_is_gone_within_a_step() {
    let world = world(config(), &Book::default(), Duration::from_millis(30), EngineOptions::default());
    let engine = world.app.models().all().into_iter().find(|model| model.name == "sim").expect("there").engine.clone();
    world.block_on(async {
        let running = start(&world).await;
        for stream in [true, false] {
            let body = json!({ "model": "sim", "prompt": "a", "max_tokens": 1000, "stream": stream, "ignore_eos": true });
            let mut connection = TcpStream::connect(running.address).await.expect("it listens");
            connection.write_all(request(&body).as_bytes()).await.expect("sent");
            while engine.stats().n_running == 0 {
                tokio::task::yield_now().await;
            }
            drop(connection);
            let n_before = engine.stats().n_steps;
            while engine.stats().n_running > 0 {
                tokio::task::yield_now().await;
            }
            let n_steps = engine.stats().n_steps - n_before;
            // The step under way, and at most one that had begun before the server heard of it.
            assert!(n_steps <= 2, "{n_steps} steps with nobody there");
            assert_eq!(engine.stats().n_used_blocks, 0);
        }
    });
}

#[test]
fn poisoned_request_leaves_its_neighbours_equal_and_the_server_up() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload_as_str() != Some("planted") {
            hook(info);
        }
    }));
    let pace = SimulatedPace { per_step: Duration::from_millis(2), ..SimulatedPace::default() };
    let world = World::plain();
    world.app.models().insert(poisoned_model("frail", pace));
    let body = |prompt: &str| {
        let ban = json!({ POISON.0.to_string(): -100 });
        json!({ "model": "frail", "prompt": prompt, "max_tokens": 40, "seed": 5, "logit_bias": ban, "logprobs": 2, "ignore_eos": true })
    };
    let prompts: Vec<String> = (0..12).map(|index| format!("neighbour {index}")).collect();
    let choices = |answer: crate::world::Answer| {
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()["choices"].clone()
    };
    let alone: Vec<_> = prompts.iter().map(|prompt| choices(world.post("/v1/completions", body(prompt)))).collect();
    for round in 0..short_or_long(3, 100) {
        // A prompt of its own each time: one that has panicked twice is refused.
        let poison = format!("{round}{}", char::from_u32(POISON.0).expect("a control character"));
        let (neighbours, poisoned) = world.block_on(async {
            let neighbours: Vec<_> = prompts
                .iter()
                .map(|prompt| {
                    let (router, request) = (world.router.clone(), post("/v1/completions", &body(prompt)));
                    tokio::spawn(async move { crate::world::answer(&router, request).await })
                })
                .collect();
            let poisoned = crate::world::answer(&world.router, post("/v1/completions", &body(&poison))).await;
            let mut answers = Vec::new();
            for neighbour in neighbours {
                answers.push(neighbour.await.expect("it does not panic"));
            }
            (answers, poisoned)
        });
        assert_eq!(poisoned.status, 500, "{}", poisoned.body);
        assert_eq!(neighbours.into_iter().map(choices).collect::<Vec<_>>(), alone, "bit for bit, log-probabilities too");
    }
    assert_eq!(world.get("/health/ready").status, 200);
}

#[test]
fn readers_that_do_not_read_are_dropped_and_harm_nobody() {
    let book = Book::default();
    let config = Config { write_timeout: Duration::from_millis(300), ..config() };
    let world = world(config, &book, Duration::ZERO, EngineOptions::default());
    world.block_on(async {
        let running = start(&world).await;
        // More than the buffers of a connection hold.
        let body = json!({
            "model": "sim", "prompt": "a", "max_tokens": 2000, "n": 4, "logprobs": 20, "stream": true, "ignore_eos": true,
        });
        let mut silent = Vec::new();
        for _ in 0..short_or_long(4, 64) {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.set_recv_buffer_size(4096).expect("a small buffer");
            let mut stream = socket.connect(running.address).await.expect("it listens");
            stream.write_all(request(&body).as_bytes()).await.expect("sent");
            silent.push(stream);
        }
        let small = request(&json!({ "model": "sim", "prompt": "a", "max_tokens": 10, "ignore_eos": true }));
        let mut stream = TcpStream::connect(running.address).await.expect("it listens");
        let mut n_answered = 0;
        while world.app.lifecycle().n_in_flight() > 0 || n_answered < 10 {
            assert_eq!(ask(&mut stream, small.as_bytes()).await.0, 200);
            n_answered += 1;
        }
        println!("{n_answered} answers while {} readers did not read", silent.len());
        drop(silent);
    });
    world.settle();
    assert_settled_once(&book);
}

#[test]
fn half_open_connections_are_closed_and_harm_nobody() {
    let header_timeout = short_or_long(Duration::from_millis(500), Duration::from_secs(10));
    let world = World::new(Config { header_timeout, ..config() });
    world.block_on(async {
        let running = start(&world).await;
        let mut half_open = Vec::new();
        for number in 0..short_or_long(200, 8_000) {
            let mut stream = TcpStream::connect(running.address).await.expect("it listens");
            stream.write_all([&b""[..], b"P", b"GET /hea", b"POST /v1/completions HTTP/1.1\r\nhost:"][number % 4]).await.expect("sent");
            half_open.push(stream);
        }
        let began = Instant::now();
        let fine = talk(running.address, b"GET /health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        println!("{} half-open connections, an answer in {:?}", half_open.len(), began.elapsed());
        assert!(fine.starts_with("HTTP/1.1 200"), "{fine}");
        for mut stream in half_open {
            let closed = tokio::time::timeout(header_timeout + Duration::from_secs(5), stream.read_to_end(&mut Vec::new())).await;
            assert!(closed.is_ok(), "a client that says no more is not waited for");
        }
    });
}

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32;
    [&length.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[test]
fn floods_of_http2_frames_end_their_connection_alone() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let [headers, rst_stream, settings, ping, continuation] = [1, 3, 4, 6, 9];
    // :method GET, :scheme http, :path /, :authority a
    let head = [0x82, 0x86, 0x84, 0x41, 0x01, b'a'];
    let n_frames = short_or_long(20_000, 1_000_000);
    let open = [PREFACE, &frame(settings, 0, 0, &[])].concat();
    let reset = |index: u32| [frame(headers, 5, 2 * index + 1, &head), frame(rst_stream, 0, 2 * index + 1, &[0, 0, 0, 8])].concat();
    let pings = |_| frame(ping, 0, 0, &[0; 8]);
    let endless = |index: u32| match index {
        0 => frame(headers, 1, 1, &head),
        _ => frame(continuation, 0, 1, b"\x00\x01x\x7f\x01".iter().copied().chain([b'y'; 128]).collect::<Vec<u8>>().as_slice()),
    };
    let world = World::new(config());
    world.block_on(async {
        let running = start(&world).await;
        for flood in [&reset as &(dyn Fn(u32) -> Vec<u8> + Sync), &pings, &endless] {
            let mut stream = TcpStream::connect(running.address).await.expect("it listens");
            stream.write_all(&open).await.expect("sent");
            // It may close at any time; a client that floods does not read.
            for index in 0..n_frames {
                if stream.write_all(&flood(index)).await.is_err() {
                    break;
                }
            }
            drop(stream);
            let fine = talk(running.address, b"GET /health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
            assert!(fine.starts_with("HTTP/1.1 200"), "{fine}");
        }
    });
}
