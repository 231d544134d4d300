//! A TCP proxy between the code under test and a service, that fails on demand.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Moves bytes both ways.
    Open,
    /// Drops every connection and each new one.
    Cut,
    /// Keeps and accepts connections but moves no bytes.
    Stalled,
}

/// Forwards connections to one target until told otherwise. Ends when dropped.
pub struct TcpProxy {
    addr: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    accepting: JoinHandle<()>,
}

impl TcpProxy {
    /// Listens on a free local port and forwards to `target` (`host:port`).
    pub async fn start(target: impl Into<String>) -> Self {
        let target = target.into();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound port");
        let mode = Arc::new(watch::Sender::new(Mode::Open));
        let accepting = tokio::spawn(accept(listener, target, mode.clone()));
        Self { addr, mode, accepting }
    }

    /// Where to connect to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Drops all connections and refuses new ones.
    pub fn cut(&self) {
        self.mode.send_replace(Mode::Cut);
    }

    /// Forwards again: new connections after a cut, the waiting bytes too after a stall.
    pub fn restore(&self) {
        self.mode.send_replace(Mode::Open);
    }

    /// Keeps and accepts connections but moves no bytes.
    pub fn stall(&self) {
        self.mode.send_replace(Mode::Stalled);
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: String, mode: Arc<watch::Sender<Mode>>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((client, _)) = listener.accept().await else { continue };
        if *mode.borrow() != Mode::Cut {
            connections.spawn(forward(client, target.clone(), mode.subscribe()));
        }
    }
}

async fn forward(client: TcpStream, target: String, mode: watch::Receiver<Mode>) {
    let mut cut = mode.clone();
    let both = async {
        let mut opened = mode.clone();
        opened.wait_for(|mode| *mode == Mode::Open).await.ok()?;
        let server = TcpStream::connect(target).await.ok()?;
        client.set_nodelay(true).ok()?;
        server.set_nodelay(true).ok()?;
        let (client_in, client_out) = client.into_split();
        let (server_in, server_out) = server.into_split();
        tokio::join!(pipe(client_in, server_out, mode.clone()), pipe(server_in, client_out, mode.clone()));
        Some(())
    };
    tokio::select! {
        _ = both => {}
        _ = cut.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

async fn pipe(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut mode: watch::Receiver<Mode>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read) = from.read(&mut buffer).await
        && read > 0
    {
        if mode.wait_for(|mode| *mode == Mode::Open).await.is_err() || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
    // The end of one direction is passed on; a peer that is gone already has seen it.
    let _ended = to.shutdown().await;
}
