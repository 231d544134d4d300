//! A TCP proxy that breaks on demand.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the wire does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Bytes pass.
    Open,
    /// Connections stay open and nothing passes, as behind a firewall that forgot them.
    Stalled,
    /// Open connections are reset and new ones are closed at once.
    Cut,
}

/// A proxy in front of one target; gone when dropped.
#[derive(Debug)]
pub struct TcpProxy {
    address: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    accepting: JoinHandle<()>,
}

impl TcpProxy {
    /// Listens on a free port and passes everything on to `target` (`host:port`).
    pub async fn start(target: impl Into<String>) -> Self {
        let target = target.into();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let mode = Arc::new(watch::Sender::new(Mode::Open));
        let modes = Arc::clone(&mode);
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                if *modes.borrow() == Mode::Cut {
                    reset(client);
                    continue;
                }
                tokio::spawn(serve(client, target.clone(), modes.subscribe()));
            }
        });
        Self { address, mode, accepting }
    }

    /// Where clients connect to.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Resets every connection and refuses new ones until [`TcpProxy::restore`].
    pub fn cut(&self) {
        self.mode.send_replace(Mode::Cut);
    }

    /// Holds all bytes back, in both directions, without closing anything, until [`TcpProxy::restore`].
    pub fn stall(&self) {
        self.mode.send_replace(Mode::Stalled);
    }

    /// Lets bytes pass again; what was held back arrives.
    pub fn restore(&self) {
        self.mode.send_replace(Mode::Open);
    }

    /// Connections that pass through at this moment.
    pub fn connections(&self) -> usize {
        // Each connection watches the mode in both directions.
        self.mode.receiver_count() / 2
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.mode.send_replace(Mode::Cut);
    }
}

/// Closes with a reset instead of a polite end.
fn reset(stream: TcpStream) {
    let _best_effort = stream.set_zero_linger();
}

async fn serve(client: TcpStream, target: String, mode: watch::Receiver<Mode>) {
    let Ok(server) = TcpStream::connect(&target).await else { return reset(client) };
    let _best_effort = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let there = tokio::spawn(pump(from_client, to_server, mode.clone()));
    let back = tokio::spawn(pump(from_server, to_client, mode));
    // Both halves of a socket are needed to reset it.
    if let (Ok((from_client, to_server)), Ok((from_server, to_client))) = tokio::join!(there, back) {
        for (read, write) in [(from_client, to_client), (from_server, to_server)] {
            if let Ok(stream) = read.reunite(write) {
                reset(stream);
            }
        }
    }
}

/// Passes bytes on until an end closes or the wire is cut.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
) -> (OwnedReadHalf, OwnedWriteHalf) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read.unwrap_or(0),
            () = until(&mut mode, |mode| mode == Mode::Cut) => return (from, to),
        };
        until(&mut mode, |mode| mode != Mode::Stalled).await;
        if *mode.borrow() == Mode::Cut {
            return (from, to);
        }
        if read == 0 {
            break;
        }
        let written = tokio::select! {
            written = to.write_all(&buffer[..read]) => written.is_ok(),
            () = until(&mut mode, |mode| mode == Mode::Cut) => return (from, to),
        };
        if !written {
            break;
        }
    }
    let _closed = to.shutdown().await;
    (from, to)
}

/// Waits for a mode; a proxy that is gone counts as cut.
async fn until(mode: &mut watch::Receiver<Mode>, wanted: impl Fn(Mode) -> bool) {
    let _gone = mode.wait_for(|mode| wanted(*mode)).await.map(|mode| *mode);
}
