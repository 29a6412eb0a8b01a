//! A port of this machine, as a port of a private engine's own network: this binary again, once on each side of a socket file.

use anyhow::Context as _;
use railyard_tests::process::Process;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

/// Arguments that only this bench gives to itself.
const AS_INNER: &str = "--as-inner";
const AS_OUTER: &str = "--as-outer";

/// Passes connections on, if the command line asks for that.
pub fn is_child() -> anyhow::Result<bool> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [AS_INNER, port, socket] => inner(port.parse()?, socket)?,
        [AS_OUTER, socket, port] => outer(socket, port.parse()?)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// Makes `port` of this machine reachable under the same number in the network of process `engine`. It is while both are held.
pub fn into_network_of(engine: u32, port: u16, dir: &Path) -> anyhow::Result<(Process, Process)> {
    let (net, socket) = (format!("--net=/proc/{engine}/ns/net"), dir.join("bridge.sock"));
    let up = Command::new("nsenter").args([&net, "--", "ip", "link", "set", "lo", "up"]).status()?;
    anyhow::ensure!(up.success(), "the private engine's loopback cannot be set up");
    let (exe, log) = (std::env::current_exe()?, dir.join("bridge.log"));
    let mut outside = Command::new(&exe);
    outside.args([AS_OUTER.as_ref(), socket.as_os_str(), port.to_string().as_ref()]);
    let mut inside = Command::new("nsenter");
    inside.args([&net, "--"]).arg(&exe).args([AS_INNER, &port.to_string()]).arg(&socket);
    Ok((Process::start(outside, &log), Process::start(inside, &log)))
}

fn inner(port: u16, socket: &str) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).context("the inner port")?;
    for tcp in listener.incoming() {
        let (tcp, unix) = (tcp?, UnixStream::connect(socket)?);
        join(tcp, unix)?;
    }
    Ok(())
}

fn outer(socket: &str, port: u16) -> anyhow::Result<()> {
    let listener = UnixListener::bind(socket).context("the bridge's socket")?;
    for unix in listener.incoming() {
        let (unix, tcp) = (unix?, TcpStream::connect(("127.0.0.1", port))?);
        join(tcp, unix)?;
    }
    Ok(())
}

/// Passes on both ways, on threads of their own. What breaks off breaks off on both sides.
fn join(tcp: TcpStream, unix: UnixStream) -> io::Result<()> {
    let (mut tcp_in, mut unix_out) = (tcp.try_clone()?, unix.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut tcp_in, &mut unix_out);
        let _ = unix_out.shutdown(Shutdown::Write);
    });
    let (mut tcp_out, mut unix_in) = (tcp, unix);
    std::thread::spawn(move || {
        let _ = io::copy(&mut unix_in, &mut tcp_out);
        let _ = tcp_out.shutdown(Shutdown::Write);
    });
    Ok(())
}
