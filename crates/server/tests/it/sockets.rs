//! A server of the tests on a port of its own, and what clients do with bare sockets.

use std::net::SocketAddr;

use bitnet_server::{Config, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::world::World;

/// A server that listens.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) end: oneshot::Sender<()>,
    pub(crate) server: JoinHandle<()>,
}

/// Any port of this machine.
pub(crate) fn config() -> Config {
    Config { listen: "127.0.0.1:0".parse().expect("an address"), ..Config::default() }
}

pub(crate) async fn start(world: &World) -> Running {
    let server = Server::bind(world.app.clone()).await.expect("a free port");
    let address = server.address().expect("an address");
    let (end, ended) = oneshot::channel();
    let server = tokio::spawn(server.run(async {
        let _ = ended.await;
    }));
    Running { address, end, server }
}

/// A completion request as bytes.
pub(crate) fn request(body: &serde_json::Value) -> String {
    let body = body.to_string();
    format!("POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// Sends bytes and reads until the server closes.
pub(crate) async fn talk(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let _ = stream.write_all(bytes).await;
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    String::from_utf8_lossy(&all).into_owned()
}
