//! What the server costs, over a simulated model that costs next to nothing: requests a second and their latency, tokens a second of
//! streams, memory of open streams. The server is a process of its own (this program, started again), so that its memory can be told
//! from the client's; both share the machine's cores, so that the figures are the least a server alone would do.
//!
//! `cargo bench -p bitnet-server --bench cost`, or with the names of some of the tests: unstreamed, tokens, streams.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bitnet_checkpoint::ModelConfig;
use bitnet_engine::{EngineHandle, EngineModel, EngineOptions, SimulatedPace, SimulatedRunner};
use bitnet_model::batch::BatchLimits;
use bitnet_model::random::{small_config, vocabulary};
use bitnet_server::admission::{StaticKeys, new_secret};
use bitnet_server::{App, Config, ModelTask, ServedModel, Server};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const N_VOCAB: usize = 512;
const CONTEXT: usize = 4096;
/// Measured time of a test of rates.
const MEASURED: Duration = Duration::from_secs(4);
/// Requests at once whose latency is measured: more raise the rate and, with two cores, the latency with it.
const N_CONNECTIONS: [usize; 6] = [1, 2, 3, 4, 8, 32];
const N_OPEN_STREAMS: usize = 10_000;
/// Streams whose tokens are counted.
const N_BUSY_STREAMS: [usize; 3] = [16, 64, 256];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [mode, step_us] = arguments.as_slice()
        && mode == "serve"
    {
        return serve(Duration::from_micros(step_us.parse().expect("the parent writes a number")));
    }
    let is_wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|argument| argument == name);
    if is_wanted("unstreamed") {
        N_CONNECTIONS.iter().for_each(|&n_connections| measure_unstreamed(n_connections));
    }
    if is_wanted("tokens") {
        N_BUSY_STREAMS.iter().for_each(|&n_streams| measure_tokens(n_streams));
    }
    if is_wanted("streams") {
        measure_open_streams();
    }
}

/// The server's process: ends when its standard input does.
fn serve(per_step: Duration) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let config = Config { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..Config::default() };
        let app = App::new(config, Box::new(StaticKeys::new(Vec::new(), new_secret())), SystemTime::now).expect("a server");
        app.models().insert(model(per_step));
        let server = Server::bind(app).await.expect("a free port");
        println!("{}", server.address().expect("bound"));
        let (end, ended) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            let _ = end.send(());
        });
        tokio::select! {
            () = server.run(std::future::pending()) => {}
            _ = ended => {}
        }
    });
    // Streams are still open: nothing is to be waited for.
    std::process::exit(0);
}

fn model(per_step: Duration) -> ServedModel {
    let config = ModelConfig { n_vocab: N_VOCAB, context_length: CONTEXT, ..small_config() };
    let limits = BatchLimits { n_tokens_max: 1024, n_vocab: N_VOCAB, context_length: CONTEXT, n_blocks: 256 * CONTEXT / 16 };
    let runner = Box::new(SimulatedRunner::new(config, limits).with_pace(SimulatedPace { per_step, ..SimulatedPace::default() }));
    let tokenizer = Arc::new(vocabulary(N_VOCAB as u32).expect("a valid tokenizer"));
    let model = EngineModel { runner, draft: None, tokenizer: Some(tokenizer.clone()), eos: Vec::new() };
    let options =
        EngineOptions { n_running_max: 256, n_waiting_max: 2 * N_OPEN_STREAMS, n_step_tokens_max: 1024, ..EngineOptions::default() };
    let engine = EngineHandle::start(model, options).expect("an engine");
    ServedModel {
        name: "sim".into(),
        created_unix_seconds: 0,
        context_length: engine.context_length(),
        engine,
        tokenizer,
        template: None,
        defaults: Default::default(),
        task: ModelTask::Text,
    }
}

/// The other process.
struct Serving {
    child: Child,
    address: SocketAddr,
}

impl Serving {
    fn start(per_step: Duration) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["serve", &per_step.as_micros().to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it speaks");
        Self { child, address: line.trim().parse().expect("an address") }
    }

    /// Resident memory, in bytes.
    fn memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn request(n_tokens: usize, stream: bool) -> String {
    let body = json!({ "model": "sim", "prompt": "What the server costs", "max_tokens": n_tokens, "temperature": 0, "stream": stream });
    let body = body.to_string();
    format!("POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn client() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// One request after another on each connection.
fn measure_unstreamed(n_connections: usize) {
    let serving = Serving::start(Duration::ZERO);
    let latencies = client().block_on(async {
        let end = Instant::now() + MEASURED;
        let clients: Vec<_> = (0..n_connections).map(|_| tokio::spawn(ask_until(serving.address, end))).collect();
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.await.expect("it does not panic"));
        }
        all
    });
    let rate = latencies.len() as f64 / MEASURED.as_secs_f64();
    let mut latencies: Vec<f64> = latencies.iter().map(|latency| latency.as_secs_f64() * 1e6).collect();
    latencies.sort_by(f64::total_cmp);
    let quantile = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    println!(
        "server/unstreamed/{n_connections}_at_once  {rate:8.0} requests/s  p50 {:6.0} µs  p99 {:6.0} µs",
        quantile(0.5),
        quantile(0.99)
    );
}

async fn ask_until(address: SocketAddr, end: Instant) -> Vec<Duration> {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
    stream.set_nodelay(true).expect("TCP");
    let request = request(1, false);
    let (mut latencies, mut buffer) = (Vec::with_capacity(1 << 16), vec![0; 4096]);
    loop {
        let start = Instant::now();
        if start > end {
            return latencies;
        }
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut n_read = 0;
        // An answer ends with its object; it is far shorter than the buffer.
        while !buffer[..n_read].ends_with(b"}") {
            let n = stream.read(&mut buffer[n_read..]).await.expect("answered");
            assert!(n > 0, "closed after {}", String::from_utf8_lossy(&buffer[..n_read]));
            n_read += n;
        }
        latencies.push(start.elapsed());
        assert!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..n_read]));
    }
}

/// Streams of long texts, as many as there is time for.
fn measure_tokens(n_streams: usize) {
    let serving = Serving::start(Duration::ZERO);
    let n_tokens: usize = client().block_on(async {
        let end = Instant::now() + MEASURED;
        let clients: Vec<_> = (0..n_streams).map(|_| tokio::spawn(read_until(serving.address, end))).collect();
        let mut n_tokens = 0;
        for client in clients {
            n_tokens += client.await.expect("it does not panic");
        }
        n_tokens
    });
    println!("server/streamed/{n_streams}_at_once  {:8.0} tokens/s", n_tokens as f64 / MEASURED.as_secs_f64());
}

async fn read_until(address: SocketAddr, end: Instant) -> usize {
    let request = request(2000, true);
    let (mut n_tokens, mut buffer) = (0, vec![0; 64 << 10]);
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
    stream.write_all(request.as_bytes()).await.expect("sent");
    while Instant::now() < end {
        let n = stream.read(&mut buffer).await.expect("it goes on");
        assert!(n > 0, "closed");
        // One line begins so for every token and for each choice's end; one that is cut in two by the buffer's end is not counted.
        let mut lines = buffer[..n].split(|&byte| byte == b'\n');
        n_tokens += lines.clone().filter(|line| line.starts_with(b"data: {")).count();
        if lines.any(|line| line == b"data: [DONE]") {
            stream.write_all(request.as_bytes()).await.expect("sent");
        }
    }
    n_tokens
}

/// Streams that say little and stay.
fn measure_open_streams() {
    let serving = Serving::start(Duration::from_millis(200));
    let request = request(4000, true);
    let open = |address| {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut head = [0; 12];
        stream.read_exact(&mut head).expect("answered");
        assert_eq!(&head, b"HTTP/1.1 200");
        stream
    };
    let first: Vec<TcpStream> = (0..100).map(|_| open(serving.address)).collect();
    let before = serving.memory_bytes();
    let streams: Vec<TcpStream> = (0..N_OPEN_STREAMS - first.len()).map(|_| open(serving.address)).collect();
    // What opening them left behind is freed meanwhile.
    std::thread::park_timeout(Duration::from_secs(2));
    let each = (serving.memory_bytes() - before) as f64 / streams.len() as f64;
    println!("server/open_streams/{N_OPEN_STREAMS}  {:8.1} KiB each", each / 1024.0);
}
